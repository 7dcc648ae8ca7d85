"""A folder of awkward pictures: some must be kept, and in a certain form, some rejected for a certain reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

KEPT = {
    "animated.gif",
    "cmyk.jpg",
    "deep.png",
    "good.jpg",
    "half-transparent.png",
    "rotated.jpg",
    "really a png.jpg",
    "naïve  name.with.dots, 絵.png",
}
REJECTED = {
    "bomb.png": "too_many_pixels",
    "empty.jpg": "empty",
    "large.png": "too_many_pixels",
    "text.jpg": "not_a_picture",
    "tiny.png": "too_small",
    "truncated.jpg": "broken",
    "truncated.png": "broken",
}


def write_hostile_folder(folder: Path) -> None:
    """Write all of KEPT and REJECTED; the limits meant are min_size=16, max_pixels=1,000,000."""
    folder.mkdir(parents=True, exist_ok=True)
    luck = np.random.default_rng(0)
    noise = Image.fromarray(luck.integers(0, 256, (80, 100, 3), dtype=np.uint8))
    noise.save(folder / "good.jpg")
    Image.new("CMYK", (90, 90), (0, 255, 255, 0)).save(folder / "cmyk.jpg", quality=95)
    Image.fromarray(np.full((90, 90), 0x8000, dtype=np.uint16)).save(folder / "deep.png")
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    sideways = Image.new("RGB", (80, 80), "white")
    sideways.paste("red", (0, 0, 80, 40))  # the upper half; upright it is the right half
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways.save(folder / "rotated.jpg", exif=exif, quality=95)
    glass = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    glass.paste((0, 0, 0, 255), (0, 0, 32, 64))
    glass.quantize(8).save(folder / "half-transparent.png")
    noise.save(folder / "naïve  name.with.dots, 絵.png")
    noise.save(folder / "really a png.jpg", "PNG")

    (folder / "truncated.jpg").write_bytes((folder / "good.jpg").read_bytes()[:2000])
    (folder / "truncated.png").write_bytes((folder / "really a png.jpg").read_bytes()[:9000])
    (folder / "text.jpg").write_text("this is not a picture\n" * 50)
    (folder / "empty.jpg").touch()
    Image.new("RGB", (100, 10)).save(folder / "tiny.png")
    Image.new("1", (1001, 1000)).save(folder / "large.png")
    (folder / "bomb.png").write_bytes(png_header(60_000, 60_000))


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds no pixels."""
    chunks = b""
    for name, data in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", b""),
        (b"IEND", b""),
    ):
        chunks += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return a picture's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
