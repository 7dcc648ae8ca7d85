"""Looking up vectors in a table of codes, and codes in it by their numbers.

Legend: B batch, C = D length of a code, H height, W width, N vectors, K codes.
"""

import torch
from torch import Tensor, nn

from stages.models.precision import full_precision
from stages.models.quantizers.quantizer import exact


def vectors(z_BCHW: Tensor) -> Tensor:
    """z_BCHW as a list of vectors, at least float32, picture by picture and row by row: vectors_ND, detached."""
    return full_precision(z_BCHW.detach()).permute(0, 2, 3, 1).reshape(-1, z_BCHW.shape[1])


@torch.no_grad()
def nearest_code(z_BCHW: Tensor, codes_KD: Tensor) -> Tensor:
    """The nearest code's number at each place: indices_BHW; the lowest number wins a tie."""
    vectors_ND = vectors(z_BCHW)
    codes_KD = full_precision(codes_KD)
    with exact(z_BCHW):
        # |z - e|^2 without |z|^2, which is the same for every code
        distances_NK = torch.addmm(codes_KD.square().sum(dim=1), vectors_ND, codes_KD.t(), alpha=-2)
    batch, _, height, width = z_BCHW.shape
    return distances_NK.argmin(dim=1).view(batch, height, width)


class CodeTable(nn.Embedding):
    """A table of codes that gives maps: indices_BHW -> z_q_BCHW."""

    def forward(self, indices_BHW: Tensor) -> Tensor:
        """The codes of these numbers."""
        return super().forward(indices_BHW).permute(0, 3, 1, 2)
