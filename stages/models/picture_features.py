"""Pooled features of EfficientNet-Lite0 for pictures of any size: what distances, judges and scorers look at."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.models.efficientnet_lite0 import EfficientNetLite0

# Shapes: B batch, C channels, H W picture, D features.


def picture_features(network: EfficientNetLite0, x_BCHW: Tensor, size: int) -> Tensor:
    """Features [B, D] in float32 of pictures in [-1, 1], resized to `size` pixels of side where they are not."""
    with torch.inference_mode():
        if x_BCHW.shape[2:] != (size, size):
            x_BCHW = F.interpolate(x_BCHW, (size, size), mode="bicubic", antialias=True, align_corners=False)
        x_BCHW = x_BCHW.clamp(-1, 1).contiguous(memory_format=torch.channels_last)
        return network.pooled(x_BCHW).float()
