"""Ray nodes on a busy machine: `python tests/cluster/patient.py start ...` is `ray start ...` with patience.

A raylet aborts when its agents, two Python processes, have not told it their ports within 15 s. Here the ports are
chosen before and told to it at once. `ray start` gives the raylet 30 s to appear; here it has minutes.
"""

from __future__ import annotations

import inspect
import socket
import time
from contextlib import ExitStack
from typing import Any

from ray._private import services
from ray._raylet import persist_port

AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")

APPEARANCE_SECONDS = 300
"""How long a raylet may take to appear."""
OPTIONS = {"metrics_agent_port": "dashboard_agent_grpc_port"}
"""What `ray start` calls some of them."""

_start_raylet = services.start_raylet
_get_node = services.get_node
_signature = inspect.signature(_start_raylet)


def agent_ports() -> dict[str, int]:
    """Return free ports for the agents of a node, by the names of Ray's parameters."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in AGENT_PORTS]
        for probe in probes:
            probe.bind(("", 0))
        return {name: probe.getsockname()[1] for name, probe in zip(AGENT_PORTS, probes, strict=True)}


def _start_raylet_that_knows_ports(*arguments: Any, **keys: Any) -> Any:
    given = _signature.bind(*arguments, **keys).arguments
    for name in AGENT_PORTS:
        if given.get(name):
            persist_port(given["session_dir"], given["node_id"], name, given[name])
    return _start_raylet(*arguments, **keys)


def port_options() -> list[str]:
    """Return free ports for the agents of a node, as options of `ray start`."""
    return [f"--{OPTIONS.get(name, name).replace('_', '-')}={port}" for name, port in agent_ports().items()]


def _get_node_that_may_be_late(gcs_address: str, node_id: str) -> Any:
    deadline = time.monotonic() + APPEARANCE_SECONDS
    while True:
        try:
            return _get_node(gcs_address, node_id)
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def be_patient() -> None:
    """Let the nodes that this process starts from now on be slow."""
    services.start_raylet = _start_raylet_that_knows_ports
    services.get_node = _get_node_that_may_be_late


if __name__ == "__main__":
    from ray.scripts.scripts import main

    be_patient()
    main()
