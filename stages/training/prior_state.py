"""The state of the prior's training as one value, and the rule that ends it early."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import StageError
from stages.models.priors.prior import Prior
from stages.training.averages import WeightAverage


@dataclass
class PriorState:
    """All of the training's state; the same on every rank."""

    model: Prior
    optimizer: torch.optim.AdamW
    average: WeightAverage[Prior] | None = None
    """The running mean of the weights, if it is asked for."""
    step: int = 0
    validations: list[tuple[int, float]] = field(default_factory=list)
    """(step, bits per token) of every validation."""
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    """The result at its best validation; empty before the first."""
    recent: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))
    """Nats and tokens since the last row of the history."""

    @property
    def result(self) -> Prior:
        """The prior that is validated and saved."""
        return self.average.network if self.average else self.model

    def dump(self) -> dict[str, Any]:
        """The state as a nested dict."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **({"average": self.average.dump()} if self.average else {}),
            "step": self.step,
            "validations": self.validations,
            "best_weights": self.best_weights,
            "recent": self.recent,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `dump` gave."""
        device = self.recent.device
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load(state["average"])
        self.step = state["step"]
        self.validations = state["validations"]
        self.best_weights = {name: value.to(device) for name, value in state["best_weights"].items()}
        self.recent = state["recent"].to(device)

    def check_finite(self, last_good: str) -> None:
        """Raise StageError if a loss or gradient went to infinity or NaN since the last row."""
        if not torch.isfinite(self.recent[0]):
            raise StageError(
                f"the prior's loss or gradient is not finite at step {self.step}; the last good checkpoint is "
                f"{last_good}; lower prior.learning_rate, set prior.clip_gradient, or use prior.precision=fp32"
            )

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, bits per token) of the best validation."""
        return min(self.validations, key=lambda entry: entry[1], default=None)


def out_of_patience(validations: Sequence[tuple[int, float]], patience: int | None) -> bool:
    """Whether the last `patience` validations all were no better than the best one before them."""
    if patience is None or len(validations) <= patience:
        return False
    bits = [bits for _, bits in validations]
    return min(bits[-patience:]) >= min(bits[:-patience])
