import functools
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from pipeline.config import ClusterConfig
from pipeline.errors import DataError, StageError
from pipeline.ray_runtime import RayRuntime
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


def units() -> list[Unit]:
    return [Unit(f"cut-{i:06d}", {"i": i}, [f"{i}.txt"]) for i in range(5)]


def test_units_survive_a_killed_worker_and_equal_those_of_one_process(numbers, tmp_path):
    heard, die = Heard(), tmp_path / "die"
    die.touch()
    spread = UnitStore(Folder.at(tmp_path / "spread"), "cut", 1)
    worker = functools.partial(make_reader, folder=str(numbers), die_file=str(die))
    runtime = RayRuntime(ClusterConfig(unit_workers=2))
    made = list(runtime.map_units(spread, worker, units(), heard))
    alone = UnitStore(Folder.at(tmp_path / "alone"), "cut", 1)
    expected = list(LocalRuntime().map_units(alone, worker, units(), heard))
    assert sorted(made, key=lambda record: record.name) == expected
    assert len(heard.warnings) == 1
    assert "unit cut-000001 died; started again (1 of at most 3 times)" in heard.warnings[0]
    assert [runtime.devices(units=count) for count in (1, 5)] == [Devices("cpu", 1), Devices("cpu", 2)]


def test_a_gang_restarts_whole_when_a_rank_dies(tmp_path):
    heard, die = Heard(), tmp_path / "die"
    die.touch()
    runtime = RayRuntime(ClusterConfig(num_workers=2))
    result = runtime.run_gang(functools.partial(gang, die=str(die)), heard, attempt=7)
    assert runtime.devices(units=None) == Devices("cpu", 2)
    assert result == {"world": 2, "attempt": "000007-001", "rank": 0}
    assert heard.rows[-1] == {"step": 1, "loss": 0.5}
    assert len(heard.warnings) == 1


def test_too_many_deaths_fail_the_stage_with_a_remedy():
    runtime = RayRuntime(ClusterConfig(num_workers=1, max_failures=1))
    with pytest.raises(StageError, match=r"died 2 times, more than cluster.max_failures=1 allows.*memory"):
        runtime.run_gang(always_die, Heard(), attempt=1)


def test_a_users_mistake_found_by_a_rank_arrives_as_itself():
    with pytest.raises(DataError, match="bad pictures"):
        RayRuntime(ClusterConfig(num_workers=1)).run_gang(complain, Heard(), attempt=1)
