import json

import pytest

from pipeline.errors import Interrupted, StageError
from pipeline.runner import Runner, verify
from pipeline.runtime import LocalRuntime
from pipeline.storage import Folder
from pipeline.workdir import Workdir
from tests.pipeline.toy import ToyConfig, build


@pytest.fixture
def runs(numbers, tmp_path):
    """Return a function that runs the toy and returns (stages that ran, digests)."""

    def run(runtime=None, stages=None):
        config = ToyConfig(folder=str(numbers))
        runner = Runner(stages or build(config), Workdir(Folder.at(tmp_path / "runs")), runtime or LocalRuntime())
        outcomes = runner.run(["cut", "total"])
        return [it.stage.name for it in outcomes if it.ran], {it.stage.name: it.artifact.digest for it in outcomes}

    run.folder = tmp_path / "runs"
    run.runner = lambda: Runner(build(ToyConfig(folder=str(numbers))), Workdir(Folder.at(tmp_path / "runs")))
    return run


@pytest.mark.parametrize(
    ("lost", "again"),
    [
        ("units/cut/*/cut-000001.txt", ["cut"]),
        ("units/cut/*/unit.json", []),  # the manifest holds the same
        ("total/[0-9a-f]*/total.txt", ["total"]),
        ("cut/[0-9a-f]*/manifest.json", ["cut"]),
        ("total/latest.json", []),
        ("total/[0-9a-f]*/attempt.json", []),
    ],
)
@pytest.mark.parametrize("how", ["removed", "cut short", "overwritten"])
def test_whatever_is_lost_of_a_finished_stage_is_made_again_and_nothing_else(runs, lost, again, how):
    _, before = runs()
    for path in [path for path in runs.folder.glob(lost) if not path.parent.is_symlink()]:
        data = path.read_bytes()
        path.unlink()
        if how != "removed":
            path.write_bytes(data[: len(data) // 2] if how == "cut short" else b"\xff" * (len(data) + 1))
    ran, after = runs()
    assert ran == again
    assert after == before
    assert runs()[0] == []
    assert (runs.folder / "total/latest/total.txt").read_text() == "20.0"


def test_a_unit_whose_record_was_altered_is_made_again(runs):
    _, before = runs()
    for path in runs.folder.glob("cut/[0-9a-f]*/manifest.json"):
        path.unlink()
    record = sorted(runs.folder.glob("units/cut/*/unit.json"))[0]
    row = json.loads(record.read_text())
    row["files"][0]["sha256"] = "0" * 64
    record.write_text(json.dumps(row))
    assert runs() == (["cut"], before)


def test_verify_counts_what_a_run_would_make_again(runs):
    runs()
    next(runs.folder.glob("units/cut/*/cut-000001.txt")).unlink()
    decisions = [runs.runner().decide(stage) for stage in runs.runner().stages]
    with pytest.raises(StageError, match=r"cut-000001\.txt is missing"):
        verify([], [decision.damage for decision in decisions if decision.damage])


def test_the_link_to_the_latest_is_mended_though_the_list_is_right(runs):
    runs()
    (runs.folder / "total/latest").unlink()
    assert runs()[0] == []
    assert (runs.folder / "total/latest/total.txt").exists()


class OutOfMemoryError(RuntimeError):
    """Named as torch's is."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_running_out_of_memory_names_the_keys_to_lower(runs, error):
    class Small(LocalRuntime):
        def map_units(self, store, make_worker, units, reporter, *, gpu=True):
            raise error
            yield

    with pytest.raises(StageError, match=r"cut ran out of memory .*: lower cluster\.unit_workers \(now not set\)"):
        runs(Small())


def test_other_errors_are_left_as_they_are(runs):
    class Broken(LocalRuntime):
        def map_units(self, store, make_worker, units, reporter, *, gpu=True):
            raise RuntimeError("a bug")
            yield

    with pytest.raises(RuntimeError, match="a bug"):
        runs(Broken())


def test_a_run_that_is_asked_to_leave_begins_no_other_stage(runs):
    runner = runs.runner()
    plain = runner.execute

    def execute(stage, *arguments, **options):
        made = plain(stage, *arguments, **options)
        runner.stop.signal_number = 15
        return made

    runner.execute = execute
    with pytest.raises(Interrupted) as caught:
        runner.run(["cut", "total"])
    assert caught.value.exit_code == 143
    assert not (runs.folder / "total").exists()
