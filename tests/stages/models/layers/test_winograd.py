"""Convolutions in fewer multiplications: torch's numbers and gradients, whichever way they go."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.layers.winograd import Conv3x3, _transformed_filters, convolve, weight_gradient


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("channels_in", "channels_out", "height", "width"), [(1, 1, 4, 4), (3, 5, 8, 12), (7, 2, 20, 4)]
)
def test_it_is_the_convolution_and_the_gradient_of_its_weights(
    channels_in: int, channels_out: int, height: int, width: int, layout: torch.memory_format
) -> None:
    x_BCHW = drawn(2, channels_in, height, width).to(memory_format=layout)
    weight = drawn(channels_out, channels_in, 3, 3, seed=1).requires_grad_()
    bias = drawn(channels_out, seed=2)
    expected_BDHW = F.conv2d(x_BCHW, weight, bias, padding=1)
    grad_BDHW = drawn(*expected_BDHW.shape, seed=3)
    (expected,) = torch.autograd.grad(expected_BDHW, weight, grad_BDHW)

    with torch.no_grad():
        torch.testing.assert_close(
            convolve(x_BCHW, _transformed_filters(weight), bias), expected_BDHW, rtol=1e-11, atol=1e-12
        )
        actual = weight_gradient(x_BCHW, grad_BDHW.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("channels_in", "channels_out"), [(128, 160), (64, 128), (96, 64)])
def test_the_layers_gradients_are_torchs(channels_in: int, channels_out: int) -> None:
    torch.manual_seed(0)
    ours, plain = (
        Conv3x3(channels_in, channels_out).double(),
        nn.Conv2d(channels_in, channels_out, 3, padding=1).double(),
    )
    ours.load_state_dict(plain.state_dict())
    x_BCHW = drawn(2, channels_in, 32, 16)
    results = [gradients(layer, x_BCHW.to(memory_format=torch.channels_last)) for layer in (ours, plain)]
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def test_what_follows_may_change_its_output_in_place() -> None:
    torch.manual_seed(0)
    layer = Conv3x3(128, 128)
    x_BCHW = torch.randn(4, 128, 16, 16)
    in_place, apart = (nn.Sequential(layer, nn.ReLU(inplace=inplace)) for inplace in (True, False))
    for actual, expected in zip(gradients(in_place, x_BCHW), gradients(apart, x_BCHW), strict=True):
        assert torch.equal(actual, expected)


def test_a_frozen_weight_is_transformed_once_until_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(weight: Tensor) -> Tensor:
        made.append(weight)
        return _transformed_filters(weight)

    monkeypatch.setattr("stages.models.layers.winograd._transformed_filters", counted)
    torch.manual_seed(0)
    layer = Conv3x3(128, 128).double().requires_grad_(False)
    x_BCHW = drawn(4, 128, 16, 16).requires_grad_()

    def check() -> None:
        for convolution in (layer, nn.Conv2d.forward.__get__(layer)):
            y_BDHW = convolution(x_BCHW)
            results.append((y_BDHW.detach(), *torch.autograd.grad(y_BDHW.square().sum(), x_BCHW)))
        torch.testing.assert_close(results[-2], results[-1], rtol=1e-9, atol=1e-9)

    results: list[tuple[Tensor, ...]] = []
    check()
    check()
    assert len(made) == 2  # forward and backward
    layer.state_dict()["weight"].mul_(2)  # as averages of weights are updated
    check()
    assert len(made) == 4
    layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()})
    check()
    assert len(made) == 6
    layer.requires_grad_()
    check()
    check()
    assert len(made) == 10


def test_a_batch_taken_in_parts_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x_BCHW = Conv3x3(128, 128).double(), drawn(5, 128, 16, 16)
    whole = gradients(layer, x_BCHW)
    for size in (1, 2 * 16 * 36 * 128 * 8):  # a picture at a time, and two
        monkeypatch.setattr("stages.models.layers.winograd.CACHED_BYTES", size)
        for actual, expected in zip(gradients(layer, x_BCHW), whole, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def gradients(layer: nn.Module, x_BCHW: Tensor) -> list[Tensor]:
    leaf = x_BCHW.clone().requires_grad_()
    y_BDHW = layer(leaf)
    grad_BDHW = drawn(*y_BDHW.shape, seed=4).to(y_BDHW.dtype)
    return [y_BDHW.detach(), *torch.autograd.grad(y_BDHW, [leaf, *layer.parameters()], grad_BDHW)]


def test_the_layer_takes_the_short_way_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Tensor) -> Tensor:
        raise AssertionError("the short way")

    monkeypatch.setattr("stages.models.layers.winograd.convolve", never)
    wide, narrow = Conv3x3(128, 128), Conv3x3(32, 128)
    with pytest.raises(AssertionError, match="the short way"):
        wide(torch.zeros(4, 128, 16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        assert wide(torch.zeros(4, 128, 16, 16)).dtype == torch.bfloat16
    assert wide(torch.zeros(4, 128, 18, 16)).shape == (4, 128, 18, 16)  # not a whole number of tiles
    assert wide(torch.zeros(4, 128, 8, 8)).shape == (4, 128, 8, 8)  # too few of them
    assert narrow(torch.zeros(1, 32, 16, 16)).shape == (1, 128, 16, 16)


def test_float32_rounds_about_as_well_as_torch() -> None:
    torch.manual_seed(0)
    layer = Conv3x3(128, 128).double()
    x_BCHW = drawn(4, 128, 32, 32)
    expected = gradients(layer, x_BCHW)
    actual = gradients(layer.float(), x_BCHW.float())
    for rounded, exact in zip(actual, expected, strict=True):
        assert float((rounded - exact).norm() / exact.norm()) < 5e-6


def test_it_can_be_exported() -> None:
    layer, x_BCHW = Conv3x3(128, 128), torch.randn(4, 128, 16, 16)
    exported = torch.export.export(layer, (x_BCHW,))
    assert "conv2d" in str(exported.graph)
    torch.testing.assert_close(exported.module()(x_BCHW), layer(x_BCHW), rtol=1e-3, atol=1e-4)
