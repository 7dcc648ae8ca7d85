"""Schedules: pure functions from a step to a factor of the base learning rate, or to the decay of an average."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate_factor(
    step: int, schedule: Schedule, *, warmup_steps: int, horizon: int | None, floor: float = 0.0
) -> float:
    """The factor of the update after `step` others: a linear rise, then the schedule's fall to `floor` at `horizon`.

    Without a horizon every schedule is constant.
    """
    if schedule == "constant" or horizon is None:
        return warmup_constant(step, warmup_steps=warmup_steps)
    falls = {"linear": warmup_linear, "cosine": warmup_cosine}
    return falls[schedule](step, warmup_steps=warmup_steps, horizon=horizon, floor=floor)


def warmup_constant(step: int, *, warmup_steps: int) -> float:
    """Rises linearly to 1 over `warmup_steps`, then stays there.

    `step` counts from 0 and names the update about to be made, so the first one already moves: 1 / warmup_steps.
    """
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0


def warmup_cosine(step: int, *, warmup_steps: int, horizon: int, floor: float = 0.0) -> float:
    """Rises linearly to 1, then falls along half a cosine to `floor` at step `horizon`, and stays there.

    Loshchilov & Hutter 2017 (arXiv:1608.03983), equation 5, without restarts. `floor` is a share of the base
    learning rate in [0, 1]; `floor=1` is a constant schedule.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, horizon - warmup_steps)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def warmup_linear(step: int, *, warmup_steps: int, horizon: int, floor: float = 0.0) -> float:
    """Rises linearly to 1, then falls linearly to `floor` at step `horizon`, and stays there."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, horizon - warmup_steps)
    return 1.0 - (1.0 - floor) * min(1.0, progress)


def warmup_decay(updates: int, decay: float) -> float:
    """Share of an average of weights that is kept at the update after `updates` others; rises to `decay`.

    min(decay, (1 + n) / (10 + n)): until then the average remembers about the last ninth of the updates so far, so that
    a short run's average is not that of its beginning.
    """
    return min(decay, (1 + updates) / (10 + updates))
