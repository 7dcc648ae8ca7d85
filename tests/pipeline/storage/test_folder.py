import errno
import hashlib
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipeline.errors import DataError, StorageError
from pipeline.manifest import FileEntry
from pipeline.storage import Folder, canonical_json
from pipeline.units import Unit, UnitStore


def write_number(unit: Unit, folder: Path) -> dict[str, int]:
    (folder / f"{unit.name}.txt").write_text(str(unit.recipe["number"]))
    return {"numbers": 1}


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    folder = Folder.at(tmp_path)
    folder.write("a/b.txt", b"old")
    with pytest.raises(ValueError, match="half way"), folder.writing("a/b.txt") as path:
        path.write_bytes(b"ne")
        raise ValueError("half way")
    assert folder.read("a/b.txt") == b"old"
    assert folder.names() == ["a/b.txt"]


def test_a_full_disk_is_explained_with_its_remedy(tmp_path):
    with pytest.raises(StorageError, match=r"model\.bin: no space is left there: make room"):  # noqa: SIM117
        with Folder.at(tmp_path).writing("model.bin"):
            raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StorageError, match=r"state: no space is left there"):  # noqa: SIM117
        with Folder.at(tmp_path).scratch("state"):
            raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(StorageError, match=r"state: permission was denied"):  # noqa: SIM117
        with Folder.at(tmp_path).scratch("state"):
            raise RuntimeError('I/O error: Permission denied (os error 13) at path "x"')
    with pytest.raises(DataError, match="cannot be read"):  # noqa: SIM117
        with Folder.at(tmp_path).scratch("state"):
            raise DataError("input.safetensors cannot be read (Permission denied (os error 13))")
    assert Folder.at(tmp_path).names() == []


def test_folders_behind_a_url_hold_the_same_files(faulty):
    remote = Folder.at("memory://bucket/runs")
    remote.write("a/one.txt", b"1")
    remote.write_json("two.json", {"b": 1})
    assert remote.names() == ["a/one.txt", "two.json"]
    assert remote.local("a/one.txt").read_bytes() == b"1"
    assert remote.size("a/one.txt") == 1
    assert remote.size("absent") is None
    store = UnitStore(remote / "units", "toy", 1)
    unit = Unit("u", {"number": 7})
    record = store.make(unit, write_number)
    assert store.find(unit) == record
    assert store.folder_of(record.key).read("u.txt") == b"7"
    remote.remove("a")
    assert "a/one.txt" not in remote.names()


def test_a_commit_behind_a_url_shows_by_its_last_file_alone(faulty, tmp_path):
    folder = Folder.at("faulty://bucket/units")
    for number in (1, 2):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        for name in ("a", "b", "unit.json", "z"):
            (scratch / name).write_text(f"{name}{number}")
    folder.adopt(tmp_path / "1", "u", last="unit.json")
    puts = [path for operation, path in faulty.calls if operation == "put"]
    assert [path.rpartition("/")[2] for path in puts] == ["a", "b", "z", "unit.json"]
    faulty.faults += [("put", PermissionError("Access Denied."))]
    with pytest.raises(StorageError, match="cannot write faulty://bucket/units/u/a: permission was denied"):
        folder.adopt(tmp_path / "2", "u", last="unit.json")
    assert not folder.exists("u/unit.json"), "the record of the old files must not vouch for a mixture"
    folder.adopt(tmp_path / "2", "u", last="unit.json")
    found = [folder.read(f"u/{name}").decode() for name in ("a", "b", "unit.json", "z")]
    assert found == ["a2", "b2", "unit.json2", "z2"]


def test_folders_behind_a_url_are_removed_whole_and_nothing_beside_them(faulty):
    folder = Folder.at("faulty://bucket/runs")
    for name in [*(f"step/{number:02d}" for number in range(20)), "step-2/a", "other"]:
        folder.write(name, b"1")
    folder.remove("step")
    assert folder.names() == ["other", "step-2/a"]
    folder.remove("absent")
    folder.remove("other")
    assert folder.names() == ["step-2/a"]


def test_ranges_of_files_are_the_same_on_a_disk_and_behind_a_url(faulty, tmp_path):
    for folder in (Folder.at(tmp_path), Folder.at("faulty://bucket/runs")):
        folder.write("a", bytes(range(100)))
        assert folder.read_range("a", 10, 5) == bytes(range(10, 15))
        assert folder.read_range("a", 99, 1) == b"c"
        assert folder.hash_of("a") == hashlib.sha256(bytes(range(100))).hexdigest()
    with pytest.raises(StorageError, match=r"cannot read bytes 98 to 103 of faulty://bucket/runs/a: it ends before"):
        Folder.at("faulty://bucket/runs").read_range("a", 98, 5)
    assert faulty.count("get") == 0


def test_a_unit_is_addressed_by_its_recipe_and_found_again(tmp_path):
    store = UnitStore(Folder.at(tmp_path), "toy", 1)
    unit = Unit("u", {"number": 7}, payload="anything")
    record = store.make(unit, write_number)
    assert store.find(Unit("u", {"number": 7}, payload="something else")) == record
    assert store.find(Unit("u", {"number": 8})) is None
    assert UnitStore(Folder.at(tmp_path), "toy", 2).find(unit) is None
    store.folder_of(record.key).local("u.txt").write_text("77")
    assert store.find(unit) is None, "a file of another size is not the unit"
    assert store.make(unit, write_number).digest == record.digest


@pytest.mark.slow
def test_killed_commits_leave_units_whole_or_absent(tmp_path):
    script = textwrap.dedent(f"""
        import sys; sys.path.insert(0, {str(Path.cwd())!r})
        from pipeline.storage import Folder
        from pipeline.units import Unit, UnitStore
        def work(unit, folder):
            for name in "abc":
                (folder / name).write_bytes(b"x" * 200_000)
            return {{"files": 3}}
        store = UnitStore(Folder.at({str(tmp_path / "units")!r}), "toy", 1)
        print("ready", flush=True)
        for number in range(100_000):
            store.make(Unit("u", {{"number": number}}), work)
    """)
    store = UnitStore(Folder.at(tmp_path / "units"), "toy", 1)
    found = 0
    for delay in (0.02, 0.05, 0.11, 0.17, 0.31):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for number in range(100_000):
            unit = Unit("u", {"number": number})
            record = store.find(unit)
            if record is None:
                break
            found += 1
            home = store.folder_of(record.key)
            assert [FileEntry.of(home.local(entry.path), entry.path) for entry in record.files] == list(record.files)
    assert found > 0
    store.folder.sweep()
    assert not list((tmp_path / "units").glob(".tmp-*"))


def test_canonical_json_is_one_text_for_equal_values():
    assert canonical_json({"b": 1, "a": [1.5, None]}) == canonical_json({"a": [1.5, None], "b": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float("nan"))
