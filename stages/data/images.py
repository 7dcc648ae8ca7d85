"""Turning untrusted picture files into square uint8 arrays, and arrays into encoded pictures and model input.

Shapes: H height, W width, C channels, B batch.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    import torch

ImageFormat = Literal["png", "webp", "jpg"]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""The only decoders that untrusted bytes can reach. Pillow's others stay shut, whatever a file's name says."""

_JPEG, _START_OF_SCAN = b"\xff\xd8", b"\xff\xda"
_JPEG_QUALITY = 95
_WEBP_QUALITY = 92
_ORIENTATION = 0x0112
MOST_SCANS = 200
"""Of a JPEG, those of pictures inside its headers counted. Progressive ones have about ten; each costs a decoder a pass
over all pixels, however few bytes it has."""
_MIRRORED_PICTURES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING = {Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90}
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError)
DECODER_FAULTS = (*_DECODER_ERRORS, ZeroDivisionError, struct.error, zlib.error)


class Rejected(Exception):
    """A picture cannot be used: a short stable `code`, and a sentence for a person."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


@dataclass(frozen=True)
class Preparation:
    """How a source picture becomes a square one. Everything here changes the bytes of a shard."""

    image_size: int
    """Side of the result in pixels."""
    channels: Literal[1, 3] = 3
    crop: Literal["center", "pad"] = "center"
    """center: the shortest side is resized, the middle kept. pad: the whole picture, on a white square."""
    min_size: int = 16
    """Shortest side in pixels below which a picture is rejected."""
    max_pixels: int = 64 * 2**20
    """Width times height above which a picture is rejected before a pixel of it is decoded."""
    frames: Literal["first", "reject"] = "first"
    """What to do with animations: keep their first frame, or reject them."""


def prepare(data: bytes, how: Preparation) -> Image.Image:
    """Decode an untrusted picture: upright, RGB or L, transparency on white, `image_size` pixels square.

    Raises Rejected with one of the codes empty, not_a_picture, broken, too_many_pixels, too_many_scans, too_small,
    animated, unknown_range.
    """
    if not data:
        raise Rejected("empty", "the file has no bytes")
    if data.startswith(_JPEG) and (scans := data.count(_START_OF_SCAN)) > MOST_SCANS:
        raise Rejected("too_many_scans", f"{scans} scans are more than the {MOST_SCANS} that any JPEG needs")
    image = open_image(data)
    width, height = image.size
    if width * height > how.max_pixels:
        raise Rejected("too_many_pixels", f"{width}x{height} pixels are more than max_pixels={how.max_pixels}")
    if min(width, height) < how.min_size:
        raise Rejected("too_small", f"{width}x{height} pixels: the shortest side is below min_size={how.min_size}")
    try:
        if how.frames == "reject" and image.format != "MPO" and getattr(image, "is_animated", False):
            raise Rejected("animated", "it has several frames and frames=reject")
        turn = turn_of(image)
        # A JPEG decoder can scale by 1/2, 1/4, 1/8 in the frequency domain: cheaper than full size, and as smooth.
        side = how.image_size
        image.draft("L" if how.channels == 1 else "RGB", (side, side) if how.crop == "center" else _fitted(image, side))
        image.load()
    except DECODER_FAULTS as error:
        raise Rejected("broken", f"its pixels cannot be decoded ({brief(error)})") from None
    return turned(to_square(_flatten(image, how.channels), how), turn)  # turning the small square costs the least


def turned(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    """The picture after a turn of `turn_of`."""
    return image if turn is None else image.transpose(turn)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of an opened picture as people see it, by its EXIF orientation."""
    width, height = image.size
    return (height, width) if turn_of(image) in _LYING else (width, height)


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What makes an opened picture upright, by its EXIF orientation. Raises Rejected where that is damaged."""
    try:
        orientation = image.getexif().get(_ORIENTATION) if image.format in ("JPEG", "MPO", "WEBP", "PNG", "TIFF") else 1
    except DECODER_FAULTS as error:
        raise Rejected("broken", f"its EXIF cannot be read ({brief(error)})") from None
    return _MIRRORED_PICTURES.get(orientation) if isinstance(orientation, int) else None


def decode_image(data: bytes, channels: int) -> np.ndarray:
    """Decode one of our own pictures as it is, to uint8 [H, W, C]. Raises Rejected where it is none."""
    if channels == 3 and data.startswith(b"\xff\xd8\xff") and (picture_HWC := _decode_jpeg(data)) is not None:
        return picture_HWC
    image = open_image(data)
    try:
        image.load()
    except DECODER_FAULTS as error:
        raise Rejected("broken", f"its pixels cannot be decoded ({brief(error)})") from None
    array = np.asarray(_flatten(image, channels))
    return array[:, :, None] if channels == 1 else array


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """Decode a JPEG to the pixels that Pillow gives (both use libjpeg-turbo) in 0.6 of its time.

    None where Pillow is to do it: for a damaged one, because it says what is wrong, and without torchvision's decoder,
    which that has deprecated.
    """
    decode = _jpeg_decoder()
    if decode is None:
        return None
    import torch

    try:
        picture_CHW = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except RuntimeError:
        return None
    return picture_CHW.permute(1, 2, 0).numpy()


@cache
def _jpeg_decoder() -> Callable[[torch.Tensor], torch.Tensor] | None:
    """torchvision's decoder to RGB; importing it takes seconds, so only those who have a JPEG do."""
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError:
        return None
    return partial(decode_jpeg, mode=ImageReadMode.RGB)


