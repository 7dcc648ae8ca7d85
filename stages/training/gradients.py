"""What is done with a finished gradient before it is used: measured, found finite or not, clipped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.errors import StageError


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Norm of all gradients together, 0 where there are none. Does not wait for the device."""
    return torch.nn.utils.get_total_norm(
        [parameter.grad for parameter in parameters if parameter.grad is not None], error_if_nonfinite=False
    )


def clip(parameters: Iterable[nn.Parameter], norm: Tensor, limit: float | None) -> None:
    """Scale gradients whose joint norm is `norm` down to a norm of `limit`, if it is above; None never does."""
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)


@dataclass
class SkippedSteps:
    """Counts steps that were skipped because their gradient was not finite; ends a run that has only such."""

    total: int = 0
    in_a_row: int = 0

    def count(self, *, finite: bool, limit: int, step: int, last_good: Callable[[], str]) -> None:
        """Takes note of a step. Raises StageError naming the last good checkpoint after more than `limit` in a row."""
        if finite:
            self.in_a_row = 0
            return
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row > limit:
            raise StageError(
                f"the gradient was not finite at {self.in_a_row} steps in a row up to step {step}: the last good "
                f"checkpoint is {last_good()}; lower the learning rates or the discriminator's weight, or train in fp32"
            )
