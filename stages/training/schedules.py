"""Learning-rate schedules: pure functions from a step to a factor of the base learning rate."""

from __future__ import annotations

import math


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
