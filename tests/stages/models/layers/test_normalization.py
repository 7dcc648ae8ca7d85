"""GroupNorm and SiLU as one step: the numbers and gradients of torch's two layers, whichever way it goes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.layers.normalization import NormSiLU


def layers(channels: int, groups: int, dtype: torch.dtype = torch.float64) -> tuple[NormSiLU, nn.GroupNorm]:
    torch.manual_seed(0)
    ours, plain = NormSiLU(groups, channels, eps=1e-6), nn.GroupNorm(groups, channels, eps=1e-6)
    nn.init.normal_(plain.weight, 1.0, 0.5)
    nn.init.normal_(plain.bias, 0.0, 0.5)
    ours.load_state_dict(plain.state_dict())
    return ours.to(dtype), plain.to(dtype)


def input_of(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return 3 + 2 * torch.randn(*shape, generator=draw, dtype=dtype)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("groups", "shape"), [(4, (3, 8, 5, 6)), (32, (2, 64, 4, 4)), (1, (1, 6, 3, 2)), (5, (2, 5, 1, 7))]
)
def test_it_is_torchs_group_norm_and_silu(groups: int, shape: tuple[int, ...], layout: torch.memory_format) -> None:
    ours, plain = layers(shape[1], groups)
    results = []
    for function in (ours, lambda x: F.silu(plain(x))):
        x_BCHW = input_of(*shape).to(memory_format=layout).requires_grad_()
        y_BCHW = function(x_BCHW)
        (y_BCHW * input_of(*shape).flip(2)).sum().backward()
        results.append((y_BCHW.detach(), x_BCHW.grad))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
        assert actual.is_contiguous(memory_format=layout)
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-12)


def test_its_gradient_is_that_of_finite_differences() -> None:
    ours, _ = layers(6, 3)
    x_BCHW = input_of(2, 6, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w, b: functional(ours, x, w, b), (x_BCHW, ours.weight, ours.bias))


def functional(layer: NormSiLU, x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor) -> Tensor:
    return torch.func.functional_call(layer, {"weight": weight_C, "bias": bias_C}, x_BCHW)


def test_in_float32_it_is_as_exact_as_torchs_two_layers() -> None:
    errors = []
    exact_layers = layers(64, 32)
    x_BCHW = (50 + input_of(2, 64, 32, 32)).to(memory_format=torch.channels_last)  # far from 0: sums of squares suffer
    expected = gradients(lambda x: F.silu(exact_layers[1](x)), exact_layers[1], x_BCHW)
    ours, plain = layers(64, 32, torch.float32)
    for function, layer in ((ours, ours), (lambda x: F.silu(plain(x)), plain)):
        actual = gradients(function, layer, x_BCHW.float())
        errors.append([float((a - b).norm() / b.norm()) for a, b in zip(actual, expected, strict=True)])
    for mine, theirs in zip(*errors, strict=True):
        assert mine < 3 * theirs + 1e-6


def gradients(function: object, layer: nn.Module, x_BCHW: Tensor) -> list[Tensor]:
    leaf = x_BCHW.clone().requires_grad_()
    y_BCHW = function(leaf)  # type: ignore[operator]
    draw = torch.Generator().manual_seed(2)
    weights_BCHW = torch.randn(y_BCHW.shape, generator=draw, dtype=torch.float64).to(y_BCHW.dtype)
    return [y_BCHW.detach(), *torch.autograd.grad(y_BCHW, [leaf, *layer.parameters()], weights_BCHW)]


def test_under_autocast_it_is_torchs_two_layers() -> None:
    ours, plain = layers(8, 4, torch.float32)
    x_BCHW = input_of(2, 8, 4, 4, dtype=torch.float32).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = ours(x_BCHW), F.silu(plain(x_BCHW))
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)


def test_it_can_be_exported() -> None:
    ours, plain = layers(8, 4, torch.float32)
    x_BCHW = input_of(2, 8, 4, 4, dtype=torch.float32)
    exported = torch.export.export(ours, (x_BCHW,))
    assert "group_norm" in str(exported.graph)
    torch.testing.assert_close(exported.module()(x_BCHW), F.silu(plain(x_BCHW)))
