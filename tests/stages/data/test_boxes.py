"""Boxes: read strictly, moved exactly as their picture is cut and turned, drawn in the right place."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError
from stages.data.boxes import draw_boxes, parse_boxes, prepare_boxes, window_boxes
from stages.data.images import Preparation, Rejected, prepare
from stages.data.pictures import Box
from stages.data.windows import Window


@pytest.mark.parametrize(
    "cell", ['[["cat", 1, 2, 30, 40.5], [7, 0, 0, 9, 9]]', [["cat", 1, 2, 30, 40.5], [7, 0, 0, 9, 9]]]
)
def test_a_cell_is_a_list_or_its_json(cell: object) -> None:
    assert parse_boxes(cell, "line 1") == (Box("cat", 1, 2, 30, 40.5), Box("7", 0, 0, 9, 9))


def test_nothing_there_is_not_the_same_as_not_known() -> None:
    assert parse_boxes([], "line 1") == parse_boxes("[]", "line 1") == ()
    assert [parse_boxes(cell, "line 1") for cell in (None, "", math.nan)] == [None] * 3


@pytest.mark.parametrize(
    ("cell", "complaint"),
    [
        ("[[", "are no JSON"),
        ({"cat": 1}, "must be a list"),
        ([["cat", 1, 2, 3]], r"box \['cat', 1, 2, 3\] must be \[class name"),
        ([["cat", 1, 2, "3", 4]], "edges in pixels"),
        ([["cat", 1, 2, float("nan"), 4]], "edges in pixels"),
        ([[" ", 1, 2, 3, 4]], "its class must be a name"),
        ([["cat", 10, 10, 5, 20]], "is empty: write .* not a size"),
        ([["cat", 0.1, 0.2, 0.9, 0.8]], "a pixel at most: write edges in pixels, not in shares"),
    ],
)
def test_what_is_no_box_is_named_with_its_place(cell: object, complaint: str) -> None:
    with pytest.raises(DataError, match=f"^l.csv, line 3: .*{complaint}"):
        parse_boxes(cell, "l.csv, line 3")


def marked(width: int, height: int, box: Box, orientation: int = 1) -> bytes:
    """White, with the box filled."""
    picture = np.full((height, width, 3), 255, np.uint8)
    picture[int(box.top) : int(box.bottom), int(box.left) : int(box.right)] = 0
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("crop", ["center", "pad"])
@pytest.mark.parametrize("box", [Box("a", 40, 12, 52, 40), Box("a", 4, 20, 44, 60)])
def test_a_box_lies_where_its_thing_lies_in_the_square(box: Box, crop: str, orientation: int) -> None:
    data, how = marked(96, 64, box, orientation), Preparation(64, crop=crop)  # type: ignore[arg-type]
    dark_HW = np.asarray(prepare(data, how))[:, :, 0] < 128
    rows, columns = np.flatnonzero(dark_HW.any(1)), np.flatnonzero(dark_HW.any(0))
    (found,) = prepare_boxes(data, [box], how)
    seen = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert np.abs(np.array(found[1:]) * 64 - seen).max() <= 1
    assert found.label == "a"


def test_boxes_beside_the_middle_are_dropped_and_boxes_beside_the_picture_rejected() -> None:
    data = marked(96, 64, Box("a", 0, 0, 10, 10))
    assert prepare_boxes(data, [Box("a", 0, 0, 16, 10), Box("b", 8, 0, 200, 70)], Preparation(32)) == (
        Box("b", 0, 0, 1, 1),
    )
    with pytest.raises(Rejected, match=r"its box a \(96, 0, 100, 10\) is not in its 96x64 pixels") as rejected:
        prepare_boxes(data, [Box("a", 96, 0, 100, 10)], Preparation(32))
    assert rejected.value.code == "box_outside"


def test_windows_clip_shift_and_mirror() -> None:
    boxes = [Box("a", 0.25, 0.0, 0.5, 0.5), Box("b", 0.0, 0.0, 0.1, 0.1)]
    window = Window(top=8, left=8)
    assert window_boxes(boxes, window, stored=64, size=32) == [Box("a", 0.25, 0.0, 0.75, 0.75)]
    assert window_boxes(boxes, Window(8, 8, True), stored=64, size=32) == [Box("a", 0.25, 0.0, 0.75, 0.75)]
    shifted = Window(top=8, left=16, mirrored=True)
    assert window_boxes(boxes, shifted, stored=64, size=32) == [Box("a", 0.5, 0.0, 1.0, 0.75)]


def test_drawn_boxes_have_their_edges_on_white_and_a_colour_a_class() -> None:
    drawn = draw_boxes([Box("a", 0, 0, 0.5, 0.5), Box("b", 0.5, 0.5, 1, 1)], ["a", "b"], 33)
    coloured = (drawn != 255).any(2)
    assert coloured[0, :17].all() and coloured[16, 16:].all() and coloured[:, 32][16:].all()
    assert not coloured[1:15, 20:].any()
    assert drawn[0, 0].tolist() != drawn[32, 32].tolist()
