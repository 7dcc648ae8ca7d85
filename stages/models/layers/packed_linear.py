"""A frozen linear layer on a CPU: its matrix lies in the order that the kernel reads, stored so once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError

# Shapes: N rows, K inputs, M outputs.

TYPICAL_ROWS = 64
"""For how many rows at once oneDNN chooses the order."""


class PackedLinear(nn.Module):
    """x W^T + b in float32, with W in float32 (oneDNN) or float16 (FBGEMM, x86 alone); neither trained nor saved.

    `nn.Linear` packs its matrix anew at every call, which for the few rows of a drawing step takes longer than the
    product. Measured at 512 wide on 2 cores with AVX2, float32: 1 row 1.2 times as fast, 2 rows 2.3, 64 rows 1.7. In
    float16, where half as much is read: 1 row 2.4, 2 rows 4.3, 64 rows 1.8.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        """`dtype` is the matrix's. Raises ConfigError where this processor has no kernel for it."""
        super().__init__()
        self.matrix_dtype = dtype
        weight_MK = linear.weight.detach().float().contiguous()
        self.bias_M = None if linear.bias is None else linear.bias.detach().float()
        if dtype == torch.float16:
            if "fbgemm" not in torch.backends.quantized.supported_engines:
                raise ConfigError("fp16 on a CPU needs an x86 processor with AVX2: set precision=fp32")
            self.packed = torch.ops.quantized.linear_prepack_fp16(weight_MK, self.bias_M)
        else:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight_MK, TYPICAL_ROWS)

    def forward(self, x_NK: Tensor) -> Tensor:
        """[N, K] -> [N, M], both float32."""
        if self.matrix_dtype == torch.float16:
            y_NM: Tensor = torch.ops.quantized.linear_dynamic_fp16(x_NK, self.packed)
        else:
            y_NM = torch.ops.mkldnn._linear_pointwise(x_NK, self.packed, self.bias_M, "none", [], "")
        return y_NM


def pack_linear_layers(module: nn.Module, dtype: torch.dtype) -> None:
    """Replace every `nn.Linear` below, for good; those whose matrices are float64 or bfloat16 have no such kernel."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child, dtype))
        else:
            pack_linear_layers(child, dtype)


def input_dtype(layer: nn.Linear | PackedLinear) -> torch.dtype:
    """What a layer wants to be given."""
    return torch.float32 if isinstance(layer, PackedLinear) else layer.weight.dtype
