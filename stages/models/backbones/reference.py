"""VQGAN's encoder and decoder (Esser et al. 2021), with taming-transformers' names so that its weights load.

Legend: B batch, C channels, H height, W width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.layers.normalization import NormSiLU
from stages.models.layers.upsampling import upsample_and_convolve
from stages.models.layers.winograd import Conv3x3
from stages.models.tokenizer_config import ReferenceBackboneConfig

NORM_GROUPS, NORM_EPSILON = 32, 1e-6


def norm_silu(channels: int) -> NormSiLU:
    """The reference's normalization and activation."""
    return NormSiLU(NORM_GROUPS, channels, eps=NORM_EPSILON)


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the number of channels changes."""

    def __init__(self, channels_in: int, channels_out: int, *, dropout: float) -> None:
        super().__init__()
        self.norm1 = norm_silu(channels_in)
        self.conv1 = Conv3x3(channels_in, channels_out)
        self.norm2 = norm_silu(channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv3x3(channels_out, channels_out)
        self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x_BCHW with `channels_out` channels."""
        y = self.conv1(self.norm1(x_BCHW))
        y_BCHW: Tensor = self.conv2(self.dropout(self.norm2(y)))
        if self.nin_shortcut is not None:
            x_BCHW = self.nin_shortcut(x_BCHW)
        return y_BCHW + x_BCHW


class AttnBlock(nn.Module):
    """Single-head self-attention over all places of the map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(NORM_GROUPS, channels, eps=NORM_EPSILON)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x_BCHW with what each place gathered from the others added."""
        y = self.norm(x_BCHW)
        q, k, v = (layer(y).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        attended_BCHW: Tensor = self.proj_out(y.transpose(1, 2).reshape(x_BCHW.shape))
        return x_BCHW + attended_BCHW


class Downsample(nn.Module):
    """A stride-2 convolution padded by one pixel right and below only, as the reference does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x_BCHW at half the size."""
        y: Tensor = self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))
        return y


class Upsample(nn.Module):
    """Nearest neighbours, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x_BCHW at twice the size."""
        return upsample_and_convolve(x_BCHW, self.conv)


class Level(nn.Module):
    """The blocks at one resolution; `resample` is named as the reference names it: downsample or upsample."""

    def __init__(
        self, widths: list[tuple[int, int]], *, attention: bool, dropout: float, **resample: nn.Module
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(a, b, dropout=dropout) for a, b in widths)
        self.attn = nn.ModuleList(AttnBlock(b) for _, b in widths if attention)
        self.resample_name = next(iter(resample), None)
        for name, module in resample.items():
            self.add_module(name, module)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The blocks, then the change of size."""
        for index, block in enumerate(self.block):
            x_BCHW = block(x_BCHW)
            if len(self.attn):
                x_BCHW = self.attn[index](x_BCHW)
        if self.resample_name is not None:
            x_BCHW = getattr(self, self.resample_name)(x_BCHW)
        return x_BCHW


class Middle(nn.Module):
    """Block, attention, block at the smallest resolution."""

    def __init__(self, channels: int, *, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout=dropout)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels, dropout=dropout)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x_BCHW of the same shape."""
        y: Tensor = self.block_2(self.attn_1(self.block_1(x_BCHW)))
        return y


class ReferenceEncoder(nn.Module):
    """x_BCHW in [-1, 1] to a map of `out_channels` that is `factor` times smaller."""

    def __init__(self, config: ReferenceBackboneConfig, *, image_size: int, channels: int) -> None:
        super().__init__()
        self.out_channels = config.z_channels
        base, multipliers = config.base_channels, config.multipliers
        self.conv_in = nn.Conv2d(channels, base, 3, padding=1)
        self.down = nn.ModuleList()
        width = base
        for level, multiplier in enumerate(multipliers):
            out = base * multiplier
            last = level == len(multipliers) - 1
            self.down.append(
                Level(
                    [(width, out)] + [(out, out)] * (config.num_res_blocks - 1),
                    attention=image_size // 2**level in config.attention_resolutions,
                    dropout=config.dropout,
                    **({} if last else {"downsample": Downsample(out)}),
                )
            )
            width = out
        self.mid = Middle(width, dropout=config.dropout)
        self.norm_out = norm_silu(width)
        self.conv_out = Conv3x3(width, config.z_channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x_BCHW to a map of [B, `z_channels`, H/factor, W/factor]."""
        y = self.conv_in(x_BCHW)
        for level in self.down:
            y = level(y)
        y = self.mid(y)
        z_BCHW: Tensor = self.conv_out(self.norm_out(y))
        return z_BCHW


class ReferenceDecoder(nn.Module):
    """A map of `in_channels` to x_BCHW, about [-1, 1]."""

    def __init__(self, config: ReferenceBackboneConfig, *, image_size: int, channels: int) -> None:
        super().__init__()
        self.in_channels = config.z_channels
        width = config.base_channels * config.multipliers[-1]
        self.conv_in = Conv3x3(config.z_channels, width)
        self.mid = Middle(width, dropout=config.dropout)
        levels: list[nn.Module] = []
        for level, multiplier in reversed(list(enumerate(config.multipliers))):
            out = config.base_channels * multiplier
            levels.append(
                Level(
                    [(width, out)] + [(out, out)] * config.num_res_blocks,
                    attention=image_size // 2**level in config.attention_resolutions,
                    dropout=config.dropout,
                    **({} if level == 0 else {"upsample": Upsample(out)}),
                )
            )
            width = out
        self.up = nn.ModuleList(reversed(levels))  # the reference numbers the levels from full resolution down
        self.norm_out = norm_silu(width)
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)

    def trunk(self, z_BCHW: Tensor) -> Tensor:
        """All but the last convolution."""
        y = self.mid(self.conv_in(z_BCHW))
        for level in reversed(self.up):
            y = level(y)
        features_BCHW: Tensor = self.norm_out(y)
        return features_BCHW

    def head(self, features_BCHW: Tensor) -> Tensor:
        """The last convolution, from what `trunk` gives to pictures."""
        x_BCHW: Tensor = self.conv_out(features_BCHW)
        return x_BCHW

    def forward(self, z_BCHW: Tensor) -> Tensor:
        """z_BCHW to pictures factor times as large."""
        return self.head(self.trunk(z_BCHW))
