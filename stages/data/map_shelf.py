"""Finding the map of a held-out picture's window among the shards of maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stages.data.images import decode_image
from stages.data.shards import Shard, ShardReader
from stages.data.windows import variant_window

Picture = NDArray[np.uint8]
Target = tuple[str, int]
"""Key of a held-out picture, and which window of it."""


@dataclass(frozen=True)
class MapShelf:
    """The maps of held-out pictures, by key and window."""

    shards: Sequence[Shard]
    channels: int
    size: int
    """Side in pixels of windows."""
    seed: int
    """Of the windows."""
    few: bool = False
    """Whether only some of the maps will be read."""

    def read(self, target: Target) -> Picture:
        """The map [size, size, C]."""
        key, variant = target
        reader, place = self._places[key]
        row = reader.table[place]
        window = variant_window(key, variant, stored=(row["height"], row["width"]), size=self.size, seed=self.seed)
        return window.cut(decode_image(reader.read_image(place), self.channels), self.size)

    @cached_property
    def _places(self) -> dict[str, tuple[ShardReader, int]]:
        readers = [ShardReader(shard, few=self.few) for shard in self.shards]
        return {row["key"]: (reader, place) for reader in readers for place, row in enumerate(reader.table)}
