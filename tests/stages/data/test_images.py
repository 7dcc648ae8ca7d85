"""Decoding untrusted pictures, squares, encodings, and the range of the models."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stages.data import images
from stages.data.images import (
    Preparation,
    Rejected,
    decode_image,
    encode_image,
    image_dimensions,
    image_extension,
    prepare,
    to_model_range,
    to_model_range_channels_last,
    to_uint8,
)
from tests.stages.data.hostile import KEPT, REJECTED, encoded, png_header, write_hostile_folder

HOW = Preparation(image_size=64, max_pixels=1_000_000)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    write_hostile_folder(folder)
    return folder


def pixels(path: Path, how: Preparation = HOW) -> np.ndarray:
    return np.asarray(prepare(path.read_bytes(), how))


def test_a_hostile_folder_is_kept_and_rejected_file_by_file(hostile: Path) -> None:
    kept, rejected = set(), {}
    for path in hostile.iterdir():
        try:
            square = prepare(path.read_bytes(), HOW)
        except Rejected as reason:
            rejected[path.name] = reason.code
        else:
            assert (square.size, square.mode) == ((64, 64), "RGB")
            kept.add(path.name)
    assert rejected == REJECTED
    assert kept == KEPT


def test_cmyk_becomes_the_colour_it_looks_like(hostile: Path) -> None:
    assert np.abs(pixels(hostile / "cmyk.jpg").astype(int) - (255, 0, 0)).max() <= 3


def test_16_bit_is_scaled_not_clipped(hostile: Path) -> None:
    assert set(pixels(hostile / "deep.png").ravel()) == {128}
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    grey = prepare(encoded(Image.fromarray(ramp), "PNG"), Preparation(64, channels=1))
    np.testing.assert_allclose(np.asarray(grey), ramp / 257, atol=0.51)


def test_the_first_frame_of_an_animation_is_kept_or_the_animation_rejected(hostile: Path) -> None:
    assert np.abs(pixels(hostile / "animated.gif").astype(int) - (255, 0, 0)).max() <= 2
    with pytest.raises(Rejected, match=r"^animated: it has several frames"):
        prepare((hostile / "animated.gif").read_bytes(), Preparation(64, frames="reject"))
    assert prepare((hostile / "good.jpg").read_bytes(), Preparation(64, frames="reject")).size == (64, 64)


def test_exif_rotation_is_applied(hostile: Path) -> None:
    upright = pixels(hostile / "rotated.jpg").astype(int)
    assert np.abs(upright[:, 40:] - (255, 0, 0)).max() < 40
    assert np.abs(upright[:, :24] - (255, 255, 255)).max() < 40


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_matches_pillows_own(orientation: int) -> None:
    from PIL import ImageOps

    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture, "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(np.asarray(prepare(data, HOW)), expected)


def test_transparency_is_laid_on_white(hostile: Path) -> None:
    picture = pixels(hostile / "half-transparent.png")
    assert (picture[:, :31] < 5).all()
    assert (picture[:, 33:] > 250).all()
    assert (
        np.asarray(prepare((hostile / "half-transparent.png").read_bytes(), Preparation(64, channels=1)))[:, 33:] > 250
    ).all()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_a_picture"),
        (b"P6 20 20 255 " + bytes(1200), "not_a_picture"),
        (png_header(60_000, 60_000), "too_many_pixels"),
        (png_header(64, 64), "broken"),
        (encoded(Image.new("F", (64, 64)), "TIFF"), "unknown_range"),
    ],
)
def test_what_cannot_be_used_is_rejected_with_its_code(data: bytes, code: str) -> None:
    with pytest.raises(Rejected) as rejected:
        prepare(data, HOW)
    assert rejected.value.code == code


def test_bytes_damaged_anywhere_never_raise_anything_but_a_rejection(hostile: Path) -> None:
    luck = np.random.default_rng(2)
    for name in ("good.jpg", "really a png.jpg", "animated.gif", "rotated.jpg"):
        good = bytearray((hostile / name).read_bytes())
        for _ in range(60):
            bad = good.copy()
            for at in luck.integers(0, len(bad), 8):
                bad[at] = int(luck.integers(0, 256))
            try:
                assert prepare(bytes(bad), HOW).size == (64, 64)
            except Rejected as rejected:
                assert rejected.code in {"broken", "not_a_picture", "too_many_pixels", "too_small"}


def test_the_middle_of_a_wide_picture_is_kept_and_padding_keeps_all_of_it() -> None:
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))
    data = encoded(wide, "PNG")
    middle = np.asarray(prepare(data, Preparation(50)))
    assert np.abs(middle[:, 3:-3].astype(int) - (0, 0, 255)).max() <= 2
    whole = np.asarray(prepare(data, Preparation(60, crop="pad"))).astype(int)
    assert (whole[:18] == 255).all() and (whole[-18:] == 255).all()
    assert np.abs(whole[30, 5] - (255, 0, 0)).max() <= 2 and np.abs(whole[30, 30] - (0, 0, 255)).max() <= 2


def test_dct_scaled_decoding_gives_what_full_decoding_gives() -> None:
    y, x = np.mgrid[0:600, 0:800] / 40
    smooth = np.stack([np.sin(x + y), np.cos(x - y), np.sin(2 * x)], axis=2) * 100 + 128
    picture = Image.fromarray(smooth.astype(np.uint8))
    from_jpeg = np.asarray(prepare(encoded(picture, "JPEG", quality=95), Preparation(64))).astype(float)
    from_png = np.asarray(prepare(encoded(picture, "PNG"), Preparation(64))).astype(float)
    assert np.sqrt(np.mean((from_jpeg - from_png) ** 2)) < 3


@pytest.mark.parametrize(("image_format", "error"), [("png", 0), ("webp", 6), ("jpg", 6)])
@pytest.mark.parametrize("channels", [1, 3])
def test_encodings_are_deterministic_and_come_back(image_format: str, error: float, channels: int) -> None:
    y, x = np.mgrid[0:48, 0:48]
    array = np.stack([3 * x + y, 255 - 2 * y, 100 + x], axis=2)[:, :, :channels].astype(np.uint8)
    data = encode_image(array, image_format)  # type: ignore[arg-type]
    assert data == encode_image(array, image_format)  # type: ignore[arg-type]
    assert (image_extension(data), image_dimensions(data)) == (image_format, (48, 48))
    back = decode_image(data, channels)
    assert back.dtype == np.uint8 and back.shape == (48, 48, channels)
    assert np.abs(back.astype(int) - array).mean() <= error


@pytest.mark.parametrize(
    "options",
    [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"quality": 30}, {"progressive": True}],
    ids=str,
)
def test_a_stored_jpeg_has_the_pixels_that_pillow_sees(options: dict[str, object]) -> None:
    draw = np.random.default_rng(3)
    for width, height in ((64, 64), (37, 50), (1, 7)):
        coarse = draw.integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), dtype=np.uint8)
        array = coarse.repeat(3, axis=0).repeat(3, axis=1)[:height, :width]
        for picture in (Image.fromarray(array), Image.fromarray(array).convert("L")):
            data = encoded(picture, "JPEG", **options)
            seen = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            np.testing.assert_array_equal(decode_image(data, 3), seen)


def test_without_torchvisions_decoder_a_stored_jpeg_is_decoded_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode_image(np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8), "jpg")
    expected = decode_image(data, 3)
    monkeypatch.setitem(sys.modules, "torchvision.io", None)  # importing it now raises ImportError
    images._jpeg_decoder.cache_clear()
    assert images._jpeg_decoder() is None
    np.testing.assert_array_equal(decode_image(data, 3), expected)
    images._jpeg_decoder.cache_clear()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_stored_jpeg_that_is_cut_short_is_rejected(channels: int) -> None:
    data = encode_image(np.random.default_rng(0).integers(0, 256, (48, 48, channels), dtype=np.uint8), "jpg")
    for length in (10, 300, len(data) // 2):
        with pytest.raises(Rejected):
            decode_image(data[:length], channels)


def test_channels_last_is_another_layout_of_the_same_values() -> None:
    images_BHWC = np.arange(512).astype(np.uint8).reshape(2, 16, 16, 1).repeat(3, axis=3)
    expected_BCHW = (images_BHWC.astype(np.float64) / 127.5 - 1).transpose(0, 3, 1, 2)
    last_BCHW = to_model_range_channels_last(images_BHWC)
    assert last_BCHW.dtype == torch.float32 and last_BCHW.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(last_BCHW.numpy(), expected_BCHW, atol=1e-7)
    assert torch.equal(last_BCHW, to_model_range(images_BHWC))


def test_model_range_and_back_is_exact() -> None:
    images_BHWC = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    x_BCHW = to_model_range(images_BHWC)
    assert (x_BCHW.shape, x_BCHW.dtype, x_BCHW.is_contiguous()) == ((1, 3, 16, 16), torch.float32, True)
    assert (x_BCHW.min().item(), x_BCHW.max().item()) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_uint8(x_BCHW), images_BHWC)
    assert to_uint8(torch.tensor([[[[-3.0, 0.0, 3.0]]]])).ravel().tolist() == [0, 128, 255]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": b"Exif\0\0" + bytes(3000)}, {"comment": b"c"}])
def test_the_size_of_a_jpeg_is_found_in_its_header(options: dict[str, object]) -> None:
    assert image_dimensions(encoded(Image.new("RGB", (37, 21)), "JPEG", **options)) == (37, 21)
