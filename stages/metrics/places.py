"""Where in its picture a window lies, and how well that can be seen in what the window shows.

Legend: N windows, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.data.windows import variant_window
from stages.metrics.ridge import Ridge

Values = NDArray[np.float64]

THUMBNAIL = 8
"""Side in pixels."""
DRAWN_WINDOW = 2
"""The variant that is looked at: the first window that lies anywhere, not mirrored."""


@dataclass(frozen=True)
class Windows:
    """Some windows: what they show, and where they lie."""

    features_ND: NDArray[np.float32]
    places_N2: Values
    groups_N: NDArray[np.int64]
    """Windows of one group resemble one another."""


def thumbnails(pictures_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Small copies of pictures, in [-1, 1], and their squares: features [N, D] that know where in a picture things are.

    Pooled features of a network do not. On emoji, windows of 32 of 64 pixels are placed with an error of 0.164 of the
    side by these and of 0.181 by EfficientNet-Lite0's; 0.209 and 0.202 for the windows of other pictures.
    """
    sides = (THUMBNAIL, THUMBNAIL)
    small = [
        np.asarray(Image.fromarray(picture_HWC.squeeze()).resize(sides, Image.Resampling.BOX), np.float32).ravel()
        for picture_HWC in pictures_NHWC
    ]
    empty_ND = np.empty((0, THUMBNAIL**2 * pictures_NHWC.shape[3]), np.float32)
    colours_ND = np.concatenate([empty_ND, *(copy_D[None] / 127.5 - 1 for copy_D in small)])
    return np.concatenate([colours_ND, np.square(colours_ND)], axis=1)


def window_place(row: Mapping[str, Any], variant: int, *, size: int, seed: int) -> tuple[float, float]:
    """(x, y) of a window's middle, in shares of the sides of its picture, a row of a shard's table."""
    stored = row["height"], row["width"]
    window = variant_window(row["key"], variant, stored=stored, size=size, seed=seed)
    return (window.left + size / 2) / stored[1], (window.top + size / 2) / stored[0]


def place_errors(train: Windows, *looked_at: tuple[NDArray[np.float32], Values]) -> list[Values]:
    """For each set of (features, places) the distances [N] between places and those that features promise.

    By a ridge regression learnt from `train`, kept between the outermost places there; in shares of the side.
    """
    promise = Ridge.fit(train.features_ND, train.places_N2)
    low_2, high_2 = train.places_N2.min(0), train.places_N2.max(0)
    return [
        np.linalg.norm(promise(features_ND).clip(low_2, high_2) - places_N2, axis=1)
        for features_ND, places_N2 in looked_at
    ]
