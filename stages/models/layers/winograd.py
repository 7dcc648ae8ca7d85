"""3x3 convolutions in fewer multiplications (Lavin & Gray 2016, F(4x4, 3x3)), for CPUs.

A CPU's library already multiplies as fast as the processor can, so only fewer multiplications make it faster: 36 for
each tile of 4x4 outputs in place of 144, and the transforms around them are small matrix products. Measured on 2 AVX2
cores at 128 channels and 32x32: forward and gradient of the input in 60% of the time, gradient of the weights in a
third. With 64 channels the transforms cost forward what they save. Rounding errors are about four times as large.

Legend: B batch, C channels in, D channels out, H height, W width, T tiles, F the 36 (6x6) transformed values of a tile.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.layers.eager import runs_eagerly_on_cpu

TILE, WINDOW = 4, 6
FEWEST_TILES = 64
"""Below this the weights, four times as large once transformed, are transformed for too few tiles."""
CACHED_BYTES = 2 * 2**20
"""Of transformed windows at a time; with whole batches of 32 pictures nothing was gained."""
FORWARD_CHANNELS, GRADIENT_CHANNELS = 128, 64
"""Fewest channels on both sides with which it is faster: for outputs and gradients of inputs, and of weights."""


class Conv3x3(nn.Conv2d):
    """A convolution with a 3x3 kernel, stride 1 and padding 1.

    It is torch's own under autocast, in half precision, on other devices, when compiled or exported, where the map is
    no whole number of tiles, and where there are few channels or tiles.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1)
        self._filters = _Filters()

    def forward(self, input: Tensor) -> Tensor:
        """x_BCHW to y_BDHW."""
        if _worthwhile(input, self.weight):
            y_BDHW: Tensor = _Convolution.apply(input, self.weight, self.bias, self._filters)
            return y_BDHW
        return super().forward(input)


def _worthwhile(x_BCHW: Tensor, weight: Tensor) -> bool:
    height, width = x_BCHW.shape[-2:]
    return (
        runs_eagerly_on_cpu(x_BCHW)
        and x_BCHW.dtype == weight.dtype
        and height % TILE == width % TILE == 0
        and len(x_BCHW) * height * width >= FEWEST_TILES * TILE**2
        and min(weight.shape[:2]) >= GRADIENT_CHANNELS
    )


class _Filters:
    """A weight's transformed filters [F, C, D]; those of a frozen weight are kept, as they are until it changes."""

    def __init__(self) -> None:
        self._state: object = None
        self._kept: dict[bool, Tensor] = {}

    def of(self, weight: Tensor, *, backward: bool) -> Tensor:
        """For weight[D, C, 3, 3]; `backward` is the convolution that gives the gradient of the input: [F, D, C]."""
        if weight.requires_grad or weight.is_inference():
            return _transformed_filters(_turned(weight) if backward else weight)
        state = weight.data_ptr(), weight._version
        if state != self._state:
            self._state, self._kept = state, {}
        if backward not in self._kept:
            self._kept[backward] = _transformed_filters(_turned(weight) if backward else weight)
        return self._kept[backward]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, weight: Tensor, bias: Tensor | None, filters: _Filters) -> Tensor:
        ctx.save_for_backward(x_BCHW, weight)
        ctx.filters, ctx.has_bias = filters, bias is not None
        if min(weight.shape[:2]) < FORWARD_CHANNELS:
            return _plain(x_BCHW, weight, bias)
        return convolve(x_BCHW, filters.of(weight, backward=False), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BDHW: Tensor) -> tuple[Tensor | None, ...]:
        x_BCHW, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        grad_BDHW = grad_BDHW.contiguous(memory_format=torch.channels_last)
        grad_x = None
        if wants_x and min(weight.shape[:2]) < FORWARD_CHANNELS:
            grad_x = _plain(grad_BDHW, _turned(weight), None)
        elif wants_x:
            grad_x = convolve(grad_BDHW, ctx.filters.of(weight, backward=True))
        grad_weight = weight_gradient(x_BCHW, grad_BDHW) if wants_weight else None
        grad_bias = grad_BDHW.sum(dim=(0, 2, 3)) if ctx.has_bias and wants_bias else None
        return grad_x, grad_weight, grad_bias, None


def _plain(x_BCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x_BCHW, weight.contiguous(memory_format=torch.channels_last), bias, padding=1)


def _turned(weight: Tensor) -> Tensor:
    """The weight [C, D, 3, 3] with which a convolution of the output's gradient gives the input's."""
    return weight.flip(2, 3).transpose(0, 1)


