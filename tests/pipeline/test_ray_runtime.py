import functools
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import ray

from pipeline.config import ClusterConfig
from pipeline.errors import DataError, StageError
from pipeline.ray_runtime import RayRuntime
from pipeline.ray_runtime import runtime as ray_runtime
from pipeline.runtime import Devices, LocalRuntime, Rank, Reporter
from pipeline.storage import Folder
from pipeline.units import Unit, UnitStore
from tests.pipeline.toy import make_reader

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_started")]


class Heard:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, float]] = []
        self.warnings: list[str] = []

    def progress(self, done: int, total: int, numbers: Mapping[str, float]) -> None: ...

    def history(self, rows: Sequence[Mapping[str, float]]) -> None:
        self.rows += rows

    def picture(self, name: str, data: bytes, step: int) -> None: ...

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def stopping(self) -> bool:
        return False


def gang(rank: Rank, reporter: Reporter, die: str | None) -> dict[str, object]:
    if die and Path(die).exists() and rank.rank == 1:
        Path(die).unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    if rank.rank == 0:
        reporter.history([{"step": 1, "loss": 0.5}])
    return {"world": rank.world, "attempt": rank.attempt, "rank": rank.rank}


def always_die(rank: Rank, reporter: Reporter) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def complain(rank: Rank, reporter: Reporter) -> None:
    raise DataError("bad pictures")


def stopped(rank: Rank, reporter: Reporter, pid_file: str) -> int:
    if rank.attempt.endswith("-000"):
        reporter.stopping()
        reporter.stopping()
        if rank.rank == 1:
            Path(pid_file).write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(600)
    return rank.world


def die_further_on(rank: Rank, reporter: Reporter, deaths: int) -> int:
    start = int(rank.attempt[-3:])
    reporter.progress(10 * (start + 1), 100, {})
    if start < deaths:
        time.sleep(2)
        os.kill(os.getpid(), signal.SIGKILL)
    return start


def stand_still(rank: Rank, reporter: Reporter) -> None:
    reporter.stopping()
    reporter.stopping()
    time.sleep(600 if rank.attempt.endswith("-000") else 0)


def stumble(rank: Rank, reporter: Reporter) -> None:
    if rank.rank == 1:
        raise ZeroDivisionError("a bug of rank 1")
    time.sleep(600)


@pytest.fixture
def runtime_of() -> Iterator[Callable[..., RayRuntime]]:
    """Makes runtimes whose workers end with the test; those of the test before have ended, and Ray has noticed."""
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    made: list[RayRuntime] = []

    def make(**keys: object) -> RayRuntime:
        made.append(RayRuntime(ClusterConfig.model_validate(keys)))
        return made[-1]

    yield make
    for runtime in made:
        runtime.release()


def units() -> list[Unit]:
    return [Unit(f"cut-{i:06d}", {"i": i}, [f"{i}.txt"]) for i in range(5)]


def test_units_survive_a_killed_worker_and_equal_those_of_one_process(numbers, tmp_path, runtime_of):
    heard, die = Heard(), tmp_path / "die"
    die.touch()
    spread = UnitStore(Folder.at(tmp_path / "spread"), "cut", 1)
    worker = functools.partial(make_reader, folder=str(numbers), die_file=str(die))
    runtime = runtime_of(unit_workers=2)
    made = list(runtime.map_units(spread, worker, units(), heard))
    alone = UnitStore(Folder.at(tmp_path / "alone"), "cut", 1)
    expected = list(LocalRuntime().map_units(alone, worker, units(), heard))
    assert sorted(made, key=lambda record: record.name) == expected
    assert len(heard.warnings) == 1
    assert "unit cut-000001 died; started again (1 of at most 3 times)" in heard.warnings[0]
    assert [runtime.devices(units=count) for count in (1, 5)] == [Devices("cpu", 1), Devices("cpu", 2)]


