"""Small pictures to train on in tests: coloured discs and squares, a class each, drawn from a seed."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image, ImageDraw


def draw_pictures(folder: Path, count: int, *, size: int = 32, seed: int = 0) -> None:
    """Write `count` PNGs, half of them `disc/`, half of them `square/`; the same arguments draw the same pictures."""
    for i in range(count):
        draw_picture(folder, seed * 1_000_000 + i, size)


def draw_picture(folder: Path, number: int, size: int = 32) -> Path:
    """Write one picture whose shape, place and colours follow from its number."""
    luck = random.Random(number)
    shape = ("disc", "square")[number % 2]
    image = Image.new("RGB", (size, size), tuple(luck.randrange(256) for _ in range(3)))
    left, top = luck.randrange(size // 2), luck.randrange(size // 2)
    box = (left, top, left + size // 2 - 1, top + size // 2 - 1)
    colour = tuple(luck.randrange(256) for _ in range(3))
    draw = ImageDraw.Draw(image)
    (draw.ellipse if shape == "disc" else draw.rectangle)(box, fill=colour)
    path = folder / shape / f"{number:06d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path
