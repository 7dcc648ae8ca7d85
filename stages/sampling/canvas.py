"""Drawing tokens on a grid of any size: the prior's own at once, a larger one through a sliding window.

Shapes: B batch, C condition tokens, L of one kind, R rows and K columns of tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.models.priors.prior import Prior
from stages.models.vocabulary import Segment, Vocabulary
from stages.sampling.filters import LogitFilter
from stages.sampling.guidance import Guidance
from stages.sampling.large_condition import LargeCondition
from stages.sampling.noise import GumbelNoise
from stages.sampling.tokens import draw_tokens
from stages.sampling.window import draw_window
from stages.sampling.window_plan import window_warning

Grid = tuple[int, int]
"""Rows and columns of tokens."""


def spread(vocabulary: Vocabulary, own: Grid, grid: Grid) -> Vocabulary:
    """A prior's vocabulary on a larger grid than its own: what lies over the picture has as many more tokens."""

    def on_grid(segment: Segment) -> Segment:
        if segment.grid is None or grid == own:
            return segment
        rows, columns = (side * many // few for side, many, few in zip(segment.grid, grid, own, strict=True))
        return segment.model_copy(update={"grid": (rows, columns), "length": rows * columns})

    return Vocabulary(vocabulary.num_codes, tuple(map(on_grid, vocabulary.segments)))


def draw_on_grid(
    prior: Prior,
    condition_BC: Tensor,
    noise: GumbelNoise,
    grid: Grid,
    *,
    logit_filter: LogitFilter | None = None,
    guidance: Guidance | float = 1.0,
    known_BRK: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw tokens [B, R, K] and return them with their log-likelihood [B] in nats; known ones (not negative) stay.

    Conditions are of the vocabulary that is spread over the grid. Raises as `draw_tokens` and `draw_window` do.
    """
    rows, columns = grid
    if grid == tuple(prior.grid):
        known_BT = None if known_BRK is None else known_BRK.flatten(1)
        tokens_BT, log_likelihood_B = draw_tokens(
            prior, condition_BC, noise, logit_filter=logit_filter, guidance=guidance, known_BT=known_BT
        )
        return tokens_BT.view(-1, rows, columns), log_likelihood_B
    return draw_window(
        prior,
        _large_condition(prior, condition_BC, grid),
        noise,
        height=rows,
        width=columns,
        logit_filter=logit_filter,
        guidance=guidance,
        known_BHW=known_BRK,
    )


def size_warning(prior: Prior) -> str | None:
    """Why pictures larger than those that a prior learned may come out wrong; None where it is told what lies where."""
    return window_warning(prior.vocabulary)


def _large_condition(prior: Prior, condition_BC: Tensor, grid: Grid) -> LargeCondition:
    """The condition in the form in which windows are cut from it."""
    vocabulary = spread(prior.vocabulary, prior.grid, grid)
    values: list[Tensor] = []
    for segment in vocabulary.segments:
        values_BL = vocabulary.values(condition_BC, segment.kind)
        values.append(values_BL if segment.grid is None else torch.unflatten(values_BL, 1, segment.grid))
    return LargeCondition.of_values(prior, grid, *values)
