"""Gradients of the tokenizer's two networks on a rank's slice of the batch, in micro-batches or at once.

What a micro-batch must not change is the adaptive weight: a ratio of norms of gradients of the whole batch. It has to
be known before the generator's backward pass, so with several micro-batches the generator runs twice while the
adversarial term is on: first without a graph but for the last layer's, for what the losses want of the pictures; then
with one, to send it back. Two things do depend on the micro-batch: BatchNorm's statistics, and which values dropout
drops. A quantizer whose loss depends on the global batch as a whole (entropy) has its encoder run twice as well.
Legend: B batch of this rank, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.runtime import Rank
from stages.models.losses.perceptual import FrozenDistance
from stages.models.quantizers.quantizer import Statistics, StepKeys
from stages.models.tokenizer import Tokenizer, TokenizerOutput
from stages.training.adversarial import (
    PictureGradient,
    adaptive_weight,
    discriminator_objective,
    generator_objective,
    picture_gradient,
    send_back,
    through_last_layer,
)
from stages.training.checkpoints import reseed
from stages.training.codebook_terms import CodebookTerms
from stages.training.fabric import Fabric, accumulating, all_reduce_sum, autocast
from stages.training.tokenizer_config import TokenizerConfig
from stages.training.tokenizer_state import Networks, TokenizerState

Terms = dict[str, Tensor]


class StepNumbers(NamedTuple):
    """What a step knows beside its gradients."""

    shares: Terms
    """This rank's share of each loss term and mean: shares add up to the value over the global batch."""
    whole: Terms
    """Numbers that are of the global batch already."""
    statistics: Statistics
    """The codebook's, of the global batch."""


class FirstLook(NamedTuple):
    """The result of the pass without a graph."""

    gradients: list[PictureGradient]
    """Of each micro-batch."""
    ratio: Tensor
    """The adaptive weight of the global batch."""
    soft_counts_GK: Tensor | None
    """The quantizer's, of the global batch, if it has any."""


