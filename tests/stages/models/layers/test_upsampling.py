"""Upsampling and convolution in one: torch's numbers and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.layers.upsampling import upsample_and_convolve


def plainly(x_BCHW: Tensor, conv: nn.Conv2d) -> Tensor:
    y_BDHW: Tensor = conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
    return y_BDHW


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels_in", "channels_out", "height", "width"), [(1, 1, 1, 1), (3, 5, 4, 7), (8, 2, 3, 2)])
def test_it_is_torchs_two_steps(
    channels_in: int, channels_out: int, height: int, width: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1).double()
    x_BCHW = torch.randn(2, channels_in, height, width, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    grad_BDHW = torch.randn(2, channels_out, 2 * height, 2 * width, dtype=torch.float64)
    actual_BDHW, expected_BDHW = upsample_and_convolve(x_BCHW, conv), plainly(x_BCHW, conv)
    torch.testing.assert_close(actual_BDHW, expected_BDHW, rtol=1e-10, atol=1e-12)
    wanted = [x_BCHW, *conv.parameters()]
    for actual, expected in zip(
        torch.autograd.grad(actual_BDHW, wanted, grad_BDHW),
        torch.autograd.grad(expected_BDHW, wanted, grad_BDHW),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_under_autocast_it_is_torchs_two_steps() -> None:
    conv, x_BCHW = nn.Conv2d(4, 4, 3, padding=1), torch.randn(2, 4, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = upsample_and_convolve(x_BCHW, conv), plainly(x_BCHW, conv)
    assert actual.dtype == torch.bfloat16
    assert torch.equal(actual, expected)
