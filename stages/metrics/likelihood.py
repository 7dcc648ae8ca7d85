"""How well a prior predicts token tables: the bits of every token, and whether it can be asked for them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.metrics.class_names import ClassNames

if TYPE_CHECKING:
    from pipeline.artifacts import Artifact
    from stages.models.priors.prior import Prior
    from stages.models.vocabulary import TokenSpace

OWN_WORDS = ("caption", "boxes")
"""Conditions whose tokens mean what the encoding of their own data made of them."""


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


def why_not_measured(tokens: Artifact | None, prior: Artifact, given: TokenSpace | None, wanted: TokenSpace) -> str:
    """Why the likelihood of these tokens cannot be asked of this prior; empty where it can.

    `given` is the space of the tokens, `wanted` that of the prior.
    """
    if tokens is None or given is None:
        return "today's pictures are not encoded with this tokenizer"
    if [(it.kind, it.length) for it in given.condition] != [(it.kind, it.length) for it in wanted.condition]:
        return f"the prior is told of {', '.join(wanted.kinds)}, today's tokens of {', '.join(given.kinds)}"
    same = prior.recipe["inputs"].get("tokens") == tokens.digest
    own = [kind for kind in wanted.kinds if kind in OWN_WORDS]
    others = [it for it in zip(given.condition, wanted.condition, strict=True) if it[0].kind != "class"]
    if not same and (own or any(today != then for today, then in others)):
        return f"tokens of {', '.join(own or wanted.kinds)} may mean something else since the prior was trained"
    return ""


def condition_for(
    condition_NC: NDArray[np.integer], given: TokenSpace, wanted: TokenSpace
) -> NDArray[np.integer] | NDArray[np.int64]:
    """Condition tokens of one space in another, which has other classes; one that it does not know is "not given"."""
    import torch

    if (given.condition, given.classes) == (wanted.condition, wanted.classes):
        return condition_NC
    classes = ClassNames.of(given.classes, wanted.classes)
    tokens = torch.from_numpy(condition_NC.astype(np.int64))
    values = []
    for segment in given.condition:
        values_NL = given.vocabulary.values(tokens, segment.kind)
        if segment.kind == "class":
            values_NL = torch.from_numpy(classes.labels_for_model(values_NL.numpy()))
        values.append(values_NL)
    renumbered: NDArray[np.int64] = wanted.vocabulary.condition(*values).numpy()
    return renumbered
