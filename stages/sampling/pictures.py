"""Pictures that people hand in and take away: any PIL picture, array or file in; PNGs that say how they were drawn out.

Shapes: H height, W width, C channels; pictures are uint8.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipeline.errors import DataError
from stages.data.images import Preparation, Rejected, open_image, prepare, to_square, turn_of
from stages.data.map_files import OTHER_SHAPE, prepare_alpha, prepare_map

PictureLike = Image.Image | np.ndarray | str | Path
"""A PIL picture, an array [H, W] or [H, W, C] (uint8, or bool for masks), or the path of a file."""
KEPT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""Modes that a PNG keeps as they are; others become RGB."""
Size = tuple[int, int]
"""Height and width in pixels."""
GAP = 4
HALF = 128


def picture_bytes(picture: PictureLike, what: str = "picture") -> bytes:
    """A picture as a file's bytes, so that all pass the same checks. Raises DataError where there is none."""
    if isinstance(picture, str | Path):
        try:
            return Path(picture).expanduser().read_bytes()
        except OSError as error:
            raise DataError(f"{what} {picture} cannot be read: {error.strerror}") from None
    if isinstance(picture, np.ndarray):
        picture = _of_array(picture, what)
    if not isinstance(picture, Image.Image):
        raise DataError(f"the {what} is a {type(picture).__name__}: give a PIL picture, an array or a path")
    kept = picture if picture.mode in KEPT_MODES else picture.convert("RGB")
    buffer = io.BytesIO()
    kept.save(buffer, "PNG", compress_level=1, exif=picture.getexif())
    return buffer.getvalue()


def _of_array(array: np.ndarray, what: str) -> Image.Image:
    shape, kind = array.shape, array.dtype
    if array.ndim == 3 and shape[2] == 1:
        array = array[:, :, 0]
    if not (array.size and (array.ndim == 2 or (array.ndim == 3 and shape[2] in (3, 4))) and kind in (np.uint8, bool)):
        raise DataError(f"the {what} is an array {list(shape)} of {kind}: give uint8 [H, W] or [H, W, 3 or 4]")
    return Image.fromarray(array.astype(np.uint8) * 255 if kind != np.uint8 else array)


def cut_picture(picture: PictureLike, how: Preparation, what: str = "picture", size: Size | None = None) -> np.ndarray:
    """A picture cut and resized as shards' are, or alike to another (height, width): [H, W, C].

    Raises DataError where it cannot be used.
    """
    data = picture_bytes(picture, what)
    try:
        return _cut(data, how, size, lambda data, how: prepare(data, replace(how, min_size=1)))
    except Rejected as rejected:
        raise DataError(f"the {what} cannot be used: {rejected.reason}") from None


def cut_map(given: PictureLike, kind: str, how: Preparation, size: Size | None = None) -> np.ndarray:
    """A map cut as its picture would be: [H, W, C]. Raises DataError where it cannot be used.

    `kind` is a condition's, or `opacity` for that of a picture.
    """

    def cut(data: bytes, how: Preparation) -> Image.Image:
        return prepare_alpha(data, how) if kind == "opacity" else prepare_map(data, kind, open_image(data).size, how)

    data = picture_bytes(given, f"{kind} map")
    try:
        return _cut(data, how, size, cut)
    except Rejected as rejected:
        raise DataError(f"the {kind} map cannot be used: {rejected.reason}") from None


def _cut(
    data: bytes, how: Preparation, size: Size | None, cut: Callable[[bytes, Preparation], Image.Image]
) -> np.ndarray:
    """Cut to a square, or to the middle of a padded square, whose padding is cut off again: [H, W, C]."""
    height, width = size or (how.image_size, how.image_size)
    side = max(height, width)
    if height == width:
        array = np.array(cut(data, replace(how, image_size=side)))
    else:
        square = cut(_of_aspect(data, height, width), replace(how, image_size=side, crop="pad"))
        top, left = (side - height) // 2, (side - width) // 2
        array = np.array(square)[top : top + height, left : left + width]
    return array.reshape(height, width, how.channels)


def _of_aspect(data: bytes, height: int, width: int) -> bytes:
    """The middle of a picture, as large as this aspect allows."""
    image = _upright(data)
    high = min(image.height, max(1, round(image.width * height / width)))
    wide = min(image.width, max(1, round(image.height * width / height)))
    left, top = (image.width - wide) // 2, (image.height - high) // 2
    return picture_bytes(image.crop((left, top, left + wide, top + high)))


def cut_mask(mask: PictureLike, picture: PictureLike, how: Preparation) -> np.ndarray:
    """A mask cut as its picture is: bool [side, side], true where at least half of a pixel is white.

    Raises DataError where it does not lie over the picture.
    """
    try:
        image, over = (_upright(picture_bytes(it, what)) for it, what in ((mask, "mask"), (picture, "picture")))
    except Rejected as rejected:
        raise DataError(f"the mask cannot be used: {rejected.reason}") from None
    if abs(image.width * over.height - image.height * over.width) > OTHER_SHAPE * image.width * over.height:
        raise DataError(
            f"the mask is {image.width}x{image.height}, its picture {over.width}x{over.height}: draw it "
            "over the picture"
        )
    grey = image.convert("L").point(lambda value: 255 * (value >= HALF))
    return np.asarray(to_square(grey, how, fill=0)) >= HALF


def _upright(data: bytes) -> Image.Image:
    image = open_image(data)
    turn = turn_of(image)
    return image if turn is None else image.transpose(turn)


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a PNG that carries what is known of the picture (`picture.info`) as text."""
    text = PngInfo()
    for name, value in picture.info.items():
        text.add_text(str(name), str(value))
    picture.save(path, "PNG", pnginfo=text)


def sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size on white, as nearly a square as they make; it knows what is known of all of them."""
    width, height = pictures[0].size
    columns = min(len(pictures), max(1, round((len(pictures) * height / width) ** 0.5)))
    rows = -(-len(pictures) // columns)
    result = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        result.paste(picture, (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    for name in pictures[0].info:
        values = list(dict.fromkeys(str(picture.info.get(name, "")) for picture in pictures))
        result.info[name] = ", ".join(values)
    return result
