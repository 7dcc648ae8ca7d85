"""Perceptual distances: how different two pictures look to a network trained on photographs.

The only file that imports lpips. Legend: B batch, C channels, H height, W width.
"""

import hashlib
import warnings
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from stages.models.efficientnet_lite0 import load_efficientnet_lite0
from stages.models.losses.configs import PerceptualConfig
from stages.models.precision import full_precision

TORCHVISION_WEIGHTS = {
    "vgg": "vgg16-397923af.pth",
    "alex": "alexnet-owt-7be5be79.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
NORM_EPSILON = 1e-10


class FrozenDistance(nn.Module):
    """A distance whose network is a measuring instrument: no gradient to it, and no parent's `train()` reaches it."""

    def __init__(self) -> None:
        super().__init__()
        super().train(False)

    def train(self, mode: bool = True) -> Self:
        """Nothing happens: a parent's `train()` must not switch dropout on."""
        return self

    def forward(self, x_BCHW: Tensor, x_hat_BCHW: Tensor) -> Tensor:
        """distance_B of pictures in [-1, 1]; gradient to `x_hat_BCHW` only. Grey pictures are taken as RGB."""
        raise AssertionError("each distance has its own forward")


class NoDistance(FrozenDistance):
    """Zero, for training without a perceptual loss."""

    def forward(self, x_BCHW: Tensor, x_hat_BCHW: Tensor) -> Tensor:
        """distance_B of zeros."""
        return x_hat_BCHW.new_zeros(len(x_hat_BCHW))


class FeatureDistance(FrozenDistance):
    """LPIPS (Zhang et al. 2018, eq. 1) with all weights 1 over early features of EfficientNet-Lite0.

    Channels are scaled to unit length at each place, differences squared and summed over channels, averaged over
    places, summed over stages: at most 4 a stage. Unlike LPIPS not calibrated on human judgements: numbers of the two
    do not compare.
    """

    def __init__(self, stages: tuple[int, ...]) -> None:
        super().__init__()
        self.stages = stages
        self.network = load_efficientnet_lite0()

    def forward(self, x_BCHW: Tensor, x_hat_BCHW: Tensor) -> Tensor:
        """distance_B of pictures in [-1, 1]."""
        with torch.no_grad():
            targets = self.network.stage_features(x_BCHW, self.stages)
        features = self.network.stage_features(x_hat_BCHW, self.stages)
        distance_B = x_hat_BCHW.new_zeros(len(x_hat_BCHW))
        for target, feature in zip(targets, features, strict=True):
            difference = unit_channels(full_precision(target)) - unit_channels(full_precision(feature))
            distance_B = distance_B + difference.square().sum(dim=1).mean(dim=(1, 2))
        return distance_B


class LPIPSDistance(FrozenDistance):
    """LPIPS version 0.1 with the `lpips` package's linear heads over torchvision's network."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        import lpips

        trunk_weights = load_torchvision_weights(kind)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package calls torchvision in a deprecated way
            self.network = lpips.LPIPS(net=kind, pretrained=False, pnet_rand=True, verbose=False)
        _load_trunk(self.network.net, trunk_weights)
        heads_path = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{kind}.pth"
        # squeeze.pth was saved on a GPU
        heads = torch.load(heads_path, map_location="cpu", weights_only=True)
        self.network.load_state_dict(heads, strict=False)
        self.network.eval().requires_grad_(False)

    def forward(self, x_BCHW: Tensor, x_hat_BCHW: Tensor) -> Tensor:
        """distance_B of pictures in [-1, 1]."""
        x_BCHW, x_hat_BCHW = (x.expand(-1, 3, -1, -1) for x in (x_BCHW, x_hat_BCHW))
        distance_B: Tensor = self.network(x_BCHW.detach(), x_hat_BCHW)[:, 0, 0, 0]
        return distance_B


def build_perceptual(config: PerceptualConfig) -> FrozenDistance:
    """The distance of this configuration.

    Raises ConfigError if a network's weights can neither be found nor downloaded; DataError if a package lacks its own.
    """
    if config.kind == "none":
        return NoDistance()
    if config.kind == "efficientnet_lite0":
        return FeatureDistance(config.stages)
    return LPIPSDistance(config.kind)


def unit_channels(features_BCHW: Tensor) -> Tensor:
    """The features scaled to unit length over channels at each place."""
    return features_BCHW * features_BCHW.square().sum(dim=1, keepdim=True).add(NORM_EPSILON).rsqrt()


def load_torchvision_weights(kind: str) -> dict[str, Tensor]:
    """torchvision's ImageNet weights of an LPIPS network, from TORCH_HOME or downloaded into it.

    Raises ConfigError naming the file to place and where, if it is missing and the download fails.
    """
    name = TORCHVISION_WEIGHTS[kind]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        url = f"https://download.pytorch.org/models/{name}"
        try:
            torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"perceptual.kind {kind} needs {name}, which is not at {path} and could not be downloaded from {url} "
                f"({error}): place it there, or set TORCH_HOME to a folder that has it as hub/checkpoints/{name}, "
                "or choose perceptual.kind efficientnet_lite0, whose weights come with its package"
            ) from error
    _check_hash(path)
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def _check_hash(path: Path) -> None:
    expected = path.stem.rsplit("-", 1)[1]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(expected):
        raise ConfigError(
            f"{path} is damaged: its sha256 begins with {digest[:8]}, its name says {expected}; remove it to download "
            "it again, or place the original"
        )


def _load_trunk(trunk: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load torchvision's weights: lpips cuts `features` into slices but keeps numbers (slice2.4 is features.4)."""
    own = trunk.state_dict()
    trunk.load_state_dict({name: weights["features." + name.split(".", 1)[1]] for name in own})
