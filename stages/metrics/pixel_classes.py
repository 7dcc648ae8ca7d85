"""Guessing the class of each pixel from the colours around it: what shows of a segmentation in a picture.

Legend: N pixels, D features, K classes, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from stages.data.images import decode_image
from stages.data.map_shelf import MapShelf
from stages.data.shards import ShardReader
from stages.data.windows import variant_window
from stages.metrics.ridge import Ridge

if TYPE_CHECKING:
    from stages.data.shards import Shard

Picture = NDArray[np.uint8]

PICTURES, PIXELS = 512, 48
"""Training pictures that are learnt from, and pixels of each."""
BLURS = (0.0, 1.0, 2.0, 4.0)
"""Standard deviations in pixels of the Gaussians through which colours are seen."""


@dataclass(frozen=True)
class PixelClasses:
    """A ridge classifier on colours at several blurs and their products, blind to where in the picture a pixel lies."""

    ridge: Ridge

    @classmethod
    def learn(
        cls, pictures: Sequence[Shard], maps: Sequence[Shard], *, size: int, channels: int, num_classes: int, seed: int
    ) -> PixelClasses:
        """Learn from pixels drawn by `seed` in the middle windows of pictures, which have maps under their keys."""
        rng, shelf = np.random.default_rng(seed), MapShelf(maps, 1, size, seed)
        features, classes = [], []
        for shard in pictures:
            reader = ShardReader(shard)
            for place, row in enumerate(reader.table[: -(-PICTURES // len(pictures))]):
                window = variant_window(row["key"], 0, stored=(row["height"], row["width"]), size=size, seed=seed)
                picture_HWC = window.cut(decode_image(reader.read_image(place), channels), size)
                drawn_N = rng.choice(size * size, min(PIXELS, size * size), replace=False)
                features.append(_pixel_features(picture_HWC)[drawn_N])
                classes.append(shelf.read((row["key"], 0)).reshape(-1)[drawn_N])
        return cls(Ridge.fit(np.concatenate(features), np.eye(num_classes)[np.concatenate(classes)]))

    def __call__(self, picture_HWC: Picture) -> Picture:
        """The class numbers [H, W, 1] that a picture's colours promise."""
        guessed_N = self.ridge(_pixel_features(picture_HWC)).argmax(1)
        guessed_HWC: Picture = guessed_N.astype(np.uint8).reshape(*picture_HWC.shape[:2], 1)
        return guessed_HWC


def _pixel_features(picture_HWC: Picture) -> NDArray[np.float64]:
    """Blurred colours of each pixel, and the products of any two: [N, D]."""
    colours_HWC = picture_HWC.astype(np.float64) / 127.5 - 1
    seen_HWD = np.concatenate([gaussian_filter(colours_HWC, (blur, blur, 0)) for blur in BLURS], axis=2)
    seen_ND = seen_HWD.reshape(-1, seen_HWD.shape[2])
    left, right = np.triu_indices(seen_ND.shape[1])
    return np.concatenate([seen_ND, seen_ND[:, left] * seen_ND[:, right]], axis=1)
