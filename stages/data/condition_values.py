"""What each condition says of some pictures, as numbers: the values of its tokens, -1 where it says nothing.

Shapes: N pictures, H height, W width, L condition tokens of one kind.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.data.windows import Window


def class_values(labels: Sequence[int]) -> np.ndarray:
    """Labels as values [N, 1]."""
    return np.asarray(labels, dtype=np.int64)[:, None]


def no_values(count: int) -> np.ndarray:
    """The values [N, 1] of a token that says nothing."""
    return np.full((count, 1), -1, dtype=np.int64)


def coordinate_values(
    windows: Sequence[Window], *, stored: tuple[int, int], size: int, grid: tuple[int, int], values: int
) -> np.ndarray:
    """round(values * mean over a token's pixels of arange(H*W) / (H*W)) [N, L] for windows of pictures of H x W pixels.

    Taken before the window is cut, so that it says where in the picture it lies (taming-transformers' CoordStage).
    """
    height, width = stored
    places_HW = np.arange(height * width, dtype=np.float64).reshape(height, width) / (height * width)
    rows, columns = grid
    found = np.empty((len(windows), rows * columns), dtype=np.int64)
    for row_L, window in zip(found, windows, strict=True):
        cut_HW = window.cut(places_HW, size)
        means = cut_HW.reshape(rows, size // rows, columns, size // columns).mean(axis=(1, 3))
        row_L[:] = np.round(values * means).ravel()
    return found
