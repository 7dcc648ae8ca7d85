"""Opens Lightning Fabric for a Rank: devices, process group, threads. The only file that imports lightning_fabric."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor, nn

from pipeline.errors import StageError
from pipeline.runtime import Rank
from stages.models.cpu import prepare_cpu

__all__ = [
    "Fabric",
    "Precision",
    "accumulating",
    "all_reduce_min",
    "all_reduce_sum",
    "autocast",
    "broadcast_flag",
    "broadcast_int",
    "broadcast_text",
    "chosen_precision",
    "compiles",
    "open_fabric",
]

Precision = Literal["auto", "fp32", "bf16", "fp64"]


class _RankEnvironment(LightningEnvironment):  # type: ignore[misc]
    """Tells Fabric the ranks that the runtime decided, whatever the process environment says (Ray sets some of it)."""

    def __init__(self, rank: Rank) -> None:
        super().__init__()
        self._rank = rank

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self._rank.main_address

    @property
    def main_port(self) -> int:
        return self._rank.main_port

    def world_size(self) -> int:
        return self._rank.world

    def set_world_size(self, size: int) -> None:
        pass  # the runtime decides; Fabric's own product of nodes and devices is wrong when nodes differ

    def global_rank(self) -> int:
        return self._rank.rank

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return self._rank.local_rank

    def node_rank(self) -> int:
        return self._rank.node_rank

    def teardown(self) -> None:
        pass


@contextmanager
def open_fabric(rank: Rank, *, precision: Literal["32-true", "64-true"] = "32-true") -> Iterator[Fabric]:
    """A launched Fabric for this rank, closed with the block: `with open_fabric(rank) as fabric:`.

    World 1 needs no process group. A larger world joins one (gloo on CPU, nccl on CUDA) or uses the one that is
    already there. Mixed precision is the step's business, see `autocast`: a gradient taken by `autograd.grad` with
    respect to an output of Fabric's own mixed precision raises. Inside the block torch uses `rank.threads` threads
    and, on CPU, deterministic kernels (scattered sums otherwise depend on timing). With `64-true` float64 is the
    default type inside the block: what is built there is of it.

    Raises:
        StageError: the gang that came together is not the one the rank belongs to.
    """
    device = torch.device(rank.device)
    joined_here = rank.world > 1 and not dist.is_initialized()
    with _pinned(rank, device, torch.float64 if precision == "64-true" else torch.get_default_dtype()):
        fabric = Fabric(
            accelerator=device.type,
            devices=_device_ids(rank, device),
            num_nodes=max(1, rank.world // rank.local_world),
            strategy=_strategy(rank, device),
            plugins=[] if rank.world > 1 else [_RankEnvironment(rank)],
            precision=precision,
        )
        fabric.launch()
        try:
            _check_gang(fabric, rank)
            yield fabric
        finally:
            if joined_here and dist.is_initialized():
                dist.destroy_process_group()


def chosen_precision(fabric: Fabric, precision: Precision) -> Precision:
    """What `auto` means here: bf16 on GPUs, fp32 on CPUs."""
    if precision != "auto":
        return precision
    return "bf16" if fabric.device.type == "cuda" else "fp32"


def compiles(fabric: Fabric, setting: bool | None) -> bool:
    """Whether networks are compiled: as `cluster.compile` says, and without a word on GPUs alone."""
    return fabric.device.type == "cuda" if setting is None else setting


def autocast(fabric: Fabric, precision: Precision) -> AbstractContextManager[None]:
    """The step's mixed precision: bfloat16 where torch deems it safe, or nothing for fp32 and fp64."""
    if chosen_precision(fabric, precision) != "bf16":
        return nullcontext()
    return torch.autocast(fabric.device.type, dtype=torch.bfloat16)


def accumulating(fabric: Fabric, module: nn.Module, enabled: bool) -> AbstractContextManager[None]:
    """Around forward and backward of all but the last micro-batch: gradients stay on their rank."""
    if not enabled or fabric.world_size == 1:
        return nullcontext()
    context: AbstractContextManager[None] = fabric.no_backward_sync(module)
    return context


