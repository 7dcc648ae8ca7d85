"""Which precision a network draws in, and where half precision is not enough."""

from typing import Literal

import torch
from torch import Tensor

DrawingPrecision = Literal["auto", "fp32", "bf16", "fp16", "fp64"]


def drawing_dtype(precision: DrawingPrecision, device: torch.device | str) -> torch.dtype:
    """What `Prior.for_drawing` casts to: with `auto` bfloat16 on GPUs, float32 on CPUs, few of which have bfloat16."""
    if precision == "auto":
        precision = "bf16" if torch.device(device).type == "cuda" else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}[precision]


def full_precision(x: Tensor) -> Tensor:
    """At least float32: sums, means and distances of half-precision numbers lose digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
