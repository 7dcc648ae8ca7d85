"""What spreading units over nodes costs: units that only wait, on 1, 2 and 4 virtual nodes of one machine.

    python tests/benchmarks/orchestration.py [--seconds 5] [--units-per-node 12]

Every node has one worker, which commits its units to one store as a stage's would be. Perfect is the units of a worker
times their seconds; overhead is what it took beyond that, with workers that run. Starting them is shown apart: it is
paid once a run. The last line is JSON: `overhead` by nodes, under 0.05 is the aim.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.config import ClusterConfig
from pipeline.ray_runtime import RayRuntime
from pipeline.storage import Folder
from pipeline.units import Unit, UnitStore

NODES = (1, 2, 4)


class Silent:
    """A reporter that nobody reads."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


def make_waiter(device: str, seconds: float) -> Any:
    """Build a worker that waits."""

    def wait(unit: Unit, scratch: Path) -> dict[str, Any]:
        time.sleep(seconds)
        (scratch / "waited.txt").write_text(unit.name)
        return {"node": os.getpid()}

    return wait


def spread(folder: Path, nodes: int, seconds: float, each: int) -> dict[str, Any]:
    """Run the units on a cluster of so many nodes; return the figures."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        cluster.wait_for_nodes()
        runtime = RayRuntime(ClusterConfig(unit_workers=nodes))

        def run(name: str, count: int, wait: float) -> tuple[float, set[int]]:
            units = [Unit(f"{name}-{number:06d}", {"number": number}) for number in range(count)]
            store = UnitStore(Folder.at(folder / f"{name}-{nodes}"), name, 1)
            started = time.perf_counter()
            worker = functools.partial(make_waiter, seconds=wait)
            records = list(runtime.map_units(store, worker, units, Silent(), gpu=False))
            took = time.perf_counter() - started
            assert sorted(record.name for record in records) == [unit.name for unit in units]
            assert all(store.find(unit) is not None for unit in units)
            return took, {record.counts["node"] for record in records}

        starting, _ = run("start", nodes, 1.0)
        took, processes = run("wait", nodes * each, seconds)
        assert len(processes) == nodes, "every node must have had work"
        runtime.close()
    finally:
        ray.shutdown()
        cluster.shutdown()
    perfect = each * seconds
    return {"nodes": nodes, "start": starting - 1.0, "seconds": took, "overhead": (took - perfect) / perfect}


def main() -> None:
    """Measure, print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--units-per-node", type=int, default=12)
    options = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory() as folder:
        found = [spread(Path(folder), nodes, options.seconds, options.units_per_node) for nodes in NODES]
    perfect = options.seconds * options.units_per_node
    print(f"{options.units_per_node} units of {options.seconds:g} s on each node: {perfect:g} s at best")
    print(f"{'nodes':>6} {'seconds':>9} {'overhead':>9} {'starting':>9}")
    for it in found:
        print(f"{it['nodes']:6} {it['seconds']:9.2f} {it['overhead']:9.2%} {it['start']:9.2f}")
    print(json.dumps({"overhead": {str(it["nodes"]): round(it["overhead"], 4) for it in found}}))


if __name__ == "__main__":
    main()
