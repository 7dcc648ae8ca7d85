"""The codebook's picture: most frequent codes first, idle ones pale."""

import base64
import io

import numpy as np
from PIL import Image

from stages.metrics.report.codes import MOST_CODES, PALE, code_sheet, codes_unit

COUNTS = np.array([0, 7, 3, 9], np.int64)


def test_codes_are_decoded_most_frequent_first_and_no_more_than_are_shown() -> None:
    assert codes_unit(COUNTS, {"tokenizer": "t"}).recipe == {
        "measure": "codes",
        "codes": [3, 1, 2, 0],
        "tokenizer": "t",
    }
    assert len(codes_unit(np.arange(5000), {}).recipe["codes"]) == MOST_CODES


def test_every_code_has_its_place_and_idle_ones_are_pale() -> None:
    tiles = np.stack([np.full((2, 2, 3), value, np.uint8) for value in (10, 20, 30, 40)])
    sheet = code_sheet(tiles, COUNTS)
    assert (sheet.num_shown, sheet.left_out, sheet.idle) == (4, 0, 1)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet.uri.partition(",")[2]))))
    assert pixels.shape == (2, 11, 4)
    assert pixels[0, ::3].tolist() == [[10, 10, 10, 255], [20, 20, 20, 255], [30, 30, 30, 255], [40, 40, 40, PALE]]
    assert (pixels[:, 2::3, 3] == 0).all(), "gaps are clear"


def test_grey_codes_and_more_codes_than_are_shown() -> None:
    sheet = code_sheet(np.zeros((2, 4, 4, 1), np.uint8), COUNTS)
    assert (sheet.num_shown, sheet.left_out, sheet.idle) == (2, 2, 0)