def encode_image(image: np.ndarray | Image.Image, image_format: ImageFormat) -> bytes:
    """Encode uint8 [H, W, C] (C = 1 or 3) or a PIL picture: the same pixels always give the same bytes."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    buffer = io.BytesIO()
    if image_format == "png":
        image.save(buffer, "PNG", compress_level=3)
    elif image_format == "webp":
        image.save(buffer, "WEBP", quality=_WEBP_QUALITY, method=2)
    else:
        image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def image_extension(data: bytes) -> ImageFormat:
    """Return the extension that encoded bytes belong under. Raises ValueError for anything but PNG, WebP, JPEG."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    raise ValueError(f"bytes starting with {data[:8]!r} are neither PNG nor WebP nor JPEG")


def image_dimensions(data: bytes) -> tuple[int, int]:
    """Return (width, height) of an encoded picture, from its header. Raises Rejected where it is none."""
    if data.startswith(b"\xff\xd8\xff"):
        at = 2  # segments: marker (2 bytes), length (2), content; Pillow takes ten times as long to find the frame
        while at + 9 < len(data) and data[at] == 0xFF:
            if 0xC0 <= data[at + 1] <= 0xCF and data[at + 1] not in (0xC4, 0xC8, 0xCC):
                height, width = struct.unpack_from(">HH", data, at + 5)
                return width, height
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return open_image(data).size


def to_model_range(images_BHWC: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Turn uint8 [B, H, W, C] into contiguous float32 [B, C, H, W] in [-1, 1]."""
    import torch

    # Pillow's pictures share memory that cannot be written to, which torch would warn about.
    if isinstance(images_BHWC, np.ndarray):
        images_BHWC = torch.from_numpy(np.require(images_BHWC, requirements="W"))
    return (
        images_BHWC.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1.0)
    )


def to_model_range_channels_last(images_BHWC: np.ndarray) -> torch.Tensor:
    """Turn uint8 [B, H, W, C] into the same float32 [B, C, H, W], channels last in memory, on one thread.

    Beside processes that decode on all cores torch's threads wait for one another: with two cores it took twice as
    long. One picture at a time stays in the processor's cache.
    """
    import torch

    x_BHWC = np.empty(images_BHWC.shape, dtype=np.float32)
    for image_HWC, x_HWC in zip(images_BHWC, x_BHWC, strict=True):
        np.divide(image_HWC, np.float32(127.5), out=x_HWC)
        np.subtract(x_HWC, np.float32(1.0), out=x_HWC)
    return torch.from_numpy(x_BHWC).permute(0, 3, 1, 2)


def to_uint8(x_BCHW: torch.Tensor) -> np.ndarray:
    """Turn [B, C, H, W] in [-1, 1] (clamped) into uint8 [B, H, W, C]; undoes `to_model_range` exactly."""
    import torch

    x = x_BCHW.detach().to(torch.float32).add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return x.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def open_image(data: bytes) -> Image.Image:
    """Read a picture's header. Pillow's own pixel limit counts as well as ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # below its error our limit decides
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise Rejected("too_many_pixels", f"Pillow refuses it as a decompression bomb ({brief(error)})") from None
    except UnidentifiedImageError:
        raise Rejected("not_a_picture", f"its content is none of {', '.join(FORMATS)}") from None
    except DECODER_FAULTS as error:
        raise Rejected("broken", f"its header cannot be read ({brief(error)})") from None


def _flatten(image: Image.Image, channels: int) -> Image.Image:
    """Convert any mode to 8-bit RGB or L: transparency over white, 16 bit scaled (Pillow's convert would clip)."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        deep = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise Rejected("unknown_range", f"its {image.mode} pixels have no known white: save it as 8 or 16 bit")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, over).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def to_square(
    image: Image.Image, how: Preparation, *, fill: int = 255, resampling: Image.Resampling | None = None
) -> Image.Image:
    """Crop or pad (with `fill`) and resize as `how` says; without a `resampling` the one that suits pictures."""
    size, (width, height) = how.image_size, image.size
    if how.crop == "pad":
        smooth = _filter(max(image.size) / size) if resampling is None else resampling
        whole = image.resize(_fitted(image, size), smooth)
        colour = fill if len(image.getbands()) == 1 else (fill, fill, fill)
        # Where rounding made both sides fit badly, it resizes once more.
        last = Image.Resampling.BICUBIC if resampling is None else resampling
        return ImageOps.pad(whole, (size, size), method=last, color=colour)
    side = min(width, height)
    if (width, height) == (size, size):
        return image
    left, top = (width - side) / 2, (height - side) / 2
    # `box` crops and resizes in one pass, so pixels outside the square are never touched.
    box = (left, top, left + side, top + side)
    return image.resize((size, size), _filter(side / size) if resampling is None else resampling, box)


def _filter(shrinking: float) -> Image.Resampling:
    """Return the antialiasing filter. Hamming shrinks as cleanly as bicubic in 2/3 of its time (Lanczos takes 3/2)."""
    return Image.Resampling.HAMMING if shrinking > 1 else Image.Resampling.BICUBIC


def _fitted(image: Image.Image, size: int) -> tuple[int, int]:
    """Return (width, height) of the picture when its longest side becomes `size`."""
    scale = size / max(image.size)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def brief(error: Exception) -> str:
    """Name an error in a few words without memory addresses, so that equal pictures get equal reasons."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.split(" <")[0][:120]
