"""The sheet of pictures: places, sizes, names."""

import numpy as np
import pytest
from PIL import Image

from stages.sampling.grid import draw_grid


def flat(colour: tuple[int, int, int], side: int = 32) -> np.ndarray:
    return np.full((side, side, 3), colour, dtype=np.uint8)


RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)


def test_pictures_stand_in_rows_on_white() -> None:
    sheet = draw_grid([[flat(RED), flat(GREEN)], [flat(BLUE)]])
    assert sheet.size == (16 + 64 + 6 + 64 + 16, 16 + 64 + 6 + 64 + 16)
    assert [sheet.getpixel(at) for at in ((20, 20), (100, 20), (20, 100), (100, 100))] == [
        RED,
        GREEN,
        BLUE,
        (255, 255, 255),
    ]


def test_names_stand_left_of_their_row() -> None:
    plain, named = draw_grid([[flat(RED)]]), draw_grid([[flat(RED)]], ["smileys and people"])
    left = named.width - plain.width
    assert left > 100
    ink = np.asarray(named)[:, : left + 16].min()
    assert ink < 80
    assert np.asarray(named)[:, :14].min() == 255
    assert np.array_equal(np.asarray(named)[:, left + 16 :], np.asarray(plain)[:, 16:])


@pytest.mark.parametrize(("side", "shown"), [(8, 64), (28, 84), (64, 64), (100, 100), (256, 160)])
def test_small_pictures_are_enlarged_in_whole_steps_and_large_ones_reduced(side: int, shown: int) -> None:
    assert draw_grid([[flat(RED, side)]]).width == shown + 32


def test_enlarging_keeps_pixels_sharp() -> None:
    checks = np.indices((8, 8)).sum(0)[:, :, None].repeat(3, 2).astype(np.uint8) % 2 * 255
    sheet = np.asarray(draw_grid([[checks]]))[16:-16, 16:-16]
    assert np.array_equal(sheet, checks.repeat(8, 0).repeat(8, 1))
    assert isinstance(draw_grid([[checks]]), Image.Image)
