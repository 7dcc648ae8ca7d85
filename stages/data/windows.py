"""Which part of a stored picture becomes tokens: the middle, or windows at places that belong to the picture."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from pipeline.errors import DataError


@dataclass(frozen=True)
class Window:
    """A square part of a picture, perhaps mirrored."""

    top: int
    left: int
    mirrored: bool = False

    def cut(self, array_HW: np.ndarray, size: int) -> np.ndarray:
        """The part of an array [H, W, ...] that the window shows."""
        part = array_HW[self.top : self.top + size, self.left : self.left + size]
        return part[:, ::-1] if self.mirrored else part


def variant_window(key: str, variant: int, *, stored: tuple[int, int], size: int, seed: int) -> Window:
    """The window of a variant of the picture `key`: 2 * number of the window, plus 1 if mirrored.

    Window 0 is the middle; the others lie anywhere, by a hash of (seed, key, number). `stored` is (height, width).

    Raises DataError where the picture is smaller than the window.
    """
    spare_y, spare_x = stored[0] - size, stored[1] - size
    if min(spare_y, spare_x) < 0:
        raise DataError(
            f"picture {key} is {stored[1]}x{stored[0]}, the tokenizer wants {size}x{size}: "
            "run --stages shard,tokenizer with one image_size"
        )
    number, mirrored = divmod(variant, 2)
    if not number:
        return Window((spare_y + 1) // 2, (spare_x + 1) // 2, bool(mirrored))
    digest = hashlib.sha256(f"window/{seed}/{key}/{number}".encode()).digest()
    top, left = (int.from_bytes(digest[at : at + 8], "little") for at in (0, 8))
    return Window(top % (spare_y + 1), left % (spare_x + 1), bool(mirrored))
