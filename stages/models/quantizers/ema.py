"""A codebook learnt by exponential moving averages, with restart of codes that nobody chooses.

Legend: B batch, C = D length of a code, H height, W width, N vectors, K codes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.models.precision import full_precision
from stages.models.quantizers.codebook import CodeTable, nearest_code, vectors
from stages.models.quantizers.configs import EMAQuantizerConfig
from stages.models.quantizers.quantizer import Place, Quantized, Quantizer, Statistics, StepKeys, exact

COUNT_EPSILON = 1e-5


@dataclass(frozen=True)
class EMAStatistics(Statistics):
    """What the running means take in."""

    sums_KD: Tensor
    """Of the vectors that chose each code."""
    candidates_KD: Tensor
    """The vectors at the positions drawn for restarts, zero where another rank holds the position."""


class EMAQuantizer(Quantizer):
    """Nearest-code quantization; the codebook is state, never a parameter an optimizer sees."""

    counts: Tensor
    sums: Tensor

    def __init__(self, config: EMAQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_codes, self.dim = config.num_codes, config.dim
        self.embedding = CodeTable(config.num_codes, config.dim)
        self.embedding.weight.requires_grad_(False)
        # Counts of zero are below every threshold: the first update draws the whole codebook from its batch.
        self.register_buffer("counts", torch.zeros(config.num_codes))
        self.register_buffer("sums", torch.zeros(config.num_codes, config.dim))

    def forward(self, z_BCHW: Tensor, at: StepKeys | None = None) -> Quantized:
        """z_BCHW to its nearest codes; the gradient goes straight to the vectors, the loss's as well.

        The loss is beta * the mean squared distance of each picture's vectors to their codes.
        """
        with exact(z_BCHW):
            z = full_precision(z_BCHW)
            indices_BHW = self.nearest(z.detach())
            codes_BCHW = self.embed(indices_BHW)
            codebook_loss_B = self.config.commitment * F.mse_loss(z, codes_BCHW, reduction="none").mean(dim=(1, 2, 3))
            return Quantized(z + (codes_BCHW - z).detach(), codebook_loss_B, indices_BHW)

    def nearest(self, z_BCHW: Tensor) -> Tensor:
        """The nearest code's number at each place: z_BCHW -> indices_BHW; the lowest number wins a tie."""
        return nearest_code(z_BCHW, self.embedding.weight)

    def embed(self, indices_BHW: Tensor) -> Tensor:
        """The codes of these numbers: indices_BHW -> z_q_BCHW."""
        z_q_BCHW: Tensor = self.embedding(indices_BHW)
        return z_q_BCHW

    @torch.no_grad()
    def statistics(self, z_BCHW: Tensor, indices_BHW: Tensor, place: Place) -> EMAStatistics:
        """What `update` needs to know of a slice of the global batch."""
        vectors_ND, indices_N = vectors(z_BCHW), indices_BHW.flatten()
        counts_K = torch.bincount(indices_N, minlength=self.config.num_codes).to(self.counts.dtype)
        sums_KD = torch.zeros_like(self.sums).index_add_(0, indices_N, vectors_ND)
        local_K = draw_positions(self.num_codes, place).to(vectors_ND.device) - place.first
        mine_K = (local_K >= 0) & (local_K < len(vectors_ND))
        candidates_KD = torch.where(mine_K[:, None], vectors_ND[local_K.clamp(0, len(vectors_ND) - 1)], 0.0)
        return EMAStatistics(counts_K, sums_KD, candidates_KD)

    @torch.no_grad()
    def update(self, statistics: Statistics) -> int:
        """Moves the codebook by one step of the global batch's statistics; the number of codes restarted."""
        assert isinstance(statistics, EMAStatistics)
        decay = self.config.decay
        self.counts.lerp_(statistics.counts_K, 1 - decay)
        self.sums.lerp_(statistics.sums_KD, 1 - decay)
        threshold = self.config.restart_threshold * statistics.counts_K.sum() / self.config.num_codes
        dead_K = self.counts < threshold
        # A restarted code begins at the threshold: one that nobody chooses is drawn anew at the next step.
        self.counts.copy_(torch.where(dead_K, threshold, self.counts))
        self.sums.copy_(torch.where(dead_K[:, None], statistics.candidates_KD * threshold, self.sums))
        alive_K = self.counts > COUNT_EPSILON
        means_KD = self.sums / self.counts.clamp(min=COUNT_EPSILON)[:, None]
        self.embedding.weight.copy_(torch.where(alive_K[:, None], means_KD, self.embedding.weight))
        return int(dead_K.sum())


def draw_positions(num_codes: int, place: Place) -> Tensor:
    """Positions among the vectors of the global batch, one for each code, a function of (seed, step) alone: draw_K.

    Without replacement while there are enough vectors. Drawn on the CPU so that every device agrees.
    """
    generator = torch.Generator().manual_seed((place.seed * 1_000_003 + place.step) % 2**63)
    order = torch.randperm(place.num_vectors, generator=generator)
    return order.repeat(-(-num_codes // place.num_vectors))[:num_codes]
