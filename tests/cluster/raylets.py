"""A Ray cluster of several raylets on this machine: nodes that can be killed and added."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.cluster_utils import Cluster

STORE_BYTES = 80 * 2**20


@dataclass
class Raylets:
    """A head without CPUs, to which drivers connect, and nodes that work."""

    cluster: Cluster
    nodes: list[Any] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, cpus: int = 1) -> Any:
        node = _patiently(lambda: self.cluster.add_node(num_cpus=cpus, object_store_memory=STORE_BYTES))
        self.nodes.append(node)
        return node

    def kill(self, node: Any) -> None:
        """Kill all of a node's processes without warning."""
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def node(self, node_id: str) -> Any:
        """Return the node that Ray knows by this id."""
        return next(node for node in self.nodes if node.node_id == node_id)


def _patiently(start: Callable[[], Any], tries: int = 4) -> Any:
    """Try again where the machine is so busy that a raylet needs more than Ray's half minute."""
    for _ in range(tries - 1):
        try:
            return start()
        except Exception as error:  # Ray raises a bare Exception
            if "timed out" not in str(error):
                raise
    return start()


@contextmanager
def raylets(nodes: int = 3, cpus: int = 1) -> Iterator[Raylets]:
    """Start a cluster; it is gone after the block, and so is this process's connection to it."""
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    cluster = _patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
    try:
        found = Raylets(cluster)
        for _ in range(nodes):
            found.add(cpus)
        yield found
    finally:
        ray.shutdown()
        cluster.shutdown()
