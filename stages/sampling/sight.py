"""What an autoregressive prior knows of the kept tokens while it draws the others: those that come before, no more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.models.priors.prior import Prior

# Shapes: R rows and K columns of tokens, T tokens; D redrawn ones, O kept ones.


@dataclass(frozen=True)
class Sight:
    """How many of the kept tokens the redrawn ones were drawn in sight of."""

    redrawn: int
    """Tokens that are drawn again."""
    kept: int
    """Tokens that stay."""
    share: float
    """Of the kept tokens, how many a redrawn one sees, in the mean; 1 where nothing is redrawn or kept."""
    by_all: int
    """Kept tokens that every redrawn one sees."""
    by_none: int
    """Kept tokens that no redrawn one sees."""
    order: str
    window: bool
    """Whether the grid is larger than what the prior sees at once."""

    def __str__(self) -> str:
        """One sentence or two for people."""
        if not self.redrawn or not self.kept:
            return f"{self.redrawn} tokens are redrawn and {self.kept} kept."
        where = "above it and to its left" if self.order == "raster" else "before it along the Z-curve"
        near = ", no further than the prior's window" if self.window else ""
        by_some = self.kept - self.by_all - self.by_none
        each = "The redrawn token" if self.redrawn == 1 else f"Each of {self.redrawn} redrawn tokens"
        return (
            f"{each} sees what lies {where}{near}: of {self.kept} kept tokens all see {self.by_all}, some see "
            f"{by_some}, none sees {self.by_none}."
        )


def what_it_sees(prior: Prior, redrawn_RK: np.ndarray) -> Sight:
    """Count which kept tokens lie before the redrawn ones (true) in the prior's order and, of larger grids, window."""
    grid = redrawn_RK.shape
    position_T = np.empty(redrawn_RK.size, dtype=np.int64)
    own = tuple(grid) == tuple(prior.grid)
    # Larger grids are drawn row by row.
    position_T[list(prior.order) if own else slice(None)] = np.arange(redrawn_RK.size)
    redrawn_D, kept_O = np.flatnonzero(redrawn_RK), np.flatnonzero(~redrawn_RK)
    seen_DO = position_T[kept_O] < position_T[redrawn_D][:, None]
    for axis in range(2):
        places_D, places_O = (np.unravel_index(places, grid)[axis] for places in (redrawn_D, kept_O))
        side = prior.grid[axis]
        first_D1 = np.clip(places_D - side // 2, 0, grid[axis] - side)[:, None]
        seen_DO &= (places_O >= first_D1) & (places_O < first_D1 + side)
    return Sight(
        redrawn=len(redrawn_D),
        kept=len(kept_O),
        share=float(seen_DO.mean()) if seen_DO.size else 1.0,
        by_all=int(seen_DO.all(axis=0).sum()),
        by_none=int((~seen_DO.any(axis=0)).sum()),
        order=prior.config.order,
        window=not own,
    )
