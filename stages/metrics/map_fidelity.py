"""How close the map of a picture comes to the map it was drawn from, and finding the latter.

Legend: N pictures, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from stages.data.condition_config import ComputedMap
from stages.data.conditions import make_map
from stages.data.images import decode_image
from stages.data.shards import ShardReader
from stages.data.windows import variant_window

if TYPE_CHECKING:
    from stages.data.shards import Shard

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

    def read(self, target: Target) -> Picture:
        """The map [size, size, C]."""
        key, variant = target
        reader, place = self._places[key]
        row = reader.table[place]
        window = variant_window(key, variant, stored=(row["height"], row["width"]), size=self.size, seed=self.seed)
        return window.cut(decode_image(reader.read_image(place), self.channels), self.size)

    @cached_property
    def _places(self) -> dict[str, tuple[ShardReader, int]]:
        readers = [ShardReader(shard) for shard in self.shards]
        return {row["key"]: (reader, place) for reader in readers for place, row in enumerate(reader.table)}


def fidelities(
    condition: ComputedMap, pictures_NHWC: Picture, targets: Sequence[Target], shelf: MapShelf
) -> NDArray[np.float64]:
    """For each picture how close its map comes to its target: F1 for edges, else PSNR in dB."""
    measure = edge_f1 if condition.kind == "edges" else map_psnr
    found = [
        measure(make_map(condition, picture_HWC), shelf.read(target))
        for picture_HWC, target in zip(pictures_NHWC, targets, strict=True)
    ]
    return np.array(found, np.float64)


def edge_f1(found_HWC: Picture, wanted_HWC: Picture) -> float:
    """F1 of edges, of which one pixel's distance is forgiven (as in Martin et al. 2004); 1 where neither has any."""
    found_HW, wanted_HW = (map_HWC[:, :, 0] > 127 for map_HWC in (found_HWC, wanted_HWC))
    if not found_HW.any() or not wanted_HW.any():
        return float(found_HW.any() == wanted_HW.any())
    around = np.ones((3, 3), bool)
    precision = float((found_HW & binary_dilation(wanted_HW, around)).sum() / found_HW.sum())
    recall = float((wanted_HW & binary_dilation(found_HW, around)).sum() / wanted_HW.sum())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def map_psnr(found_HWC: Picture, wanted_HWC: Picture) -> float:
    """-10 log10 of the mean squared error on the scale [0, 1], at most 100 dB."""
    error = np.square((found_HWC.astype(np.float64) - wanted_HWC) / 255).mean()
    return float(-10 * np.log10(max(error, 1e-10)))
