"""What a quantizer needs of a training step and gives to it, where a rank sees only its slice of the global batch.

Legend: B batch of this rank or a part of it, C channels, H height, W width, G groups, K codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.runtime import Rank
from stages.models.dropout import sample_keys
from stages.models.quantizers.quantizer import Place, Quantizer, Statistics, StepKeys
from stages.models.tokenizer import TokenizerOutput
from stages.training.tokenizer_config import TokenizerConfig


@dataclass(frozen=True)
class CodebookTerms:
    """Of one step, on one rank."""

    quantizer: Quantizer
    config: TokenizerConfig
    rank: Rank
    step: int
    """Updates made before."""
    sum_over_ranks: Callable[[Tensor], Tensor]

    @property
    def first(self) -> int:
        """Place of this rank's first picture in the global batch."""
        return self.config.batch_size * self.rank.rank // self.rank.world

    def keys(self, first: int, x_BCHW: Tensor) -> StepKeys:
        """The keys of the pictures in x_BCHW, of which the first is this rank's picture number `first`."""
        position = self.step * self.config.batch_size + self.first + first
        positions_B = torch.arange(position, position + len(x_BCHW), device=x_BCHW.device)
        return StepKeys(self.step, sample_keys(self.config.seed, positions_B))

    def loss(self, output: TokenizerOutput, soft_counts_GK: Tensor | None) -> Tensor:
        """What the quantizer adds to each picture's loss: loss_B.

        `soft_counts_GK` are those of the global batch; None if this rank's slice is all in `output`, and then it is
        collective for quantizers that have such.
        """
        if output.soft_counts_BGK is None:
            return output.codebook_loss_B
        if soft_counts_GK is None:
            soft_counts_GK = self.total([output.soft_counts_BGK.detach()])
        return output.codebook_loss_B + self.quantizer.batch_loss(output.soft_counts_BGK, soft_counts_GK)

    def total(self, soft_counts: Sequence[Tensor]) -> Tensor:
        """The sum over pictures, micro-batches and ranks. Collective."""
        return self.sum_over_ranks(torch.stack([counts_BGK.sum(dim=0) for counts_BGK in soft_counts]).sum(dim=0))

    def statistics(self, z_BCHW: Tensor, indices_BHW: Tensor) -> Statistics:
        """The codebook's statistics of the global batch, from all of this rank's slice. Collective."""
        places = indices_BHW[0].numel()
        place = Place(
            first=self.first * places,
            num_vectors=self.config.batch_size * places,
            seed=self.config.seed,
            step=self.step,
        )
        statistics = self.quantizer.statistics(z_BCHW, indices_BHW, place)
        return statistics.like(self.sum_over_ranks(statistics.flat()))
