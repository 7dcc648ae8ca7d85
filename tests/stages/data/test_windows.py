"""Windows of stored pictures: the middle, places that belong to the picture, and the coordinates of their tokens."""

import numpy as np
import pytest

from pipeline.errors import DataError
from stages.data.condition_values import coordinate_values
from stages.data.windows import Window, variant_window

STORED, SIZE = (20, 24), 8


def window(key: str = "a", variant: int = 0, seed: int = 0) -> Window:
    return variant_window(key, variant, stored=STORED, size=SIZE, seed=seed)


def test_variant_0_is_the_middle_and_1_its_mirror_image() -> None:
    picture = np.arange(20 * 24).reshape(20, 24)
    middle = window().cut(picture, SIZE)
    assert np.array_equal(middle, picture[6:14, 8:16])
    assert np.array_equal(window(variant=1).cut(picture, SIZE), middle[:, ::-1])


def test_other_windows_belong_to_key_number_and_seed() -> None:
    assert window("a", 2) == window("a", 2)
    assert window("a", 3) == Window(window("a", 2).top, window("a", 2).left, mirrored=True)
    assert len({window("a", 2), window("b", 2), window("a", 4), window("a", 2, seed=1)}) == 4


def test_windows_reach_every_place_and_stay_inside() -> None:
    places = {(it.top, it.left) for it in (window(str(n), 2) for n in range(2000))}
    assert {top for top, _ in places} == set(range(13))
    assert {left for _, left in places} == set(range(17))


def test_a_picture_smaller_than_the_window_is_refused() -> None:
    with pytest.raises(DataError, match="a is 24x20, the tokenizer wants 32x32: run --stages shard,tokenizer"):
        variant_window("a", 0, stored=STORED, size=32, seed=0)


def test_coordinates_are_the_mean_places_of_blocks_before_cutting() -> None:
    windows = [Window(0, 0), Window(12, 16), Window(3, 5, mirrored=True)]
    found = coordinate_values(windows, stored=STORED, size=SIZE, grid=(2, 2), values=1024)
    for row, it in zip(found, windows, strict=True):
        expected = []
        for block_row in range(2):
            for block_column in range(2):
                total = 0.0
                for y in range(4):
                    for x in range(4):
                        column = 4 * block_column + x
                        column = 7 - column if it.mirrored else column
                        total += ((it.top + 4 * block_row + y) * 24 + it.left + column) / (20 * 24)
                expected.append(round(1024 * total / 16))
        assert row.tolist() == expected
    assert 0 <= found.min() < found.max() <= 1024
