"""One number of the report: its value, how sure it is, and what it was computed on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.metrics.weighting import Estimate

Figure = dict[str, Any]
Better = Literal["higher", "lower"]


class Looked(NamedTuple):
    """Through which network, and at which pictures others were compared with: so that no two figures are mixed up."""

    network: Mapping[str, str]
    """Its `name`, and the `digest` (sha256) of its weights."""
    reference: Mapping[str, Any]
    """`what` pictures, how many `pictures` (null where nobody knows), and the `digest` of their statistics, of which a
    Frechet distance is made, or else of their features."""


def figure(
    value: float | Estimate,
    what: str,
    computed_on: str,
    better: Better,
    *,
    samples: int,
    against: int | None = None,
    looked: Looked | None = None,
) -> Figure:
    """A number for report.json: of so many `samples` (pictures or tokens), `against` so many others."""
    described: Figure = {"what": what, "computed_on": computed_on, "better": better, "samples": samples}
    if against is not None:
        described["against"] = against
    if looked is not None:
        described |= {"features": dict(looked.network), "reference": dict(looked.reference)}
    if isinstance(value, Estimate):
        return {**described, "value": value.value, "interval": list(value.interval), "interval_by": value.by}
    return {**described, "value": value}


def features_digest(features_ND: NDArray[np.floating]) -> str:
    """The sha256 of features: which pictures something was compared with, as a network sees them."""
    return hashlib.sha256(np.ascontiguousarray(features_ND, "<f4").tobytes()).hexdigest()
