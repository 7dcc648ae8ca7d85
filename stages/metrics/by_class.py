"""Distances class by class, of classes with pictures enough on both sides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.metrics.figures import Figure, Looked, features_digest, figure
from stages.metrics.frechet_distance import frechet
from stages.metrics.kernel_distance import kid
from stages.metrics.measured import Integers, Measured
from stages.metrics.networks import Look
from stages.metrics.standard import Seen

ENOUGH_FOR_KID, ENOUGH_FOR_FRECHET = 10, 50
"""Pictures on each side. Below, a KID says nothing, and a Frechet distance little but how few pictures there are."""


def class_figures(classes: Sequence[str], measured: Measured, looks: Sequence[Look]) -> dict[str, dict[str, Figure]]:
    """For each class the distances of its samples to its held-out pictures, through each network.

    Classes with fewer than `ENOUGH_FOR_KID` of either are not listed.
    """
    found = {
        name: {kind: it for look in looks for kind, it in _of_class(name, label, measured, look).items()}
        for label, name in enumerate(classes)
    }
    return {name: figures for name, figures in found.items() if figures}


def _of_class(name: str, label: int, measured: Measured, look: Look) -> dict[str, Figure]:
    network, sets = look.network, look.sets
    samples = _chosen(sets["samples"], measured.sample_labels_N == label)
    real = _chosen(sets["val"], measured.held_out_labels_N == label)
    few = min(len(samples.features_ND), len(real.features_ND))
    if few < ENOUGH_FOR_KID:
        return {}
    reference = {"what": f"held-out pictures of {name}", "pictures": len(real.features_ND)}
    looked = Looked(network.described, {**reference, "digest": features_digest(real.features_ND)})
    on = f"samples of {name} against held-out pictures of it; {network.name}"
    sizes = {"samples": len(samples.features_ND), "against": len(real.features_ND)}
    x, y = samples.pictures, real.pictures
    figures = {f"gkid{network.tag}_val": figure(kid(x, y), "KID, unbiased", on, "lower", looked=looked, **sizes)}
    if few >= ENOUGH_FOR_FRECHET:
        what = "Fr\u00e9chet distance; the fewer pictures, the higher it comes out"
        value = frechet(x, y)
        figures[f"g{network.distance}{network.tag}_val"] = figure(value, what, on, "lower", looked=looked, **sizes)
    return figures


def _chosen(seen: Seen, which_N: np.ndarray) -> Seen:
    groups_N: Integers | None = None if seen.group_N is None else seen.group_N[which_N]
    return Seen(seen.features_ND[which_N], groups_N)
