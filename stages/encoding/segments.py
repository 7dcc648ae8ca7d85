"""How conditions become segments of the prior's vocabulary. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.data.condition_config import ConditionConfig
from stages.models.vocabulary import Segment

if TYPE_CHECKING:
    from stages.data.box_codes import BoxCodes


@dataclass(frozen=True)
class Known:
    """What the sizes of segments depend on beside the conditions themselves."""

    classes: Sequence[str]
    grid: tuple[int, int]
    """Rows and columns of a picture's tokens."""
    captions: str | None
    """The JSON of byte pairs, where captions are a condition."""
    map_space: Mapping[str, Any] | None
    """`tokenizer`, `codebook_size` and `grid` of the maps' tokens, where a map is a condition."""
    box_codes: BoxCodes | None
    """The values of boxes, where they are a condition."""


def segments_of(conditions: Sequence[ConditionConfig], known: Known) -> list[Segment]:
    """A segment for each condition."""
    return [SEGMENTS.get(condition.kind, _map)(condition, known) for condition in conditions]


def _nothing(condition: Any, known: Known) -> Segment:
    return Segment(kind="none", length=1, size=0)


def _class(condition: Any, known: Known) -> Segment:
    return Segment(kind="class", length=1, size=len(known.classes))


def _caption(condition: Any, known: Known) -> Segment:
    from stages.data.captions import Captions

    assert known.captions is not None, "captions are learnt where they are a condition"
    return Segment(kind="caption", length=condition.length, size=len(Captions(known.captions)))


def _coordinates(condition: Any, known: Known) -> Segment:
    rows, columns = known.grid
    # Places run from 0 to the last one itself: a mean near the last pixel rounds up to it.
    return Segment(kind="coordinates", length=rows * columns, size=condition.values + 1, grid=(rows, columns))


def _boxes(condition: Any, known: Known) -> Segment:
    assert known.box_codes is not None, "the classes of boxes are read where they are a condition"
    return Segment(kind="boxes", length=3 * condition.max_boxes, size=known.box_codes.size)


def _map(condition: Any, known: Known) -> Segment:
    space = known.map_space
    assert space is not None, f"the graph gives encode a tokenizer of the maps for condition {condition.kind}"
    rows, columns = space["grid"]
    size, tokenizer = space["codebook_size"], space["tokenizer"]
    return Segment(kind=condition.kind, length=rows * columns, size=size, grid=(rows, columns), tokenizer=tokenizer)


SEGMENTS: Mapping[str, Callable[[Any, Known], Segment]] = {
    "none": _nothing,
    "class": _class,
    "caption": _caption,
    "coordinates": _coordinates,
    "boxes": _boxes,
}
"""By kind of condition; all others are maps."""
