"""The first samples as one picture for people: a row for each class, or for each condition beside what shows it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stages.data.images import decode_image, encode_image
from stages.data.shards import ShardReader
from stages.sampling.given import Given
from stages.sampling.grid import draw_grid, shown_side

if TYPE_CHECKING:
    from pipeline.manifest import UnitRecord
    from pipeline.output import Output

GRID_COLUMNS = 10
GRID_ROWS = 24
LONGEST_NAME = 40

ReadSample = Callable[[int], np.ndarray]
"""The picture of a sample's id: uint8 [H, W, 3]."""
DrawTold = Callable[[int, int], list[np.ndarray]]
"""Pictures of the condition of a number, those that are drawn of so many pixels of side: uint8 [H, W, 3] each."""


def sample_reader(output: Output, records: Sequence[UnitRecord], samples_per_unit: int) -> ReadSample:
    """Read single samples from the units they were drawn in."""

    @functools.cache
    def reader(unit: int) -> ShardReader:
        home = output.store.folder_of(records[unit].key)
        local = {entry.path: home.local(entry.path) for entry in records[unit].files}
        return ShardReader(local[f"{records[unit].name}.tar"])

    def picture(sample_id: int) -> np.ndarray:
        unit, place = divmod(sample_id, samples_per_unit)
        return decode_image(reader(unit).read_image(place), 3)

    return picture


def class_grid(read: ReadSample, num_samples: int, classes: Sequence[str]) -> bytes:
    """A PNG with a row for each class, or with the first samples where there are none."""
    names = classes[:GRID_ROWS]
    places = [
        [column * len(classes) + row if classes else row * GRID_COLUMNS + column for column in range(GRID_COLUMNS)]
        for row in range(len(names) or GRID_COLUMNS)
    ]
    pictures = [[read(i) for i in row if i < num_samples] for row in places]
    pictures = [row for row in pictures if row]
    return encode_image(draw_grid(pictures, names[: len(pictures)]), "png")


def condition_grid(
    read: ReadSample, num_samples: int, given: Given, samples_per_condition: int, draw_told: DrawTold
) -> bytes:
    """A PNG with a row for each condition: pictures of it, if there are any, then its samples; left its caption."""
    shown = min(GRID_ROWS, len(given), -(-num_samples // samples_per_condition))
    side = shown_side(read(0).shape[0])
    pictures = []
    for row in range(shown):
        first = row * samples_per_condition
        ids = range(first, min(num_samples, first + min(samples_per_condition, GRID_COLUMNS)))
        pictures.append([*draw_told(row, side), *map(read, ids)])
    names = [
        caption if len(caption) <= LONGEST_NAME else caption[: LONGEST_NAME - 1] + "…" for caption in given.captions
    ]
    return encode_image(draw_grid(pictures, names[:shown]), "png")
