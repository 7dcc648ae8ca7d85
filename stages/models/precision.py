"""Where half precision is not enough."""

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """At least float32: sums, means and distances of half-precision numbers lose digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