@dataclass(frozen=True)
class StepGradients:
    """Computes the gradients of one step; changes nothing but `.grad`."""

    config: TokenizerConfig
    fabric: Fabric
    rank: Rank
    state: TokenizerState
    networks: Networks
    perceptual: FrozenDistance
    micro_batch: int
    """Pictures at once."""
    alone: bool = False
    """Never talk to other ranks; the gradients are those of this rank's pictures."""

    @property
    def largest_slice(self) -> int:
        """Pictures in the largest slice that any rank gets."""
        return -(-self.config.batch_size // self.rank.world)

    def take(self, x_BCHW: Tensor, *, adversarial_weight: float, trains_discriminator: bool) -> StepNumbers:
        """Backward through both networks. `adversarial_weight` is the scheduled one. Collective."""
        x_hat_BCHW, numbers = self._of_generator(x_BCHW, adversarial_weight)
        if trains_discriminator:
            numbers.shares.update(self._of_discriminator(x_BCHW, x_hat_BCHW))
        return numbers

    def try_out(self, micro_batch: int) -> None:
        """Run the costliest step there is in micro-batches of this size, on made-up pictures, and forget it."""
        state, adversary = self.state, self.config.losses.discriminator
        tokenizer, parameters = state.tokenizer, [*state.tokenizer.parameters(), *state.discriminator.parameters()]
        buffers = [(buffer, buffer.clone()) for buffer in state.discriminator.buffers()]
        x_BCHW = torch.rand(self.largest_slice, tokenizer.channels, tokenizer.image_size, tokenizer.image_size)
        x_BCHW = x_BCHW.to(self.fabric.device, parameters[0].dtype, memory_format=torch.channels_last)
        # Adam makes its moments at the first step, unless a checkpoint brought them.
        moments = [] if state.generator_optimizer.state else [p.new_empty(2, *p.shape) for p in parameters]
        try:
            replace(self, micro_batch=micro_batch, alone=True).take(
                2 * x_BCHW - 1, adversarial_weight=adversary.weight, trains_discriminator=adversary.weight > 0
            )
        finally:
            del moments
            for parameter in parameters:
                parameter.grad = None
            for buffer, before in buffers:
                buffer.copy_(before)

    def _of_generator(self, x_BCHW: Tensor, adversarial_weight: float) -> tuple[Tensor, StepNumbers]:
        """Backward through the generator; its pictures, and the numbers."""
        parts = torch.split(x_BCHW, self.micro_batch)
        # Every rank decides alike, whatever its slice: sums over ranks come in the same order on all.
        several = self.micro_batch < self.largest_slice
        look = self._look(parts, adversarial_weight) if several and adversarial_weight > 0 else None
        soft_counts_GK = look.soft_counts_GK if look else self._soft_counts(parts) if several else None
        shares: Terms = {}
        whole: Terms = {"adaptive_weight": look.ratio} if look else {}
        pictures, vectors, indices = [], [], []
        for number, part_BCHW in enumerate(parts):
            if several:
                self._reseed(number)
            with accumulating(self.fabric, self.networks.generator, self.alone or number < len(parts) - 1):
                with autocast(self.fabric, self.config.precision):
                    output: TokenizerOutput = self.networks.generator(part_BCHW, self._keys(number, part_BCHW))
                    codebook_loss_B = self._codebook.loss(output, soft_counts_GK)
                    if look is None:
                        objective, terms = self._objective(part_BCHW, output, codebook_loss_B, adversarial_weight)
                    else:
                        objective, terms = send_back(
                            output.x_hat_BCHW,
                            codebook_loss_B,
                            look.gradients[number],
                            adversarial_weight=adversarial_weight * look.ratio,
                            batch_size=self.config.batch_size,
                        )
                self.fabric.backward(objective * self.rank.world)  # gradients are averaged over ranks
            if "adaptive_weight" in terms:
                whole["adaptive_weight"] = terms.pop("adaptive_weight")
            _add(shares, terms)
            pictures.append(output.x_hat_BCHW.detach())
            vectors.append(output.z_BCHW)
            indices.append(output.indices_BHW)
        statistics = self._codebook.statistics(torch.cat(vectors), torch.cat(indices))
        return torch.cat(pictures), StepNumbers(shares, whole, statistics)

    def _objective(
        self, x_BCHW: Tensor, output: TokenizerOutput, codebook_loss_B: Tensor, adversarial_weight: float
    ) -> tuple[Tensor, Terms]:
        """What to call backward on where one pass is enough."""
        return generator_objective(
            x_BCHW,
            output.x_hat_BCHW,
            codebook_loss_B,
            losses=self.config.losses,
            perceptual=self.perceptual,
            discriminator=self.state.discriminator,
            last_layer=self.state.tokenizer.last_layer_weight,
            adversarial_weight=adversarial_weight,
            batch_size=self.config.batch_size,
            sum_over_ranks=self._sum_over_ranks,
        )

    def _look(self, parts: Sequence[Tensor], adversarial_weight: float) -> FirstLook:
        """What the losses want of each micro-batch's pictures, and the adaptive weight of all of them together."""
        tokenizer, config = self.state.tokenizer, self.config.losses.discriminator
        gradients: list[PictureGradient] = []
        pushed = torch.zeros(2, *tokenizer.last_layer_weight.shape, device=self.fabric.device)
        soft_counts: list[Tensor] = []
        for number, part_BCHW in enumerate(parts):
            self._reseed(number)
            with autocast(self.fabric, self.config.precision):
                x_hat_BCHW, counted = reconstruct_with_last_layer(tokenizer, part_BCHW, self._keys(number, part_BCHW))
                soft_counts += [] if counted is None else [counted]
                gradients.append(
                    picture_gradient(
                        part_BCHW,
                        x_hat_BCHW,
                        losses=self.config.losses,
                        perceptual=self.perceptual,
                        discriminator=self.state.discriminator,
                        batch_size=self.config.batch_size,
                    )
                )
                pushed += through_last_layer(x_hat_BCHW, gradients[-1], tokenizer.last_layer_weight)
        pushed = self._sum_over_ranks(pushed)
        ratio = adaptive_weight(pushed, delta=config.adaptive_delta, cap=config.adaptive_cap)
        return FirstLook(gradients, ratio, self._codebook.total(soft_counts) if soft_counts else None)

    def _soft_counts(self, parts: Sequence[Tensor]) -> Tensor | None:
        """The soft counts of the global batch, by a pass of the encoder without a graph, of quantizers with such."""
        tokenizer = self.state.tokenizer
        if not tokenizer.quantize.looks_at_batches:
            return None
        soft_counts: list[Tensor] = []
        for number, part_BCHW in enumerate(parts):
            self._reseed(number)
            with torch.no_grad(), autocast(self.fabric, self.config.precision):
                z_BCHW = tokenizer.quant_conv(tokenizer.encoder(part_BCHW))
                soft_counts.append(tokenizer.quantize(z_BCHW, self._keys(number, part_BCHW)).soft_counts_BGK)
        return self._codebook.total(soft_counts)

    def _of_discriminator(self, x_BCHW: Tensor, x_hat_BCHW: Tensor) -> Terms:
        """Backward through the discriminator; its loss terms."""
        real, fake = torch.split(x_BCHW, self.micro_batch), torch.split(x_hat_BCHW, self.micro_batch)
        shares: Terms = {}
        for number, (real_BCHW, fake_BCHW) in enumerate(zip(real, fake, strict=True)):
            with accumulating(self.fabric, self.networks.discriminator, self.alone or number < len(real) - 1):
                with autocast(self.fabric, self.config.precision):
                    loss, terms = discriminator_objective(
                        self.networks.discriminator,
                        real_BCHW,
                        fake_BCHW,
                        batch_size=self.config.batch_size,
                        config=self.config.losses.discriminator,
                        anchors=self.state.logits.anchors,
                    )
                self.fabric.backward(loss * self.rank.world)
            _add(shares, terms)
        return shares

    @property
    def _codebook(self) -> CodebookTerms:
        quantizer = self.state.tokenizer.quantize
        return CodebookTerms(quantizer, self.config, self.rank, self.state.step, self._sum_over_ranks)

    def _keys(self, number: int, part_BCHW: Tensor) -> StepKeys:
        """The keys of the pictures of micro-batch `number`."""
        return self._codebook.keys(number * self.micro_batch, part_BCHW)

    def _sum_over_ranks(self, tensor: Tensor) -> Tensor:
        return tensor if self.alone else all_reduce_sum(self.fabric, tensor)

    def _reseed(self, number: int) -> None:
        """Dropout drops the same in both passes over a micro-batch, and something else in each micro-batch."""
        reseed(self.config.seed, self.state.step, self.rank.rank + self.rank.world * (number + 1))


def reconstruct_with_last_layer(
    tokenizer: Tokenizer, x_BCHW: Tensor, at: StepKeys | None = None
) -> tuple[Tensor, Tensor | None]:
    """A training step's reconstruction whose graph holds the decoder's last layer and nothing before it.

    And the quantizer's soft counts, if it has any.
    """
    with torch.no_grad():
        quantized = tokenizer.quantize(tokenizer.quant_conv(tokenizer.encoder(x_BCHW)), at)
        features_BCHW = tokenizer.decoder.trunk(tokenizer.post_quant_conv(quantized.z_q_BCHW))
    x_hat_BCHW: Tensor = tokenizer.decoder.head(features_BCHW)
    return x_hat_BCHW, quantized.soft_counts_BGK


def _add(sums: Terms, terms: Terms) -> None:
    for name, value in terms.items():
        sums[name] = sums[name] + value if name in sums else value
