"""Pictures laid out for people: a row for each class, its name on the left, on white."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SMALLEST, LARGEST = 64, 160
"""Sides in pixels between which a picture is shown: small ones are enlarged in whole steps, large ones reduced."""
GAP, MARGIN = 6, 16
FONT_SIZE = 15
INK = (45, 45, 45)


def draw_grid(rows: Sequence[Sequence[np.ndarray]], names: Sequence[str] = ()) -> Image.Image:
    """Lay out uint8 pictures [H, W, 3] of one size; `names`, one for each row, may be empty."""
    side = shown_side(rows[0][0].shape[0])
    font = ImageFont.load_default(FONT_SIZE)
    ink = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    label_width = max((int(ink.textlength(name, font)) for name in names), default=0)
    left = MARGIN + (label_width + MARGIN if names else 0)
    columns = max(len(row) for row in rows)
    size = (
        left + columns * (side + GAP) - GAP + MARGIN,
        2 * MARGIN + len(rows) * (side + GAP) - GAP,
    )
    sheet = Image.new("RGB", size, "white")
    ink = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        top = MARGIN + r * (side + GAP)
        if names:
            ink.text((left - MARGIN, top + side / 2), names[r], INK, font, anchor="rm")
        for c, picture_HWC in enumerate(row):
            sheet.paste(_fit(Image.fromarray(picture_HWC), side), (left + c * (side + GAP), top))
    return sheet


def shown_side(side: int) -> int:
    """How large a picture of `side` pixels is shown; of that, the same."""
    return min(side * max(1, -(-SMALLEST // side)), LARGEST)


def _fit(picture: Image.Image, side: int) -> Image.Image:
    enlarge = side >= picture.width
    return picture.resize((side, side), Image.Resampling.NEAREST if enlarge else Image.Resampling.LANCZOS)
