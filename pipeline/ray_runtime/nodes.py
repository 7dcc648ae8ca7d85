"""Which nodes may be used: those that are alive, answer, and see the workdir."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray
from ray._private.state import available_resources_per_node
from ray.exceptions import GetTimeoutError, RayError, RuntimeEnvSetupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import ConfigError, StorageError
from pipeline.storage import TEMPORARY, Folder

PROBE_SECONDS = 60.0
"""How long a node may take to answer; it starts a process for that, and may fetch the code before."""
DOUBT_SECONDS = 15.0
"""The same for one that has answered before, while there are others to work on."""
MUTE_SECONDS = 20.0
"""How long one that did not answer is left alone."""
LISTING_SECONDS = 5.0
"""How long a file written by another node may take to be seen here (NFS caches folders)."""


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, or what Ray takes for one."""

    id: str
    name: str
    """Address and host name, for people."""


class Complaint(NamedTuple):
    """Why a node cannot take part. Empty: it did not answer."""

    text: str
    remedy: str = (
        "every node must see the same workdir: choose one on a file system that all of them mount at the same path, "
        "or an object store's URL (--workdir s3://BUCKET/PATH)"
    )


NO_ANSWER = Complaint("")


@dataclass
class Nodes:
    """The nodes that may be used. One joins by reading what the driver wrote into the workdir, and the other way."""

    workdir: Folder | None
    """None: nothing to see, nothing is asked."""
    warn: Callable[[str], None]
    _approved: set[str] = field(default_factory=set)
    _seen_before: set[str] = field(default_factory=set)
    _refused: set[str] = field(default_factory=set)
    _mute: dict[str, float] = field(default_factory=dict)
    """Nodes that did not answer, and when they may be asked again."""

    def usable(self) -> list[Node]:
        """Return the nodes that have places for workers and are known to be fit; asks those not asked before.

        Raises ConfigError naming the nodes that do not see the workdir, if no node was ever found fit.
        """
        nodes = [node for node in living() if node.id not in self._refused]
        now = time.monotonic()
        unknown = [node for node in nodes if node.id not in self._approved and self._mute.get(node.id, now) <= now]
        if unknown and self.workdir is not None:
            self._ask(unknown, self.workdir)
        elif self.workdir is None:
            self._approved |= {node.id for node in unknown}
        return [node for node in nodes if node.id in self._approved]

    def doubt(self, nodes: Sequence[Node]) -> None:
        """Ask these again before they are used again."""
        if self.workdir is not None:
            self._approved -= {node.id for node in nodes}

    def _ask(self, nodes: Sequence[Node], workdir: Folder) -> None:
        first = not self._seen_before
        known = all(node.id in self._seen_before for node in nodes)
        seconds = DOUBT_SECONDS if known and self._approved else PROBE_SECONDS
        complaints = probe(nodes, workdir, seconds)
        fit = {node.id for node in nodes if node.id not in complaints}
        self._approved |= fit
        self._seen_before |= fit
        mute = [node for node in nodes if complaints.get(node.id) is NO_ANSWER]
        for node in mute:
            self._mute[node.id] = time.monotonic() + MUTE_SECONDS
            self.warn(f"node {node.name} does not answer and is not used; it will be asked again")
        unfit = [node for node in nodes if node.id in complaints and node not in mute]
        if not unfit:
            return
        message = "\n".join(
            [
                f"{len(unfit)} of {len(nodes)} nodes cannot work in --workdir {workdir}:",
                *(f"  {node.name}: {complaints[node.id].text}" for node in unfit),
                *dict.fromkeys(complaints[node.id].remedy for node in unfit),
            ]
        )
        if first:
            raise ConfigError(message)
        self._refused |= {node.id for node in unfit}
        self.warn(f"{message}\nthey came later and are not used")


