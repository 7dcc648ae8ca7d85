"""How close a picture comes back through its tokens: peak signal-to-noise ratio and mean absolute error.

Both are measured picture by picture and then averaged over pictures; a PSNR of the mean error would be dominated by
the worst pictures. Pixels are compared as values in [0, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PSNR_CAP = 100.0  # dB, for a picture that comes back exactly


def picture_psnr(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """-10 log10(mean squared error) of each picture in dB, at most 100: pictures in [-1, 1] -> psnr_B."""
    error_B = ((x_BCHW.double() - y_BCHW.double()) / 2).square().mean(dim=(1, 2, 3))
    return (-10 * error_B.clamp(min=10 ** (-PSNR_CAP / 10)).log10()).clamp(max=PSNR_CAP)


def picture_l1(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Mean absolute error of each picture on the scale [0, 1]: pictures in [-1, 1] -> l1_B."""
    return ((x_BCHW.double() - y_BCHW.double()) / 2).abs().mean(dim=(1, 2, 3))
