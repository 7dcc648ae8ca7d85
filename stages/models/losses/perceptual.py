"""Perceptual distances: how different two pictures look to a network trained on photographs.

The only file that imports lpips. Legend: B batch, C channels, H height, W width.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from stages.models.efficientnet_lite0 import load_efficientnet_lite0
from stages.models.layers.winograd import Conv3x3
from stages.models.losses.configs import PerceptualConfig
from stages.models.precision import full_precision

TORCHVISION_WEIGHTS = {
    "vgg": "vgg16-397923af.pth",
    "alex": "alexnet-owt-7be5be79.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
TORCHVISION_NAMES = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}
LAST_LAYERS = {"vgg": (3, 8, 15, 22, 29), "alex": (1, 4, 7, 9, 11), "squeeze": (1, 4, 7, 9, 10, 11, 12)}
"""The layers among torchvision's `features` that LPIPS compares."""
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
        return sum_of_distances(targets, features, [None] * len(targets))


class LPIPSDistance(FrozenDistance):
    """LPIPS version 0.1: the `lpips` package's linear heads over torchvision's network."""

    mean: Tensor
    std: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        import lpips
        import torchvision

        trunk_weights = load_torchvision_weights(kind)
        with torch.device("meta"):  # most of the network is its classifier, which is not used
            layers = getattr(torchvision.models, TORCHVISION_NAMES[kind])(weights=None).features
            self.layers = nn.Sequential(*map(_cheaper, layers[: LAST_LAYERS[kind][-1] + 1]))
        own = self.layers.state_dict()
        self.layers.load_state_dict({name: trunk_weights[f"features.{name}"] for name in own}, assign=True)
        self.last_layers = LAST_LAYERS[kind]
        # squeeze.pth was saved on a GPU
        path = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{kind}.pth"
        heads = torch.load(path, map_location="cpu", weights_only=True)
        for number in range(len(self.last_layers)):
            self.register_buffer(f"head_{number}", heads[f"lin{number}.model.1.weight"].flatten())
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, x_BCHW: Tensor, x_hat_BCHW: Tensor) -> Tensor:
        """distance_B of pictures in [-1, 1]."""
        with torch.no_grad():
            targets = self._features(x_BCHW)
        heads = [self.get_buffer(f"head_{number}") for number in range(len(self.last_layers))]
        return sum_of_distances(targets, self._features(x_hat_BCHW), heads)

    def _features(self, x_BCHW: Tensor) -> list[Tensor]:
        y = (x_BCHW.expand(-1, 3, -1, -1) - self.mean) / self.std
        features = []
        for number, layer in enumerate(self.layers):
            y = layer(y)
            if number in self.last_layers:
                features.append(y)
        return features


def build_perceptual(config: PerceptualConfig) -> FrozenDistance:
    """The distance of this configuration.

    Raises ConfigError if a network's weights can neither be found nor downloaded; DataError if a package lacks its own.
    """
    if config.kind == "none":
        return NoDistance()
    if config.kind == "efficientnet_lite0":
        return FeatureDistance(config.stages)
    return LPIPSDistance(config.kind)


def _cheaper(layer: nn.Module) -> nn.Module:
    """The same layer, as ours where we have one."""
    if isinstance(layer, nn.Conv2d) and (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1)):
        return Conv3x3(layer.in_channels, layer.out_channels)
    return layer


def sum_of_distances(targets: Sequence[Tensor], features: Sequence[Tensor], heads: Sequence[Tensor | None]) -> Tensor:
    """distance_B: over each pair of maps, the weighted squared distance of their channels' directions, averaged over
    places; summed over pairs. In float32 at least; gradient to `features` only."""
    distances = [
        _DirectionDistance.apply(full_precision(feature), full_precision(target), head)
        for target, feature, head in zip(targets, features, heads, strict=True)
    ]
    return torch.stack(distances).sum(dim=0)


class _DirectionDistance(torch.autograd.Function):
    """sum_c w_c (f_c / |f| - t_c / |t|)^2, averaged over places; a zero vector has no direction and no gradient."""

    @staticmethod
    def forward(ctx: Any, feature_BCHW: Tensor, target_BCHW: Tensor, weight_C: Tensor | None) -> Tensor:
        norm_B1HW = torch.linalg.vector_norm(feature_BCHW, dim=1, keepdim=True)
        difference_BCHW = feature_BCHW / (norm_B1HW + NORM_EPSILON)
        difference_BCHW -= target_BCHW / (torch.linalg.vector_norm(target_BCHW, dim=1, keepdim=True) + NORM_EPSILON)
        weighted_BCHW = difference_BCHW
        if weight_C is not None:
            weighted_BCHW = difference_BCHW * weight_C.to(difference_BCHW)[:, None, None]
        ctx.save_for_backward(feature_BCHW, norm_B1HW, weighted_BCHW)
        distance_B: Tensor = (difference_BCHW * weighted_BCHW).sum(dim=1).mean(dim=(1, 2))
        return distance_B

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor | None, ...]:
        feature_BCHW, norm_B1HW, weighted_BCHW = ctx.saved_tensors
        # With b = f / n, n = |f| + e: d/df is (g - (f . g) f / (n |f|)) / n, where g is the gradient with respect to b
        places = feature_BCHW.shape[2] * feature_BCHW.shape[3]
        inverse_B1HW = (norm_B1HW + NORM_EPSILON).reciprocal_()
        share_B1HW = 2 / places * grad_B[:, None, None, None] * inverse_B1HW
        along_B1HW = (feature_BCHW * weighted_BCHW).sum(dim=1, keepdim=True)
        along_B1HW *= -share_B1HW * inverse_B1HW / norm_B1HW.clamp(min=NORM_EPSILON)
        gradient_BCHW = feature_BCHW * along_B1HW
        return gradient_BCHW.addcmul_(weighted_BCHW, share_B1HW), None, None


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
