"""Codes as directions: vectors and codes are scaled to length 1 (Yu et al. 2022, ViT-VQGAN, section 3.2).

Legend: B batch, C length of a code, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.models.precision import full_precision
from stages.models.quantizers.configs import CosineQuantizerConfig, EMAQuantizerConfig
from stages.models.quantizers.ema import EMAQuantizer, EMAStatistics
from stages.models.quantizers.quantizer import Place, Quantized, Quantizer, Statistics, StepKeys, exact


class CosineQuantizer(Quantizer):
    """A codebook of running means on the unit sphere, with their restarts.

    Codes trained by gradient, as published, need large batches: after 900 steps of 8 emoji of 32x32 they had 77 of 128
    codes in use and 15.7 dB, running means 127 codes and 16.2 dB.
    """

    def __init__(self, config: CosineQuantizerConfig) -> None:
        super().__init__()
        self.num_codes, self.dim = config.num_codes, config.dim
        self.codebook = EMAQuantizer(EMAQuantizerConfig(**config.model_dump(exclude={"kind"})))
        self._scale_codes()

    def forward(self, z_BCHW: Tensor, at: StepKeys | None = None) -> Quantized:
        """z_BCHW to the codes at the smallest angle; the gradient goes straight to the scaled vectors.

        The loss is that of `ema` between scaled vectors and codes: a squared distance of 2 - 2 cos(angle).
        """
        quantized: Quantized = self.codebook(directions(z_BCHW))
        return quantized

    def nearest(self, z_BCHW: Tensor) -> Tensor:
        """The code at the smallest angle at each place: z_BCHW -> indices_BHW."""
        return self.codebook.nearest(directions(z_BCHW))

    def embed(self, indices_BHW: Tensor) -> Tensor:
        """The codes of these numbers, of length 1: indices_BHW -> z_q_BCHW."""
        return self.codebook.embed(indices_BHW)

    @torch.no_grad()
    def statistics(self, z_BCHW: Tensor, indices_BHW: Tensor, place: Place) -> EMAStatistics:
        """What `update` needs to know of a slice of the global batch."""
        return self.codebook.statistics(directions(z_BCHW), indices_BHW, place)

    @torch.no_grad()
    def update(self, statistics: Statistics) -> int:
        """Moves the codes to the directions of their running means; the number of codes restarted."""
        restarted = self.codebook.update(statistics)
        self._scale_codes()
        return restarted

    @torch.no_grad()
    def _scale_codes(self) -> None:
        weight_KD = self.codebook.embedding.weight
        weight_KD.copy_(F.normalize(weight_KD, dim=1))


def directions(z_BCHW: Tensor) -> Tensor:
    """Vectors at least float32 and of length 1."""
    with exact(z_BCHW):
        return F.normalize(full_precision(z_BCHW), dim=1)
