"""How many pictures a rank sends through its networks at once: as many as are asked for, or as many as fit."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Literal

import torch

from pipeline.errors import StageError
from stages.training.fabric import Fabric, all_reduce_min

LIBRARY_ERRORS = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""How CUDA's libraries say that memory ran out, inside a plain RuntimeError."""


def decide_micro_batch(
    setting: int | Literal["auto"] | None,
    attempt: Callable[[int], object],
    *,
    slice_size: int,
    fabric: Fabric,
    announce: Callable[[str], None],
) -> int:
    """The size for `cluster.micro_batch`: its number, the whole slice for null, what fits for `auto`. Collective.

    `attempt(size)` runs the costliest step on the largest slice that a rank gets, in micro-batches of `size` and
    without talking to other ranks: they may be at another size. On CPUs `auto` takes the whole slice. `slice_size` is
    that of the largest slice, and the result is the same on every rank.
    """
    if isinstance(setting, int):
        return min(setting, slice_size)
    if setting is None or fabric.device.type == "cpu":
        return slice_size
    return all_reduce_min(fabric, largest_fitting(attempt, slice_size, announce))


def largest_fitting(attempt: Callable[[int], object], slice_size: int, announce: Callable[[str], None]) -> int:
    """The first of the slice, its half, its quarter and so on, rounded up, at which `attempt` does not run out of
    memory. Raises StageError where one picture is too much.
    """
    for size in halves(slice_size):
        try:
            attempt(size)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and not any(name in str(error) for name in LIBRARY_ERRORS):
                raise
            announce(f"micro-batches of {size} do not fit into the device's memory: trying smaller ones")
        else:
            return size
        finally:
            # Outside of the except clause nothing holds the failed step's tensors any more.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    raise StageError(
        "a micro-batch of a single picture does not fit into the device's memory: set "
        "cluster.activation_checkpointing=true, or choose a smaller model"
    )


def halves(slice_size: int) -> Iterator[int]:
    """slice_size divided by 1, 2, 4 and so on, rounded up, down to 1."""
    parts = 1
    while True:
        size = -(-slice_size // parts)
        yield size
        if size == 1:
            return
        parts *= 2
