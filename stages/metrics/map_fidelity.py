"""How close the map of a picture comes to the map it was drawn from.

Legend: N pictures, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, label

from stages.data.condition_config import AlphaCondition, ComputedMap, SegmentationCondition
from stages.data.conditions import make_map
from stages.data.map_shelf import MapShelf, Target
from stages.metrics.pixel_classes import PixelClasses

Picture = NDArray[np.uint8]
Findable = ComputedMap | AlphaCondition | SegmentationCondition
"""Maps that can be found in a picture again; of depths and poses no picture says by itself what they are."""

NEARLY_WHITE = 24
"""How far from white, of 255, a channel of white may be after the tokenizer.

On 199 emoji of 64x64 the IoU of `opaque_area` with their true opacity is 0.94; blurred and with noise, at 21 dB, 0.88
(at a distance of 8: 0.94 and 0.65; of 48: 0.92 and 0.88).
"""


def fidelities(
    condition: Findable, pictures_NHWC: Picture, targets: Sequence[Target], shelf: MapShelf, guess: PixelClasses | None
) -> NDArray[np.float64]:
    """For each picture how close its map comes to its target.

    F1 for edges, IoU for alpha, for segmentation the share of pixels of which `guess` sees the class, else PSNR in dB.
    """
    measures = {"edges": edge_f1, "alpha": area_iou, "segmentation": right_pixels}
    measure = measures.get(condition.kind, map_psnr)
    found = [
        measure(_map_of(condition, picture_HWC, guess), shelf.read(target))
        for picture_HWC, target in zip(pictures_NHWC, targets, strict=True)
    ]
    return np.array(found, np.float64)


def _map_of(condition: Findable, picture_HWC: Picture, guess: PixelClasses | None) -> Picture:
    if condition.kind == "alpha":
        return opaque_area(picture_HWC)
    if condition.kind == "segmentation":
        assert guess is not None, "classes of pixels are learnt where they are a condition"
        return guess(picture_HWC)
    return make_map(condition, picture_HWC)


def opaque_area(picture_HWC: Picture) -> Picture:
    """What seems opaque in a picture whose transparency was laid over white, white on black: [H, W, 1].

    All but the white that can be reached from the border. White at an opaque thing's rim is mistaken for background.
    """
    white_HW = np.pad((picture_HWC >= 255 - NEARLY_WHITE).all(2), 1, constant_values=True)
    regions_HW, _ = label(white_HW)
    opaque_HWC: Picture = ((regions_HW != regions_HW[0, 0])[1:-1, 1:-1, None] * 255).astype(np.uint8)
    return opaque_HWC


def area_iou(found_HWC: Picture, wanted_HWC: Picture) -> float:
    """Intersection over union of two areas (of alpha, what is more opaque than not); 1 where both are empty."""
    found_HW, wanted_HW = (map_HWC[:, :, 0] > 127 for map_HWC in (found_HWC, wanted_HWC))
    union = int((found_HW | wanted_HW).sum())
    return float((found_HW & wanted_HW).sum() / union) if union else 1.0


def edge_f1(found_HWC: Picture, wanted_HWC: Picture) -> float:
    """F1 of edges, of which one pixel's distance is forgiven (as in Martin et al. 2004); 1 where neither has any."""
    found_HW, wanted_HW = (map_HWC[:, :, 0] > 127 for map_HWC in (found_HWC, wanted_HWC))
    if not found_HW.any() or not wanted_HW.any():
        return float(found_HW.any() == wanted_HW.any())
    around = np.ones((3, 3), bool)
    precision = float((found_HW & binary_dilation(wanted_HW, around)).sum() / found_HW.sum())
    recall = float((wanted_HW & binary_dilation(found_HW, around)).sum() / wanted_HW.sum())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def right_pixels(found_HWC: Picture, wanted_HWC: Picture) -> float:
    """The share of pixels that have their class."""
    return float((found_HWC == wanted_HWC).mean())


def map_psnr(found_HWC: Picture, wanted_HWC: Picture) -> float:
    """-10 log10 of the mean squared error on the scale [0, 1], at most 100 dB."""
    error = np.square((found_HWC.astype(np.float64) - wanted_HWC) / 255).mean()
    return float(-10 * np.log10(max(error, 1e-10)))
