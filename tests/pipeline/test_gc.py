"""What --gc finds and removes, and above all what it leaves."""

import functools
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import Artifact
from pipeline.config import StrictModel, strings_in
from pipeline.errors import StorageError, WorkdirBusy
from pipeline.gc import KEEP, Leftover, find_leftovers, remove
from pipeline.output import Output
from pipeline.runner import Runner, verify
from pipeline.runtime import BoundRuntime
from pipeline.session import Options, run_session
from pipeline.stage import Stage
from pipeline.storage import Folder
from pipeline.workdir import Workdir
from tests.pipeline import toy


class TrainConfig(StrictModel):
    width: int = 1
    steps: int = 3
    start: str = ""


class Config(toy.ToyConfig):
    train: TrainConfig = TrainConfig()


def train(config: TrainConfig, *, cut: Artifact, output: Output, runtime: BoundRuntime) -> dict[str, Any]:
    """Keeps a checkpoint in its place; fails after it where there are 13 steps."""
    output.memory({"width": config.width}).write("seen.txt", b"1")
    folder = output.checkpoints(stop_keys={"steps"})
    folder.write(f"step-{config.steps}/state", bytes(1000))
    if config.steps == 13:
        raise RuntimeError("killed")
    output.write("model", bytes([config.width, config.steps]))
    return {}


def build(config: Config) -> list[Stage]:
    cut, total = toy.build(config)
    return [cut, total, Stage("train", train, config.train, {"cut": cut})]


@pytest.fixture
def home(tmp_path: Path) -> Workdir:
    return Workdir(Folder.at(tmp_path / "runs"))


def runner(home: Workdir, numbers: Path, **sections: Any) -> Runner:
    return Runner(build(Config.model_validate({"folder": str(numbers), **sections})), home)


def run(home: Workdir, numbers: Path, **sections: Any) -> dict[str, Artifact]:
    outcomes = runner(home, numbers, **sections).run(["cut", "total", "train"])
    return {outcome.stage.name: outcome.artifact for outcome in outcomes}


def found(home: Workdir, *runners: Runner, named: tuple[str, ...] = (), keep: int = 1) -> list[Leftover]:
    return find_leftovers(home, runners, named, keep)


def places(leftovers: list[Leftover], kind: str = "artifact") -> set[tuple[str, ...]]:
    return {leftover.place for leftover in leftovers if leftover.what.startswith(kind)}


def test_what_a_later_run_superseded_goes_and_what_it_shares_stays(home, numbers):
    old = run(home, numbers, cut={"size": 2})
    (numbers / "5.txt").write_text("5")
    now = run(home, numbers, cut={"size": 2})
    leftovers = found(home, runner(home, numbers, cut={"size": 2}))
    assert places(leftovers) == {(name, old[name].fingerprint[:12]) for name in ("cut", "total", "train")}
    shared = {unit.key for unit in old["cut"].units} & {unit.key for unit in now["cut"].units}
    gone = {unit.key[:32] for unit in old["cut"].units if unit.key not in shared}
    assert len(shared) == 2
    assert {place[2] for place in places(leftovers, "units")} == gone
    units = [leftover for leftover in leftovers if leftover.what == "units of cut"]
    assert sum(leftover.bytes for leftover in units) == sum(
        path.stat().st_size for key in gone for path in (home.folder.path / "units/cut" / key).iterdir()
    )
    (cut,) = (leftover for leftover in leftovers if leftover.what == "artifact of cut")
    files = ("manifest.json", "attempt.json")
    own = sum((old["cut"].folder.path / name).stat().st_size for name in files)
    assert cut.bytes == own, "links to units take no room"
    remove(home, leftovers)
    verify([*now.values()])
    assert found(home, runner(home, numbers, cut={"size": 2})) == []
    assert all(not outcome.ran for outcome in runner(home, numbers, cut={"size": 2}).run(["cut", "total", "train"]))


def test_what_something_in_use_was_made_from_stays_though_it_is_not_the_latest(home, numbers):
    old = run(home, numbers)
    new = runner(home, numbers, cut={"size": 3})
    (now,) = (outcome.artifact for outcome in new.run(["cut"]))
    leftovers = found(home, runner(home, numbers, cut={"size": 3}))
    assert now.digest != old["cut"].digest
    assert leftovers == [], "total and train were made from the old cut"
    verify([*old.values(), now])


