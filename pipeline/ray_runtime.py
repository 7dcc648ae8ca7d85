"""The only file that imports ray: units and gangs on a pool of worker processes, one machine or a cluster of them.

Gangs run on Ray Core actors, not on Ray Train: the checkpoints, the restart and the fencing are ours, the same
processes serve units and ranks (importing torch once), and a gang starts in about a second instead of half a minute.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from ray.exceptions import AuthenticationError, RayActorError, RayTaskError

from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError, Interrupted, UserError, WorkerLost
from pipeline.manifest import UnitRecord
from pipeline.runtime import Devices, Loop, Rank, Reporter, attempt_name, available_cores, visible_gpus
from pipeline.units import MakeWorker, Unit, UnitStore, Worker

log = logging.getLogger(__name__)

POLL_SECONDS = 0.3
"""How often the driver looks at running work."""


@dataclass
class _HostReporter:
    """The reporter of a rank: keeps messages until the driver polls for them."""

    messages: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    latest_progress: tuple[Any, ...] | None = None
    stop: bool = False

    def progress(self, done: int, total: int, numbers: Mapping[str, float]) -> None:
        self.latest_progress = (done, total, dict(numbers))

    def history(self, rows: Sequence[Mapping[str, float]]) -> None:
        self.messages.append(("history", ([dict(row) for row in rows],)))

    def picture(self, name: str, data: bytes, step: int) -> None:
        self.messages.append(("picture", (name, data, step)))

    def warn(self, message: str) -> None:
        self.messages.append(("warn", (message,)))

    def stopping(self) -> bool:
        return self.stop

    def take(self) -> list[tuple[str, tuple[Any, ...]]]:
        """Return and forget what was said since the last time."""
        taken, self.messages = self.messages, []
        if self.latest_progress is not None:
            taken.append(("progress", self.latest_progress))
            self.latest_progress = None
        return taken


class _Host:
    """A worker process. Units and ranks run on its one working thread; a second thread answers polls."""

    def __init__(self) -> None:
        self._worker: tuple[str, Worker] | None = None
        self._reporter = _HostReporter()

    def where(self) -> tuple[str, str, int]:
        """Return (node, address, pid)."""
        return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address(), os.getpid()

    def free_port(self) -> int:
        """Return a port that is free on this node."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return int(probe.getsockname()[1])

    def make_unit(
        self, store: UnitStore, job: str, make_worker: MakeWorker, unit: Unit, device: str
    ) -> UnitRecord | UserError:
        """Make and commit one unit; the worker is built once for a `job`."""
        try:
            if self._worker is None or self._worker[0] != job:
                self._worker = None
                self._worker = (job, make_worker(device))
            return store.make(unit, self._worker[1])
        except UserError as error:
            return error

    def run_rank(self, loop: Loop, rank: Rank) -> tuple[Any, UserError | None]:
        """Run one rank of a gang."""
        self._worker = None
        self._reporter = _HostReporter()
        try:
            return loop(rank, self._reporter), None
        except UserError as error:
            return None, error

    @ray.method(concurrency_group="poll")  # type: ignore[untyped-decorator]
    def poll(self, stop: bool) -> list[tuple[str, tuple[Any, ...]]]:
        """Return what the rank said, and tell it whether to stop."""
        self._reporter.stop = stop
        return self._reporter.take()


