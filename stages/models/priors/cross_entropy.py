"""Negative log-likelihood of tokens, with as much memory as a slice of the logits takes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Shapes: B batch, T image tokens, V codes, W width, N = B * T.

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
    arXiv:1604.06174): a third more work for the projection, memory for a few slices instead of a few times B * T * V.
    """
    num_codes = len(weight_VW)
    if tokens_BT.numel() * num_codes <= WHOLE_LOGITS:
        return token_nats(F.linear(x_BTW, weight_VW), tokens_BT)
    rows = max(1, SLICE_LOGITS // num_codes)
    slices = zip(torch.split(x_BTW.flatten(0, 1), rows), torch.split(tokens_BT.flatten(), rows), strict=True)
    nats = [
        checkpoint(_slice_nats, x_NW, weight_VW, tokens_N, use_reentrant=False, preserve_rng_state=False)
        for x_NW, tokens_N in slices
    ]
    return torch.cat(nats).view(tokens_BT.shape)


def _slice_nats(x_NW: Tensor, weight_VW: Tensor, tokens_N: Tensor) -> Tensor:
    return token_nats(F.linear(x_NW, weight_VW)[None], tokens_N[None])[0]
