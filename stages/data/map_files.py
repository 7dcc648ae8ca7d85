"""Turning untrusted map files into squares that lie over their pictures, and finding the transparency of pictures.

Shapes: H height, W width.
"""

from __future__ import annotations

from dataclasses import replace

from PIL import Image

from stages.data.images import (
    DECODER_FAULTS,
    Preparation,
    Rejected,
    brief,
    open_image,
    prepare,
    to_square,
    turn_of,
    turned,
    upright_size,
)

OTHER_SHAPE = 0.02
"""By what share a map's aspect may differ from its picture's."""


def prepare_map(data: bytes, kind: str, picture: tuple[int, int], how: Preparation) -> Image.Image:
    """Decode a map and cut it as its picture of (width, height) was cut: numbers of classes, depths as L, poses as RGB.

    Both are taken upright, as their own EXIF orientations say.

    Raises Rejected as `prepare` does, and with the code map_shape for one that does not lie over its picture.
    """
    width, height = upright_size(open_image(data)) if data else picture
    if abs(width * picture[1] - height * picture[0]) > OTHER_SHAPE * width * picture[1]:
        shapes = f"{width}x{height} beside a picture of {picture[0]}x{picture[1]}"
        raise Rejected("map_shape", f"its {kind} map has another shape: {shapes}")
    if kind == "segmentation":
        return _labels(data, how)
    return prepare(data, replace(how, channels=3 if kind == "pose" else 1, min_size=1))


def _labels(data: bytes, how: Preparation) -> Image.Image:
    """A map of class numbers, which are never mixed: palette pictures by their indices, grey ones by their values."""
    image = open_image(data)
    if image.width * image.height > how.max_pixels:
        raise Rejected("too_many_pixels", f"its segmentation map has {image.width}x{image.height} pixels")
    try:
        turn = turn_of(image)
        image.load()
    except DECODER_FAULTS as error:
        raise Rejected("broken", f"its segmentation map cannot be decoded ({brief(error)})") from None
    if image.mode not in ("L", "P", "1"):
        raise Rejected("map_mode", f"its segmentation map is {image.mode}: save class numbers as grey or palette")
    numbers = Image.frombytes("L", image.size, image.tobytes()) if image.mode == "P" else image.convert("L")
    if image.mode == "1":
        numbers = numbers.point(lambda value: value // 255)
    return turned(to_square(numbers, how, fill=0, resampling=Image.Resampling.NEAREST), turn)


def prepare_alpha(data: bytes, how: Preparation) -> Image.Image:
    """The opacity of a picture that `prepare` accepts, cut alike: L, white where it is opaque."""
    image = open_image(data)
    if not image.has_transparency_data:
        return Image.new("L", (how.image_size, how.image_size), 255)
    return turned(to_square(image.convert("RGBA").getchannel("A"), how, fill=0), turn_of(image))
