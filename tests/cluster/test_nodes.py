"""Units and gangs on a cluster of several raylets, whose nodes die and join."""

import functools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from pipeline.config import ClusterConfig
from pipeline.ray_runtime import RayRuntime
from pipeline.ray_runtime.connection import connect
from pipeline.runtime import LocalRuntime
from pipeline.storage import Folder
from pipeline.units import Unit, UnitStore, Worker
from tests.cluster.raylets import Raylets, raylets
from tests.cluster.recording import RecordingRay, check_exactly_once, committed_history, rows_of
from tests.cluster.trainings import training
from tests.pipeline.test_ray_runtime import Heard

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def cluster() -> Iterator[Raylets]:
    with raylets(3) as found:
        connect(ClusterConfig(), found.address)
        yield found


def make_slow(device: str, diary: str) -> Worker:
    def work(unit: Unit, scratch: Path) -> dict[str, Any]:
        seconds = 1.5 + unit.recipe["i"] % 3 * 0.75  # so that nodes do not end theirs at the same moment for ever
        with Path(diary).open("a") as file:
            file.write(f"{ray.get_runtime_context().get_node_id()} {unit.name} {time.time() + seconds}\n")
        time.sleep(seconds)
        (scratch / f"{unit.name}.txt").write_text(unit.name)
        return {}

    return work


def test_units_spread_over_nodes_survive_one_and_use_one_that_joins(cluster, tmp_path):
    heard, diary = Heard(), tmp_path / "diary"
    store = UnitStore(Folder.at(tmp_path / "units"), "slow", 1)
    units = [Unit(f"unit-{i:02d}", {"i": i}) for i in range(30)]
    worker = functools.partial(make_slow, diary=str(diary))
    runtime = RayRuntime(ClusterConfig(max_failures=0), cluster.address, Folder.at(tmp_path))
    made, victim, joined = [], cluster.nodes[0], None

    def in_the_middle_of_a_unit(node_id: str) -> bool:
        ends = [float(line.split()[2]) for line in diary.read_text().splitlines() if line.startswith(node_id)]
        return bool(ends) and ends[-1] - time.time() > 0.5

    for record in runtime.map_units(store, worker, units, heard):
        made.append(record)
        if joined is None and len(made) >= 4 and in_the_middle_of_a_unit(victim.node_id):
            cluster.kill(victim)
            joined = cluster.add()
    runtime.release()
    assert joined is not None
    assert sorted(record.name for record in made) == [unit.name for unit in units]
    nodes = [line.split()[0] for line in diary.read_text().splitlines()]
    assert len(set(nodes)) == 4 and joined.node_id in nodes
    assert len(nodes) == 31, "the unit of the dead node was begun twice, every other once"
    (warning,) = [text for text in heard.warnings if "does not answer and is not used" not in text]
    assert "lost its worker: node" in warning and "died or was cut off; another node makes it" in warning
    alone = UnitStore(Folder.at(tmp_path / "alone"), "slow", 1)
    expected = next(LocalRuntime().map_units(alone, worker, units[:1], heard))
    assert next(record for record in made if record.name == "unit-00") == expected


@pytest.mark.parametrize("kind", ["prior", "tokenizer"])
def test_a_gang_over_nodes_goes_on_smaller_and_grows_back_over_the_same_samples(cluster, tmp_path, kind):
    (tmp_path / "records").mkdir()
    task = training(kind, tmp_path, 250)
    settings = ClusterConfig(num_workers=(1, 3), threads=1, checkpoint_every=10, max_failures=1)
    workdir, records = tmp_path / "runs", tmp_path / "records"
    runtime = RecordingRay(settings, cluster.address, Folder.at(workdir), records=str(records), pause=0.5)

    def disturb() -> None:
        while max((row.step for row in rows_of(records)), default=0) < 25:
            time.sleep(0.1)
        cluster.kill(cluster.nodes[-1])
        while not any(row.world == 2 for row in rows_of(records)):
            time.sleep(0.1)
        cluster.add()

    done: dict[str, Any] = {}
    trainer = threading.Thread(target=lambda: done.update(artifact=task.run(workdir, runtime)), daemon=True)
    trainer.start()
    disturb()
    trainer.join(timeout=900)
    runtime.release()
    gang = done["artifact"].notes["gang"]
    assert [start["ranks"] for start in gang] == [3, 2, 3], gang
    assert [start["nodes"] for start in gang] == [3, 2, 3]
    assert "died or was cut off" in gang[0]["ended"] and gang[1]["ended"] == "made larger"
    history = committed_history(rows_of(records), task.steps)
    assert check_exactly_once(history, task.batch_size, task.counts, task.seed) == task.steps * task.batch_size
