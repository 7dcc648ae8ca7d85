"""Twice the size by nearest neighbours, then a 3x3 convolution; on CPUs in 4/9 of the multiplications.

Legend: B batch, C channels in, D channels out, H height, W width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.layers.eager import runs_eagerly_on_cpu


def upsample_and_convolve(x_BCHW: Tensor, conv: nn.Conv2d) -> Tensor:
    """conv(x at twice the size), where `conv` is 3x3 with padding 1: y_BDHW of twice the size."""
    if runs_eagerly_on_cpu(x_BCHW) and x_BCHW.dtype == conv.weight.dtype:
        return F.conv_transpose2d(x_BCHW, _spread(conv.weight), conv.bias, stride=2, padding=1)
    y_BDHW: Tensor = conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
    return y_BDHW


def _spread(weight: Tensor) -> Tensor:
    """weight[D, C, 3, 3] as [C, D, 4, 4]: what a pixel gives its surroundings, once it has become four.

    Each of the four adds the kernel, turned around, at its own place.
    """
    padded = F.pad(weight.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
    rows = padded[:, :, 1:] + padded[:, :, :-1]
    return rows[:, :, :, 1:] + rows[:, :, :, :-1]
