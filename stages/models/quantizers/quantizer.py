"""What every quantizer is to the tokenizer and to its training.

`forward` changes nothing. Training collects `Statistics` of the global batch (they are sums, so ranks add theirs) and
calls `update` once the step is known to be good. Legend: B batch, C length of a code, H height, W width, K codes, G
groups.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from stages.models.precision import full_precision


class StepKeys(NamedTuple):
    """What a quantizer that draws at random needs to know of a training step."""

    step: int
    """Updates made before."""
    keys_B: Tensor
    """The pictures' keys, see `stages.models.dropout.sample_keys`."""


class Quantized(NamedTuple):
    """What a quantizer makes of a map."""

    z_q_BCHW: Tensor
    """The codes in place of the vectors, with a gradient to the vectors."""
    codebook_loss_B: Tensor
    """All that each picture adds to the loss by itself, weighted; their mean over the global batch is the loss."""
    indices_BHW: Tensor
    soft_counts_BGK: Tensor | None = None
    """How often each picture would choose each code, as probabilities added up, with their gradient; of quantizers
    whose loss also depends on the global batch as a whole, see `Quantizer.batch_loss`."""


class Place(NamedTuple):
    """Which vectors of which global batch a slice of it holds; they are counted picture by picture, row by row."""

    first: int
    """Position of the slice's first vector."""
    num_vectors: int
    """Of the global batch."""
    seed: int
    step: int
    """Updates made before."""


@dataclass(frozen=True)
class Statistics:
    """Sums over vectors of a batch; adding those of two halves of a batch gives those of the batch."""

    counts_K: Tensor
    """How often each code was chosen."""

    def flat(self) -> Tensor:
        """All of it as one vector, to be summed over ranks in one message."""
        return torch.cat([part.flatten() for part in self._parts()])

    def like(self, flat: Tensor) -> Self:
        """`flat` cut into parts of these shapes."""
        own = self._parts()
        parts = torch.split(flat, [part.numel() for part in own])
        return type(self)(*(part.view_as(shape) for part, shape in zip(parts, own, strict=True)))

    def _parts(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]


class Quantizer(nn.Module, ABC):
    """Maps of vectors to maps of code numbers and back."""

    num_codes: int
    dim: int
    """Length of the vectors that it takes, and of its codes."""
    embed: Callable[[Tensor], Tensor]
    """The codes of these numbers: indices_BHW -> z_q_BCHW. A method, or a table of codes."""
    looks_at_batches = False
    """Whether there are soft counts, and a `batch_loss` of them."""

    @abstractmethod
    def forward(self, z_BCHW: Tensor, at: StepKeys | None = None) -> Quantized:
        """z_BCHW to codes, with gradients. Without `at` nothing is random."""

    @abstractmethod
    def nearest(self, z_BCHW: Tensor) -> Tensor:
        """The code's number at each place, as it is when training is over: z_BCHW -> indices_BHW."""

    def batch_loss(self, soft_counts_BGK: Tensor, total_GK: Tensor) -> Tensor:
        """Each picture's share of a loss of the global batch as a whole, weighted: loss_B.

        `total_GK` are the soft counts added up over the global batch, detached. The mean over the global batch has the
        loss's value and its exact gradient. Zero where every picture is judged by itself.
        """
        return soft_counts_BGK.new_zeros(len(soft_counts_BGK))

    @torch.no_grad()
    def statistics(self, z_BCHW: Tensor, indices_BHW: Tensor, place: Place) -> Statistics:
        """What `update` needs to know of a slice of the global batch."""
        return Statistics(count_codes(indices_BHW, self.num_codes).to(full_precision(z_BCHW).dtype))

    @torch.no_grad()
    def update(self, statistics: Statistics) -> int:
        """Moves what no optimizer does by one step of the global batch's statistics; the number of codes restarted."""
        return 0


def count_codes(indices_BHW: Tensor, num_codes: int) -> Tensor:
    """How often each code was chosen: counts_K, integers."""
    return torch.bincount(indices_BHW.flatten(), minlength=num_codes)


def exact(z_BCHW: Tensor) -> torch.autocast:
    """No autocast: half precision would misjudge near ties and lose small distances."""
    return torch.autocast(z_BCHW.device.type, enabled=False)


def perplexity(counts_K: Tensor) -> float:
    """exp of the entropy of how often each code is used: K when all are used alike, 1 when one is."""
    shares_K = counts_K.double() / counts_K.sum().clamp(min=1)
    return float(torch.special.entr(shares_K).sum().exp())


def codes_used(counts_K: Tensor) -> int:
    """How many codes were chosen at least once."""
    return int((counts_K > 0).sum())
