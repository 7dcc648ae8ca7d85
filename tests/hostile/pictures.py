"""Pictures: bombs, absurd sizes, damaged headers, and what only looks like a picture."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.errors import DataError
from pipeline.units import Unit
from stages.data.images import Preparation
from stages.data.packing import FileReader, Packer
from stages.data.shards import ShardReader
from tests.hostile.case import Hostile, pickled
from tests.stages.data.hostile import encoded, png_header


def packed(folder: Path, kind: str | None = None) -> str:
    """What the shard stage makes of the one file in a folder; with `kind` it is a map beside a good picture."""
    path = next(path for path in folder.iterdir() if path.suffix != ".good")
    status = path.stat()
    listed = [path.name, status.st_size, str(status.st_mtime_ns)]
    rows = [[*listed, 0, "", path.name]]
    if kind:
        good = folder / "picture.good"
        good.write_bytes(encoded(Image.new("RGB", (64, 64), "red"), "PNG"))
        rows = [[good.name, good.stat().st_size, str(good.stat().st_mtime_ns), 0, "", "g", [kind, *listed]]]
    (folder / "out").mkdir()
    counts = Packer(FileReader(folder), Preparation(64), "png")(
        Unit("train-000000", {"pictures": rows}), folder / "out"
    )
    if counts["rejects"]:
        return "rejected {1}: {2}".format(*counts["rejects"][0])
    width, height = (ShardReader(folder / "out" / "train-000000.tar").table[0][side] for side in ("width", "height"))
    return f"kept {width}x{height}"


def _file(name: str, make: Callable[[], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(make()) and None


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(*extra: bytes, side: int = 64, pixels: bytes | None = None) -> bytes:
    """A grey PNG with chunks before its pixels."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    data = zlib.compress(bytes((side + 1) * side) if pixels is None else pixels)
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _bomb_of_text() -> bytes:
    return _png(_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**26), 6)))


def _bomb_of_profile() -> bytes:
    return _png(_chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**26), 6)))


def _large_but_allowed() -> bytes:
    return encoded(Image.new("RGBA", (8192, 8192), (1, 2, 3, 128)), "PNG", compress_level=1)


def _apng(frames: int = 100_000) -> bytes:
    control = _chunk(b"acTL", struct.pack(">II", frames, 0))
    frame = struct.pack(">IIIIIHHBB", 0, 64, 64, 0, 0, 1, 10, 0, 0)
    pixels = zlib.compress(bytes(65 * 64))
    more = b"".join(
        _chunk(b"fcTL", struct.pack(">I", 2 * n + 1) + frame[4:])
        + _chunk(b"fdAT", struct.pack(">I", 2 * n + 2) + pixels)
        for n in range(frames)
    )
    return _png(control, _chunk(b"fcTL", frame))[:-12] + more + _chunk(b"IEND", b"")


def _gif(frames: int = 100_000, screen: tuple[int, int] = (64, 64), frame: tuple[int, int] = (64, 64)) -> bytes:
    one = encoded(Image.new("P", frame), "GIF")
    start = one.index(b"\x2c")
    pixels = one[start:-1]
    return one[:6] + struct.pack("<HH", *screen) + one[10:start] + pixels * frames + b";"


def _tiff(frames: int) -> bytes:
    """As many directories, each leading to the next, the last to the first; all share one strip."""
    tags = ((256, 64), (257, 64), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 64), (279, 4096))
    size = 2 + 12 * len(tags) + 4
    data = [b"II*\0" + struct.pack("<I", 8 + 4096), bytes(4096)]
    for frame in range(frames):
        following = 8 + 4096 + (frame + 1) % frames * size
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        data.append(struct.pack("<H", len(tags)) + entries + struct.pack("<I", following))
    return b"".join(data)


def _tiff_lies(**changed: int) -> bytes:
    numbers = {"width": 256, "height": 257, "bits": 258, "samples": 277, "rows": 278, "bytes": 279}
    data = bytearray(_tiff(1))
    for name, value in changed.items():
        at = data.index(struct.pack("<HHI", numbers[name], 4, 1), 4096)
        data[at + 8 : at + 12] = struct.pack("<I", value)
    return bytes(data)


def _webp(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.new("RGB", (64, 64)), "WEBP", lossless=True))
    data[21:25] = struct.pack("<I", (width - 1) | (height - 1) << 14)
    return bytes(data)


def _animated_webp() -> bytes:
    frames = [Image.new("RGB", (64, 64), (n % 256, n // 256, 0)) for n in range(2000)]
    return encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], duration=10)


def _jpeg_of_scans(scans: int, side: int = 4096) -> bytes:
    """A progressive JPEG that refines one coefficient again and again: a pass over all pixels for a few bytes each."""
    data = encoded(Image.new("L", (side, side)), "JPEG", progressive=True)
    first, last = data.index(b"\xff\xda"), data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + b"\xff\xd9" if first < last else data


def _jpeg_with(marker: int, size: int, times: int) -> bytes:
    data = encoded(Image.new("RGB", (64, 64)), "JPEG")
    segment = struct.pack(">BBH", 0xFF, marker, size + 2) + b"\xff" * size
    return data[:2] + segment * times + data[2:]


def _png_with_exif() -> bytes:
    return _png(_chunk(b"eXIf", b"II*\0\x08\0\0\0" + struct.pack("<H", 65535) + b"\x12\x01\x05\0" + b"\xff" * 40_000))


def _sparse(folder: Path) -> None:
    with (folder / "sparse.png").open("wb") as file:
        file.write(png_header(64, 64))
        file.truncate(2**40)


def _noise(side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8))


