"""Ray nodes on a busy machine: `python tests/cluster/patient.py start ...` is `ray start ...` with patience.

A raylet aborts when its agents, two Python processes, have not told it their ports within 15 s. Here the ports are
chosen before and told to it at once.
"""

from __future__ import annotations

import inspect
import socket
from contextlib import ExitStack
from typing import Any

from ray._private import services
from ray._raylet import persist_port

AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")

_start_raylet = services.start_raylet
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


def be_patient() -> None:
    """Let the nodes that this process starts from now on be slow."""
    services.start_raylet = _start_raylet_that_knows_ports


if __name__ == "__main__":
    from ray.scripts.scripts import main

    be_patient()
    main()
