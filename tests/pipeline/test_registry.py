"""Versions: what a run starts from, what it is judged against, what is in use, through kills, repeats and rollbacks."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import session
from pipeline.errors import StorageError
from pipeline.gc import find_leftovers, remove
from pipeline.runner import Runner
from pipeline.session import Options, run_session
from pipeline.storage import Folder
from pipeline.versions.incumbents import place
from pipeline.versions.publication import register
from pipeline.versions.registry import REGISTRY, Registry
from pipeline.workdir import Workdir
from tests.pipeline.nightly import NightlyConfig, build


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def run(home: Path, numbers: Path) -> Callable[..., int]:
    """Return a function that runs the nightly toy's command line."""

    def call(expected: int = 0, /, options: dict[str, Any] | None = None, **sections: Any) -> None:
        asked: dict[str, Any] = dict.fromkeys(("dry_run", "status", "verify", "tracking"), False)
        asked |= {"stages": "all", "workdir": str(home), "name": "nightly", "force": (), "runtime": "local"}
        asked |= {"address": None, "command": "python nightly.py", **(options or {})}
        config = NightlyConfig.model_validate({"folder": str(numbers), **sections})
        assert run_session(Options(**asked), lambda: config, build) == expected

    return call


def registry(home: Path) -> Registry:
    return Registry.read(Folder.at(home))


def in_use(home: Path) -> tuple[int | None, int | None]:
    found = registry(home)
    return found.champion, found.challenger


def model(home: Path, number: int) -> float:
    mark = registry(home).version(number).artifacts["train"]
    return float((home / "train" / mark[:12] / "model").read_text())


def test_the_first_version_is_the_champion_and_a_better_one_takes_its_place(run, home, capsys):
    run(train={"rate": 4.0})
    assert "verdict  version 1 is the champion from now on: error 6.0" in capsys.readouterr().out
    run(train={"rate": 5.0})
    assert "version 2 is the champion from now on in place of version 1: error 5.0" in capsys.readouterr().out
    run(train={"rate": 3.0})
    assert "version 3 is not published, version 2 stays in use: error 7.0" in capsys.readouterr().out
    assert in_use(home) == (2, 3)
    found = registry(home)
    assert [version.incumbent for version in found.versions] == [None, 1, 2]
    assert [(event.what, event.version, event.before) for event in found.events] == [
        ("registered", 1, None),
        ("promoted", 1, None),
        ("registered", 2, None),
        ("promoted", 2, 1),
        ("registered", 3, None),
    ]
    assert found.version(3).figures == {"error": 7.0}
    assert set(found.version(2).artifacts) == {"cut", "train", "judge"}


def test_the_same_command_again_has_nothing_to_do_though_its_version_was_published(run, home, numbers, capsys):
    run(policy="warm")
    (numbers / "5.txt").write_text("5")
    run(policy="warm")
    assert in_use(home) == (2, 2) and model(home, 2) == 2.0, "warm from version 1"
    before = (home / REGISTRY).read_bytes()
    capsys.readouterr()
    for _ in range(2):
        run(policy="warm")
        text = capsys.readouterr().out
        assert "nothing to do" in text and "version 2, registered before, is the champion" in text
    assert (home / REGISTRY).read_bytes() == before


def test_after_a_rollback_the_same_command_changes_nothing_and_new_data_start_from_what_is_in_use(run, home, numbers):
    run(policy="warm", train={"rate": 3.0})
    (numbers / "5.txt").write_text("5")
    run(policy="warm", train={"rate": 3.0})
    run(options={"rollback": True})
    assert in_use(home) == (1, 2)
    run(policy="warm", train={"rate": 3.0})
    assert in_use(home) == (1, 2), "no run undoes a rollback"
    (numbers / "6.txt").write_text("6")
    run(policy="warm", train={"rate": 4.0})
    assert registry(home).version(3).incumbent == 1 and model(home, 3) == 7.0, "from version 1, not from version 2"
    assert in_use(home) == (3, 3)
    run(options={"rollback": True})
    assert in_use(home) == (1, 3), "version 3 took the place of version 1"
    run(2, options={"rollback": True})
    run(2, options={"rollback": True, "rollback_to": 9})
    run(options={"rollback": True, "rollback_to": 2})
    assert in_use(home) == (2, 3)


