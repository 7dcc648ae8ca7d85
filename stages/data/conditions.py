"""Making spatial maps: what can be told of a picture by another picture, computed from it.

Shapes: H height, W width, C channels; pictures and maps are uint8.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from pipeline.errors import ConfigError
from stages.data.condition_config import ComputedMap, MapCondition

SKETCH_SCALE, SKETCH_WEIGHT, SKETCH_THRESHOLD, SKETCH_STEEPNESS = 1.6, 20.0, 0.8, 10.0
"""k, p, epsilon and phi of Winnemoeller et al. 2012; epsilon is for pictures from 0 to 1."""


def map_channels(condition: MapCondition, picture_channels: int) -> int:
    """Channels of a kind of map: 1, or those of the pictures."""
    return {"low_resolution": picture_channels, "pose": 3}.get(condition.kind, 1)


def make_map(condition: ComputedMap, picture_HWC: np.ndarray) -> np.ndarray:
    """The map [H, W, 1 or C] of a picture, of its size. Raises ConfigError where the condition does not suit it."""
    if condition.kind == "edges":
        return edges(picture_HWC, condition.sigma)
    if condition.kind == "sketch":
        return sketch(picture_HWC, condition.sigma)
    return low_resolution(picture_HWC, condition.factor)


def edges(picture_HWC: np.ndarray, sigma: float) -> np.ndarray:
    """Canny's edges, white on black: [H, W, 1]."""
    from skimage.feature import canny

    found_HW: np.ndarray = canny(_grey(picture_HWC), sigma=sigma)
    return found_HW[:, :, None].astype(np.uint8) * 255


def sketch(picture_HWC: np.ndarray, sigma: float) -> np.ndarray:
    """Dark strokes on white where brightness falls below its surroundings' (XDoG, eqs. 4 to 7): [H, W, 1]."""
    grey_HW = _grey(picture_HWC)
    fine_HW, coarse_HW = gaussian_filter(grey_HW, sigma), gaussian_filter(grey_HW, SKETCH_SCALE * sigma)
    sharp_HW = (1 + SKETCH_WEIGHT) * fine_HW - SKETCH_WEIGHT * coarse_HW
    soft_HW = 1 + np.tanh(SKETCH_STEEPNESS * (sharp_HW - SKETCH_THRESHOLD))
    strokes_HW = np.where(sharp_HW >= SKETCH_THRESHOLD, 1.0, soft_HW)
    return np.round(255 * strokes_HW).astype(np.uint8)[:, :, None]


def low_resolution(picture_HWC: np.ndarray, factor: int) -> np.ndarray:
    """The picture after its sides were divided by `factor` and multiplied again, bicubic: [H, W, C]."""
    height, width, channels = picture_HWC.shape
    if height % factor or width % factor:
        raise ConfigError(f"condition low_resolution: factor {factor} does not divide pictures of {width}x{height}")
    image = Image.fromarray(picture_HWC[:, :, 0] if channels == 1 else picture_HWC)
    small = image.resize((width // factor, height // factor), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).reshape(height, width, channels)


def _grey(picture_HWC: np.ndarray) -> np.ndarray:
    """Brightness from 0 to 1: [H, W]."""
    image = Image.fromarray(picture_HWC[:, :, 0] if picture_HWC.shape[2] == 1 else picture_HWC)
    return np.asarray(image.convert("L"), dtype=np.float64) / 255
