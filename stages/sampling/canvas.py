"""Drawing tokens on a grid of any size: the prior's own at once, a larger one through a sliding window."""

from __future__ import annotations

import importlib

from torch import Tensor

from stages.models.priors.prior import Prior
from stages.sampling.filters import LogitFilter
from stages.sampling.noise import GumbelNoise
from stages.sampling.tokens import draw_tokens

# Shapes: B batch, C condition tokens, R rows and K columns of tokens.


def draw_on_grid(
    prior: Prior,
    condition_BC: Tensor,
    noise: GumbelNoise,
    grid: tuple[int, int],
    *,
    logit_filter: LogitFilter | None = None,
    guidance: float = 1.0,
    known_BRK: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw tokens [B, R, K] and return them with their log-likelihood [B] in nats; known ones (not negative) stay."""
    rows, columns = grid
    if grid == prior.grid:
        known_BT = None if known_BRK is None else known_BRK.flatten(1)
        tokens_BT, log_likelihood_B = draw_tokens(
            prior, condition_BC, noise, logit_filter=logit_filter, guidance=guidance, known_BT=known_BT
        )
        return tokens_BT.view(-1, rows, columns), log_likelihood_B
    window = importlib.import_module("stages.sampling.window")
    tokens_BRK, log_likelihood_B = window.draw_window(
        prior,
        condition_BC,
        noise,
        height=rows,
        width=columns,
        logit_filter=logit_filter,
        guidance=guidance,
        known_BHW=known_BRK,
    )
    return tokens_BRK.view(-1, rows, columns), log_likelihood_B
