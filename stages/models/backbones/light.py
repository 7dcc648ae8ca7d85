"""The light encoder and decoder: few, cheap layers, most of them where the map is small.

Legend: B batch, C channels, H height, W width. Every layer runs in either memory layout; `channels_last` is the fast
one on CPUs (a 3x3 convolution at 32 channels and 32x32 took 24 ms against 66 ms for 32 pictures on 2 AVX2 cores).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.layers.normalization import NormSiLU
from stages.models.tokenizer_config import LightBackboneConfig


class LightBlock(nn.Module):
    """x + Conv1x1(SiLU(Norm(Conv3x3(SiLU(Norm(x)))))); the last convolution starts at zero: an identity."""

    def __init__(self, channels: int, *, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = NormSiLU(norm_groups, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = NormSiLU(norm_groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The block's output, of the input's shape."""
        y = self.conv1(self.norm1(x_BCHW))
        change_BCHW: Tensor = self.conv2(self.norm2(y))
        return x_BCHW + change_BCHW


class LightEncoder(nn.Module):
    """x_BCHW in [-1, 1] to a map of `out_channels` that is `factor` times smaller."""

    def __init__(self, config: LightBackboneConfig, *, channels: int) -> None:
        super().__init__()
        self.out_channels = config.channels[-1]
        layers: list[nn.Module] = []
        width = channels
        for next_width, num_blocks in zip(config.channels, config.residual_blocks, strict=True):
            if layers:
                layers.append(nn.SiLU())  # a level may have no blocks, and two convolutions in a row are one
            layers.append(nn.Conv2d(width, next_width, 4, stride=2, padding=1))
            layers += [LightBlock(next_width, norm_groups=config.norm_groups) for _ in range(num_blocks)]
            width = next_width
        self.layers = nn.Sequential(*layers)
        self.norm_out = NormSiLU(config.norm_groups, width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x_BCHW to a map of [B, `out_channels`, H/factor, W/factor]."""
        features_BCHW: Tensor = self.norm_out(self.layers(x_BCHW))
        return features_BCHW


class LightDecoder(nn.Module):
    """A map of `in_channels` to x_BCHW, about [-1, 1].

    The last convolution predicts 2x2 pixels at once at half resolution (Shi et al. 2016): no layer runs at full size.
    """

    def __init__(self, config: LightBackboneConfig, *, channels: int) -> None:
        super().__init__()
        self.in_channels = config.channels[-1]
        widths = config.channels[::-1]
        layers: list[nn.Module] = [nn.Conv2d(self.in_channels, self.in_channels, 3, padding=1)]
        for level, (width, num_blocks) in enumerate(zip(widths, config.residual_blocks[::-1], strict=True)):
            if level > 0:
                layers += [nn.SiLU(), nn.Conv2d(widths[level - 1], width, 3, padding=1), nn.Upsample(scale_factor=2)]
            layers += [LightBlock(width, norm_groups=config.norm_groups) for _ in range(num_blocks)]
        self.layers = nn.Sequential(*layers)
        self.norm_out = NormSiLU(config.norm_groups, config.channels[0])
        self.conv_out = nn.Conv2d(config.channels[0], channels * 4, 3, padding=1)

    def trunk(self, z_BCHW: Tensor) -> Tensor:
        """All but the last convolution."""
        features_BCHW: Tensor = self.norm_out(self.layers(z_BCHW))
        return features_BCHW

    def head(self, features_BCHW: Tensor) -> Tensor:
        """The last convolution, from what `trunk` gives to pictures."""
        return F.pixel_shuffle(self.conv_out(features_BCHW), 2)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        """z_BCHW to pictures factor times as large."""
        return self.head(self.trunk(z_BCHW))
