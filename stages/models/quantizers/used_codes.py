"""Codes numbered anew: those that a corpus uses first, without gaps (`remap` of taming-transformers).

Legend: B batch, C length of a code, H height, W width, K codes of the quantizer as it was trained, U numbers left.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pipeline.errors import ConfigError, DataError
from stages.models.quantizers.codebook import nearest_code
from stages.models.quantizers.quantizer import Quantized, Quantizer, StepKeys

ROWS_AT_ONCE = 1024
"""Unknown codes whose distances to all used ones are held at once."""

Unknown = Literal["nearest", "random", "extra"] | int
"""What becomes of codes that the corpus does not use: the nearest used one, one that is drawn for each, a number of
their own that decodes as the first, or this number."""


class Numbering(NamedTuple):
    """Tables between old and new numbers."""

    new_K: Tensor
    old_U: Tensor


class UsedCodes(Quantizer):
    """Another quantizer behind a table of new numbers. Its codes stay as they are: nothing of it learns any more."""

    new_K: Tensor
    old_U: Tensor

    def __init__(self, quantizer: Quantizer, *, num_codes: int) -> None:
        super().__init__()
        self.num_codes, self.dim = num_codes, quantizer.dim
        self.quantizer = quantizer.requires_grad_(False)
        self.register_buffer("new_K", torch.zeros(quantizer.num_codes, dtype=torch.int64))
        self.register_buffer("old_U", torch.zeros(num_codes, dtype=torch.int64))

    def forward(self, z_BCHW: Tensor, at: StepKeys | None = None) -> Quantized:
        """z_BCHW to codes that have a number; the gradient is the quantizer's, and so is the loss."""
        quantized: Quantized = self.quantizer(z_BCHW, at)
        indices_BHW = self.new_K[quantized.indices_BHW]
        z_q_BCHW = quantized.z_q_BCHW + (self.embed(indices_BHW) - quantized.z_q_BCHW).detach()
        return Quantized(z_q_BCHW, quantized.codebook_loss_B, indices_BHW)

    def nearest(self, z_BCHW: Tensor) -> Tensor:
        """The new number of the quantizer's code at each place: z_BCHW -> indices_BHW."""
        return self.new_K[self.quantizer.nearest(z_BCHW)]

    def embed(self, indices_BHW: Tensor) -> Tensor:
        """The codes of these new numbers: indices_BHW -> z_q_BCHW."""
        return self.quantizer.embed(self.old_U[indices_BHW])


@torch.no_grad()
def number_used_codes(quantizer: Quantizer, counts_K: Tensor, unknown: Unknown, *, seed: int = 0) -> Numbering:
    """New numbers for the codes that occur, in the old order, and for all others as `unknown` says.

    Raises DataError if there are counts of another number of codes, or none above zero; ConfigError if `unknown` is a
    number that no code has.
    """
    if len(counts_K) != quantizer.num_codes:
        raise DataError(
            f"{len(counts_K)} codes were counted, the tokenizer has {quantizer.num_codes}: count tokens of this one"
        )
    old_U = counts_K.nonzero()[:, 0]
    if not len(old_U):
        raise DataError("no code occurs: give tokens of at least one picture")
    unknown_N = (counts_K == 0).nonzero()[:, 0]
    new_K = torch.zeros(len(counts_K), dtype=torch.int64)
    new_K[old_U] = torch.arange(len(old_U))
    if unknown == "nearest":
        new_K[unknown_N] = _nearest_used(quantizer, unknown_N, old_U)
    elif unknown == "random":
        draw = torch.Generator().manual_seed(seed)
        new_K[unknown_N] = torch.randint(len(old_U), (len(unknown_N),), generator=draw)
    elif unknown == "extra":
        new_K[unknown_N] = len(old_U)
        old_U = torch.cat([old_U, old_U[:1]])
    elif 0 <= unknown < len(old_U):
        new_K[unknown_N] = unknown
    else:
        raise ConfigError(f"unknown={unknown} is no number of {len(old_U)} used codes: give one from 0 on below that")
    return Numbering(new_K, old_U)


def _nearest_used(quantizer: Quantizer, unknown_N: Tensor, old_U: Tensor) -> Tensor:
    """The new number of the used code that is nearest to each unknown one."""
    used_UC = quantizer.embed(old_U.view(1, 1, -1))[0, :, 0].t()
    found = [
        nearest_code(quantizer.embed(rows.view(1, 1, -1)), used_UC) for rows in torch.split(unknown_N, ROWS_AT_ONCE)
    ]
    return torch.cat([unknown_N[:0], *(numbers_BHW.flatten() for numbers_BHW in found)])
