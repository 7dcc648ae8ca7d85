"""Finite scalar quantization (Mentzer et al. 2023, arXiv:2309.15505): each number of a vector is rounded by itself.

Legend: B batch, C numbers of a code, H height, W width.
"""

import torch
from torch import Tensor

from stages.models.precision import full_precision
from stages.models.quantizers.configs import FSQQuantizerConfig
from stages.models.quantizers.quantizer import Quantized, Quantizer, StepKeys, exact

EDGE = 1e-3
"""How far the bounding reaches beyond the outermost levels, so that rounding gets there (the paper's appendix A)."""


class FSQQuantizer(Quantizer):
    """The codes are a lattice in [-1, 1]**C; nothing of it is learnt."""

    levels_C: Tensor
    half_C: Tensor
    strides_C: Tensor

    def __init__(self, config: FSQQuantizerConfig) -> None:
        super().__init__()
        self.num_codes, self.dim = config.num_codes, config.dim
        levels_C = torch.tensor(config.levels)
        self.register_buffer("levels_C", levels_C, persistent=False)
        self.register_buffer("half_C", (levels_C // 2).to(torch.get_default_dtype()), persistent=False)
        # The first number counts fastest, as in the paper's code.
        self.register_buffer("strides_C", torch.cumprod(levels_C, 0) // levels_C, persistent=False)

    def forward(self, z_BCHW: Tensor, at: StepKeys | None = None) -> Quantized:
        """z_BCHW, bounded by tanh and rounded; the gradient goes straight through the rounding. No loss."""
        with exact(z_BCHW):
            bounded_BCHW = self._bounded(z_BCHW)
            rounded_BCHW = bounded_BCHW + (bounded_BCHW.round() - bounded_BCHW).detach()
            z_q_BCHW = rounded_BCHW / self._across(self.half_C)
            return Quantized(z_q_BCHW, z_q_BCHW.new_zeros(len(z_BCHW)), self._numbers(bounded_BCHW.detach()))

    @torch.no_grad()
    def nearest(self, z_BCHW: Tensor) -> Tensor:
        """The lattice point at each place: z_BCHW -> indices_BHW."""
        with exact(z_BCHW):
            return self._numbers(self._bounded(z_BCHW))

    def embed(self, indices_BHW: Tensor) -> Tensor:
        """The lattice points of these numbers: indices_BHW -> z_q_BCHW."""
        places_BCHW = indices_BHW[:, None] // self._across(self.strides_C) % self._across(self.levels_C)
        half_C = self._across(self.half_C)
        return (places_BCHW - half_C) / half_C

    def _bounded(self, z_BCHW: Tensor) -> Tensor:
        """Each number between its outermost levels, which are integers: L of them from -(L // 2) on."""
        z_BCHW = full_precision(z_BCHW)
        levels_C = self.levels_C.to(z_BCHW.dtype)
        half_C = (levels_C - 1) * (1 + EDGE) / 2
        # An even number of levels has none at 0: the range is moved by half a level, and zero stays where it was.
        offset_C = torch.where(self.levels_C % 2 == 0, 0.5, 0.0).to(z_BCHW.dtype)
        shift_C = torch.atanh(offset_C / half_C)
        return torch.tanh(z_BCHW + self._across(shift_C)) * self._across(half_C) - self._across(offset_C)

    def _numbers(self, bounded_BCHW: Tensor) -> Tensor:
        places_BCHW = bounded_BCHW.round().long() + self._across(self.levels_C // 2)
        return (places_BCHW * self._across(self.strides_C)).sum(dim=1)

    @staticmethod
    def _across(values_C: Tensor) -> Tensor:
        return values_C.view(1, -1, 1, 1)
