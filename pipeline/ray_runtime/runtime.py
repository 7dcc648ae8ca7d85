"""RayRuntime: the Runtime protocol over a pool of worker processes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError

from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError
from pipeline.manifest import UnitRecord
from pipeline.ray_runtime.connection import connect
from pipeline.ray_runtime.gang import Gang
from pipeline.ray_runtime.nodes import Nodes
from pipeline.ray_runtime.pool import Pool
from pipeline.ray_runtime.units import map_over
from pipeline.runtime import Devices, GangStart, Loop, Reporter
from pipeline.storage import Folder
from pipeline.units import MakeWorker, Unit, UnitStore


@dataclass
class RayRuntime:
    """Runs units and gangs on a Ray of its own (`local`) or on a running cluster (`auto`, `HOST:PORT`).

    Ray starts when the first work comes, once for a pipeline run.
    """

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    address: str | None = None
    """Default: the config's."""
    workdir: Folder | None = None
    """Every node must see it; None: not checked."""
    _pool: Pool | None = None
    _starts: list[GangStart] = field(default_factory=list)
    _session_folder: Path | None = None

    def map_units(
        self, store: UnitStore, make_worker: MakeWorker, units: Sequence[Unit], reporter: Reporter, *, gpu: bool = True
    ) -> Iterator[UnitRecord]:
        """Make units on all nodes, a bounded number in flight; those of a dead worker or node are given to another."""
        pool = self._ready(reporter)
        pool.use(self.devices(units=len(units), gpu=gpu).kind == "gpu")
        yield from map_over(pool, self.cluster, reporter, store, make_worker, units)

    def run_gang(self, loop: Loop, reporter: Reporter, attempt: int) -> Any:
        """Run the ranks; when one dies all start again, from their last checkpoint."""
        pool = self._ready(reporter)
        pool.use(self._gpus() > 0)
        fewest, most = self.cluster.ranks or (max(1, self._gpus()),) * 2
        if self._is_local and pool.gpu and fewest > self._gpus():
            raise ConfigError(f"cluster.num_workers={fewest} is more than this machine's {self._gpus()} GPUs")
        self._starts = []
        self._call_for(most, reporter)
        try:
            return Gang(pool, self.cluster, fewest, most, loop, reporter, self._starts).run(attempt)
        finally:
            self._call_for(0, reporter)

    def gang_starts(self) -> Sequence[GangStart]:
        """How the last gang was started, again and again where ranks died."""
        return self._starts

    def devices(self, *, units: int | None, gpu: bool = True) -> Devices:
        """The workers that map over so many units, or the ranks of a gang."""
        kind: Literal["cpu", "gpu"] = "gpu" if gpu and self._gpus() > 0 else "cpu"
        if units is None:
            most = self.cluster.ranks[1] if self.cluster.ranks else max(1, self._gpus())
            return Devices(kind, self._starts[-1].ranks if self._starts else most)
        capacity = self._gpus() if kind == "gpu" else int(ray.cluster_resources().get("CPU", 1))
        return Devices(kind, min(units, self.cluster.unit_workers or capacity))

    def release(self) -> None:
        """Stop the workers; Ray stays."""
        if ray.is_initialized() and self._pool is not None:
            self._pool.drop(list(self._pool.hosts))

    def close(self) -> None:
        """Stop the workers, and the Ray that was started for them."""
        self.release()
        ray.shutdown()
        if self._session_folder:  # what workers said that matters is in the run's log; this would pile up
            shutil.rmtree(self._session_folder, ignore_errors=True)

    @property
    def _is_local(self) -> bool:
        return (self.address or self.cluster.address) == "local"

    def _ready(self, reporter: Reporter) -> Pool:
        """Connect, and see that the nodes are fit, once; whoever works now hears of what happens to nodes."""
        self._session_folder = connect(self.cluster, self.address or self.cluster.address) or self._session_folder
        if self._pool is None:
            nodes = Nodes(None if self._is_local else self.workdir, reporter.warn)
            nodes.usable()  # raises before anything expensive where the workdir is not shared
            self._pool = Pool(nodes, self.cluster.placement)
        self._pool.nodes.warn = reporter.warn
        return self._pool

    def _call_for(self, ranks: int, reporter: Reporter) -> None:
        """Tell an autoscaling cluster how many ranks have use for a node; any other takes no notice.

        It cannot see that by itself, because ours only start where there is room. What a killed driver called for stays
        until the next gang ends.
        """
        if self._is_local:
            return
        place = {"CPU": 1, "GPU": 1} if self._gpus() > 0 else {"CPU": 1}
        try:
            request_resources(bundles=[place] * ranks)
        except (RayError, RuntimeError) as error:
            reporter.warn(f"an autoscaler, if there is one, could not be told that {ranks} ranks have use: {error}")

    def _gpus(self) -> int:
        return int(ray.cluster_resources().get("GPU", 0))
