"""A Ray cluster of several raylets on this machine: nodes that can be killed and added."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.cluster_utils import Cluster

from tests.cluster.patient import agent_ports, be_patient

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
        node = self.cluster.add_node(num_cpus=cpus, object_store_memory=STORE_BYTES, **agent_ports())
        self.nodes.append(node)
        return node

    def kill(self, node: Any) -> None:
        """Kill all of a node's processes without warning."""
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def node(self, node_id: str) -> Any:
        """Return the node that Ray knows by this id."""
        return next(node for node in self.nodes if node.node_id == node_id)


@contextmanager
def raylets(nodes: int = 3, cpus: int = 1) -> Iterator[Raylets]:
    """Start a cluster; it is gone after the block, and so is this process's connection to it."""
    be_patient()
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES, **agent_ports()}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        found = Raylets(cluster)
        for _ in range(nodes):
            found.add(cpus)
        yield found
    finally:
        ray.shutdown()
        cluster.shutdown()