def test_a_changed_key_of_training_starts_from_the_champion_of_now(run, home):
    run(policy="warm")
    run(policy="warm", train={"rate": 2.0})
    assert model(home, 2) == 3.0 and in_use(home) == (2, 2)
    run(policy="warm", train={"rate": 2.5})
    assert model(home, 3) == 5.5, "from version 2"
    assert list(registry(home).incumbents.values()) == [None, 1, 2]


def test_a_changed_gate_or_judgement_trains_nothing(run, home, capsys):
    run(train={"rate": 4.0})
    run(train={"rate": 5.0})
    capsys.readouterr()
    run(train={"rate": 5.0}, gate={"margin": 3.0})
    text = capsys.readouterr().out
    assert "publish: runs" in text and "train: runs" not in text and "judge: runs" not in text
    found = registry(home)
    assert (found.version(3).verdict, found.version(3).incumbent) == ("challenger", 1), "not against itself"
    assert found.champion == 2
    run(train={"rate": 5.0}, judge={"target": 4.0})
    assert registry(home).version(4).incumbent == 1 and "train: runs" not in capsys.readouterr().out


def test_a_version_is_registered_by_the_next_run_where_the_driver_died_before_it(run, home, monkeypatch):
    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    run(train={"rate": 4.0})
    monkeypatch.setattr(session, "register", dies)
    run(130, train={"rate": 5.0})
    (first,) = {version.fingerprint for version in registry(home).versions}
    second = (home / "publish/latest").resolve()
    assert in_use(home) == (1, 1) and (second / "manifest.json").exists() and second.name != first[:12]
    monkeypatch.setattr(session, "register", register)
    run(train={"rate": 5.0})
    assert in_use(home) == (2, 2)


def test_what_was_begun_before_another_version_was_published_is_judged_against_that_one(run, home):
    run(policy="warm")
    run(1, policy="warm", train={"rate": 2.0, "fails": True})
    assert list(registry(home).incumbents.values()) == [None, 1]
    run(policy="warm", train={"rate": 6.0})
    assert in_use(home) == (2, 2)
    failing = {"rate": 2.0, "fails": True}
    runner, standing = placed(home, policy="warm", train=failing)
    assert (standing.parent, standing.incumbent) == (1, 2)
    assert runner.parent is not None and runner.parent.number == 1


def placed(home: Path, **sections: Any) -> Any:
    config = NightlyConfig.model_validate({"folder": str(home.parent / "numbers"), **sections})
    runner = Runner(build(config), Workdir(Folder.at(home)))
    return place(runner, lambda parent, incumbent: build(config, parent, incumbent))


def test_a_new_parent_is_remembered_by_a_run_and_not_by_a_look(run, home):
    run()
    before = (home / REGISTRY).read_bytes()
    run(options={"dry_run": True}, train={"rate": 2.0})
    run(options={"status": True}, train={"rate": 2.0})
    run(options={"versions": True})
    assert (home / REGISTRY).read_bytes() == before


def test_what_is_kept_is_the_champions_not_what_was_made_last(run, home, numbers, capsys):
    run(policy="scratch", train={"rate": 4.0})
    champion = registry(home).version(1).artifacts["train"]
    (numbers / "5.txt").write_text("5")
    run(policy="scratch", train={"rate": 4.0}, judge={"target": 10.0}, options={"force": ("train",)})
    (numbers / "6.txt").write_text("6")
    capsys.readouterr()
    run(policy="keep", train={"rate": 4.0})
    assert "kept" in capsys.readouterr().out
    assert registry(home).version(registry(home).challenger or 0).artifacts["train"] == champion
    run(policy="keep", train={"rate": 4.5})
    assert model(home, registry(home).challenger or 0) == 4.5, "another rate was asked for"


def test_a_damaged_registry_is_named_and_left_as_it_is(run, home, capsys):
    run()
    whole = json.loads((home / REGISTRY).read_text())
    for damage in (
        "{",
        "[]",
        json.dumps({**whole, "champion": None}),
        json.dumps({**whole, "versions": []}),
        json.dumps({**whole, "incumbents": {"x": 5}}),
    ):
        (home / REGISTRY).write_text(damage)
        capsys.readouterr()
        run(1, train={"rate": 2.0})
        run(1, options={"rollback": True})
        text = capsys.readouterr().out
        assert "registry.json, which says what versions there are" in text and "Traceback" not in text
        assert (home / REGISTRY).read_text() == damage
        with pytest.raises(StorageError):
            registry(home)


