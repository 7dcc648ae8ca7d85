"""144 pieces of nine photographs that ship in the package scikit-image: stand-ins for photographs of one's own.

Their maps are stand-ins too, computed from brightness: they show that a run works, not what a prior makes of maps.

Shapes: H height, W width.
"""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from pipeline.artifacts import SourceFile
from pipeline.errors import DataError
from stages.data.images import encode_image
from stages.data.packages import package_folder
from stages.data.pictures import MapFile, Picture

PACKAGE = "scikit-image"
PHOTOGRAPHS = ("astronaut", "brick", "camera", "chelsea", "coffee", "grass", "gravel", "hubble_deep_field", "rocket")
"""In the public domain or CC0, as the package says of each."""
PIECES = 4
"""Along each side."""
CLASSES = 8
"""Of segmentations: eighths of the brightness of what is smooth."""
MAPS = {"segmentation": 2.0, "depth": 8.0}
"""What stands beside each piece, and the standard deviation in pixels of the Gaussian that smooths it."""


def photograph_files() -> Iterator[SourceFile]:
    """Yield a row for each piece and each of its maps; stamped with the package's version."""
    photographs_folder()
    stamp = f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
    for name in PHOTOGRAPHS:
        for piece in range(PIECES * PIECES):
            for what in ("", *(f".{kind}" for kind in MAPS)):
                yield SourceFile(f"{name}-{piece:02d}{what}.png", 0, stamp)


def photograph_pictures(listing: Iterable[SourceFile]) -> list[Picture]:
    """Join a listing with classes (the photograph's name), captions and maps; each piece is a group of its own."""
    files = {file.path: file for file in listing}
    pictures = []
    for path, file in files.items():
        stem = path.removesuffix(".png")
        if "." in stem:
            continue
        name = stem.rpartition("-")[0]
        maps = [(kind, files[f"{stem}.{kind}.png"]) for kind in MAPS]
        beside = tuple(MapFile(kind, it.path, it.bytes, it.stamp) for kind, it in maps)
        caption = f"a piece of {name.replace('_', ' ')}"
        pictures.append(Picture(path, file.bytes, file.stamp, name, caption, path, beside))
    return pictures


def read_photograph(path: str, size: int, stamp: str) -> bytes:
    """The PNG of a listed piece, square and in colour, or of a map of it, grey."""
    stem, _, kind = path.removesuffix(".png").partition(".")
    name, _, number = stem.rpartition("-")
    image = _photograph(name)
    side = min(image.size) // PIECES
    row, column = divmod(int(number), PIECES)
    left, top = (image.width - PIECES * side) // 2 + column * side, (image.height - PIECES * side) // 2 + row * side
    piece = image.crop((left, top, left + side, top + side))
    if not kind:
        return encode_image(piece, "png")
    grey_HW = gaussian_filter(np.asarray(piece.convert("L"), np.float64), MAPS[kind])
    map_HW = grey_HW * CLASSES // 256 if kind == "segmentation" else np.round(grey_HW)
    return encode_image(map_HW.astype(np.uint8)[:, :, None], "png")


def photographs_folder() -> Path:
    """Return the folder of the packaged photographs. Raises DataError where the package is missing."""
    return package_folder("skimage", PACKAGE, source="photographs") / "data"


@cache
def _photograph(name: str) -> Image.Image:
    for extension in ("png", "jpg"):
        path = photographs_folder() / f"{name}.{extension}"
        if path.is_file():
            return Image.open(io.BytesIO(path.read_bytes()), formats=("PNG", "JPEG")).convert("RGB")
    raise DataError(f"{photographs_folder()} holds no photograph {name}: install {PACKAGE} 0.26")
