"""How conditions become segments of the prior's vocabulary. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stages.data.condition_config import ConditionConfig
from stages.models.vocabulary import Segment

if TYPE_CHECKING:
    from stages.data.box_codes import BoxCodes


def segments_of(
    conditions: Sequence[ConditionConfig],
    classes: Sequence[str],
    grid: Sequence[int],
    captions: str | None,
    map_space: Mapping[str, Any] | None,
    box_codes: BoxCodes | None = None,
) -> list[Segment]:
    """A segment for each condition of pictures whose tokens lie on `grid`.

    `captions` is the JSON of byte pairs, `map_space` says of the maps' tokens `tokenizer`, `codebook_size` and `grid`,
    `box_codes` are the values of boxes.
    """
    return [_segment(condition, classes, grid, captions, map_space, box_codes) for condition in conditions]


def _segment(
    condition: ConditionConfig,
    classes: Sequence[str],
    grid: Sequence[int],
    captions: str | None,
    map_space: Mapping[str, Any] | None,
    box_codes: BoxCodes | None,
) -> Segment:
    rows, columns = grid
    if condition.kind == "none":
        return Segment(kind="none", length=1, size=0)
    if condition.kind == "class":
        return Segment(kind="class", length=1, size=len(classes))
    if condition.kind == "coordinates":
        # Places run from 0 to the last one itself: a mean near the last pixel rounds up to it.
        return Segment(kind="coordinates", length=rows * columns, size=condition.values + 1, grid=(rows, columns))
    if condition.kind == "caption":
        from stages.data.captions import Captions

        assert captions is not None, "captions are learnt where they are a condition"
        return Segment(kind="caption", length=condition.length, size=len(Captions(captions)))
    if condition.kind == "boxes":
        assert box_codes is not None, "the classes of boxes are read where they are a condition"
        return Segment(kind="boxes", length=3 * condition.max_boxes, size=box_codes.size)
    assert map_space is not None, f"the graph gives encode a tokenizer of the maps for condition {condition.kind}"
    rows, columns = map_space["grid"]
    return Segment(
        kind=condition.kind,
        length=rows * columns,
        size=map_space["codebook_size"],
        grid=(rows, columns),
        tokenizer=map_space["tokenizer"],
    )