def test_checkpoints_go_with_what_they_served(home, numbers):
    run(home, numbers, train={"width": 1, "steps": 3})
    run(home, numbers, train={"width": 1, "steps": 5})
    run(home, numbers, train={"width": 2})
    leftovers = found(home, runner(home, numbers, train={"width": 2}))
    (checkpoint,) = (leftover for leftover in leftovers if leftover.what == "checkpoints of train")
    assert checkpoint.bytes > 2000, "of the two trainings of width 1, which share them"
    assert len(places(leftovers, "memory")) == 1
    assert len(places(leftovers)) == 2
    remove(home, leftovers)
    assert len(list((home.folder.path / "checkpoints/train").iterdir())) == 1
    again = found(home, runner(home, numbers, train={"width": 1, "steps": 5}))
    assert again == [], "the latest stays, whatever the config"


def test_a_training_given_up_goes_once_no_config_in_use_asks_for_it(home, numbers):
    with pytest.raises(RuntimeError):
        run(home, numbers, train={"steps": 13})
    assert found(home, runner(home, numbers, train={"steps": 13})) == [], "it would go on from there"
    run(home, numbers, train={"width": 2})
    assert places(found(home, runner(home, numbers, train={"steps": 13}))) == set()
    leftovers = found(home, runner(home, numbers, train={"width": 2}))
    (artifact,) = (leftover for leftover in leftovers if leftover.what == "artifact of train")
    assert artifact.reason.startswith("never finished")
    assert len(places(leftovers, "checkpoints")) == 1
    in_use = found(home, runner(home, numbers, train={"width": 2}), runner(home, numbers, train={"steps": 13}))
    assert in_use == [], "a second config in use keeps its training"


def test_all_units_of_an_unfinished_stage_stay(home, numbers):
    run(home, numbers)
    (numbers / "5.txt").write_text("5")
    run(home, numbers)
    changed = runner(home, numbers, cut={"size": 4})
    leftovers = found(home, changed)
    assert places(leftovers, "units") == set()
    assert places(leftovers, "checkpoints") == set(), "train waits for cut: its fingerprint is not known yet"
    assert len(places(leftovers)) == 3


def test_what_a_config_names_or_a_person_keeps_stays(home, numbers):
    first = run(home, numbers, train={"width": 1})["train"]
    second = run(home, numbers, train={"width": 2})["train"]
    run(home, numbers, train={"width": 3})
    now = runner(home, numbers, train={"width": 3})
    old = {("train", it.fingerprint[:12]) for it in (first, second)}
    assert places(found(home, now)) == old
    config = Config(train=TrainConfig(start=str(first.folder)))
    named = tuple(strings_in(config.model_dump(mode="json")))
    assert places(found(home, now, named=named)) == {("train", second.fingerprint[:12])}
    assert places(found(home, now, named=("", "~nobody/x", "/", str(home.folder)))) == old
    (second.folder.path / KEEP).touch()
    assert places(found(home, now)) == {("train", first.fingerprint[:12])}
    assert places(found(home, now, keep=3)) == set()


def test_results_that_no_driver_fetched_go_though_their_checkpoints_stay(home, numbers):
    run(home, numbers)
    (folder,) = (home.folder.path / "checkpoints/train").iterdir()
    (folder / "result-0123").mkdir()
    (folder / "result-0123/model").write_bytes(bytes(77))
    (leftover,) = found(home, runner(home, numbers))
    assert leftover.place[-1] == "result-0123" and leftover.bytes == 77
    remove(home, [leftover])
    assert sorted(path.name for path in folder.iterdir()) == ["USED_BY.json", "step-3"]


def test_logs_of_the_last_runs_stay_and_what_is_not_ours_is_left_alone(home, numbers):
    run(home, numbers)
    for day in range(1, 15):
        home.folder.write(f"logs/run-202601{day:02d}-000000.log", b"x")
    home.folder.write("logs/run-20260102-000000.log.1", b"x")
    home.folder.write("mlflow.db", b"x")
    home.folder.write("notes/abcdef012345/mine.txt", b"x")
    leftovers = found(home, runner(home, numbers))
    assert sorted(leftover.place[1] for leftover in leftovers) == [
        *(f"run-202601{day:02d}-000000.log{part}" for day in (1, 2) for part in (("",) if day == 1 else ("", ".1"))),
        "run-20260103-000000.log",
        "run-20260104-000000.log",
    ]


