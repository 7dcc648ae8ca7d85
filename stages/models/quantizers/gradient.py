"""A codebook trained by the generator's optimizer, as in VQGAN; weights and arithmetic are taming-transformers'.

Legend: B batch, C length of a code, H height, W width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.precision import full_precision
from stages.models.quantizers.codebook import CodeTable, nearest_code
from stages.models.quantizers.configs import GradientQuantizerConfig
from stages.models.quantizers.quantizer import Quantized, Quantizer, StepKeys, exact


class GradientQuantizer(Quantizer):
    """Nearest-code quantization with a codebook among the parameters."""

    def __init__(self, config: GradientQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_codes, self.dim = config.num_codes, config.dim
        self.embedding = CodeTable(config.num_codes, config.dim)
        nn.init.uniform_(self.embedding.weight, -1 / config.num_codes, 1 / config.num_codes)

    def forward(self, z_BCHW: Tensor, at: StepKeys | None = None) -> Quantized:
        """z_BCHW to its nearest codes; the decoder's gradient goes straight to the vectors, none of it to the codes.

        The loss pulls codes to vectors and vectors to codes by their mean squared distance (van den Oord et al. 2017,
        eq. 3); beta weighs the first of the two with `legacy`, the second without.
        """
        with exact(z_BCHW):
            z = full_precision(z_BCHW)
            indices_BHW = self.nearest(z)
            codes_BCHW = self.embed(indices_BHW)
            of_codes_B = F.mse_loss(codes_BCHW, z.detach(), reduction="none").mean(dim=(1, 2, 3))
            of_vectors_B = F.mse_loss(z, codes_BCHW.detach(), reduction="none").mean(dim=(1, 2, 3))
            weighted, whole = (of_codes_B, of_vectors_B) if self.config.legacy else (of_vectors_B, of_codes_B)
            return Quantized(z + (codes_BCHW - z).detach(), whole + self.config.beta * weighted, indices_BHW)

    def nearest(self, z_BCHW: Tensor) -> Tensor:
        """The nearest code's number at each place: z_BCHW -> indices_BHW; the lowest number wins a tie."""
        return nearest_code(z_BCHW, self.embedding.weight)

    def embed(self, indices_BHW: Tensor) -> Tensor:
        """The codes of these numbers: indices_BHW -> z_q_BCHW."""
        z_q_BCHW: Tensor = self.embedding(indices_BHW)
        return z_q_BCHW
