"""Boxes around the things in a picture: read from a list, moved as their picture is cut, shown to people."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.errors import DataError, shown
from stages.data.images import Preparation, Rejected, open_image, turn_of
from stages.data.pictures import Box
from stages.data.windows import Window

LONGEST_LABEL = 100
DIGITS = 6
"""Decimals kept of shares of a side."""

PALETTE = ("#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#7f7f7f")
"""Colours of classes, in turn."""

Corner = tuple[float, float]
_TURNED: Mapping[Image.Transpose, Callable[[float, float], Corner]] = {
    Image.Transpose.FLIP_LEFT_RIGHT: lambda x, y: (1 - x, y),
    Image.Transpose.FLIP_TOP_BOTTOM: lambda x, y: (x, 1 - y),
    Image.Transpose.ROTATE_90: lambda x, y: (y, 1 - x),
    Image.Transpose.ROTATE_180: lambda x, y: (1 - x, 1 - y),
    Image.Transpose.ROTATE_270: lambda x, y: (1 - y, x),
    Image.Transpose.TRANSPOSE: lambda x, y: (y, x),
    Image.Transpose.TRANSVERSE: lambda x, y: (1 - y, 1 - x),
}
"""Where Pillow's turns bring a point of a square of side 1."""


def parse_boxes(cell: Any, where: str) -> tuple[Box, ...] | None:
    """The boxes in a cell of a list, which may be a list or its JSON; None for an empty cell.

    Raises DataError naming the place and the first box that is none.
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)) or cell == "":
        return None
    boxes = cell
    if isinstance(cell, str):
        try:
            boxes = json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: boxes {shown(cell)} are no JSON ({error}): correct or empty the cell") from None
    if not isinstance(boxes, list):
        raise DataError(f"{where}: boxes {shown(cell)} must be a list of [class name, left, top, right, bottom]")
    return tuple(_checked(box, where) for box in boxes)


def _checked(box: Any, where: str) -> Box:
    if not (isinstance(box, list) and len(box) == 5 and all(map(_is_number, box[1:]))):
        raise DataError(f"{where}: box {shown(box)} must be [class name, left, top, right, bottom], edges in pixels")
    label, (left, top, right, bottom) = box[0], map(float, box[1:])
    named = isinstance(label, str | int) and not isinstance(label, bool) and str(label).strip()
    if not (named and len(str(label)) <= LONGEST_LABEL and str(label).isprintable()):
        raise DataError(
            f"{where}: box {shown(box)}: its class must be a name of at most {LONGEST_LABEL} printable characters"
        )
    if right <= left or bottom <= top:
        raise DataError(f"{where}: box {shown(box)} is empty: write [class name, left, top, right, bottom], not a size")
    if right - left <= 1 and bottom - top <= 1:
        raise DataError(
            f"{where}: box {shown(box)} is a pixel at most: write edges in pixels, not in shares of the side"
        )
    return Box(str(label).strip(), left, top, right, bottom)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def prepare_boxes(data: bytes, boxes: Sequence[Box], how: Preparation) -> tuple[Box, ...]:
    """Boxes in pixels of a picture file, in shares of the side of the square that `prepare` makes of it.

    Those that the cut leaves nothing of are dropped, others clipped. Within a pixel where `pad` rounds sides.
    Raises Rejected with the code box_outside for one that is not in the picture at all.
    """
    image = open_image(data)
    width, height = image.size
    for box in boxes:
        if box.right <= 0 or box.bottom <= 0 or box.left >= width or box.top >= height:
            edges = ", ".join(f"{edge:g}" for edge in box[1:])
            raise Rejected("box_outside", f"its box {box.label} ({edges}) is not in its {width}x{height} pixels")
    side = max(width, height) if how.crop == "pad" else min(width, height)
    inside = [
        Box(box.label, max(box.left, 0), max(box.top, 0), min(box.right, width), min(box.bottom, height))
        for box in boxes
    ]
    square = clipped(inside, left=(width - side) / 2, top=(height - side) / 2, side=side)
    turn = turn_of(image)
    return tuple(_turned(box, turn) if turn is not None else box for box in square)


def clipped(boxes: Iterable[Box], *, left: float, top: float, side: float) -> list[Box]:
    """Boxes in shares of the side of a square, of those that lie in it; `left`, `top`, `side` in the boxes' unit."""
    found = []
    for box in boxes:
        edges = (box.left - left, box.top - top, box.right - left, box.bottom - top)
        x0, y0, x1, y1 = (round(min(max(edge / side, 0.0), 1.0), DIGITS) for edge in edges)
        if x1 > x0 and y1 > y0:
            found.append(Box(box.label, x0, y0, x1, y1))
    return found


def _turned(box: Box, turn: Image.Transpose) -> Box:
    (x0, y0), (x1, y1) = _TURNED[turn](box.left, box.top), _TURNED[turn](box.right, box.bottom)
    edges = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
    return Box(box.label, *(round(edge, DIGITS) for edge in edges))


def window_boxes(boxes: Iterable[Box], window: Window, *, stored: int, size: int) -> list[Box]:
    """Boxes of a stored picture of `stored` pixels of side, in shares of a window of `size` pixels of it."""
    shares = {"left": window.left / stored, "top": window.top / stored, "side": size / stored}
    found = clipped(boxes, **shares)
    return [_turned(box, Image.Transpose.FLIP_LEFT_RIGHT) for box in found] if window.mirrored else found


def draw_boxes(boxes: Sequence[Box], classes: Sequence[str], side: int) -> np.ndarray:
    """Boxes on white, a colour a class, with their names where they have room: uint8 [side, side, 3]."""
    sheet = Image.new("RGB", (side, side), "white")
    ink, line, font = ImageDraw.Draw(sheet), max(1, side // 64), ImageFont.load_default(max(9, side // 12))
    for box in boxes:
        colour = PALETTE[classes.index(box.label) % len(PALETTE)]
        left, top, right, bottom = (round(edge * (side - 1)) for edge in box[1:])
        ink.rectangle((left, top, right, bottom), outline=colour, width=line)
        if right - left > font.getlength(box.label) + 2 * line:
            ink.text((left + 2 * line, top + line), box.label, colour, font)
    return np.asarray(sheet)
