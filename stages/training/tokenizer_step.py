"""One step of the tokenizer's training: gradients, whether they are sound, and all that follows them.

Legend: B batch of this rank, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.training.fabric import all_reduce_sum
from stages.training.gradients import clip, gradient_norm
from stages.training.schedules import learning_rate_factor
from stages.training.tokenizer_gradients import StepGradients, StepNumbers


@dataclass
class TokenizerStep:
    """Updates both networks, the codebook and the running means; a step that is not finite changes none of them."""

    gradients: StepGradients
    warn: Callable[[str], None]
    last_good: Callable[[], str]
    """Names the last checkpoint, for the message of an error that ends training."""

    def take(self, x_BCHW: Tensor) -> StepNumbers:
        """The step after `state.step` others, on this rank's slice. Collective.

        Raises StageError after more than `losses.max_skipped_steps` steps in a row whose gradient was not finite.
        """
        state, losses = self.gradients.state, self.gradients.config.losses
        for optimizer in (state.generator_optimizer, state.discriminator_optimizer):
            optimizer.zero_grad()
        trains_discriminator = losses.discriminator.weight > 0 and state.step >= losses.discriminator.start
        if trains_discriminator:
            state.discriminator.renew_spectral_norms()
        numbers = self.gradients.take(
            x_BCHW,
            adversarial_weight=losses.discriminator.weight_at(state.step),
            trains_discriminator=trains_discriminator,
        )
        numbers.whole["gradient_norm"] = gradient_norm(state.tokenizer.parameters())
        if trains_discriminator:
            numbers.whole["discriminator_gradient_norm"] = gradient_norm(state.discriminator.parameters())
        broken = [name for name, value in numbers.whole.items() if name.endswith("_norm") and not value.isfinite()]
        if broken:
            self._warn_of_skip(broken)
        else:
            self._follow(numbers, trains_discriminator=trains_discriminator)
        state.skipped.count(
            finite=not broken, limit=losses.max_skipped_steps, step=state.step, last_good=self.last_good
        )
        return numbers

    def learning_rate(self) -> float:
        """The generator's learning rate at this step."""
        optimizer = self.gradients.config.optimizer
        return optimizer.learning_rate * learning_rate_factor(
            self.gradients.state.step,
            optimizer.schedule,
            warmup_steps=optimizer.warmup_steps,
            horizon=optimizer.schedule_steps,
            floor=optimizer.min_learning_rate / optimizer.learning_rate,
        )

    def _follow(self, numbers: StepNumbers, *, trains_discriminator: bool) -> None:
        """Collective."""
        state, config = self.gradients.state, self.gradients.config
        clip(state.tokenizer.parameters(), numbers.whole["gradient_norm"], config.optimizer.clip_gradient)
        for group in state.generator_optimizer.param_groups:
            group["lr"] = self.learning_rate()
        state.generator_optimizer.step()
        state.tokenizer.quantize.update(numbers.statistics)
        if state.average:
            state.average.update(state.tokenizer)
        if not trains_discriminator:
            return
        adversary = config.losses.discriminator
        norm = numbers.whole["discriminator_gradient_norm"]
        clip(state.discriminator.parameters(), norm, adversary.clip_gradient)
        state.discriminator_optimizer.step()
        if adversary.lecam_weight > 0:
            means = torch.stack([numbers.shares["logits_real"], numbers.shares["logits_fake"]])
            state.logits.update(all_reduce_sum(self.gradients.fabric, means))

    def _warn_of_skip(self, broken: list[str]) -> None:
        """Say that a step is skipped, for the first of several in a row."""
        state, limit = self.gradients.state, self.gradients.config.losses.max_skipped_steps
        if state.skipped.in_a_row == 0:
            self.warn(
                f"step {state.step} is skipped and nothing moved ({' and '.join(broken)}: not finite); "
                f"more than losses.max_skipped_steps={limit} such steps in a row end training"
            )
