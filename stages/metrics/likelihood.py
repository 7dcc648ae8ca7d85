"""How well a prior predicts token tables: the bits of every token."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from stages.models.priors.prior import Prior


def token_bits(
    prior: Prior, tokens_NT: NDArray[np.integer], condition_NC: NDArray[np.integer], *, batch_size: int, device: str
) -> NDArray[np.float64]:
    """-log2 p(token | condition, tokens before it): bits_NT. A prior that knows nothing needs log2(codebook size)."""
    import torch

    bits = [np.zeros((0, tokens_NT.shape[1]))]
    with torch.inference_mode():
        for start in range(0, len(tokens_NT), batch_size):
            tokens_BT = torch.from_numpy(tokens_NT[start : start + batch_size].astype(np.int64)).to(device)
            condition_BC = torch.from_numpy(condition_NC[start : start + batch_size].astype(np.int64)).to(device)
            _, nats_BT = prior.loss(condition_BC, tokens_BT)
            bits.append(nats_BT.double().cpu().numpy() / math.log(2))
    return np.concatenate(bits)
