"""The first samples as one picture for people: a row for each class, or for each condition beside what shows it.

Where samples were selected, pictures as they come stand beside them, scores below.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stages.data.images import decode_image, encode_image
from stages.data.shards import ShardReader
from stages.data.tables import read_table
from stages.sampling.grid import Block, draw_blocks, shown_side

if TYPE_CHECKING:
    from pipeline.manifest import UnitRecord
    from pipeline.output import Output
    from pipeline.storage import StoredFile
    from stages.sampling.wanted import Slot, Wanted

GRID_COLUMNS = 10
GRID_ROWS = 24
SELECTED_COLUMNS = 6
"""Of kept samples, and as many of pictures as they come, where samples were selected."""
UNSELECTED = "unselected"
"""Prefix of the shards of pictures as they come."""
UNSELECTED_KEPT = 256
"""Sample ids below which units keep pictures as they come."""
LONGEST_NAME = 40

DrawTold = Callable[[int, int], list[np.ndarray]]
"""Pictures of the condition of a number, those that are drawn of so many pixels of side: uint8 [H, W, 3] each."""


class Row(NamedTuple):
    """The samples of one class or condition."""

    name: str
    ids: Sequence[int]
    condition: int | None = None
    """Number of the condition, to be shown beside."""


class Gallery:
    """Reads single pictures, and their scores, from the units that they were drawn in."""

    def __init__(self, output: Output, records: Sequence[UnitRecord], wanted: Sequence[Wanted]) -> None:
        self._output, self._records, self._wanted = output, records, wanted
        self._home = {
            slot.sample_id: (unit, place) for unit, it in enumerate(wanted) for place, slot in enumerate(it.slots)
        }

    def sample(self, sample_id: int) -> tuple[np.ndarray, float | None]:
        """A picture [H, W, 3] and its score, if there is one."""
        unit, place = self._home[sample_id]
        scores = self._table(unit).get("score")
        return self._picture(unit, "", place), None if scores is None else float(scores[place])

    def unselected(self, sample_id: int) -> tuple[np.ndarray, float | None]:
        """A candidate of a sample that was not chosen by its score, and its score."""
        unit, place = self._home[sample_id]
        rank = self._wanted[unit].slots[place].rank
        score = float(self._table(unit)["candidate_scores"][place][rank])
        return self._picture(unit, f"{UNSELECTED}-", place), score

    def _picture(self, unit: int, prefix: str, place: int) -> np.ndarray:
        return decode_image(self._reader(unit, prefix).read_image(place), 3)

    @functools.cache  # noqa: B019 (as long-lived as the grid that is drawn)
    def _reader(self, unit: int, prefix: str) -> ShardReader:
        return ShardReader(self._files(unit)[f"{prefix}{self._records[unit].name}.tar"], few=True)

    @functools.cache  # noqa: B019
    def _table(self, unit: int) -> dict[str, Any]:
        with self._files(unit)[f"{self._records[unit].name}.parquet"].held() as path:
            return read_table(path)

    def _files(self, unit: int) -> dict[str, StoredFile]:
        return self._output.store.files(self._records[unit])


def class_rows(classes: Sequence[str], num_samples: int, keep: int = 1) -> list[Row]:
    """A row for each class, or the first samples where there are none; ids run through classes, `keep` of each."""
    rows = []
    for row, name in enumerate(classes or [""] * GRID_COLUMNS):
        if classes:
            groups = range(row * keep, num_samples, len(classes) * keep)
            ids = [first + rank for first in groups for rank in range(keep)]
        else:
            ids = list(range(row * GRID_COLUMNS, (row + 1) * GRID_COLUMNS))
        rows.append(Row(name, [it for it in ids if it < num_samples][:GRID_COLUMNS]))
    return [row for row in rows[:GRID_ROWS] if row.ids]


def condition_rows(captions: Sequence[str], num_samples: int, samples_per_condition: int) -> list[Row]:
    """A row for each condition that samples were drawn from in turn."""
    rows = []
    for number, caption in enumerate(captions):
        first = number * samples_per_condition
        ids = range(first, min(num_samples, first + min(samples_per_condition, GRID_COLUMNS)))
        rows.append(Row(caption, ids, number))
    return [row for row in rows[:GRID_ROWS] if row.ids]


def request_rows(slots: Iterable[Slot], names: Mapping[str, str]) -> list[Row]:
    """A row for each request; `names` says what each asked for."""
    ids: dict[str, list[int]] = {}
    for slot in slots:
        if slot.request not in ids and len(ids) == GRID_ROWS:
            break
        ids.setdefault(slot.request, []).append(slot.sample_id)
    return [Row(names[request], them[:GRID_COLUMNS]) for request, them in ids.items()]


def draw_overview(gallery: Gallery, rows: Sequence[Row], draw_told: DrawTold | None, selected: str = "") -> bytes:
    """A PNG of the rows. `selected` (how, e.g. "best of 16") has pictures as they come beside them."""
    side = shown_side(gallery.sample(rows[0].ids[0])[0].shape[0])
    names = [row.name if len(row.name) <= LONGEST_NAME else row.name[: LONGEST_NAME - 1] + "…" for row in rows]
    told = [draw_told(row.condition, side) if draw_told and row.condition is not None else [] for row in rows]
    if not selected:
        pictures = [[*shown, *(gallery.sample(it)[0] for it in row.ids)] for shown, row in zip(told, rows, strict=True)]
        return encode_image(draw_blocks([Block(pictures)], names if any(names) else ()), "png")
    ids = [row.ids[:SELECTED_COLUMNS] for row in rows]
    blocks = [Block(told, "told")] if any(told) else []
    blocks.append(_scored(f"selected: {selected}", [[gallery.sample(it) for it in row] for row in ids]))
    beside = [[gallery.unselected(it) for it in row if it < UNSELECTED_KEPT] for row in ids]
    blocks.append(_scored("as they come", beside))
    return encode_image(draw_blocks(blocks, names if any(names) else ()), "png")


def _scored(heading: str, rows: Sequence[Sequence[tuple[np.ndarray, float | None]]]) -> Block:
    notes = [["" if score is None else f"{score:.3g}" for _, score in row] for row in rows]
    return Block([[picture for picture, _ in row] for row in rows], heading, notes)