def test_nothing_that_is_written_down_changes_later(run, home):
    seen: list[Registry] = []
    for day, rate in enumerate((1.0, 3.0, 2.0, 5.0)):
        run(train={"rate": rate})
        seen.append(registry(home))
        if day == 2:
            run(options={"rollback": True})
            seen.append(registry(home))
    for before, after in itertools.pairwise(seen):
        assert after.versions[: len(before.versions)] == before.versions
        assert after.events[: len(before.events)] == before.events
        assert before.incumbents.items() <= after.incumbents.items()


def test_gc_leaves_the_champion_the_one_before_and_the_challenger_and_not_their_ancestors(run, home, numbers):
    for day in range(4):
        (numbers / f"{10 + day}.txt").write_text("1")
        run(policy="warm", train={"rate": 2.0})
    (numbers / "20.txt").write_text("1")
    run(policy="warm", train={"rate": -3.0})
    assert in_use(home) == (4, 5)
    runner, _ = placed(home, policy="warm", train={"rate": -3.0})
    leftovers = find_leftovers(runner.workdir, [runner], (), 1)
    trained = {number: registry(home).version(number).artifacts["train"][:12] for number in range(1, 6)}
    gone = {place[1] for it in leftovers if (place := it.place)[0] == "train" and it.what.startswith("artifact")}
    assert gone == {trained[1], trained[2]}, "version 3 was before 4, which is in use; 5 was made last"
    remove(runner.workdir, leftovers)
    run(policy="warm", train={"rate": -3.0})
    run(2, options={"rollback": True, "rollback_to": 2})
    run(options={"rollback": True})
    assert in_use(home) == (3, 5)


def test_a_parent_that_is_gone_is_announced_and_the_version_in_use_takes_its_place(run, home, capsys):
    run(policy="warm", train={"rate": 2.0})
    run(1, policy="warm", train={"rate": 1.5, "fails": True})
    run(policy="warm", train={"rate": 3.0})
    shutil.rmtree(home / "train" / registry(home).version(1).artifacts["train"][:12])
    capsys.readouterr()
    run(1, policy="warm", train={"rate": 1.5, "fails": True})
    assert "version 1, which this training started from, is no longer there" in capsys.readouterr().out
    runner, standing = placed(home, policy="warm", train={"rate": 1.5, "fails": True})
    assert runner.parent is not None and (runner.parent.number, standing.incumbent) == (2, 2)
    run(options={"versions": True})
    assert "removed" in capsys.readouterr().out


def test_nothing_is_published_beside_a_version_in_use_that_is_no_longer_whole(run, home, capsys):
    run(train={"rate": 2.0})
    run(train={"rate": 3.0})
    mark = registry(home).version(2).artifacts["train"][:12]
    (home / "train" / mark / "manifest.json").write_text("{")
    capsys.readouterr()
    run(1, train={"rate": 4.0})
    text = capsys.readouterr().out
    assert "version 2, which the new model is to be judged against, is no longer whole" in text
    assert "Traceback" not in text and in_use(home) == (2, 2)
    run(options={"rollback": True})
    run(train={"rate": 4.0})
    assert in_use(home) == (3, 3) and registry(home).version(3).incumbent == 1


def test_lost_files_of_a_published_model_are_made_again_as_the_same_version(run, home):
    run(policy="warm", train={"rate": 4.0})
    run(policy="warm", train={"rate": 3.0})
    before, second = (home / REGISTRY).read_bytes(), registry(home).version(2)
    for stage, mark in (("train", second.artifacts["train"]), ("publish", second.fingerprint)):
        folder = home / stage / mark[:12]
        for path in folder.iterdir():
            path.unlink()
        run(policy="warm", train={"rate": 3.0})
        assert (folder / "manifest.json").exists() and (home / REGISTRY).read_bytes() == before
    assert model(home, 2) == 7.0