def all_reduce_sum(fabric: Fabric, tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all ranks, on every rank; a new tensor, the argument stays as it is. Collective."""
    total = tensor.detach().to(fabric.device, copy=True)
    if fabric.world_size > 1:
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total


def all_reduce_min(fabric: Fabric, value: int) -> int:
    """The smallest `value` of any rank, on every rank. Collective; waits for the device."""
    if fabric.world_size == 1:
        return value
    tensor = torch.tensor([value], dtype=torch.int64, device=fabric.device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
    return int(tensor.item())


def broadcast_int(fabric: Fabric, value: int) -> int:
    """Rank 0's value, on every rank (the others' arguments do not matter). Collective; waits for the device."""
    if fabric.world_size == 1:
        return value
    tensor = torch.tensor([value], dtype=torch.int64, device=fabric.device)
    dist.broadcast(tensor, src=0)
    return int(tensor.item())


def broadcast_flag(fabric: Fabric, flag: bool) -> bool:
    """Rank 0's flag, on every rank. Collective."""
    return bool(broadcast_int(fabric, int(flag)))


def broadcast_text(fabric: Fabric, text: str) -> str:
    """Rank 0's text, on every rank. Collective."""
    if fabric.world_size == 1:
        return text
    data = text.encode()
    size = broadcast_int(fabric, len(data))
    # The other ranks' own text may have any length: only its place is needed.
    buffer = torch.tensor(list(data[:size].ljust(size)), dtype=torch.uint8, device=fabric.device)
    dist.broadcast(buffer, src=0)
    return bytes(buffer.tolist()).decode()


def _strategy(rank: Rank, device: torch.device) -> Strategy:
    if rank.world == 1:
        return SingleDeviceStrategy(device=device)
    return DDPStrategy(
        parallel_devices=[device] * rank.local_world,  # Fabric takes the one at local_rank: always ours
        cluster_environment=_RankEnvironment(rank),
        process_group_backend="gloo" if device.type == "cpu" else "nccl",
        broadcast_buffers=False,
        # From 3 ranks the order of a ring's sums depends on where a gradient lies in its bucket, and DDP moves
        # gradients between buckets after the first step: a resumed run would differ in the last bits. Looking for
        # unused parameters keeps the first layout.
        find_unused_parameters=device.type == "cpu" and rank.world > 2,
    )


def _device_ids(rank: Rank, device: torch.device) -> int | list[int]:
    return rank.local_world if device.type == "cpu" else [device.index or 0]


@contextmanager
def _pinned(rank: Rank, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Threads, determinism and default type for the block, as before afterwards (a local run shares the process)."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    dtype_before = torch.get_default_dtype()
    kernels: Any = torch.utils.deterministic  # its stub lacks the switch
    filling = kernels.fill_uninitialized_memory
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # else a banner for each process group
    prepare_cpu(rank.threads)
    torch.set_default_dtype(dtype)
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        kernels.fill_uninitialized_memory = False  # costs time and finds only bugs of kernels
    try:
        with warnings.catch_warnings():
            # We look for unused parameters for the sake of a fixed bucket layout, knowing that there are none.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.* is deprecated.*")  # its heir came in 2.15
            warnings.filterwarnings("ignore", message=".*find_unused_parameters=True was specified.*")
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype_before)
        torch.use_deterministic_algorithms(deterministic)
        kernels.fill_uninitialized_memory = filling


def _check_gang(fabric: Fabric, rank: Rank) -> None:
    """A rank in a world of one would train alone, silently: refuse anything but the gang that was asked for."""
    world, number = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    if (world, number, fabric.world_size) != (rank.world, rank.rank, rank.world):
        raise StageError(
            f"rank {rank.rank} of {rank.world} found itself as rank {number} of {world} "
            f"(Fabric: world {fabric.world_size}): the gang did not come together at "
            f"{rank.main_address}:{rank.main_port}; check that the workers reach that address"
        )