@dataclass
class RayRuntime:
    """Runs units and gangs on a Ray of its own (`local`) or on a running cluster (`auto`, `HOST:PORT`).

    Ray starts when the first work comes, once for a pipeline run.
    """

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    address: str = "local"
    _hosts: list[Any] = field(default_factory=list)
    _hosts_have_gpus: bool = False
    _session_folder: str | None = None

    def map_units(
        self, store: UnitStore, make_worker: MakeWorker, units: Sequence[Unit], reporter: Reporter, *, gpu: bool = True
    ) -> Iterator[UnitRecord]:
        """Make units on all hosts, a bounded number in flight; those of a died host are given to another."""
        self._start()
        used = self.devices(units=len(units), gpu=gpu)
        gpu = used.kind == "gpu"
        hosts = list(self._pool(used.number, gpu))
        queue, idle = list(reversed(units)), list(hosts)
        deaths = dict.fromkeys((unit.name for unit in units), 0)
        flying: dict[Any, tuple[Any, Unit]] = {}
        job, shared = uuid.uuid4().hex, ray.put(make_worker)
        while queue or flying:
            if reporter.stopping():
                self._drop(hosts)
                raise Interrupted
            while queue and idle:
                host, unit = idle.pop(), queue.pop()
                device = "cuda:0" if gpu else "cpu"
                flying[host.make_unit.remote(store, job, shared, unit, device)] = (host, unit)
            for done in ray.wait(list(flying), timeout=POLL_SECONDS)[0]:
                host, unit = flying.pop(done)
                try:
                    record = _result(done)
                except RayActorError as error:
                    deaths[unit.name] += 1
                    self._count_death(f"the worker of unit {unit.name}", deaths[unit.name], error, reporter)
                    self._drop([host])
                    hosts = [other for other in hosts if other is not host]
                    (fresh,) = self._spawn(1, gpu)
                    hosts.append(fresh)
                    idle.append(fresh)
                    queue.append(unit)
                    continue
                except BaseException:
                    self._drop(hosts)
                    raise
                idle.append(host)
                yield record

    def run_gang(self, loop: Loop, reporter: Reporter, attempt: int) -> Any:
        """Run the ranks; when one dies all start again, from their last checkpoint."""
        self._start()
        used = self.devices(units=None)
        gpu, world = used.kind == "gpu", used.number
        if gpu and world > self._gpus():
            raise ConfigError(f"cluster.num_workers={world} is more than the cluster's {self._gpus()} GPUs")
        for restart in range(self.cluster.max_failures + 1):
            hosts = self._pool(world, gpu)
            try:
                return self._await_gang(*self._launch(loop, hosts, gpu, attempt_name(attempt, restart)), reporter)
            except RayActorError as error:
                self._drop(hosts)
                self._count_death("a rank of the gang", restart + 1, error, reporter)
            except BaseException:
                self._drop(hosts)
                raise
        raise AssertionError("_count_death raises at the last failure")

    def devices(self, *, units: int | None, gpu: bool = True) -> Devices:
        """The hosts that map over so many units, or the ranks of a gang."""
        kind: Literal["cpu", "gpu"] = "gpu" if gpu and self._gpus() > 0 else "cpu"
        if units is None:
            return Devices(kind, self.cluster.num_workers or max(1, self._gpus()))
        capacity = self._gpus() if kind == "gpu" else int(ray.cluster_resources().get("CPU", 1))
        return Devices(kind, min(units, self.cluster.unit_workers or capacity))

    def close(self) -> None:
        """Stop the workers, and the Ray that was started for them."""
        if ray.is_initialized():
            self._drop(list(self._hosts))
            ray.shutdown()
        if self._session_folder:  # what workers said that matters is in the run's log; this would pile up
            shutil.rmtree(self._session_folder, ignore_errors=True)

    def _start(self) -> None:
        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address != "local":
            try:
                ray.init(address=self.address, **quiet)
            except (AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
                raise ConfigError(
                    f"no Ray cluster at --address {self.address} lets this run in ({error}): start one with "
                    "configs/cluster/start_ray.sh, or use --address local. Where one runs, it may refuse the token: "
                    "copy the head's ~/.ray/auth_token here, or name it in RAY_AUTH_TOKEN_PATH, and set "
                    "RAY_AUTH_MODE=token"
                ) from error
            return
        ranks, units = self.cluster.num_workers or 1, self.cluster.unit_workers or 1
        started = ray.init(
            address="local",
            num_cpus=max(available_cores(), ranks, units),
            num_gpus=visible_gpus(),
            include_dashboard=False,
            object_store_memory=256 * 2**20,
            **quiet,
        )
        self._session_folder = started.address_info["session_dir"]

    def _gpus(self) -> int:
        return int(ray.cluster_resources().get("GPU", 0))

    def _pool(self, count: int, gpu: bool) -> list[Any]:
        """Return `count` hosts, keeping those that run; a pool with GPUs replaces one without and the other way."""
        if self._hosts_have_gpus != gpu:
            self._drop(list(self._hosts))
            self._hosts_have_gpus = gpu
        if len(self._hosts) < count:
            self._spawn(count - len(self._hosts), gpu)
        return self._hosts[:count]

    def _spawn(self, count: int, gpu: bool) -> list[Any]:
        actor = ray.remote(num_cpus=1, num_gpus=int(gpu), concurrency_groups={"poll": 1})(_Host)
        hosts = [actor.remote() for _ in range(count)]
        self._hosts += hosts
        return hosts

    def _drop(self, hosts: list[Any]) -> None:
        for host in hosts:
            ray.kill(host)
        self._hosts = [host for host in self._hosts if not any(host is dropped for dropped in hosts)]

    def _launch(self, loop: Loop, hosts: list[Any], gpu: bool, attempt: str) -> tuple[list[Any], Any]:
        """Give each host its rank, hosts of one node side by side; return their results-to-be and rank 0's host."""
        places = ray.get([host.where.remote() for host in hosts])
        nodes = list(dict.fromkeys(node for node, _, _ in places))
        order = sorted(range(len(hosts)), key=lambda i: nodes.index(places[i][0]))
        main = hosts[order[0]]
        port = ray.get(main.free_port.remote())
        results, seen = [], dict.fromkeys(nodes, 0)
        for index, position in enumerate(order):
            node = places[position][0]
            local_world = sum(place[0] == node for place in places)
            rank = Rank(
                rank=index,
                world=len(hosts),
                local_rank=seen[node],
                local_world=local_world,
                node_rank=nodes.index(node),
                device="cuda:0" if gpu else "cpu",
                main_address=places[order[0]][1] if len(nodes) > 1 else "127.0.0.1",
                main_port=port,
                threads=self.cluster.threads or max(1, available_cores() // local_world),
                attempt=attempt,
            )
            seen[node] += 1
            results.append(hosts[position].run_rank.remote(loop, rank))
        return results, main

    def _await_gang(self, results: list[Any], main: Any, reporter: Reporter) -> Any:
        waiting = list(results)
        while True:
            done, waiting = ray.wait(waiting, timeout=POLL_SECONDS) if waiting else ([], [])
            outcomes = [(ref, *_result(ref)) for ref in done]
            for name, arguments in ray.get(main.poll.remote(reporter.stopping())):
                getattr(reporter, name)(*arguments)
            for ref, value, error in outcomes:
                if error is not None:
                    raise error
                if ref == results[0]:
                    answer = value
            if not waiting:
                return answer

    def _count_death(self, who: str, deaths: int, error: RayActorError, reporter: Reporter) -> None:
        if deaths > self.cluster.max_failures:
            reason = str(error).strip().splitlines()[0]
            raise WorkerLost(
                f"{who} died {deaths} times, more than cluster.max_failures={self.cluster.max_failures} allows. "
                f"The last time: {reason}"
            ) from error
        reporter.warn(f"{who} died; started again ({deaths} of at most {self.cluster.max_failures} times)")
        log.warning("death of %s: %s", who, error)
        time.sleep(0.1)


def _result(ref: Any) -> Any:
    """Return a finished task's value; a user error it returned is raised, a bug keeps the worker's traceback."""
    try:
        value = ray.get(ref)
    except RayTaskError as error:
        raise error.as_instanceof_cause() from None
    if isinstance(value, UserError):
        raise value
    return value
