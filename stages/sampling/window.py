"""The sliding window: draws pictures larger than those that a prior learned, exactly and many tokens at once.

Shapes: B pictures, H W rows and columns of their tokens, T tokens and C condition tokens of a window, V codes;
R rows of the prior for a window: B, or 2B with guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from stages.models.priors.prior import Prior, Stretch
from stages.sampling.filters import LogitFilter
from stages.sampling.guidance import Guidance, as_guidance
from stages.sampling.large_condition import LargeCondition
from stages.sampling.noise import GumbelNoise
from stages.sampling.tokens import Branches, check_finite, draw_tokens
from stages.sampling.window_plan import Target, WindowPlan, plan_windows

MEMORY = 4 * 2**30
"""Bytes of keys and values that are remembered at most; pictures are drawn in groups that need no more."""
TOKENS_AT_ONCE = 2**13
"""Tokens that pass through the prior at once, at most, but for the rows of a single window."""


@torch.inference_mode()
def draw_window(
    prior: Prior,
    condition: LargeCondition,
    noise: GumbelNoise,
    *,
    height: int,
    width: int,
    logit_filter: LogitFilter | None = None,
    guidance: Guidance | float = 1.0,
    known_BHW: Tensor | None = None,
    memory: int = MEMORY,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> tuple[Tensor, Tensor]:
    """Draw tokens [B, H, W] in raster order, each through the window of the prior's grid around it.

    The sliding window of "Taming Transformers" (Esser et al. 2021, section 3.3): what it would draw token by token,
    drawn in as many steps as the longest chain of tokens that need one another. Returned with the log-likelihood [B]
    (float64 nats), each token's that of its window. The noise's place of a token is row * W + column; known tokens,
    guidance and likelihood are as in `draw_tokens`, which does it where the picture is as large as the grid.

    Raises ConfigError for a picture smaller than the grid, a condition of another size, or a prior in another order.
    """
    if prior.config.order != "raster":
        raise ConfigError(
            f"order {prior.config.order}: a window slides in raster order; train a prior with order=raster"
        )
    size, B = (height, width), len(condition)
    if condition.size != size:
        raise ConfigError(
            f"the condition is that of {condition.size[0]}x{condition.size[1]} tokens, not {height}x{width}"
        )
    logit_filter, guidance = logit_filter or LogitFilter(), as_guidance(guidance)
    if size == prior.grid:
        known_BT = None if known_BHW is None else known_BHW.flatten(1)
        tokens_BT, log_likelihood_B = draw_tokens(
            prior,
            condition.window(0, 0),
            noise,
            logit_filter=logit_filter,
            guidance=guidance,
            known_BT=known_BT,
        )
        return tokens_BT.view(B, *size), log_likelihood_B
    known_BHW = torch.full((B, *size), -1) if known_BHW is None else known_BHW
    plan, group = _plan(prior, size, guidance, known_BHW, memory, tokens_at_once)
    tokens, likelihoods = [], []
    for part in (slice(start, start + group) for start in range(0, B, group)):
        known_part = known_BHW[part].to(condition.device)
        drawing = _Drawing(prior, condition.of(part), noise.of(part), known_part, logit_filter, guidance)
        for level in plan.levels:
            drawing.draw_level(level, tokens_at_once)
        tokens.append(drawing.tokens_BHW)
        likelihoods.append(drawing.log_likelihood_B)
    log_likelihood_B = torch.cat(likelihoods)
    check_finite(log_likelihood_B)
    return torch.cat(tokens), log_likelihood_B


def _plan(
    prior: Prior, size: tuple[int, int], guidance: Guidance, known_BHW: Tensor, memory: int, tokens_at_once: int
) -> tuple[WindowPlan, int]:
    """The plan of each picture, and how many pictures are drawn at the same time."""
    rows, condition_length = Branches(prior, guidance).count, prior.vocabulary.condition_length
    token_bytes = rows * prior.cache_bytes
    plan = plan_windows(
        size,
        prior.grid,
        known_HW=(known_BHW >= 0).all(dim=0).cpu().numpy(),
        condition_length=condition_length,
        memory=memory // token_bytes if prior.remembers else 0,
    )
    group = tokens_at_once // (rows * (condition_length + prior.num_tokens))
    if plan.most_remembered:
        group = min(group, memory // (plan.most_remembered * token_bytes))
    return plan, max(1, min(len(known_BHW), group))


class _Drawing:
    """Some pictures while they are drawn."""

    def __init__(
        self,
        prior: Prior,
        condition: LargeCondition,
        noise: GumbelNoise,
        known_BHW: Tensor,
        logit_filter: LogitFilter,
        guidance: Guidance,
    ) -> None:
        self.prior, self.condition, self.noise, self.known_BHW = prior, condition, noise, known_BHW
        self.logit_filter, self.branches = logit_filter, Branches(prior, guidance)
        self.tokens_BHW = known_BHW.clone()
        self.log_likelihood_B = torch.zeros(len(condition), dtype=torch.float64, device=known_BHW.device)
        self.caches: dict[tuple[int, int], Any] = {}
        """Of the windows that are remembered."""

    def draw_level(self, level: Sequence[Target], tokens_at_once: int) -> None:
        """Draw targets that do not need one another."""
        rows, waiting = self.branches.count * len(self.condition), 0
        batch: list[Target] = []
        for target in level:
            waiting += (length := rows * self._length(target))
            if batch and waiting > tokens_at_once:
                self._draw(batch)
                batch, waiting = [], length
            batch.append(target)
        self._draw(batch)

    def _draw(self, targets: Sequence[Target]) -> None:
        logits = self.prior.read([self._stretch(target) for target in targets])
        for target, logits_RV in zip(targets, logits.chunk(len(targets)), strict=True):
            (row, column), (height, width) = target.place, self.condition.size
            place = row * width + column
            noise_BV = torch.from_numpy(self.noise.at(place, self.prior.vocabulary.num_codes))
            scale = self.branches.guidance.at(place, height * width)
            known_B = self.known_BHW[:, row, column]
            tokens_B, nats_B = self.branches.draw(logits_RV, noise_BV, scale, self.logit_filter, known_B)
            self.tokens_BHW[:, row, column] = tokens_B
            self.log_likelihood_B -= nats_B

    def _stretch(self, target: Target) -> Stretch:
        """What is to be read for a target, and where it is remembered."""
        (top, left), (rows, columns) = target.window, self.prior.grid
        condition_length = self.prior.vocabulary.condition_length
        window_BT = self.tokens_BHW[:, top : top + rows, left : left + columns].flatten(1)
        tokens_RS = self.branches.rows(window_BT[:, target.remembered : target.position])
        if target.first:
            tokens_RS = torch.cat([self.branches.conditions(self.condition.window(top, left)), tokens_RS], dim=1)
        if target.first and target.last:
            return Stretch(tokens_RS)
        if target.first:
            self.caches[target.window] = self.prior.new_cache(len(tokens_RS), length=condition_length + target.room)
        cache = self.caches.pop(target.window) if target.last else self.caches[target.window]
        start = 0 if target.first else condition_length + target.remembered
        return Stretch(tokens_RS, start, cache)

    def _length(self, target: Target) -> int:
        """Tokens to be read of each row."""
        return target.position - target.remembered + target.first * self.prior.vocabulary.condition_length
