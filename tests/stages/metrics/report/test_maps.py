"""Maps say every number, and colour the largest deepest."""

import re
import xml.etree.ElementTree as ET

import numpy as np

from stages.metrics.report.maps import draw_map


def shades(svg: str) -> list[int]:
    return [int(share) for share in re.findall(r"(\d+)%, var\(--card\)", svg)]


def test_each_place_says_its_number_and_is_coloured_by_it() -> None:
    svg = draw_map(np.array([[1.0, 2.0, 3.0], [6.25, 4.0, 1.0]]), "bits")
    root = ET.fromstring(svg)
    assert root.attrib["viewBox"] == "0 0 120 80"
    assert [text.text for text in root.iter("text")] == ["1.0", "2.0", "3.0", "6.2", "4.0", "1.0"]
    assert "row 2, column 1: 6.25 bits" in [title.text for title in root.iter("title")]
    assert shades(svg)[3] == max(shades(svg)) and shades(svg)[0] == shades(svg)[5] == min(shades(svg))


def test_large_grids_have_no_room_for_numbers_and_even_ones_one_colour() -> None:
    svg = draw_map(np.full((16, 16), 2.0), "bits")
    assert "<text" not in svg and svg.count("<title>") == 256
    assert len(set(shades(svg))) == 1
