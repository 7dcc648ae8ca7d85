"""Fabric opened for a Rank: real gloo gangs, averaged gradients, no silent world of one."""

from __future__ import annotations

import os
from hashlib import sha256
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pipeline.errors import StageError
from pipeline.runtime import Rank
from stages.training.fabric import (
    Fabric,
    all_reduce_min,
    all_reduce_sum,
    autocast,
    broadcast_flag,
    broadcast_text,
    open_fabric,
)
from tests.stages.training.gangs import rank_of, run_gang


def test_two_ranks_average_their_gradients_and_agree_on_sums_flags_and_texts() -> None:
    answers = run_gang(2, _meet)

    for number, answer in enumerate(answers):
        assert answer["world"] == 2
        assert answer["rank"] == number
        # d/dw of (w * x) is x: 1 on rank 0 and 3 on rank 1, so the mean is 2.
        assert answer["gradient"] == 2.0
        assert answer["sum"] == [30.0, 3.0]
        assert answer["smallest"] == 6
        assert answer["flag"] is True
        assert answer["text"] == "step-00000012"
        assert answer["threads"] == 1
        assert not answer["still_joined"]


def _meet(rank: Rank) -> dict[str, Any]:
    os.environ.update(RANK="7", WORLD_SIZE="9", LOCAL_RANK="5", MASTER_ADDR="192.0.2.1", MASTER_PORT="1")
    with open_fabric(rank) as fabric:
        layer = nn.Linear(1, 1, bias=False)
        nn.init.ones_(layer.weight)
        module = fabric.setup_module(layer)
        fabric.backward(module(torch.tensor([[1.0 + 2.0 * rank.rank]])).sum())
        own = torch.tensor([10.0 * (rank.rank + 1), 1.0 + rank.rank])
        answer = {
            "world": dist.get_world_size(),
            "rank": fabric.global_rank,
            "gradient": layer.weight.grad.item(),
            "sum": all_reduce_sum(fabric, own).tolist(),
            "smallest": all_reduce_min(fabric, 7 - rank.rank),
            "flag": broadcast_flag(fabric, rank.rank == 0),
            "text": broadcast_text(fabric, "step-00000012" if rank.rank == 0 else "other"),
            "threads": torch.get_num_threads(),
        }
        assert own.tolist() == [10.0 * (rank.rank + 1), 1.0 + rank.rank]
    return {**answer, "still_joined": dist.is_initialized()}


def test_three_ranks_sum_gradients_alike_before_and_after_the_buckets_would_move() -> None:
    """DDP rebuilds its buckets after the first step; a resumed gang starts with the first layout again."""
    for first, third in run_gang(3, _first_and_third_gradients):
        assert first == third


def _first_and_third_gradients(rank: Rank) -> list[str]:
    with open_fabric(rank) as fabric:
        return [_gradients(fabric, rank, steps_before) for steps_before in (0, 2)]


def _gradients(fabric: Fabric, rank: Rank, steps_before: int) -> str:
    torch.manual_seed(1)
    module = fabric.setup_module(_Backwards())
    for step in [*range(steps_before), 100]:
        torch.manual_seed(1000 * step + rank.rank)
        module.zero_grad()
        fabric.backward(module(torch.randn(5, 700)).square().sum())
    gradient = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    return sha256(gradient.numpy().tobytes()).hexdigest()


class _Backwards(nn.Module):
    """Layers used in the opposite order of their definition, so that gradients come in another order than expected."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(700, 700) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in reversed(self.layers):
            x = layer(x)
        return x


def test_a_world_of_one_needs_no_process_group_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with open_fabric(rank_of()) as fabric:
        assert (fabric.world_size, fabric.global_rank) == (1, 0)
        assert not dist.is_initialized()
        assert all_reduce_sum(fabric, torch.tensor(3.0)).item() == 3.0
        assert broadcast_text(fabric, "ä") == "ä"


def test_threads_and_determinism_are_pinned_inside_and_restored_outside() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    with open_fabric(rank_of(threads=1)):
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)


def test_with_64_true_whatever_is_built_and_computed_inside_is_float64() -> None:
    with open_fabric(rank_of(), precision="64-true") as fabric:
        layer = nn.Linear(2, 2)
        module = fabric.setup_module(layer)
        assert layer.weight.dtype == torch.float64
        with autocast(fabric, "fp64"):
            assert module(torch.ones(1, 2, dtype=torch.float32)).dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32


def test_a_rank_that_finds_itself_in_another_gang_is_refused() -> None:
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with pytest.raises(StageError, match="rank 0 of 2 found itself as rank 0 of 1"), open_fabric(rank_of(0, 2)):
            pass
    finally:
        dist.destroy_process_group()


def test_autocast_computes_products_in_bfloat16_only_when_asked() -> None:
    layer = nn.Linear(4, 4)
    with open_fabric(rank_of()) as fabric:
        with autocast(fabric, "bf16"):
            assert layer(torch.ones(1, 4)).dtype == torch.bfloat16
        with autocast(fabric, "fp32"):
            assert layer(torch.ones(1, 4)).dtype == torch.float32