def _transformed_filters(weight: Tensor) -> Tensor:
    """filters_FCD of weight[D, C, 3, 3]."""
    channels_out, channels_in = weight.shape[:2]
    weight_9CD = weight.permute(2, 3, 1, 0).reshape(9, -1)
    return (_MATRICES[weight.dtype].filters @ weight_9CD).view(-1, channels_in, channels_out)


def convolve(x_BCHW: Tensor, filters_FCD: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution padded by 1: y_BDHW in channels-last layout. Not differentiable."""
    matrices = _MATRICES[x_BCHW.dtype]
    batch, _, height, width = x_BCHW.shape
    channels_out = filters_FCD.shape[2]
    # A copy of its own: what comes next may be in place, which autograd refuses on a view.
    y_BDHW = torch.empty((batch, channels_out, height, width), dtype=x_BCHW.dtype, memory_format=torch.channels_last)
    for part in _parts(x_BCHW):
        products_FTD = torch.bmm(_transformed(x_BCHW[part]).transpose(0, 1), filters_FCD)
        tiles = torch.matmul(matrices.outputs, products_FTD.transpose(0, 1))
        if bias is not None:
            tiles += bias
        _tiles(y_BDHW[part]).copy_(tiles.view(-1, height // TILE, width // TILE, TILE, TILE, channels_out))
    return y_BDHW


def weight_gradient(x_BCHW: Tensor, grad_BDHW: Tensor) -> Tensor:
    """The gradient with respect to weight[D, C, 3, 3], given that of the output in channels-last layout."""
    matrices = _MATRICES[x_BCHW.dtype]
    channels_in, channels_out = x_BCHW.shape[1], grad_BDHW.shape[1]
    filters_FCD = x_BCHW.new_empty(WINDOW**2, channels_in, channels_out)
    for number, part in enumerate(_parts(x_BCHW)):
        tiles = _tiles(grad_BDHW[part]).reshape(-1, TILE**2, channels_out)
        grads_TFD = torch.matmul(matrices.outputs.t(), tiles)
        windows_FCT = _transformed(x_BCHW[part]).permute(1, 2, 0)
        filters_FCD.baddbmm_(windows_FCT, grads_TFD.transpose(0, 1), beta=min(number, 1))
    weight_9CD = (matrices.filters.t() @ filters_FCD.flatten(1)).view(3, 3, channels_in, channels_out)
    return weight_9CD.permute(3, 2, 0, 1)


def _parts(x_BCHW: Tensor) -> list[slice]:
    """The batch in parts whose windows stay in a cache."""
    tiles = x_BCHW.shape[2] * x_BCHW.shape[3] // TILE**2
    pictures = max(1, CACHED_BYTES // (tiles * WINDOW**2 * x_BCHW.shape[1] * x_BCHW.element_size()))
    return [slice(start, start + pictures) for start in range(0, len(x_BCHW), pictures)]


def _tiles(y_BDHW: Tensor) -> Tensor:
    """A view of a map in channels-last layout as its 4x4 tiles: [B, H/4, W/4, 4, 4, D]."""
    batch, channels, height, width = y_BDHW.shape
    rows_and_columns = (batch, height // TILE, TILE, width // TILE, TILE, channels)
    return y_BDHW.permute(0, 2, 3, 1).view(rows_and_columns).transpose(2, 3)


def _transformed(x_BCHW: Tensor) -> Tensor:
    """The padded map's 6x6 windows, 4 apart, transformed: windows_TFC."""
    padded_BHWC = F.pad(x_BCHW.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    windows = padded_BHWC.unfold(1, WINDOW, TILE).unfold(2, WINDOW, TILE).permute(0, 1, 2, 4, 5, 3)
    return torch.matmul(_MATRICES[x_BCHW.dtype].inputs, windows.reshape(-1, WINDOW**2, x_BCHW.shape[1]))


class _Matrices:
    """The paper's transforms of both directions of a tile at once."""

    def __init__(self, dtype: torch.dtype) -> None:
        inputs = [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ]
        filters = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]
        outputs = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
        self.inputs, self.outputs = (
            torch.kron(matrix, matrix).to(dtype)
            for matrix in (torch.tensor(inputs, dtype=torch.float64), torch.tensor(outputs, dtype=torch.float64))
        )
        filter_matrix = torch.tensor(filters, dtype=torch.float64) / 24
        self.filters = torch.kron(filter_matrix, filter_matrix).to(dtype)


_MATRICES = {dtype: _Matrices(dtype) for dtype in (torch.float32, torch.float64)}
