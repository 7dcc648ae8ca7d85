"""The worker of the encode stage: turns one shard into one table of tokens.

Shapes: N token rows, B batch, H W picture, C channels or condition tokens, T tokens, L condition tokens of one kind.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.units import Unit
from stages.data.box_codes import BoxCodes
from stages.data.boxes import window_boxes
from stages.data.captions import Captions
from stages.data.condition_config import (
    BoxesCondition,
    CaptionCondition,
    ConditionConfig,
    CoordinatesCondition,
)
from stages.data.condition_values import class_values, coordinate_values, no_values
from stages.data.images import decode_image, to_model_range
from stages.data.shards import ShardReader, boxes_of
from stages.data.tables import write_tokens
from stages.data.windows import Window, variant_window
from stages.models.cpu import prepare_cpu
from stages.models.tokenizer import Tokenizer
from stages.models.vocabulary import Segment, Vocabulary

BATCHES_AHEAD = 2
"""Decoded batches that wait for the network."""


class Row(NamedTuple):
    """A row of a table: a variant of a picture of the shard."""

    place: int
    variant: int
    window: Window


@dataclass(frozen=True)
class ShardEncoder:
    """Makes a unit of the encode stage; `recipe` says how, `payload` of what."""

    device: str
    tokenizer: Tokenizer
    map_tokenizer: Tokenizer | None = None
    captions: Captions | None = None
    box_codes: BoxCodes | None = None

    def __call__(self, unit: Unit, folder: Path) -> dict[str, Any]:
        """Write NAME.parquet, a row for each variant of each picture; count pictures, rows and codes used."""
        reader = ShardReader(unit.payload["shard"])
        rows = self._rows(reader, unit)
        tokens_NT = self._tokens(self.tokenizer, reader, rows, unit)
        described = [reader.table[row.place] for row in rows]
        write_tokens(
            folder / f"{unit.name}.parquet",
            keys=[row["key"] for row in described],
            labels=[row["label"] for row in described],
            captions=[row["caption"] for row in described],
            variants=[row.variant for row in rows],
            tokens_NT=tokens_NT,
            condition_NC=self._condition(reader, rows, unit),
            metadata=unit.payload["metadata"],
        )
        used = functools.reduce(lambda codes, code: codes | 1 << int(code), np.unique(tokens_NT), 0)
        return {"pictures": len(reader), "rows": len(rows), "codes": f"{used:x}"}

    def _rows(self, reader: ShardReader, unit: Unit) -> list[Row]:
        size, seed = self.tokenizer.image_size, unit.recipe["seed"]
        return [
            Row(place, variant, variant_window(row["key"], variant, stored=_stored(row), size=size, seed=seed))
            for place, row in enumerate(reader.table)
            for variant in unit.recipe["variants"]
        ]

    def _condition(self, reader: ShardReader, rows: Sequence[Row], unit: Unit) -> np.ndarray:
        """The tokens [N, C] of all conditions."""
        segments = tuple(Segment.model_validate(segment) for segment in unit.recipe["segments"])
        vocabulary = Vocabulary(self.tokenizer.num_codes, segments)
        values = [self._values(condition, reader, rows, unit) for condition in unit.payload["condition"]]
        condition_NC: np.ndarray = vocabulary.condition(*map(torch.from_numpy, values)).numpy()
        return condition_NC

    def _values(self, condition: ConditionConfig, reader: ShardReader, rows: Sequence[Row], unit: Unit) -> np.ndarray:
        """The values [N, L] of one condition."""
        makers: dict[str, Callable[[Any, ShardReader, Sequence[Row]], np.ndarray]] = {
            "none": lambda condition, reader, rows: no_values(len(rows)),
            "class": lambda condition, reader, rows: class_values([reader.table[row.place]["label"] for row in rows]),
            "caption": self._caption_values,
            "coordinates": self._coordinate_values,
            "boxes": self._box_values,
        }
        if condition.kind in makers:
            return makers[condition.kind](condition, reader, rows)
        assert self.map_tokenizer is not None
        return self._tokens(self.map_tokenizer, ShardReader(unit.payload["maps"]), rows, unit)

    def _caption_values(self, condition: CaptionCondition, reader: ShardReader, rows: Sequence[Row]) -> np.ndarray:
        assert self.captions is not None
        return self.captions.values([reader.table[row.place]["caption"] for row in rows], condition.length)

    def _coordinate_values(
        self, condition: CoordinatesCondition, reader: ShardReader, rows: Sequence[Row]
    ) -> np.ndarray:
        size, grid = self.tokenizer.image_size, self.tokenizer.grid
        values = [np.empty((0, grid[0] * grid[1]), np.int64)]
        for row in rows:
            stored = _stored(reader.table[row.place])
            values.append(coordinate_values([row.window], stored=stored, size=size, grid=grid, values=condition.values))
        return np.concatenate(values)

    def _box_values(self, condition: BoxesCondition, reader: ShardReader, rows: Sequence[Row]) -> np.ndarray:
        assert self.box_codes is not None
        size, pictures = self.tokenizer.image_size, []
        for row in rows:
            about = reader.table[row.place]
            boxes = boxes_of(about)
            pictures.append(
                None if boxes is None else window_boxes(boxes, row.window, stored=about["width"], size=size)
            )
        return self.box_codes.values(pictures, condition.max_boxes)

    def _tokens(self, tokenizer: Tokenizer, reader: ShardReader, rows: Sequence[Row], unit: Unit) -> np.ndarray:
        """The tokens [N, T] of the variants, batch by batch."""
        size = unit.recipe["batch_size"]

        def images(start: int) -> np.ndarray:
            batch = rows[start : start + size]
            pictures = [
                row.window.cut(decode_image(reader.read_image(row.place), tokenizer.channels), tokenizer.image_size)
                for row in batch
            ]
            # The order of additions in a convolution depends on the batch's shape: one shape, the same bits everywhere.
            pictures += [pictures[-1]] * (size - len(batch))
            return np.stack(pictures)

        tokens = [np.empty((0, tokenizer.grid[0] * tokenizer.grid[1]), dtype=np.int64)]
        batches = made_ahead(images, range(0, len(rows), size))
        tokens += [self._encode(tokenizer, batch, unit) for batch in batches]
        return np.concatenate(tokens)[: len(rows)]

    def _encode(self, tokenizer: Tokenizer, images_BHWC: np.ndarray, unit: Unit) -> np.ndarray:
        """uint8 [B, H, W, C] -> tokens [B, T]."""
        prepare_cpu(unit.recipe["threads"])
        low_precision = unit.recipe["precision"] == "bf16"
        autocast = torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=low_precision)
        with torch.inference_mode(), autocast:
            indices_BHW = tokenizer.encode(to_model_range(images_BHWC).to(self.device))
        tokens_BT: np.ndarray = indices_BHW.flatten(1).cpu().numpy()
        return tokens_BT


def made_ahead(make: Callable[[int], np.ndarray], starts: Iterable[int]) -> Iterator[np.ndarray]:
    """make(start) of each, in order; a thread reads and decodes the next ones while the network is busy."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming: deque[Future[np.ndarray]] = deque()
        for start in starts:
            coming.append(thread.submit(make, start))
            if len(coming) > BATCHES_AHEAD:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _stored(row: Any) -> tuple[int, int]:
    """Height and width of a stored picture."""
    return row["height"], row["width"]
