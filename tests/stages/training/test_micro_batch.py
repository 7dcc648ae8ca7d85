"""Finding the micro-batch that fits, with a device that runs out of memory at will."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.config import ClusterConfig, validate
from pipeline.errors import ConfigError, StageError
from stages.training.micro_batch import decide_micro_batch, halves, largest_fitting


class Device:
    """Holds `room` pictures; what an attempt allocates lives as long as its frame."""

    def __init__(self, room: int, error: Exception | None = None) -> None:
        self.room = room
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        self.attempts: list[int] = []
        self.left_over: list[int] = []
        self._held: list[weakref.ref[Any]] = []

    def __call__(self, size: int) -> None:
        self.left_over.append(sum(held() is not None for held in self._held))
        self.attempts.append(size)
        activations = torch.zeros(size)
        self._held.append(weakref.ref(activations))
        if size > self.room:
            raise type(self.error)(*self.error.args)


def fabric_on(device: str) -> Any:
    return SimpleNamespace(device=torch.device(device), world_size=1)


def test_the_slice_is_halved_until_it_fits_and_each_failure_is_announced() -> None:
    device, said = Device(room=3), []

    size = decide_micro_batch("auto", device, slice_size=13, fabric=fabric_on("cuda"), announce=said.append)

    assert size == 2
    assert device.attempts == [13, 7, 4, 2]
    assert [message.partition(" do not fit")[0] for message in said] == [f"micro-batches of {n}" for n in (13, 7, 4)]


def test_what_a_failed_attempt_held_is_gone_at_the_next() -> None:
    device = Device(room=1)
    gc.disable()  # the search itself has to let go
    try:
        largest_fitting(device, 8, lambda message: None)
    finally:
        gc.enable()
    assert device.left_over == [0, 0, 0, 0]


def test_one_picture_that_does_not_fit_ends_the_run_with_a_remedy() -> None:
    with pytest.raises(StageError, match=r"cluster\.activation_checkpointing=true"):
        largest_fitting(Device(room=0), 4, lambda message: None)


def test_memory_that_a_library_of_cuda_could_not_get_counts_and_other_errors_do_not() -> None:
    library = Device(room=2, error=RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert largest_fitting(library, 4, lambda message: None) == 2
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        largest_fitting(Device(room=2, error=RuntimeError("mat1 and mat2 differ")), 4, lambda message: None)


def test_numbers_null_and_cpus_need_no_attempt() -> None:
    device = Device(room=1)
    decide = {"slice_size": 6, "announce": lambda message: None}
    assert decide_micro_batch(4, device, fabric=fabric_on("cuda"), **decide) == 4
    assert decide_micro_batch(9, device, fabric=fabric_on("cuda"), **decide) == 6
    assert decide_micro_batch(None, device, fabric=fabric_on("cuda"), **decide) == 6
    assert decide_micro_batch("auto", device, fabric=fabric_on("cpu"), **decide) == 6
    assert device.attempts == []


def test_halves_end_at_one_picture() -> None:
    assert list(halves(1)) == [1]
    assert list(halves(10)) == [10, 5, 3, 2, 1]


def test_a_setting_that_is_neither_a_number_nor_auto_is_refused() -> None:
    assert validate(ClusterConfig, {"micro_batch": "auto"}, "test").micro_batch == "auto"
    for value in (0, "all"):
        with pytest.raises(ConfigError, match="micro_batch"):
            validate(ClusterConfig, {"micro_batch": value}, "test")
