"""The first samples as one picture for people: a row for each class, or for each condition beside what shows it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stages.data.images import decode_image, encode_image
from stages.data.shards import Shard, ShardReader
from stages.sampling.given import Given
from stages.sampling.grid import draw_grid

if TYPE_CHECKING:
    from pipeline.manifest import UnitRecord
    from pipeline.output import Output

GRID_COLUMNS = 10
GRID_ROWS = 24
LONGEST_NAME = 40

ReadSample = Callable[[int], np.ndarray]
"""The picture of a sample's id: uint8 [H, W, 3]."""


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
    read: ReadSample,
    num_samples: int,
    given: Given,
    samples_per_condition: int,
    maps: Sequence[Shard],
    num_labels: int | None = None,
) -> bytes:
    """A PNG with a row for each condition: its map, if it has one, then its samples; on the left its caption.

    Class numbers of maps, `num_labels` of them, become shades of grey.
    """
    shown = min(GRID_ROWS, len(given), -(-num_samples // samples_per_condition))
    map_of = _maps_by_key(maps, set(given.keys[:shown]))
    pictures = []
    for row in range(shown):
        first = row * samples_per_condition
        ids = range(first, min(num_samples, first + min(samples_per_condition, GRID_COLUMNS)))
        scale = 255 // (num_labels - 1) if num_labels else 1
        beside = [map_of[given.keys[row]] * np.uint8(scale)] if given.keys[row] in map_of else []
        pictures.append(beside + [read(i) for i in ids])
    names = [
        caption if len(caption) <= LONGEST_NAME else caption[: LONGEST_NAME - 1] + "…" for caption in given.captions
    ]
    return encode_image(draw_grid(pictures, names[:shown]), "png")


def _maps_by_key(maps: Sequence[Shard], wanted: set[str]) -> Mapping[str, np.ndarray]:
    found = {}
    for shard in maps:
        reader = ShardReader(shard)
        for place, row in enumerate(reader.table):
            if row["key"] in wanted:
                found[row["key"]] = decode_image(reader.read_image(place), 3)
    return found
