"""The encoder and decoder of the plain VQ-VAE (van den Oord et al. 2017), as its best-known tutorial writes them.

No normalisation, ReLU, two stride-2 convolutions. This network's pixels are in [0, 1] where the house's are in
[-1, 1]: `to_unit_range` and `from_unit_range` are the one place that knows. A squared error in the house's range is
four times that of the network's, so `losses.l2_weight: 0.25` is its mean squared error.
Legend: B batch, C channels, H height, W width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.tokenizer_config import VQVAEBackboneConfig


def to_unit_range(x_BCHW: Tensor) -> Tensor:
    """Pixels in [-1, 1] to [0, 1]."""
    return (x_BCHW + 1) / 2


def from_unit_range(x_BCHW: Tensor) -> Tensor:
    """Pixels in [0, 1] to [-1, 1]."""
    return 2 * x_BCHW - 1


class ResidualBlock(nn.Module):
    """x + Conv1x1(ReLU(Conv3x3(ReLU(x))))."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The block's output, of the input's shape."""
        change_BCHW: Tensor = self.conv2(F.relu(self.conv1(F.relu(x_BCHW))))
        return x_BCHW + change_BCHW


class VQVAEEncoder(nn.Module):
    """x_BCHW in [-1, 1] to a map of `out_channels` at a quarter of the size."""

    def __init__(self, config: VQVAEBackboneConfig, *, channels: int) -> None:
        super().__init__()
        self.out_channels = dim = config.dim
        self.layers = nn.Sequential(
            nn.Conv2d(channels, dim, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            ResidualBlock(dim),
            ResidualBlock(dim),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x_BCHW to z_BCHW, [B, dim, H/4, W/4]."""
        z_BCHW: Tensor = self.layers(to_unit_range(x_BCHW))
        return z_BCHW


class VQVAEDecoder(nn.Module):
    """A map of `in_channels` to x_BCHW, about [-1, 1]."""

    def __init__(self, config: VQVAEBackboneConfig, *, channels: int) -> None:
        super().__init__()
        self.in_channels = dim = config.dim
        self.layers = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1),
            ResidualBlock(dim),
            ResidualBlock(dim),
            nn.ConvTranspose2d(dim, dim, 4, stride=2, padding=1),
            nn.ReLU(),
        )
        self.conv_out = nn.ConvTranspose2d(dim, channels, 4, stride=2, padding=1)

    def trunk(self, z_BCHW: Tensor) -> Tensor:
        """All but the last convolution."""
        features_BCHW: Tensor = self.layers(z_BCHW)
        return features_BCHW

    def head(self, features_BCHW: Tensor) -> Tensor:
        """The last convolution, from what `trunk` gives to pictures."""
        return from_unit_range(self.conv_out(features_BCHW))

    def forward(self, z_BCHW: Tensor) -> Tensor:
        """z_BCHW to pictures four times as large."""
        return self.head(self.trunk(z_BCHW))
