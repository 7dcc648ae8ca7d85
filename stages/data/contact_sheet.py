"""The contact sheet: what the model will see, a row for each class, as one PNG for people."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from stages.data.shards import Shard, ShardReader

_PAPER = (246, 245, 242)
_INK = (38, 38, 42)
_FAINT = (122, 120, 116)
_FRAME = (222, 220, 214)
_SMALLEST_CELL, _LARGEST_CELL = 96, 256


def choose_pictures(shards: Sequence[Shard], num_classes: int, each: int) -> dict[int, list[bytes]]:
    """Return up to `each` encoded pictures of every class, opening no more shards than that takes."""
    chosen: dict[int, list[bytes]] = {label: [] for label in range(num_classes)}
    for shard in shards:
        reader = ShardReader(shard, few=True)
        for position, row in enumerate(reader.table):
            if len(chosen[row["label"]]) < each:
                chosen[row["label"]].append(reader.read_image(position))
        if all(len(pictures) >= each for pictures in chosen.values()):
            break
    return chosen


def draw_contact_sheet(
    pictures: Mapping[str, Sequence[bytes]], *, title: str, subtitle: str, footer: str | None, columns: int = 12
) -> bytes:
    """Draw rows of equally large encoded pictures under their class names; return a PNG.

    Pictures are enlarged by whole factors without smoothing, so that each pixel the model sees can be seen.
    """
    rows = {name: [_shown(data) for data in row[:columns]] for name, row in pictures.items()}
    cell = max((image.width for row in rows.values() for image in row), default=_SMALLEST_CELL)
    scale = max(1.0, cell / 128)
    gap, margin = round(10 * scale), round(32 * scale)
    large, normal, small = (_font(round(size * scale)) for size in (26, 17, 14))
    names = {name: _shortened(name, normal, round(240 * scale)) for name in rows}
    gutter = round(max((normal.getlength(text) for text in names.values()), default=0)) + 2 * gap
    across = max((len(row) for row in rows.values()), default=1)
    width = 2 * margin + gutter + across * (cell + gap) - gap
    longest = max(large.getlength(title), small.getlength(subtitle), small.getlength(footer or ""))
    width = max(width, 2 * margin + round(longest))
    head = round(84 * scale)
    height = margin + head + len(rows) * (cell + gap) + round(36 * scale) + margin // 2

    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin), title, _INK, large)
    draw.text((margin, margin + round(38 * scale)), subtitle, _FAINT, small)
    for number, (name, row) in enumerate(rows.items()):
        top = margin + head + number * (cell + gap)
        draw.text((margin + gutter - 2 * gap, top + cell // 2), names[name], _INK, normal, anchor="rm")
        for column, image in enumerate(row):
            left = margin + gutter + column * (cell + gap)
            draw.rectangle((left - 1, top - 1, left + cell, top + cell), outline=_FRAME)
            sheet.paste(image, (left, top))
    if footer:
        draw.text((width - margin, height - margin), footer, _FAINT, small, anchor="rm")
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _shown(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=("PNG", "WEBP", "JPEG")).convert("RGB")
    if image.width > _LARGEST_CELL:
        return image.resize((_LARGEST_CELL, _LARGEST_CELL), Image.Resampling.LANCZOS)
    factor = -(-_SMALLEST_CELL // image.width)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _shortened(text: str, font: ImageFont.FreeTypeFont, longest: int) -> str:
    if font.getlength(text) <= longest:
        return text
    while text and font.getlength(text + "…") > longest:
        text = text[:-1]
    return text.rstrip() + "…"


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which matplotlib brings along: class names may be in most alphabets."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None and spec.origin is not None, "matplotlib is a dependency"
    return ImageFont.truetype(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", size)
