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

from pipeline.errors import DataError
from pipeline.units import Unit
from stages.data.condition_values import condition_values
from stages.data.images import decode_image, to_model_range
from stages.data.shards import Sample, ShardReader
from stages.data.tables import write_tokens
from stages.models.cpu import prepare_cpu
from stages.models.tokenizer import Tokenizer
from stages.models.vocabulary import Segment, Vocabulary

BATCHES_AHEAD = 2
"""Decoded batches that wait for the network."""


class Row(NamedTuple):
    """A row of a table: a variant of a picture of the shard."""

    place: int
    variant: int
    """1: mirrored."""


@dataclass(frozen=True)
class ShardEncoder:
    """Makes a unit of the encode stage; `recipe` says how, `payload` of what."""

    tokenizer: Tokenizer
    device: str

    def __call__(self, unit: Unit, folder: Path) -> dict[str, Any]:
        """Write NAME.parquet, a row for each variant of each picture; count pictures, rows and codes used."""
        reader = ShardReader(unit.payload["shard"])
        rows = [Row(i, variant) for i in range(len(reader)) for variant in range(unit.recipe["num_variants"])]
        tokens_NT = self._tokens(self.tokenizer, reader, rows, unit)
        described = [reader.table[row.place] for row in rows]
        write_tokens(
            folder / f"{unit.name}.parquet",
            keys=[row["key"] for row in described],
            labels=[row["label"] for row in described],
            captions=[row["caption"] for row in described],
            variants=[row.variant for row in rows],
            tokens_NT=tokens_NT,
            condition_NC=self._condition(described, unit),
            metadata=unit.payload["metadata"],
        )
        used = functools.reduce(lambda codes, code: codes | 1 << int(code), np.unique(tokens_NT), 0)
        return {"pictures": len(reader), "rows": len(rows), "codes": f"{used:x}"}

    def _condition(self, described: Sequence[Any], unit: Unit) -> np.ndarray:
        """The tokens [N, C] of all conditions."""
        segments = tuple(Segment.model_validate(segment) for segment in unit.recipe["segments"])
        vocabulary = Vocabulary(self.tokenizer.num_codes, segments)
        values = [condition_values(condition, described) for condition in unit.payload["condition"]]
        condition_NC: np.ndarray = vocabulary.condition(*map(torch.from_numpy, values)).numpy()
        return condition_NC

    def _tokens(self, tokenizer: Tokenizer, reader: ShardReader, rows: Sequence[Row], unit: Unit) -> np.ndarray:
        """The tokens [N, T] of the variants, batch by batch."""
        size = unit.recipe["batch_size"]

        def images(start: int) -> np.ndarray:
            batch = rows[start : start + size]
            pictures = [
                cut_picture(reader[row.place], row.variant, tokenizer.image_size, tokenizer.channels) for row in batch
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


def cut_picture(sample: Sample, variant: int, size: int, channels: int) -> np.ndarray:
    """The centre of a stored picture as uint8 [size, size, C]; variant 1 is its mirror image."""
    image_HWC = decode_image(sample.image, channels)
    spare_y, spare_x = image_HWC.shape[0] - size, image_HWC.shape[1] - size
    if min(spare_y, spare_x) < 0:
        raise DataError(
            f"picture {sample.key} is {image_HWC.shape[1]}x{image_HWC.shape[0]}, the tokenizer wants {size}x{size}: "
            "run --stages shard,tokenizer with one image_size"
        )
    top, left = (spare_y + 1) // 2, (spare_x + 1) // 2
    image_HWC = image_HWC[top : top + size, left : left + size]
    return image_HWC[:, ::-1] if variant else image_HWC
