"""Nodes in network and mount namespaces: folders that they do not share, code that they do not have, a cut cable."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError
from pipeline.ray_runtime import RayRuntime
from pipeline.ray_runtime.connection import connect
from pipeline.storage import Folder
from tests.cluster.namespaces import Machine, Network, network, possible
from tests.cluster.recording import RecordingRay, check_exactly_once, committed_history, rows_of
from tests.cluster.trainings import training
from tests.pictures import draw_pictures
from tests.pipeline.test_ray_runtime import Heard, gang
from tests.small import COMMAND, ROOT, small_config

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not possible(), reason="needs root and iproute2 for network namespaces"),
]


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that one of the machines sees empty."""
    return tmp_path_factory.mktemp("hidden")


@pytest.fixture(scope="module")
def net(hidden: Path) -> Iterator[Network]:
    with network(2) as found:
        found.add(hidden=[hidden])
        connect(ClusterConfig(), found.address)
        found.wait(3)
        yield found


def test_a_workdir_that_a_node_does_not_share_is_refused_before_anything_runs(net, hidden):
    settings = ClusterConfig(num_workers=3)
    runtime = RayRuntime(settings, net.address, Folder.at(hidden / "runs"))
    with pytest.raises(ConfigError) as caught:
        runtime.run_gang(gang, Heard(), attempt=1)
    blind = net.machines[-1].address
    assert f"1 of 3 nodes cannot work in --workdir {hidden}/runs" in str(caught.value)
    assert f"{blind} (" in str(caught.value) and "does not see what the driver wrote there" in str(caught.value)
    assert "mount at the same path, or an object store's URL" in str(caught.value)
    assert not any(machine.address in str(caught.value) for machine in net.machines[:-1])
    assert list((hidden / "runs").iterdir()) == [], "the probe leaves nothing behind"


def test_a_short_cut_is_sat_out_and_a_long_one_costs_what_came_after_the_checkpoint(net, tmp_path):
    (tmp_path / "records").mkdir()
    task = training("prior", tmp_path, 120)
    settings = ClusterConfig(num_workers=(1, 3), threads=1, checkpoint_every=10, hang_timeout=25)
    records, workdir = tmp_path / "records", tmp_path / "runs"
    runtime = RecordingRay(settings, net.address, Folder.at(workdir), records=str(records), pause=0.3)
    done = {}
    trainer = threading.Thread(target=lambda: done.update(artifact=task.run(workdir, runtime)), daemon=True)
    trainer.start()

    def reach(step: int) -> None:
        while max((row.step for row in rows_of(records)), default=0) < step:
            assert trainer.is_alive()
            time.sleep(0.1)

    reach(15)
    net.cut(net.machines[0])
    time.sleep(8)
    net.mend(net.machines[0])
    reach(40)
    assert {row.attempt for row in rows_of(records)} == {"000001-000"}, "8 s are no reason to start again"
    net.cut(net.machines[0])
    trainer.join(timeout=900)
    runtime.release()
    gang = done["artifact"].notes["gang"]
    assert [start["ranks"] for start in gang] == [3, 2]
    assert f"on node {net.machines[0].address}" in gang[0]["ended"]
    assert "no sign of life for 25 s (cluster.hang_timeout)" in gang[0]["ended"]
    history = committed_history(rows_of(records), task.steps)
    assert check_exactly_once(history, task.batch_size, task.counts, task.seed) == 120 * task.batch_size
    net.mend(net.machines[0])


def test_an_orphan_behind_a_cut_cable_goes_on_writing_and_is_refused(net, tmp_path):
    """A gang of one: nobody waits for it, nothing tells it that it was given up; only the fence stops it."""
    net.wait(2)
    (tmp_path / "records").mkdir()
    task = training("prior", tmp_path, 300)
    settings = ClusterConfig(num_workers=1, threads=1, checkpoint_every=100, hang_timeout=10)
    records, workdir = tmp_path / "records", tmp_path / "runs"
    runtime = RecordingRay(settings, net.address, Folder.at(workdir), records=str(records), pause=0.4)
    done = {}
    trainer = threading.Thread(target=lambda: done.update(artifact=task.run(workdir, runtime)), daemon=True)
    trainer.start()
    while max((row.step for row in rows_of(records)), default=0) < 5:
        assert trainer.is_alive()
        time.sleep(0.1)
    machine = _machine_of(net, next(records.glob("000001-000-*.pid")))
    net.cut(machine)
    trainer.join(timeout=900)
    runtime.release()
    rows = rows_of(records)
    second = min(row.time for row in rows if row.attempt == "000001-001")
    orphaned = [row for row in rows if row.attempt == "000001-000" and row.time > second]
    assert orphaned, "the orphan really went on"
    last, again = max(row.step for row in orphaned), min(row.step for row in rows if row.attempt == "000001-001")
    assert last % 100 == 99, "up to a checkpoint, which was refused"
    assert again == last - 99, "the next attempt went on from the checkpoint before that one"
    assert [start["attempt"] for start in done["artifact"].notes["gang"]] == ["000001-000", "000001-001"]
    assert check_exactly_once(committed_history(rows, 300), task.batch_size, task.counts, task.seed) == 2400
    net.mend(machine)


def _machine_of(net: Network, path: Path) -> Machine:
    _, node = json.loads(path.read_text())
    address = next(entry["NodeManagerAddress"] for entry in ray.nodes() if entry["NodeID"] == node)
    return net.machine(address)


def test_code_is_shipped_to_nodes_that_do_not_have_it(tmp_path):
    """The nodes see an empty folder where the checkout is; without shipping the first word names the key."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("pipeline", "stages", "run_pipeline.py"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(checkout)], check=True)
    (checkout / "runs").mkdir()
    with (checkout / "runs" / "large").open("wb") as file:
        file.truncate(2**30)  # more than Ray would take: left behind
    draw_pictures(tmp_path / "pictures", 40)
    with network(0) as net:
        net.add(cpus=2, hidden=[checkout])
        command = [sys.executable, str(checkout / "run_pipeline.py"), *_arguments(tmp_path, net)]
        without = _run(command, checkout)
        assert without.returncode == 2, without.stdout
        assert "it cannot import the code" in without.stdout and "cluster.ship_code=true" in without.stdout
        shipped = _run([*command, "cluster.ship_code=true"], checkout)
        assert shipped.returncode == 0, shipped.stdout
    manifest = json.loads((tmp_path / "runs/shard/latest/manifest.json").read_text())
    local = _run([*COMMAND, *_arguments(tmp_path, None)], ROOT)
    assert local.returncode == 0, local.stdout
    again = json.loads((tmp_path / "local/shard/latest/manifest.json").read_text())
    assert manifest["digest"] == again["digest"]


def _arguments(folder: Path, net: Network | None) -> list[str]:
    config = small_config(folder)
    where = ["--runtime", "local", "--workdir", str(folder / "local")]
    if net is not None:
        where = ["--address", net.address, "--workdir", str(folder / "runs")]
    return ["--config", str(config), "--no-tracking", "--stages", "shard,tokenizer", *where]


def _run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=environment, check=False, capture_output=True, text=True, timeout=600)
