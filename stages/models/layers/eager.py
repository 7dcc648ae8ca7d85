"""When a layer goes its own way."""

import torch
from torch import Tensor


def runs_eagerly_on_cpu(x: Tensor) -> bool:
    """Whether x is float32 or float64 on a CPU, and nothing else is to decide: no autocast, no compiler, no export."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