def test_a_removal_that_is_killed_leaves_nothing_that_is_taken_for_finished(home, numbers, monkeypatch):
    old = run(home, numbers)
    run(home, numbers, cut={"size": 3})
    stage = build(Config(folder=str(numbers)))[0]
    leftovers = found(home, runner(home, numbers, cut={"size": 3}))
    rmtree, calls = shutil.rmtree, []

    def dies(path: Any, **how: Any) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        rmtree(path, **how)

    monkeypatch.setattr(shutil, "rmtree", dies)
    with pytest.raises(KeyboardInterrupt):
        remove(home, leftovers)
    assert home.find(stage, old["cut"].fingerprint) is None
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    remove(home, found(home, runner(home, numbers, cut={"size": 3})))
    again = run(home, numbers)
    assert {name: it.digest for name, it in again.items()} == {name: it.digest for name, it in old.items()}


def test_a_damaged_manifest_stops_it(home, numbers):
    old = run(home, numbers)["cut"]
    run(home, numbers, cut={"size": 3})
    (old.folder.path / "manifest.json").write_text("{")
    with pytest.raises(StorageError, match="damaged"):
        found(home, runner(home, numbers, cut={"size": 3}))


@pytest.mark.parametrize("seed", range(5))
def test_after_any_history_everything_in_use_is_whole_and_nothing_runs_again(home, numbers, seed):
    luck = random.Random(seed)
    sections: dict[str, Any] = {}
    for _ in range(6):
        sections = {"cut": {"size": luck.choice([2, 3])}, "train": {"width": luck.choice([1, 2]), "steps": 3}}
        if luck.random() < 0.4:
            (numbers / f"{luck.randrange(100, 999)}.txt").write_text("1")
        chosen = luck.choice([["cut"], ["cut", "total"], ["cut", "total", "train"]])
        runner(home, numbers, **sections).run(chosen)
    latest = [home.latest(stage) for stage in build(Config(folder=str(numbers)))]
    before = {outcome.stage.name for outcome in runner(home, numbers, **sections).run(chosen)}
    remove(home, found(home, runner(home, numbers, **sections)))
    verify([artifact for artifact in latest if artifact is not None])
    after = runner(home, numbers, **sections).run(chosen)
    assert {outcome.stage.name for outcome in after if not outcome.ran} == before
    assert found(home, runner(home, numbers, **sections)) == []


def options(home: Workdir, **changes: Any) -> Options:
    asked: dict[str, Any] = dict.fromkeys(("dry_run", "status", "verify", "tracking"), False)
    asked |= {"stages": "all", "workdir": str(home.folder), "name": "toy", "force": (), "runtime": "local"}
    return Options(**{**asked, "address": "local", "command": "python toy.py", "gc": True, **changes})


def test_the_command_shows_removes_when_told_to_and_refuses_beside_a_run(home, numbers, capsys):
    run(home, numbers)
    run(home, numbers, cut={"size": 3})
    config = Config(folder=str(numbers), cut=toy.CutConfig(size=3))
    call = functools.partial(run_session, load=lambda: config, build=build)
    before = home.folder.names()
    assert call(options(home)) == 0
    text = capsys.readouterr().out
    assert "artifact of cut" in text and "nothing was removed; the same command with --yes does" in text
    assert set(home.folder.names()) - set(before) == {".lock"}
    assert call(options(home), in_use=[lambda: Config(folder=str(numbers))]) == 0
    assert "everything here is in use" in capsys.readouterr().out
    with home.locked():
        assert call(options(home, yes=True)) == WorkdirBusy.exit_code
    assert "is in use by process" in capsys.readouterr().out
    assert call(options(home, yes=True)) == 0
    assert "MB: removed" in capsys.readouterr().out
    assert call(options(home, yes=True)) == 0
    assert "nothing to remove" in capsys.readouterr().out
    assert call(options(Workdir(home.folder / "absent"))) == 2
