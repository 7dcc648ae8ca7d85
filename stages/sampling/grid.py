"""Pictures laid out for people: a row for each class, its name on the left, on white; blocks side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SMALLEST, LARGEST = 64, 160
"""Sides in pixels between which a picture is shown: small ones are enlarged in whole steps, large ones reduced."""
GAP, MARGIN = 6, 16
BLOCK_GAP = 28
FONT_SIZE, NOTE_SIZE = 15, 11
NOTE_HEIGHT, HEADING_HEIGHT = 15, 26
INK, FAINT = (45, 45, 45), (120, 120, 120)

Pictures = Sequence[Sequence[np.ndarray]]
"""Rows of uint8 [H, W, 3]."""


class Block(NamedTuple):
    """Columns of pictures under one heading."""

    rows: Pictures
    heading: str = ""
    notes: Sequence[Sequence[str]] = ()
    """A few characters below each picture; none at all where this is empty."""


def draw_grid(rows: Pictures, names: Sequence[str] = ()) -> Image.Image:
    """Lay out uint8 pictures [H, W, 3]; `names`, one for each row, may be empty."""
    return draw_blocks([Block(rows)], names)


def draw_blocks(blocks: Sequence[Block], names: Sequence[str] = ()) -> Image.Image:
    """Lay out blocks of equally many rows side by side."""
    side = shown_side(next(max(it.shape[:2]) for block in blocks for row in block.rows for it in row))
    font, small = ImageFont.load_default(FONT_SIZE), ImageFont.load_default(NOTE_SIZE)
    ink = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    label_width = max((int(ink.textlength(name, font)) for name in names), default=0)
    lefts = [MARGIN + (label_width + MARGIN if names else 0)]
    for block in blocks:
        columns = max(len(row) for row in block.rows)
        wide = max(columns * (side + GAP) - GAP, int(ink.textlength(block.heading, font)))
        lefts.append(lefts[-1] + wide + BLOCK_GAP)
    top = MARGIN + (HEADING_HEIGHT if any(block.heading for block in blocks) else 0)
    pitch = side + GAP + (NOTE_HEIGHT if any(block.notes for block in blocks) else 0)
    num_rows = len(blocks[0].rows)
    sheet = Image.new("RGB", (lefts[-1] - BLOCK_GAP + MARGIN, top + num_rows * pitch - GAP + MARGIN), "white")
    ink = ImageDraw.Draw(sheet)
    for r, name in enumerate(names):
        ink.text((lefts[0] - MARGIN, top + r * pitch + side / 2), name, INK, font, anchor="rm")
    for block, left in zip(blocks, lefts, strict=False):
        ink.text((left, MARGIN + FONT_SIZE / 2), block.heading, INK, font, anchor="lm")
        for r, row in enumerate(block.rows):
            for c, picture_HWC in enumerate(row):
                at = (left + c * (side + GAP), top + r * pitch)
                _paste(sheet, picture_HWC, at, side)
                if block.notes:
                    below = (at[0] + side / 2, at[1] + side + 1 + NOTE_HEIGHT / 2)
                    ink.text(below, block.notes[r][c], FAINT, small, anchor="mm")
    return sheet


def shown_side(side: int) -> int:
    """How large a picture of `side` pixels is shown; of that, the same."""
    return min(side * max(1, -(-SMALLEST // side)), LARGEST)


def _paste(sheet: Image.Image, picture_HWC: np.ndarray, at: tuple[int, int], side: int) -> None:
    """Put a picture into a square of the sheet, in its middle where it is no square."""
    picture = _fit(Image.fromarray(picture_HWC), side)
    sheet.paste(picture, (at[0] + (side - picture.width) // 2, at[1] + (side - picture.height) // 2))


def _fit(picture: Image.Image, side: int) -> Image.Image:
    longer = max(picture.size)
    size = (max(1, picture.width * side // longer), max(1, picture.height * side // longer))
    return picture.resize(size, Image.Resampling.NEAREST if side >= longer else Image.Resampling.LANCZOS)
