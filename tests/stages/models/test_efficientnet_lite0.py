"""EfficientNet-Lite0 recognises real photographs and computes what an independent, unfolded implementation computes."""

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.models.efficientnet_lite0 import (
    STAGE_CHANNELS,
    EfficientNetLite0,
    SameConv2d,
    load_efficientnet_lite0,
    weights_path,
)


@cache
def network() -> EfficientNetLite0:
    return load_efficientnet_lite0()


def photograph(name: str) -> Tensor:
    """A packaged photograph, its central square at 224x224, in [-1, 1]."""
    skimage_data = pytest.importorskip("skimage.data")
    picture = np.asarray(getattr(skimage_data, name)())
    x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    side = min(x.shape[2:])
    top, left = (x.shape[2] - side) // 2, (x.shape[3] - side) // 2
    x = x[:, :, top : top + side, left : left + side]
    return F.interpolate(x, size=(224, 224), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)


def naive_same_conv(x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
    """TensorFlow's "same": ceil(n / stride) outputs, the padding split with the larger half at the end."""
    padding = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + weight.shape[-1] - size, 0)
        padding += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, padding), weight, stride=stride, groups=groups)


def naive_features(x: Tensor) -> tuple[list[Tensor], Tensor]:
    """The network straight from the weights' file in float64: explicit batch norms, strides written out."""
    state = {k: v.double() for k, v in torch.load(weights_path(), weights_only=True, map_location="cpu").items()}

    def norm(y: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(y, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-3)

    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    y = ((x.double() + 1) * 127.5 - 127) / 128
    y = F.relu6(norm(naive_same_conv(y, state["_conv_stem.weight"], 2, 1), "_bn0"))
    outputs = []
    for i, stride in enumerate(strides):
        block, entry = f"_blocks.{i}", y
        if i > 0:
            y = F.relu6(norm(naive_same_conv(y, state[f"{block}._expand_conv.weight"], 1, 1), f"{block}._bn0"))
        depthwise = naive_same_conv(y, state[f"{block}._depthwise_conv.weight"], stride, y.shape[1])
        y = F.relu6(norm(depthwise, f"{block}._bn1"))
        y = norm(naive_same_conv(y, state[f"{block}._project_conv.weight"], 1, 1), f"{block}._bn2")
        if stride == 1 and entry.shape == y.shape:
            y = y + entry
        outputs.append(y)
    head = F.relu6(norm(naive_same_conv(y, state["_conv_head.weight"], 1, 1), "_bn1"))
    return [outputs[i] for i in (0, 2, 4, 10, 15)], head.mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("name", "sensible"),
    [
        ("chelsea", {281, 282, 285, 287}),  # tabby, tiger cat, Egyptian cat, lynx
        ("coffee", {967, 968, 504, 969}),  # espresso, cup, coffee mug, eggnog
        ("rocket", {744, 657, 812}),  # projectile, missile, space shuttle
    ],
)
def test_it_recognises_packaged_photographs(name: str, sensible: set[int]) -> None:
    with torch.inference_mode():
        top = network()(photograph(name)).topk(3).indices[0].tolist()
    assert top[0] in sensible


@pytest.mark.parametrize("size", [(32, 32), (37, 29)])
def test_folded_network_agrees_with_an_unfolded_one_in_float64(size: tuple[int, int]) -> None:
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected_maps, expected_pooled = naive_features(x)
    with torch.inference_mode():
        maps, pooled = network().stage_features(x), network().pooled(x)
    for ours, expected in zip([*maps, pooled], [*expected_maps, expected_pooled], strict=True):
        assert (ours.double() - expected).abs().max() < 1e-4 * expected.abs().max()


def test_stage_features_have_the_promised_channels_and_strides_and_stop_at_the_last_stage_asked() -> None:
    x = torch.zeros(1, 3, 64, 64)
    maps = network().stage_features(x)
    assert [m.shape[1:] for m in maps] == [
        (c, 64 // s, 64 // s) for c, s in zip(STAGE_CHANNELS, (2, 4, 8, 16, 32), strict=True)
    ]
    ran: list[int] = []
    hooks = [block.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, block in enumerate(network()._blocks)]
    some = network().stage_features(x, stages=(1, 2))
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1, 2, 3, 4]
    assert torch.equal(some[0], maps[1]) and torch.equal(some[1], maps[2])


def test_a_grey_picture_is_seen_as_its_rgb_copy() -> None:
    grey = torch.rand(2, 1, 32, 32) * 2 - 1
    assert torch.equal(network().pooled(grey), network().pooled(grey.repeat(1, 3, 1, 1)))


def test_it_stays_frozen_in_evaluation_but_passes_gradients_to_its_input() -> None:
    parent = torch.nn.Sequential(network()).train()
    assert not any(module.training for module in parent[0].modules())
    assert not any(parameter.requires_grad for parameter in network().parameters())
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    features = network().stage_features(x, stages=(0, 1, 2))
    (gradient,) = torch.autograd.grad([f.square().mean() for f in features], x)
    assert gradient.abs().max() > 0


def test_same_padding_puts_the_odd_pixel_at_the_end() -> None:
    conv = SameConv2d(1, 1, 3, stride=2)
    torch.nn.init.ones_(conv.weight)
    conv.bias = None
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    # Without padding at the start, the first window sums rows and columns 0 to 2.
    expected = torch.tensor([[45.0, 39.0], [66.0, 50.0]])
    assert torch.equal(conv(x)[0, 0], expected)
