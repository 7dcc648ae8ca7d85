import os
import random
from pathlib import Path

import pytest

from pipeline.storage import Folder
from pipeline.storage.disk import make_folder, sync
from tests.faults.driver import fork
from tests.faults.power_cut import Disk
from tests.faults.trace import SUPPORTED, traced

needs_ptrace = pytest.mark.skipif(not SUPPORTED, reason="Linux on x86-64")


@pytest.fixture
def disk(tmp_path):
    (tmp_path / "disk").mkdir()
    return Disk.holding(tmp_path / "disk")


def left(disk, tmp_path, luck=None) -> dict[str, bytes]:
    """What a power cut leaves: path -> bytes."""
    target = tmp_path / f"left-{len(list(tmp_path.iterdir()))}"
    target.mkdir()
    disk.after_power_cut(target, luck)
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


def test_what_was_not_synced_is_lost(disk, tmp_path):
    path = disk.root / "a"
    path.write_bytes(b"one")
    assert left(disk, tmp_path) == {}, "the folder was not synced"
    disk.sync(disk.root)
    assert left(disk, tmp_path) == {"a": b""}, "the file was not synced"
    disk.sync(path)
    path.write_bytes(b"another")
    assert left(disk, tmp_path) == {"a": b"one"}
    path.unlink()
    assert left(disk, tmp_path) == {"a": b"one"}, "neither was the removal"


def test_by_lot_some_of_the_rest_is_there(disk, tmp_path):
    (disk.root / "a").write_bytes(b"0123456789")
    found = [left(disk, tmp_path, random.Random(seed)).get("a") for seed in range(40)]
    assert None in found
    assert b"" in found
    assert b"0123456789" in found
    assert any(data and data != b"0123456789" for data in found), "a part of it"


def test_a_rename_without_syncs_may_leave_an_empty_file_under_the_new_name(disk, tmp_path):
    (disk.root / "new").write_bytes(b"2")
    os.replace(disk.root / "new", disk.root / "a")
    disk.sync(disk.root)
    assert left(disk, tmp_path) == {"a": b""}


@needs_ptrace
def test_a_killed_write_leaves_the_old_file_and_the_power_may_go_at_any_call(tmp_path):
    root = tmp_path / "disk"
    (root / "deep").mkdir(parents=True)
    folder = Folder.at(root / "deep/er")
    (root / "deep/er").mkdir()
    folder.write("a.txt", b"old")
    disk, names, syncing = Disk.holding(root), [], None

    def work() -> int:
        folder.write("a.txt", b"new")
        (folder / "never/was").write("b.txt", b"new")
        return 0

    seen = []
    for call, _ in traced(work, tmp_path / "log", root):
        if syncing is not None:
            disk.sync(syncing)
        syncing = call.path if call.name == "fsync" else None
        names.append(call.name)
        seen.append(left(disk, tmp_path).get("deep/er/a.txt"))
        assert (folder.path / "a.txt").read_bytes() in (b"old", b"new")
    assert {"open", "write", "mkdir", "fsync", "rename"} <= set(names)
    assert set(seen) == {b"old", b"new"}
    assert seen == sorted(seen, reverse=True), "never the old one after the new one"
    assert left(disk, tmp_path)["deep/er/never/was/b.txt"] == b"new", "its new folders are there too"


@needs_ptrace
def test_a_traced_process_can_be_killed_before_a_call(tmp_path):
    (tmp_path / "disk").mkdir()

    def work() -> int:
        for name in "abc":
            (tmp_path / "disk" / name).mkdir()
        return 0

    for call, driver in traced(work, tmp_path / "log", tmp_path / "disk"):
        if call.path.name == "b":
            driver.kill()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["a"]
    assert driver.code == -9


def test_new_folders_are_synced_into_those_above_them(tmp_path, monkeypatch):
    synced: list[Path] = []
    monkeypatch.setattr("pipeline.storage.disk.sync", synced.append)
    make_folder(tmp_path / "a/b/c")
    assert synced == [tmp_path / "a/b", tmp_path / "a", tmp_path]
    make_folder(tmp_path / "a/b/c")
    assert len(synced) == 3, "nothing is new"
    sync(tmp_path)


def test_a_forked_run_keeps_its_output_and_exit_code(tmp_path):
    def work() -> int:
        print("said")
        return 7

    driver = fork(work, tmp_path / "log")
    assert driver.wait() == 7
    (tmp_path / "log").write_text("of another one")
    assert driver.text == "said\n"
