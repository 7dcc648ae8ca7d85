"""What is done to a prior's logits before a token is drawn: temperature, then top-k, then top-p."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Shapes: B batch, V codes.


@dataclass(frozen=True)
class LogitFilter:
    """Temperature, top-k and top-p in the order of taming-transformers; the defaults change nothing."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """[B, V] -> [B, V], excluded codes at minus infinity."""
        if self.temperature != 1:
            logits_BV = logits_BV / self.temperature
        if self.top_k is not None:
            logits_BV = keep_top_k(logits_BV, self.top_k)
        if self.top_p is not None:
            logits_BV = keep_top_p(logits_BV, self.top_p)
        return logits_BV


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Exclude codes below the k-th largest logit; all that tie with it stay."""
    if k >= logits_BV.shape[-1]:
        return logits_BV
    smallest_kept_B1 = logits_BV.topk(k, dim=-1).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < smallest_kept_B1, -torch.inf)


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Keep the most probable codes until their sum exceeds p, the one that exceeds it included (nucleus sampling).

    Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020.
    """
    # Stable, so that among equal logits the lower code is kept whatever the device.
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    over_BV = sorted_BV.softmax(dim=-1).cumsum(dim=-1) > p
    excluded_BV = over_BV.roll(1, dims=-1)
    excluded_BV[:, 0] = False
    return logits_BV.masked_fill(excluded_BV.scatter(-1, order_BV, excluded_BV), -torch.inf)
