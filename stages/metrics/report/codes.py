"""The codebook to look at: what each code decodes to, most frequent first, all in one picture.

Legend: K codes, H and W pixels of a token, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.units import Unit
from stages.data.images import encode_image
from stages.metrics.report.pictures import data_uri

MOST_CODES = 512
"""That are decoded and shown, the most frequent first."""
COLUMNS = 32
GAP = 1
"""Pixels between codes."""
PALE = 70
"""Opacity, of 255, of codes that never occur."""


class CodeSheet(NamedTuple):
    """One picture of many codes."""

    uri: str
    num_shown: int
    left_out: int
    idle: int
    """Of those shown, codes that never occur."""


def codes_unit(counts_K: NDArray[np.int64], seeing: Mapping[str, Any]) -> Unit:
    """The unit of evaluation that decodes the most frequent codes; `seeing` says which tokenizer does it."""
    codes = np.argsort(-counts_K, kind="stable")[:MOST_CODES].tolist()
    return Unit("codes-000000", {"measure": "codes", "codes": codes, **seeing})


def code_sheet(tiles_KHWC: NDArray[np.uint8], counts_K: NDArray[np.int64]) -> CodeSheet:
    """Draw decoded codes, given in the order of `codes_unit`; counts are those of the whole codebook."""
    num, height, width, channels = tiles_KHWC.shape
    rows, columns = -(-num // COLUMNS), min(COLUMNS, num)
    sheet = np.zeros((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 4), np.uint8)
    frequent_K = np.sort(counts_K)[::-1][:num]
    for place, (tile_HWC, count) in enumerate(zip(tiles_KHWC, frequent_K, strict=True)):
        top, left = place // COLUMNS * (height + GAP), place % COLUMNS * (width + GAP)
        tile = sheet[top : top + height, left : left + width]
        tile[:, :, :3] = tile_HWC if channels == 3 else tile_HWC[:, :, :1]
        tile[:, :, 3] = 255 if count else PALE
    uri = data_uri(encode_image(Image.fromarray(sheet), "png"))
    return CodeSheet(uri, num, len(counts_K) - num, int((frequent_K == 0).sum()))
