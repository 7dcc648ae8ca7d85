"""What selection does to figures: samples that a scorer chose are judged knowing that they were chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.metrics.figures import Figure

SEES_THE_SAME = ("classifier", "two_tower")
"""Scorers that look at the features which the distances and the obedience of classes and captions are made of."""
BY = {
    "likelihood": "the prior's likelihood",
    "classifier": "a classifier's probability of the class asked for",
    "two_tower": "how well the picture suits its caption",
}


def selection_of(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """How samples were selected, from their `samples.json`; None where they are as they come.

    Its `words` say so in a sentence, its `caveat` what that does to the figures.
    """
    select = summary.get("select")
    if not select:
        return None
    kind, keep, candidates = (select[name] for name in ("kind", "keep", "candidates"))
    words = f"the best {keep} of {candidates} candidates by {BY[kind]}"
    caveat = "Selection costs variety: compare recall and coverage with those of samples as they come."
    if kind in SEES_THE_SAME:
        caveat += (
            " The scorer looks at the same features of EfficientNet-Lite0 as the distances and the obedience of "
            "classes and captions, and learnt from the same training pictures as the latter: those figures are "
            "circular here, flattered by whatever the scorer is wrong about. Trust eyes, or another network."
        )
    figures = ("score", "score_of_all", "kept_share", "accepted_share", "kept_below")
    return {**select, "words": words, "caveat": caveat, **{name: summary[name] for name in figures if name in summary}}


def mark_selected(figures: Mapping[str, Figure], selection: Mapping[str, Any] | None) -> dict[str, Figure]:
    """Say in every figure of samples that they were selected."""
    if selection is None:
        return dict(figures)
    circular = ", which looks at the same features: flattered" if selection["kind"] in SEES_THE_SAME else ""
    note = f"; samples are {selection['words']}{circular}"
    return {
        name: {**it, "computed_on": it["computed_on"] + note} if it["computed_on"].startswith("samples") else it
        for name, it in figures.items()
    }
