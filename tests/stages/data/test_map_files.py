"""Maps from files: they lie over their pictures, class numbers are never mixed, what does not fit is rejected."""

import io

import numpy as np
import pytest
from PIL import Image

from stages.data.images import Preparation, Rejected, prepare
from stages.data.map_files import prepare_alpha, prepare_map

HOW = Preparation(image_size=16)


def png(array: np.ndarray, mode: str | None = None, orientation: int = 1) -> bytes:
    image = Image.fromarray(array)
    if mode == "P":
        image = image.convert("P")
        image = Image.frombytes("P", image.size, array.tobytes())
        image.putpalette([value % 256 for value in range(0, 768 * 7, 7)])
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


def numbers(height: int = 40, width: int = 64) -> np.ndarray:
    """Class 7 above, 200 below, and a column of class 3."""
    drawn = np.full((height, width), 7, np.uint8)
    drawn[height // 2 :] = 200
    drawn[:, width // 2 - 2 : width // 2 + 2] = 3
    return drawn


@pytest.mark.parametrize("mode", [None, "P"])
@pytest.mark.parametrize("crop", ["center", "pad"])
def test_class_numbers_stay_class_numbers(mode: str | None, crop: str) -> None:
    how = Preparation(image_size=16, crop=crop)  # type: ignore[arg-type]
    square = np.asarray(prepare_map(png(numbers(), mode), "segmentation", (64, 40), how))
    assert square.shape == (16, 16)
    assert set(np.unique(square)) == {3, 7, 200} | ({0} if crop == "pad" else set())


@pytest.mark.parametrize("crop", ["center", "pad"])
def test_a_map_is_cut_as_its_picture_whatever_its_size(crop: str) -> None:
    how = Preparation(image_size=16, crop=crop, channels=1)  # type: ignore[arg-type]
    small = numbers()
    small[:, 40:] = 120
    large = small.repeat(3, 0).repeat(3, 1)
    picture = np.asarray(prepare(png(large), how)).astype(int)
    depth = np.asarray(prepare_map(png(small), "depth", (192, 120), how)).astype(int)
    assert abs(picture - depth).mean() < 5
    assert abs(picture - depth[:, ::-1]).mean() > 25


def test_poses_keep_their_colours_and_deep_depths_are_scaled() -> None:
    pose = np.zeros((32, 32, 3), np.uint8)
    pose[:, :16] = (255, 0, 128)
    assert prepare_map(png(pose), "pose", (32, 32), HOW).getpixel((2, 2)) == (255, 0, 128)
    deep = np.full((32, 32), 65535 // 5, np.uint16)
    assert prepare_map(png(deep), "depth", (32, 32), HOW).getpixel((2, 2)) == 51


@pytest.mark.parametrize(
    ("array", "kind", "code"),
    [
        (np.zeros((32, 40), np.uint8), "depth", "map_shape"),
        (np.zeros((32, 32, 3), np.uint8), "segmentation", "map_mode"),
    ],
)
def test_maps_that_do_not_fit_are_rejected(array: np.ndarray, kind: str, code: str) -> None:
    with pytest.raises(Rejected) as rejected:
        prepare_map(png(array), kind, (32, 32), HOW)
    assert rejected.value.code == code


def test_alpha_is_where_the_picture_is_opaque() -> None:
    picture = np.full((32, 32, 4), 255, np.uint8)
    picture[:, :16, 3] = 0
    alpha = np.asarray(prepare_alpha(png(picture), HOW))
    assert (alpha[:, :7] == 0).all() and (alpha[:, 9:] == 255).all()
    assert (np.asarray(prepare_alpha(png(picture[:, :, :3]), HOW)) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_maps_and_transparency_turn_with_the_camera(orientation: int) -> None:
    upright = numbers()
    opaque = np.dstack([np.full((*upright.shape, 3), 255, np.uint8), upright])
    lying, lying_opaque = (np.asarray(_before_turning(Image.fromarray(it), orientation)) for it in (upright, opaque))
    expected = np.asarray(prepare_map(png(upright), "segmentation", (64, 40), HOW))
    assert len(np.unique(expected[:, 8])) > 1 or len(np.unique(expected[8])) > 1
    for data in (png(upright), png(lying, orientation=orientation)):
        assert np.array_equal(prepare_map(data, "segmentation", (64, 40), HOW), expected)
        assert np.asarray(prepare_map(data, "depth", (64, 40), HOW)).shape == (16, 16)
    alpha, expected = (
        np.asarray(prepare_alpha(data, HOW)).astype(int)
        for data in (png(lying_opaque, orientation=orientation), png(opaque))
    )
    assert abs(alpha - expected).max() <= 1 < np.ptp(expected)  # rows are averaged before or after columns


def _before_turning(image: Image.Image, orientation: int) -> Image.Image:
    """What a camera held so would have written of an upright picture."""
    turns = Image.Transpose
    undo = [
        *(None, turns.FLIP_LEFT_RIGHT, turns.ROTATE_180, turns.FLIP_TOP_BOTTOM),
        *(turns.TRANSPOSE, turns.ROTATE_90, turns.TRANSVERSE, turns.ROTATE_270),
    ][orientation - 1]
    return image if undo is None else image.transpose(undo)
