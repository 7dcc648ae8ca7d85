"""The worker processes that run, and on which nodes new ones are started."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.ray_runtime.host import Host, Place
from pipeline.ray_runtime.nodes import Node, Nodes, places

HOST_SECONDS = 120.0
"""How long a worker process may take to start."""
SETTLE_SECONDS = 10.0
"""How long the resources of ended workers may take to be free again."""


@dataclass(eq=False)
class Hosted:
    """A worker process and its node."""

    actor: Any
    node: Node
    place: Place | None = None
    """Known once it has started."""


@dataclass
class Pool:
    """Worker processes, kept between stages. All have a GPU, or none has."""

    nodes: Nodes
    placement: Literal["spread", "pack"] = "spread"
    hosts: list[Hosted] = field(default_factory=list)
    gpu: bool = False
    _ended: list[tuple[Node, float]] = field(default_factory=list)

    def use(self, gpu: bool) -> None:
        """Make this a pool with or without GPUs; one of the other kind is dropped."""
        if self.gpu != gpu:
            self.drop(list(self.hosts))
            self.gpu = gpu

    def room(self) -> dict[Node, int]:
        """Return how many workers, running ones included, each usable node can hold."""
        recent = time.monotonic() - SETTLE_SECONDS
        self._ended = [(node, when) for node, when in self._ended if when > recent]
        return places(
            self.nodes.usable(),
            self.gpu,
            ours=[host.node for host in self.hosts],
            ended=[node for node, _ in self._ended],
        )

    def plan(self, most: int) -> list[Node]:
        """Return the nodes of up to `most` workers, one entry a worker."""
        return arrange(self.room(), most, self.placement)

    def start(self, nodes: Sequence[Node]) -> list[Hosted]:
        """Start a worker process on each of these nodes; does not wait for them."""
        actor = ray.remote(num_cpus=1, num_gpus=int(self.gpu), concurrency_groups={"poll": 1})(Host)
        started = [
            Hosted(
                actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(), node
            )
            for node in nodes
        ]
        self.hosts += started
        return started

    def take(self, nodes: Sequence[Node]) -> list[Hosted]:
        """Return a running worker for each of `nodes`, as far as they answer; those that do not are doubted."""
        spare, taken, missing = list(self.hosts), list[Hosted](), list[Node]()
        for node in nodes:
            kept = next((host for host in spare if host.node == node), None)
            if kept is None:
                missing.append(node)
            else:
                spare.remove(kept)
                taken.append(kept)
        taken += self.start(missing)
        asked = {host.actor.where.remote(): host for host in taken}
        done, late = ray.wait(list(asked), num_returns=len(asked), timeout=HOST_SECONDS)
        for reference in done:
            try:
                asked[reference].place = ray.get(reference)
            except RayError:
                late.append(reference)
        lost = [asked[reference] for reference in late]
        self.drop(lost)
        self.nodes.doubt([host.node for host in lost])
        return [host for host in taken if host not in lost]

    def drop(self, hosts: Sequence[Hosted]) -> None:
        """Kill worker processes."""
        for host in hosts:
            ray.kill(host.actor)
            self._ended.append((host.node, time.monotonic()))
        self.hosts = [host for host in self.hosts if host not in hosts]


def arrange(room: Mapping[Node, int], most: int, placement: Literal["spread", "pack"]) -> list[Node]:
    """Return the nodes of up to `most` workers: `spread` takes one from each node in turn, `pack` fills the largest."""
    by_room = sorted((node for node in room if room[node] > 0), key=lambda node: (-room[node], node.name))
    if placement == "pack":
        return [node for node in by_room for _ in range(room[node])][:most]
    rounds = max(room.values(), default=0)
    return [node for turn in range(rounds) for node in by_room if room[node] > turn][:most]