def living() -> list[Node]:
    """Return the nodes that Ray believes to be alive and that have CPUs."""
    return [
        Node(entry["NodeID"], _name(entry))
        for entry in ray.nodes()
        if entry["Alive"] and entry["Resources"].get("CPU", 0) >= 1
    ]


def is_alive(node: Node) -> bool:
    """Whether Ray believes the node to be alive."""
    return any(entry["NodeID"] == node.id and entry["Alive"] for entry in ray.nodes())


def places(nodes: Sequence[Node], gpu: bool, *, ours: Sequence[Node], ended: Sequence[Node]) -> dict[Node, int]:
    """Return how many workers each node can hold: what is free, and what our own workers hold or held just now."""
    free = available_resources_per_node()
    total = {entry["NodeID"]: entry["Resources"] for entry in ray.nodes()}
    kinds = ("CPU", "GPU") if gpu else ("CPU",)

    def room(resources: dict[str, float]) -> int:
        return int(min(resources.get(kind, 0) for kind in kinds))

    return {
        node: min(room(total.get(node.id, {})), room(free.get(node.id, {})) + ours.count(node) + ended.count(node))
        for node in nodes
    }


def probe(nodes: Sequence[Node], workdir: Folder, seconds: float) -> dict[str, Complaint]:
    """Let the driver and every node read what the other wrote into the workdir.

    Returns a complaint for each node that failed, by its id.
    """
    nonce, name = secrets.token_hex(8), f"{TEMPORARY}probe-{secrets.token_hex(4)}"
    home = workdir / name
    home.write("driver", nonce.encode())
    ask = ray.remote(num_cpus=0, max_retries=0)(_look_around)
    asked = {
        node.id: ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
            workdir, name, node.id, nonce
        )
        for node in nodes
    }
    deadline, complaints = time.monotonic() + seconds, dict[str, Complaint]()
    try:
        for node in nodes:
            complaint = _answer(asked[node.id], max(0.0, deadline - time.monotonic()))
            if complaint is None and not _arrived(home, node.id, nonce):
                complaint = Complaint("what it writes there does not arrive here")
            if complaint is not None:
                complaints[node.id] = complaint
    finally:
        with contextlib.suppress(OSError, StorageError):
            workdir.remove(name)
    return complaints


def _look_around(workdir: Folder, name: str, node: str, nonce: str) -> str | None:
    """On a node: read the driver's file, write one's own; return a complaint."""
    home = workdir / name
    try:
        found = home.read("driver").decode()
    except FileNotFoundError:
        return "it does not see what the driver wrote there"
    except Exception as error:  # whatever the storage library raises is the complaint
        return f"it cannot read there ({error})"
    if found != nonce:
        return "it reads something else than the driver wrote"
    try:
        home.write(node, nonce.encode())
    except Exception as error:
        return f"it cannot write there ({error})"
    return None


def _answer(reference: Any, seconds: float) -> Complaint | None:
    try:
        found: str | None = ray.get(reference, timeout=seconds)
        return None if found is None else Complaint(found)
    except GetTimeoutError:
        ray.cancel(reference, force=True)
        return NO_ANSWER
    except RuntimeEnvSetupError as error:
        return Complaint(f"the code cannot be brought there ({_last_line(error)})", "see cluster.ship_code")
    except (ImportError, RayError) as error:
        if isinstance(error, ImportError) or "ModuleNotFoundError" in str(error):
            return Complaint(
                f"it cannot import the code ({_last_line(error)})",
                "every node needs this checkout at the same path, or in its image; or set cluster.ship_code=true",
            )
        return NO_ANSWER  # it died meanwhile


def _arrived(home: Folder, name: str, nonce: str) -> bool:
    deadline = time.monotonic() + LISTING_SECONDS
    while True:
        with contextlib.suppress(OSError, StorageError):
            if home.read(name).decode() == nonce:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _name(entry: dict[str, Any]) -> str:
    return f"{entry['NodeManagerAddress']} ({entry['NodeManagerHostname']}, {entry['NodeID'][:6]})"
