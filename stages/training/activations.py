"""Activation checkpointing: memory for time. What happens inside a network's blocks is computed twice, not kept."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(network: nn.Module) -> int:
    """Keep only the inputs of the network's blocks for the backward pass; how many there are.

    Gradients stay the same: a block runs again on the same input, with the same dropout. Blocks are the parts of the
    network that have parts themselves, looked for inside lists and sequences only.
    """
    count = 0
    for block in blocks(network):
        block.forward = partial(_forward, block.forward)
        count += 1
    return count


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The outermost composite parts of a network."""
    for part in network.children():
        if isinstance(part, nn.ModuleList | nn.Sequential):
            yield from blocks(part)
        elif any(True for _ in part.children()):
            yield part


def _forward(forward: Any, *inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False)
