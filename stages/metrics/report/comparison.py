"""Two versions side by side: their figures, which of them is better, their samples and reconstructions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.metrics.report.pictures import picture_uri, samples_by_class
from stages.metrics.report.tables import SHARES, Figures, full_name

if TYPE_CHECKING:
    from pipeline.artifacts import Artifact

Side = Literal["challenger", "champion", ""]

LEADING = (
    *("kid_samples", "gfid", "is_samples", "precision_samples", "recall_samples", "kid_reconstructions", "rfid"),
    *("psnr", "bits_per_token_held_out", "codebook_used_corpus", "suspiciously_near", "obedience"),
)
"""How names of figures begin that are compared in sight, in this order; the others lie folded below."""
NOT_OF_A_MODEL = (
    *("_floor", "_chance", "_shuffled", "_possible", "held_out_copies"),
    *("is_val", "is_lite0_val", "is_inception_val"),
)
"""How names end of figures that say nothing of a version."""
OF_THE_TOKENS = ("bits_per_token", "overfit_gap", "codebook")
"""How names begin of figures that can be compared only where both versions write with the same tokens."""
CLASSES, SAMPLES_OF_EACH, RECONSTRUCTIONS = 12, 5, 12
"""That are shown side by side, at most."""


class Span(NamedTuple):
    """A 95% interval on the scale of its row, in percents of its width."""

    low: float
    high: float
    value: float


class Compared(NamedTuple):
    """A figure of both versions."""

    name: str
    challenger: Mapping[str, Any]
    champion: Mapping[str, Any]
    spans: tuple[Span, Span] | None
    better: Side
    """Which one is better beyond doubt: their intervals have nothing in common."""


class Comparison(NamedTuple):
    """All figures that both versions have."""

    leading: list[Compared]
    others: list[Compared]


class SideBySide(NamedTuple):
    """Samples of a class, as data URIs."""

    name: str
    challenger: list[str]
    champion: list[str]


class Rebuilt(NamedTuple):
    """A held-out picture and what either tokenizer makes of it, as data URIs."""

    original: str
    challenger: str
    champion: str


def compare(challenger: Figures, champion: Figures, decisive: Iterable[str], *, same_tokens: bool) -> Comparison:
    """Compare what both have; `decisive` figures come first."""
    decisive = list(dict.fromkeys(decisive))
    shared = [name for name in challenger if name in champion and not name.endswith(NOT_OF_A_MODEL)]
    leading = [name for start in LEADING for name in shared if name.startswith(start)]
    first = list(dict.fromkeys(name for name in [*decisive, *leading] if name in shared))
    others = [name for name in shared if name not in first]

    def rows(names: Sequence[str]) -> list[Compared]:
        return [_compared(name, challenger[name], champion[name], same_tokens=same_tokens) for name in names]

    return Comparison(rows(first), rows(others))


def _compared(name: str, new: Mapping[str, Any], old: Mapping[str, Any], *, same_tokens: bool) -> Compared:
    share = name.startswith(SHARES)
    better: Side = ""
    if "interval" in new and "interval" in old and (same_tokens or not name.startswith(OF_THE_TOKENS)):
        (new_low, new_high), (old_low, old_high) = new["interval"], old["interval"]
        if new_high < old_low:
            better = "challenger" if new["better"] == "lower" else "champion"
        elif old_high < new_low:
            better = "champion" if new["better"] == "lower" else "challenger"
    sides = ({**new, "is_share": share}, {**old, "is_share": share})
    return Compared(full_name(name, new), *sides, _spans(new, old), better)


def _spans(new: Mapping[str, Any], old: Mapping[str, Any]) -> tuple[Span, Span] | None:
    """Both intervals on one scale, with a little air at its ends; None where one of them has none."""
    if "interval" not in new or "interval" not in old:
        return None
    ends = [*new["interval"], *old["interval"], new["value"], old["value"]]
    start, width = float(min(ends)), float(max(ends) - min(ends))
    if width <= 0:
        return None

    def place(value: float) -> float:
        return 4 + 92 * (float(value) - start) / width

    spans = [Span(*map(place, (*figure["interval"], figure["value"]))) for figure in (new, old)]
    return spans[0], spans[1]


def samples_side_by_side(challenger: Artifact, champion: Artifact, classes: Sequence[str]) -> list[SideBySide]:
    """The first samples of evenly spaced classes that both have samples of, or of both without classes."""
    from stages.data.shards import open_split

    rows = [
        dict(samples_by_class(open_split(it, "sample"), classes, SAMPLES_OF_EACH, most=CLASSES * SAMPLES_OF_EACH).rows)
        for it in (challenger, champion)
    ]
    return [SideBySide(name, uris, rows[1][name]) for name, uris in rows[0].items() if name in rows[1]]


def rebuilt_side_by_side(challenger: Artifact, champion: Artifact) -> list[Rebuilt]:
    """Held-out pictures through either tokenizer, from two evaluations; none where they saw them in other sizes."""
    (original_N, new_N), (same_N, old_N) = (_kept(evaluation) for evaluation in (challenger, champion))
    if not len(original_N) or not np.array_equal(original_N, same_N):
        return []
    number = min(len(original_N), RECONSTRUCTIONS)
    chosen = np.unique(np.linspace(0, len(original_N) - 1, number).round().astype(int))
    return [Rebuilt(*(picture_uri(pictures[index]) for pictures in (original_N, new_N, old_N))) for index in chosen]


def _kept(evaluation: Artifact) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The pictures that an evaluation kept to be shown: originals and reconstructions, both [N, H, W, C]."""
    from safetensors.numpy import load_file

    pieces = []
    for unit, entry in evaluation.unit_files(".safetensors"):
        if unit.name.startswith("reconstruction-"):
            with evaluation.held(entry.path) as path:
                pieces.append(load_file(path))
    nothing = np.zeros((0, 0, 0, 3), np.uint8)
    if not pieces:
        return nothing, nothing
    return (
        np.concatenate([piece["originals"] for piece in pieces]),
        np.concatenate([piece["reconstructions"] for piece in pieces]),
    )
