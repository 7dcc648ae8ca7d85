"""The patch discriminator and its hinge losses.

Legend: B batch, C channels, H height, W width; logits_B1HW holds one judgement for each patch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.losses.configs import DiscriminatorConfig

MAX_WIDENING = 8


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017) in taming-transformers' layout (`main.{n}`): with `batch` norm its weights load."""

    def __init__(self, config: DiscriminatorConfig, *, channels: int) -> None:
        super().__init__()
        width = config.base_channels
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for layer in range(1, config.num_layers + 1):
            out = config.base_channels * min(2**layer, MAX_WIDENING)
            stride = 2 if layer < config.num_layers else 1
            layers += [
                nn.Conv2d(width, out, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(8, out) if config.norm == "group" else nn.BatchNorm2d(out),
                nn.LeakyReLU(0.2),
            ]
            width = out
        layers.append(nn.Conv2d(width, 1, 4, padding=1))
        self.main = nn.Sequential(*layers)
        for module in self.main:  # the reference's initialisation (DCGAN's)
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x_BCHW in [-1, 1] to logits_B1HW; high is real."""
        logits_B1HW: Tensor = self.main(x_BCHW)
        return logits_B1HW


def generator_loss(logits_fake_B1HW: Tensor) -> Tensor:
    """The generator's side of the hinge loss for each picture: loss_B."""
    return -full_precision(logits_fake_B1HW).mean(dim=(1, 2, 3))


def discriminator_loss(logits_real_B1HW: Tensor, logits_fake_B1HW: Tensor) -> Tensor:
    """The discriminator's hinge loss (Lim & Ye 2017) for each picture, halved as in the reference: loss_B."""
    real = F.relu(1.0 - full_precision(logits_real_B1HW)).mean(dim=(1, 2, 3))
    fake = F.relu(1.0 + full_precision(logits_fake_B1HW)).mean(dim=(1, 2, 3))
    return 0.5 * (real + fake)


def full_precision(x: Tensor) -> Tensor:
    """At least float32: means of half-precision logits lose digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
