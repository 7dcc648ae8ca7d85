"""Negative log-likelihood of tokens, with as much memory as a slice of the logits takes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Shapes: B batch, T image tokens, V codes, W width, N = B * T, R rows of a slice.

WHOLE_LOGITS = 2**24
"""Up to as many logits (64 MiB in float32) are made at once: slices would cost time and save little."""
SLICE_LOGITS = 2**22
"""Logits of a slice (16 MiB in float32)."""


def token_nats(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    """Negative log-likelihood [B, T] of the tokens in nats; float32 at least, whatever the logits are."""
    logits = logits_BTV if logits_BTV.dtype == torch.float64 else logits_BTV.float()
    return F.cross_entropy(logits.flatten(0, 1), tokens_BT.flatten(), reduction="none").view(tokens_BT.shape)


def projected_token_nats(x_BTW: Tensor, weight_VW: Tensor, tokens_BT: Tensor) -> Tensor:
    """`token_nats` [B, T] of the logits `x_BTW @ weight_VW.T`, which are never all in memory if there are many.

    Beyond `WHOLE_LOGITS` they are made slice by slice, and once more for the gradient (Chen et al. 2016,
    arXiv:1604.06174): a third more work for the projection, memory for one slice instead of three times B * T * V.
    """
    if tokens_BT.numel() * len(weight_VW) <= WHOLE_LOGITS:
        return token_nats(F.linear(x_BTW, weight_VW), tokens_BT)
    if torch.is_autocast_enabled(x_BTW.device.type):  # the gradient is taken outside of autocast: decide here
        precision = torch.get_autocast_dtype(x_BTW.device.type)
        x_BTW, weight_VW = x_BTW.to(precision), weight_VW.to(precision)
    nats_N: Tensor = _SlicedNats.apply(x_BTW.flatten(0, 1), weight_VW, tokens_BT.flatten())
    return nats_N.view(tokens_BT.shape)


class _SlicedNats(torch.autograd.Function):
    """Forgets a slice's logits once it has their likelihood, and makes them again for the gradient."""

    @staticmethod
    def forward(ctx: Any, x_NW: Tensor, weight_VW: Tensor, tokens_N: Tensor) -> Tensor:
        ctx.save_for_backward(x_NW, weight_VW, tokens_N)
        parts = _slices(len(x_NW), len(weight_VW))
        return torch.cat([token_nats(F.linear(x_NW[part], weight_VW)[None], tokens_N[None, part])[0] for part in parts])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factors_N: Tensor) -> tuple[Tensor, Tensor, None]:
        x_NW, weight_VW, tokens_N = ctx.saved_tensors
        x_gradient_NW = torch.empty_like(x_NW)
        weight_gradient_VW = torch.zeros_like(weight_VW, dtype=factors_N.dtype)
        for part in _slices(len(x_NW), len(weight_VW)):
            # d nats / d logits is the softmax, less 1 at the token.
            moved_RV = F.linear(x_NW[part], weight_VW).softmax(1, dtype=factors_N.dtype)
            moved_RV.scatter_add_(1, tokens_N[part, None], moved_RV.new_full((len(moved_RV), 1), -1.0))
            moved_RV = moved_RV.mul_(factors_N[part, None]).to(x_NW.dtype)
            x_gradient_NW[part] = moved_RV @ weight_VW
            weight_gradient_VW += moved_RV.T @ x_NW[part]
        return x_gradient_NW, weight_gradient_VW.to(weight_VW.dtype), None


def _slices(num_rows: int, num_codes: int) -> list[slice]:
    step = max(1, SLICE_LOGITS // num_codes)
    return [slice(start, start + step) for start in range(0, num_rows, step)]
