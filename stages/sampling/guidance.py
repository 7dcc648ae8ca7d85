"""Classifier-free guidance: how far a draw is pushed from what would be drawn without the condition. No torch needed.

Shapes: B batch, V codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Schedule = Literal["constant", "linear", "cosine", "interval"]
INTERVAL = (0.25, 1.0)
"""Shares of the sequence between which the schedule `interval` guides."""


@dataclass(frozen=True)
class Guidance:
    """Draw from unconditional + s * (conditional - unconditional) (Ho and Salimans 2022, arXiv:2207.12598).

    s is `scale` at the end of the sequence and, by `schedule`, less before it: the first tokens decide what the
    picture shows, and guided strongly they are always the same.

    - `constant`: `scale` throughout.
    - `linear`: from 1 to `scale`, in proportion to the tokens drawn (Muse; Chang et al. 2023, arXiv:2301.00704).
    - `cosine`: from 1 to `scale` along half a cosine, slow at both ends (MDT's power-cosine with power 1; Gao et al.
      2023, arXiv:2303.14389).
    - `interval`: 1 outside of an interval of the sequence, `scale` inside (Kynkaanniemi et al. 2024,
      arXiv:2404.07724, who limit it to some noise levels of a diffusion).
    """

    scale: float = 1.0
    schedule: Schedule = "constant"

    def at(self, step: int, num_steps: int) -> float:
        """The scale s of token `step` of `num_steps` in the order of drawing."""
        share = step / max(1, num_steps - 1)
        if self.schedule == "constant":
            return self.scale
        if self.schedule == "interval":
            return self.scale if INTERVAL[0] <= share <= INTERVAL[1] else 1.0
        weight = share if self.schedule == "linear" else (1 - math.cos(math.pi * share)) / 2
        return 1 + (self.scale - 1) * weight

    @property
    def is_off(self) -> bool:
        """Whether every token is drawn from the conditional branch alone."""
        return self.scale == 1

    @property
    def is_unconditional(self) -> bool:
        """Whether every token is drawn from the unconditional branch alone."""
        return self.scale == 0 and self.schedule == "constant"


def as_guidance(guidance: Guidance | float) -> Guidance:
    """A plain number is a constant scale."""
    return guidance if isinstance(guidance, Guidance) else Guidance(guidance)


def guide(conditional_BV: Tensor, unconditional_BV: Tensor, scale: float) -> Tensor:
    """The logits to draw from; at scales 1 and 0 bit for bit those of one branch."""
    if scale == 1:
        return conditional_BV
    if scale == 0:
        return unconditional_BV
    return unconditional_BV + scale * (conditional_BV - unconditional_BV)