def test_a_gang_restarts_whole_when_a_rank_dies(tmp_path, runtime_of):
    heard, die = Heard(), tmp_path / "die"
    die.touch()
    runtime = runtime_of(num_workers=2)
    result = runtime.run_gang(functools.partial(gang, die=str(die)), heard, attempt=7)
    assert runtime.devices(units=None) == Devices("cpu", 2)
    assert result == {"world": 2, "attempt": "000007-001", "rank": 0}
    assert heard.rows[-1] == {"step": 1, "loss": 0.5}
    assert len(heard.warnings) == 1
    assert "rank 1 of 2: its process on node" in heard.warnings[0]
    assert "all ranks start again from the last checkpoint (1 of at most 3 times in a row)" in heard.warnings[0]
    first, second = runtime.gang_starts()
    assert (first.ranks, first.nodes, second.ended) == (2, 1, "finished")
    assert "killed, ran out of memory or crashed" in first.ended


def test_too_many_deaths_fail_the_stage_with_a_remedy(runtime_of):
    runtime = runtime_of(num_workers=1, max_failures=1)
    with pytest.raises(StageError, match=r"died 2 times, more than cluster.max_failures=1 allows.*memory"):
        runtime.run_gang(always_die, Heard(), attempt=1)


def test_a_users_mistake_found_by_a_rank_arrives_as_itself(runtime_of):
    with pytest.raises(DataError, match="bad pictures"):
        runtime_of(num_workers=1).run_gang(complain, Heard(), attempt=1)


@pytest.mark.thorough
def test_a_stopped_rank_is_noticed_and_ended_and_the_gang_starts_again(tmp_path, runtime_of):
    heard = Heard()
    runtime = runtime_of(num_workers=2, hang_timeout=8)
    loop = functools.partial(stopped, pid_file=str(tmp_path / "pid"))
    assert runtime.run_gang(loop, heard, attempt=1) == 2
    assert len(heard.warnings) == 1
    assert "rank 1 of 2" in heard.warnings[0]
    assert "gave no sign of life for 8 s (cluster.hang_timeout)" in heard.warnings[0]
    assert [start.attempt for start in runtime.gang_starts()] == ["000001-000", "000001-001"]
    process, deadline = Path("/proc") / (tmp_path / "pid").read_text(), time.monotonic() + 30
    while process.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not process.exists(), "it was ended, stopped as it was"


@pytest.mark.thorough
def test_ranks_that_wait_for_each_other_are_started_again(runtime_of):
    heard = Heard()
    runtime_of(num_workers=1, stall_timeout=10).run_gang(stand_still, heard, attempt=1)
    assert len(heard.warnings) == 1
    assert "none has made a step for" in heard.warnings[0]


@pytest.mark.thorough
def test_deaths_count_in_a_row_without_getting_further(runtime_of):
    runtime = runtime_of(num_workers=1, max_failures=1)
    assert runtime.run_gang(functools.partial(die_further_on, deaths=3), Heard(), attempt=1) == 3
    assert len(runtime.gang_starts()) == 4


def test_an_elastic_gang_takes_the_room_there_is(runtime_of):
    heard = Heard()
    runtime = runtime_of(num_workers=[2, 8])
    assert runtime.run_gang(functools.partial(gang, die=None), heard, attempt=1)["world"] == 3
    assert runtime.devices(units=None) == Devices("cpu", 3)
    assert "goes on with 3 ranks instead of 8" in heard.warnings[0]


def test_an_autoscaling_cluster_is_told_of_the_ranks_that_have_use_while_they_have(monkeypatch):
    called_for: list[int] = []
    monkeypatch.setattr(ray_runtime, "request_resources", lambda bundles: called_for.append(bundles.count({"CPU": 1})))
    runtime = RayRuntime(ClusterConfig(num_workers=(1, 8)), address="auto")
    try:
        runtime.run_gang(functools.partial(gang, die=None), Heard(), attempt=1)
        assert called_for == [8, 0]
    finally:
        runtime.release()


def test_too_little_room_is_said_with_what_is_missing(runtime_of):
    runtime = runtime_of(num_workers=5, start_timeout=2)
    message = r"needs 5 ranks with a CPU each and there is room for 3 on .*start_timeout.*num_workers=\[FEWEST,MOST\]"
    with pytest.raises(StageError, match=message):
        runtime.run_gang(always_die, Heard(), attempt=1)


def test_a_bug_in_a_rank_is_no_death(runtime_of):
    heard = Heard()
    with pytest.raises(ZeroDivisionError, match="a bug of rank 1"):
        runtime_of(num_workers=2).run_gang(stumble, heard, attempt=1)
    assert heard.warnings == []
