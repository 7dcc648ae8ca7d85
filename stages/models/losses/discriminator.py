"""The patch discriminator and its losses.

Legend: B batch, C channels, H height, W width; logits_B1HW holds one judgement for each patch.
"""

from collections.abc import Mapping
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import ParametrizationList

from stages.models.losses.configs import DiscriminatorConfig
from stages.models.precision import full_precision

MAX_WIDENING = 8
GROUPS = 8

AdversarialLoss = Literal["hinge", "vanilla", "non_saturating"]


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017) in taming-transformers' layout (`main.{n}`): with `batch` norm its weights load.

    With `spectral` norm a forward pass changes nothing, in training neither: `renew_spectral_norms` does, once a step,
    so that neither ranks nor micro-batches nor repeated passes matter.
    """

    def __init__(self, config: DiscriminatorConfig, *, channels: int) -> None:
        super().__init__()
        width, normed = config.base_channels, config.norm in ("group", "batch")
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for layer in range(1, config.num_layers + 1):
            out = config.base_channels * min(2**layer, MAX_WIDENING)
            stride = 2 if layer < config.num_layers else 1
            layers.append(nn.Conv2d(width, out, 4, stride=stride, padding=1, bias=not normed))
            if normed:
                layers.append(nn.GroupNorm(GROUPS, out) if config.norm == "group" else nn.BatchNorm2d(out))
            layers.append(nn.LeakyReLU(0.2))
            width = out
        layers.append(nn.Conv2d(width, 1, 4, padding=1))
        self.main = nn.Sequential(*layers)
        for module in self.main:  # the reference's initialisation (DCGAN's)
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)
        if config.norm == "spectral":
            for module in self.main:
                if isinstance(module, nn.Conv2d):
                    spectral_norm(module)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode; the spectral norms stay in the mode in which they hold still."""
        super().train(mode)
        for normed_weight in self._spectral():
            normed_weight.train(False)
        return self

    @torch.no_grad()
    def renew_spectral_norms(self) -> None:
        """One power iteration of every spectral norm, which keeps up with the slowly moving weights."""
        for normed_weight in self._spectral():
            normed_weight.train()
            normed_weight()  # torch iterates when the weight is computed in training mode
            normed_weight.train(False)

    def _spectral(self) -> list[nn.Module]:
        return [module for module in self.main.modules() if isinstance(module, ParametrizationList)]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x_BCHW in [-1, 1] to logits_B1HW; high is real."""
        logits_B1HW: Tensor = self.main(x_BCHW)
        return logits_B1HW


def described_by(weights: Mapping[str, Tensor]) -> DiscriminatorConfig | None:
    """The sizes of the discriminator that has these weights; None where no `PatchDiscriminator` has them."""
    convolutions = [weight for weight in weights.values() if weight.ndim == 4]
    if len(convolutions) < 3:
        return None
    if any("parametrizations" in name for name in weights):
        norm = "spectral"
    elif any(name.endswith("running_mean") for name in weights):
        norm = "batch"
    else:
        norm = "group" if any(name.endswith("weight") and w.ndim == 1 for name, w in weights.items()) else "none"
    width, channels = convolutions[0].shape[:2]
    if norm == "group" and width % GROUPS:
        return None
    sizes = {"base_channels": width, "num_layers": len(convolutions) - 2, "norm": norm}
    config = DiscriminatorConfig.model_validate(sizes)
    with torch.device("meta"):
        places = PatchDiscriminator(config, channels=channels).state_dict()
    fits = {name: place.shape for name, place in places.items()} == {n: w.shape for n, w in weights.items()}
    return config if fits else None


def generator_loss(logits_fake_B1HW: Tensor, kind: AdversarialLoss = "hinge") -> Tensor:
    """The generator's side of the adversarial loss for each picture: loss_B."""
    logits = full_precision(logits_fake_B1HW)
    return (F.softplus(-logits) if kind == "non_saturating" else -logits).mean(dim=(1, 2, 3))


def discriminator_loss(logits_real_B1HW: Tensor, logits_fake_B1HW: Tensor, kind: AdversarialLoss = "hinge") -> Tensor:
    """The discriminator's side for each picture, the mean of its real and its fake part: loss_B.

    `hinge`: Lim & Ye 2017. `vanilla` and `non_saturating`: cross-entropy of the two classes (Goodfellow et al. 2014).
    """
    real, fake = full_precision(logits_real_B1HW), full_precision(logits_fake_B1HW)
    penalties = (F.relu(1.0 - real), F.relu(1.0 + fake)) if kind == "hinge" else (F.softplus(-real), F.softplus(fake))
    return 0.5 * (penalties[0].mean(dim=(1, 2, 3)) + penalties[1].mean(dim=(1, 2, 3)))


def lecam_penalty(logits_real_B1HW: Tensor, logits_fake_B1HW: Tensor, anchors: Tensor) -> Tensor:
    """LeCam's regularisation (Tseng et al. 2021, arXiv:2104.03310) for each picture: loss_B.

    `anchors` are the running means of the logits of real pictures and of fake ones, in this order. Real logits are
    drawn down to the mean of fake ones and fake logits up to that of real ones; as in the authors' code, not the other
    way, where a logit lies beyond the other kind's mean already.
    """
    real, fake = full_precision(logits_real_B1HW), full_precision(logits_fake_B1HW)
    above, below = F.relu(real - anchors[1]), F.relu(anchors[0] - fake)
    return above.square().mean(dim=(1, 2, 3)) + below.square().mean(dim=(1, 2, 3))
