"""A codebook learnt by exponential moving averages, with restart of codes that nobody chooses.

`forward` changes nothing. Training collects `Statistics` of the global batch (they are sums, so ranks add theirs) and
calls `update` once the step is known to be good. Legend: B batch, C = D length of a code, H height, W width, N vectors,
K codes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.tokenizer_config import EMAQuantizerConfig

COUNT_EPSILON = 1e-5


class Quantized(NamedTuple):
    """What the quantizer makes of a map."""

    z_q_BCHW: Tensor
    """The codes in place of the vectors; its gradient goes straight to the vectors."""
    commitment_B: Tensor
    """beta * mean squared distance of each picture's vectors to their codes; gradient to the vectors only."""
    indices_BHW: Tensor


class Statistics(NamedTuple):
    """Sums over vectors of a batch; adding those of two halves of a batch gives those of the batch."""

    counts_K: Tensor
    sums_KD: Tensor
    candidates_KD: Tensor
    """The vectors at the positions drawn for restarts, zero where another rank holds the position."""

    def flat(self) -> Tensor:
        """All of it as one vector, to be summed over ranks in one message."""
        return torch.cat([part.flatten() for part in self])

    def like(self, flat: Tensor) -> "Statistics":
        """`flat` cut into parts of these shapes."""
        parts = torch.split(flat, [part.numel() for part in self])
        return Statistics(*(part.view_as(own) for part, own in zip(parts, self, strict=True)))


class EMAQuantizer(nn.Module):
    """Nearest-code quantization; the codebook is state, never a parameter an optimizer sees."""

    counts: Tensor
    sums: Tensor

    def __init__(self, config: EMAQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.num_codes, config.dim)
        self.embedding.weight.requires_grad_(False)
        # Counts of zero are below every threshold: the first update draws the whole codebook from its batch.
        self.register_buffer("counts", torch.zeros(config.num_codes))
        self.register_buffer("sums", torch.zeros(config.num_codes, config.dim))

    def forward(self, z_BCHW: Tensor) -> Quantized:
        """z_BCHW to its nearest codes."""
        with _exact(z_BCHW):
            z = at_least_float32(z_BCHW)
            indices_BHW = self.nearest(z.detach())
            codes_BCHW = self.embed(indices_BHW)
            commitment_B = self.config.commitment * F.mse_loss(z, codes_BCHW, reduction="none").mean(dim=(1, 2, 3))
            return Quantized(z + (codes_BCHW - z).detach(), commitment_B, indices_BHW)

    @torch.no_grad()
    def nearest(self, z_BCHW: Tensor) -> Tensor:
        """The nearest code's number at each place: z_BCHW -> indices_BHW; the lowest number wins a tie."""
        vectors_ND = vectors(z_BCHW)
        codes_KD = at_least_float32(self.embedding.weight)
        with _exact(z_BCHW):
            # |z - e|^2 without |z|^2, which is the same for every code
            distances_NK = torch.addmm(codes_KD.square().sum(dim=1), vectors_ND, codes_KD.t(), alpha=-2)
        batch, _, height, width = z_BCHW.shape
        return distances_NK.argmin(dim=1).view(batch, height, width)

    def embed(self, indices_BHW: Tensor) -> Tensor:
        """The codes of these numbers: indices_BHW -> z_q_BCHW."""
        codes_BHWC: Tensor = self.embedding(indices_BHW)
        return codes_BHWC.permute(0, 3, 1, 2)

    @torch.no_grad()
    def statistics(self, z_BCHW: Tensor, indices_BHW: Tensor, *, draw_K: Tensor, first: int = 0) -> Statistics:
        """What `update` needs to know of a slice of the global batch.

        `draw_K` holds positions among the global batch's vectors (picture by picture, row by row), the same on every
        rank (`draw_positions`); `first` is the position of this slice's first vector.
        """
        vectors_ND, indices_N = vectors(z_BCHW), indices_BHW.flatten()
        counts_K = torch.bincount(indices_N, minlength=self.config.num_codes).float()
        sums_KD = torch.zeros_like(self.sums).index_add_(0, indices_N, vectors_ND)
        local_K = draw_K.to(vectors_ND.device) - first
        mine_K = (local_K >= 0) & (local_K < len(vectors_ND))
        candidates_KD = torch.where(mine_K[:, None], vectors_ND[local_K.clamp(0, len(vectors_ND) - 1)], 0.0)
        return Statistics(counts_K, sums_KD, candidates_KD)

    @torch.no_grad()
    def update(self, statistics: Statistics) -> int:
        """Moves the codebook by one step of the global batch's statistics; the number of codes restarted."""
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

    def draw_positions(self, num_vectors: int, *, seed: int, step: int) -> Tensor:
        """K positions among the `num_vectors` of the global batch, a function of (seed, step) alone: draw_K.

        Without replacement while there are enough vectors. Drawn on the CPU so that every device agrees.
        """
        generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
        order = torch.randperm(num_vectors, generator=generator)
        return order.repeat(-(-self.config.num_codes // num_vectors))[: self.config.num_codes]


def _exact(z_BCHW: Tensor) -> torch.autocast:
    """No autocast: half precision would misjudge near ties and lose small distances."""
    return torch.autocast(z_BCHW.device.type, enabled=False)


def vectors(z_BCHW: Tensor) -> Tensor:
    """z_BCHW as a list of vectors of at least float32, picture by picture and row by row: vectors_ND."""
    return at_least_float32(z_BCHW.detach()).permute(0, 2, 3, 1).reshape(-1, z_BCHW.shape[1])


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def perplexity(counts_K: Tensor) -> float:
    """exp of the entropy of how often each code is used: K when all are used alike, 1 when one is."""
    shares_K = counts_K.double() / counts_K.sum().clamp(min=1)
    return float(torch.special.entr(shares_K).sum().exp())


def codes_used(counts_K: Tensor) -> int:
    """How many codes were chosen at least once."""
    return int((counts_K > 0).sum())
