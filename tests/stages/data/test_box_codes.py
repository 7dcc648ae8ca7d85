"""Values of boxes: taming's places, the largest first, and back again."""

import numpy as np
import pytest

from stages.data.box_codes import BoxCodes
from stages.data.pictures import Box

CODES = BoxCodes(classes=("cat", "dog"), resolution=4)
NOTHING = CODES.size - 1


def test_three_values_a_box_the_largest_first_and_padding() -> None:
    small, large = Box("cat", 0, 0, 1 / 3, 1 / 3), Box("dog", 1 / 3, 0, 1, 1)
    values_NL = CODES.values([[small, large], [], None], 3)
    assert CODES.size == 2 + 16 + 1
    assert values_NL.tolist() == [
        [1, 2 + 1, 2 + 15, 0, 2 + 0, 2 + 5, *[NOTHING] * 3],
        [NOTHING] * 9,
        [-1] * 9,
    ]
    assert CODES.values([[small, large]], 1).tolist() == [[1, 3, 17]]


def test_places_are_rounded_as_in_taming() -> None:
    # objects_center_points.tokenize_coordinates: round(y * (R - 1)) * R + round(x * (R - 1))
    codes = BoxCodes(classes=("cat",), resolution=32)
    rng = np.random.default_rng(0)
    for x0, y0, x1, y1 in np.sort(rng.random((50, 2, 2)), axis=1).reshape(-1, 4):
        _, first, last = codes.values([[Box("cat", x0, y0, x1, y1)]], 1)[0]
        assert first == 1 + round(y0 * 31) * 32 + round(x0 * 31)
        assert last == 1 + round(y1 * 31) * 32 + round(x1 * 31)


def test_values_become_boxes_again_within_half_a_place() -> None:
    codes = BoxCodes(classes=("cat", "dog"), resolution=16)
    boxes = [Box("dog", 0.1, 0.2, 0.9, 0.8), Box("cat", 0.5, 0.5, 0.7, 0.6)]
    (found,) = codes.boxes(codes.values([boxes], 5))
    assert [box.label for box in found] == ["dog", "cat"]
    assert np.abs(np.array([box[1:] for box in found]) - [box[1:] for box in boxes]).max() <= 0.5 / 15 + 1e-9


@pytest.mark.parametrize("triple", [[NOTHING] * 3, [-1] * 3, [0, 1, 5], [5, 5, 5], [0, 5, NOTHING]])
def test_triples_that_are_no_box_are_left_out(triple: list[int]) -> None:
    assert CODES.boxes(np.array([[*triple, 1, 3, 17]])) == [[Box("dog", pytest.approx(1 / 3), 0, 1, 1)]]  # type: ignore[arg-type]
