"""Maps over units on all nodes: a bounded number in flight, more workers when there is room, retries after deaths."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from pipeline.config import ClusterConfig
from pipeline.errors import Interrupted, StageError, WorkerLost
from pipeline.manifest import UnitRecord
from pipeline.ray_runtime.outcomes import POLL_SECONDS, result_of
from pipeline.ray_runtime.pool import Hosted, Pool
from pipeline.ray_runtime.watch import Watch, cause_of_death, silence_of
from pipeline.runtime import Reporter
from pipeline.units import MakeWorker, Unit, UnitStore

SCALE_SECONDS = 5.0
"""How often one looks for room for more workers."""


@dataclass
class Mapping:
    """One map over units."""

    pool: Pool
    cluster: ClusterConfig
    reporter: Reporter
    store: UnitStore
    make_worker: Any
    queue: list[Unit]
    """Units to be made, the next one last."""
    job: str = field(default_factory=lambda: uuid.uuid4().hex)
    idle: list[Hosted] = field(default_factory=list)
    flying: dict[Any, tuple[Hosted, Unit]] = field(default_factory=dict)
    watch: Watch = field(default_factory=Watch)
    proven: set[Hosted] = field(default_factory=set)
    """Workers that have made a unit. Before, libraries load: the interpreter may stand still for minutes."""
    deaths: dict[str, int] = field(default_factory=dict)
    most_hosts: int = 0

    def run(self) -> Iterator[UnitRecord]:
        """Yield the records of all units as they come."""
        scaled = 0.0
        waiting_since = time.monotonic()
        while self.queue or self.flying:
            if self.reporter.stopping():
                raise Interrupted
            if self.queue and time.monotonic() - scaled > SCALE_SECONDS:
                self._hire()
                scaled = time.monotonic()
            if self.watch.hosts:
                waiting_since = time.monotonic()
            elif time.monotonic() - waiting_since > self.cluster.start_timeout:
                raise StageError(
                    f"no node had room for a worker for {self.cluster.start_timeout:.0f} s (cluster.start_timeout): "
                    "see `ray status`, free CPUs or add nodes, then run the same command again"
                )
            self._send()
            yield from self._collect()
            self._listen()

    def _hire(self) -> None:
        """Take idle workers of the pool, and start more where there is room, up to one a unit left."""
        wanted = min(len(self.queue) + len(self.flying), self.cluster.unit_workers or self.most())
        missing = wanted - len(self.watch.hosts)
        if missing <= 0:
            return
        spare = [host for host in self.pool.hosts if host not in self.watch.hosts][:missing]
        fresh = self.pool.start(self._free_places(missing - len(spare))) if missing > len(spare) else []
        self.idle += [*spare, *fresh]
        self.watch.hosts += [*spare, *fresh]
        self.most_hosts = max(self.most_hosts, len(self.watch.hosts))

    def _free_places(self, count: int) -> list[Any]:
        """Return nodes for so many more workers, those with the fewest of ours first."""
        planned = self.pool.plan(len(self.pool.hosts) + count)
        for host in self.pool.hosts:
            if host.node in planned:
                planned.remove(host.node)
        return planned[:count]

    def most(self) -> int:
        """Return how many workers the cluster holds in all."""
        return max(1, int(ray.cluster_resources().get("GPU" if self.pool.gpu else "CPU", 1)))

    def _send(self) -> None:
        device = "cuda:0" if self.pool.gpu else "cpu"
        while self.queue and self.idle:
            host, unit = self.idle.pop(0), self.queue.pop()
            made = host.actor.make_unit.remote(self.store, self.job, self.make_worker, unit, device)
            self.flying[made] = (host, unit)

    def _collect(self) -> Iterator[UnitRecord]:
        if not self.flying:
            time.sleep(POLL_SECONDS)
            return
        for done in ray.wait(list(self.flying), timeout=POLL_SECONDS)[0]:
            host, unit = self.flying.pop(done)
            try:
                record = result_of(done)
            except RayActorError as error:
                self._lost(host, unit, *cause_of_death(host, error), error=error)
                continue
            self.idle.append(host)
            self.proven.add(host)
            yield record

    def _listen(self) -> None:
        """Give the units of silent workers to others, and let go of idle ones that died."""
        for _ in self.watch.look():
            pass
        for done, (host, unit) in list(self.flying.items()):
            limit = self.cluster.hang_timeout + (0 if host in self.proven else self.cluster.start_timeout)
            if host in self.watch.silent(limit):
                del self.flying[done]
                self._lost(host, unit, silence_of(host, limit), whole_node=False, error=None)
        for host in [host for host in self.idle if host in self.watch.silent(self.cluster.hang_timeout)]:
            self.idle.remove(host)
            self._let_go(host)

    def _lost(self, host: Hosted, unit: Unit, why: str, whole_node: bool, error: RayError | None) -> None:
        """Put a unit back; too many deaths of its own fail the stage, those of nodes do not count."""
        self._let_go(host)
        self.queue.append(unit)
        if whole_node:
            self.reporter.warn(f"unit {unit.name} lost its worker: {why}; another node makes it")
            return
        deaths = self.deaths[unit.name] = self.deaths.get(unit.name, 0) + 1
        if deaths > self.cluster.max_failures:
            raise WorkerLost(
                f"the worker of unit {unit.name} died {deaths} times, more than cluster.max_failures="
                f"{self.cluster.max_failures} allows. The last time {why}"
            ) from error
        self.reporter.warn(
            f"the worker of unit {unit.name} died; started again ({deaths} of at most {self.cluster.max_failures} "
            f"times): {why}"
        )
        self._hire()

    def _let_go(self, host: Hosted) -> None:
        self.watch.hosts.remove(host)
        self.pool.drop([host])
        self.pool.nodes.doubt([host.node])


def map_over(
    pool: Pool,
    cluster: ClusterConfig,
    reporter: Reporter,
    store: UnitStore,
    make_worker: MakeWorker,
    units: Sequence[Unit],
) -> Iterator[UnitRecord]:
    """Make units on all nodes; whatever ends it early also ends the workers that are in the middle of one."""
    mapping = Mapping(pool, cluster, reporter, store, ray.put(make_worker), list(reversed(units)))
    try:
        yield from mapping.run()
    except BaseException:
        pool.drop(mapping.watch.hosts)
        raise