def _tar(folder: Path) -> bytes:
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("../../escape.pyd")
        data = pickled(folder)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _case(name: str, make: Callable[[], bytes], expected: str, **more: object) -> Hostile:
    return Hostile(name, _file(name, make), packed, f"accepted {expected}", **more)  # type: ignore[arg-type]


CASES = [
    _case("header of 60,000x60,000.png", lambda: png_header(60_000, 60_000), "rejected too_many_pixels"),
    _case("header of 2^31 x 2^31.png", lambda: png_header(2**31 - 1, 2**31 - 1), "rejected (too_many_pixels|broken)"),
    _case("header of 0x0.png", lambda: png_header(0, 0), "rejected (broken|too_small|not_a_picture)"),
    _case("just above max_pixels.png", lambda: png_header(8192, 8193), "rejected too_many_pixels"),
    _case("text of 64 MB in zTXt.png", _bomb_of_text, "(rejected broken|kept 64x64)", slow=True),
    _case("profile of 64 MB in iCCP.png", _bomb_of_profile, "(rejected broken|kept 64x64)", slow=True),
    _case(
        "90 MB of text chunks.png", lambda: _png(*[_chunk(b"tEXt", b"k\0" + b"x" * 90_000)] * 1000), "(rejected|kept)"
    ),
    _case("chunk of 2 GB that is not there.png", lambda: _png()[:33] + b"\x7f\xff\xff\xffIDAT", "rejected broken"),
    _case(
        "pixels of 64 MB for 64x64.png", lambda: _png(pixels=bytes(2**26)), "(rejected broken|kept 64x64)", slow=True
    ),
    _case("allowed 64 Mpixel, half clear.png", _large_but_allowed, "kept 64x64", most_mb=1700, slow=True),
    _case("10^5 frames.apng.png", _apng, "kept 64x64"),
    _case("EXIF that leads astray.png", _png_with_exif, "(rejected broken|kept 64x64)"),
    _case("10^5 frames.gif", _gif, "kept 64x64"),
    _case("frame larger than its screen.gif", lambda: _gif(1, frame=(12_000, 12_000)), "rejected too_many_pixels"),
    _case("screen of 65,535x65,535.gif", lambda: _gif(1, screen=(65_535, 65_535)), "rejected too_many_pixels"),
    _case("10^5 directories in a ring.tiff", lambda: _tiff(100_000), "kept 64x64"),
    _case("40,000x40,000.tiff", lambda: _tiff_lies(width=40_000, height=40_000), "rejected too_many_pixels"),
    _case("strip of 4 GB.tiff", lambda: _tiff_lies(bytes=2**32 - 1), "(rejected broken|kept 64x64)"),
    _case("65,535 samples a pixel.tiff", lambda: _tiff_lies(samples=65_535), "rejected (broken|not_a_picture)"),
    _case("4 billion rows a strip.tiff", lambda: _tiff_lies(rows=2**32 - 1), "(rejected broken|kept 64x64)"),
    _case("16,383x16,383 in 60 bytes.webp", lambda: _webp(16_383, 16_383), "rejected (too_many_pixels|broken)"),
    _case("2,000 frames.webp", _animated_webp, "kept 64x64", slow=True),
    _case("10,000 scans.jpg", lambda: _jpeg_of_scans(10_000), "rejected too_many_scans"),
    _case(
        "65,535x65,535.jpg", lambda: _jpeg_of_scans(0, 64).replace(b"\0\x40\0\x40", b"\xff\xff\xff\xff", 1), "rejected"
    ),
    _case("EXIF of nonsense.jpg", lambda: _jpeg_with(0xE1, 60_000, 1), "kept 64x64"),
    _case("60 MB of profiles.jpg", lambda: _jpeg_with(0xE2, 60_000, 1000), "(kept 64x64|rejected broken)"),
    _case("PostScript.jpg", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n(touch canary) run\n" * 99, "rejected not_a_picture"),
    _case("SVG with a script.png", lambda: b"<svg><script>x()</script></svg>", "rejected not_a_picture"),
    _case("FLI film.gif", lambda: struct.pack("<IHHHH", 999, 0xAF12, 9, 60_000, 60_000) + bytes(99), "rejected not_a"),
    Hostile("sparse file of 1 TB.png", _sparse, packed, "accepted rejected too_many_bytes"),
    Hostile(
        "pickle.png",
        lambda folder: (folder / "pickle.png").write_bytes(pickled(folder)) and None,
        packed,
        "accepted rejected not_a_picture",
    ),
    Hostile(
        "tar with a .pyd that climbs out.png",
        lambda folder: (folder / "tar.png").write_bytes(_tar(folder)) and None,
        packed,
        "accepted rejected not_a_picture",
    ),
    Hostile(
        "map whose EXIF leads astray.png",
        _file("map.png", _png_with_exif),
        lambda folder: packed(folder, "depth"),
        "accepted (rejected broken|kept)",
    ),
    Hostile(
        "map that is a bomb.png",
        _file("map.png", lambda: png_header(60_000, 60_000)),
        lambda folder: packed(folder, "segmentation"),
        "accepted rejected too_many_pixels",
    ),
    Hostile(
        "vanished between listing and reading.png",
        lambda folder: (folder / "gone.png").symlink_to(folder / "nowhere"),
        lambda folder: FileReader(folder)("gone.png", 10, "1"),
        f"refused {DataError.__name__}: .* is gone",
    ),
]
