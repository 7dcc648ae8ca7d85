import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, StorageError
from pipeline.manifest import FileEntry
from pipeline.storage import Folder, cache
from pipeline.storage.cache import Cache, node_cache

ROOT = Path(__file__).resolve().parents[3]
SIZE = 100_000


def fill(folder, *names):
    """Objects of SIZE bytes each; what is known of them."""
    known = {}
    for name in names:
        data = random.Random(name).randbytes(SIZE)
        folder.write(name, data)
        known[name] = FileEntry(path=name, bytes=SIZE, sha256=hashlib.sha256(data).hexdigest())
    return known


@pytest.fixture
def remote_folder(faulty):
    return Folder.at("faulty://bucket/runs")


def test_a_copy_is_fetched_once_and_outlives_the_process_that_fetched_it(remote_folder, faulty):
    known = fill(remote_folder, "a", "d/b")
    first = remote_folder.local("d/b", known["d/b"])
    assert first.read_bytes() == random.Random("d/b").randbytes(SIZE)
    assert remote_folder.local("d/b", known["d/b"]) == first
    cache.node_cache.cache_clear()  # as a new process
    assert remote_folder.local("d/b", known["d/b"]) == first
    assert faulty.count("get") == 1
    assert faulty.count("info") == 0, "of what is known nothing is asked"


def test_an_object_that_changed_is_fetched_anew(remote_folder, faulty):
    remote_folder.write("a", b"before")
    assert remote_folder.local("a").read_bytes() == b"before"
    remote_folder.write("a", b"after.")
    assert remote_folder.local("a").read_bytes() == b"after."
    assert remote_folder.local("a").read_bytes() == b"after."
    assert faulty.count("get") == 2


def test_what_is_not_as_recorded_is_never_handed_out(remote_folder, faulty):
    known = fill(remote_folder, "a", "b")
    remote_folder.write("a", random.Random("x").randbytes(SIZE))
    with pytest.raises(StorageError, match=r"runs/a differs from what was written \(100000 bytes, sha256 .*--verify"):
        remote_folder.local("a", known["a"])
    remote_folder.write("b", b"cut")
    with pytest.raises(StorageError, match=r"runs/b differs from what was written \(3 bytes"):
        remote_folder.local("b", known["b"])
    remote_folder.remove("b")
    with pytest.raises(StorageError, match=r"runs/b: it is listed by a manifest, but it is gone"):
        remote_folder.local("b", known["b"])
    with pytest.raises(FileNotFoundError):
        remote_folder.local("b")
    assert not [path for path in node_cache().root.rglob("*") if path.is_file() and path.parent.name != "locks"]


def test_a_download_that_came_damaged_is_done_again(remote_folder, faulty, monkeypatch):
    known = fill(remote_folder, "a")
    plain = faulty.get_file

    def damage(self, path, local, **options):
        monkeypatch.setattr(faulty, "get_file", plain)
        Path(local).write_bytes(bytes(SIZE))

    monkeypatch.setattr(faulty, "get_file", damage)
    assert remote_folder.local("a", known["a"]).read_bytes() == random.Random("a").randbytes(SIZE)


def test_what_was_used_longest_ago_goes_first_and_nothing_that_is_in_use(remote_folder, tmp_path):
    known = fill(remote_folder, *"abcde")
    small = Cache(tmp_path / "small", 3 * SIZE + 10)

    def there():
        return "".join(sorted(path.name for path in (small.root / "files").rglob("*") if path.is_file()))

    def use(name):
        with small.held(remote_folder.url, name, known[name]) as path:
            assert path.read_bytes() == random.Random(name).randbytes(SIZE)
        time.sleep(0.02)

    with small.held(remote_folder.url, "a", known["a"]) as kept:
        for name in "bcbd":
            use(name)
        assert there() == "abd"
        use("e")
        assert there() == "ade"
        assert kept.read_bytes() == random.Random("a").randbytes(SIZE)
    time.sleep(0.02)
    use("d")
    use("b")
    assert there() == "bde", "let go of, and used longest ago"


def test_more_than_the_limit_is_kept_while_it_is_in_use(remote_folder, tmp_path, caplog):
    known = fill(remote_folder, *"abc")
    tiny = Cache(tmp_path / "tiny", SIZE)
    held = [tiny.open(remote_folder.url, name, known[name]) for name in "abc"]
    assert [path.read_bytes() for path, _ in held] == [random.Random(name).randbytes(SIZE) for name in "abc"]
    assert "exceeds SMALTI_CACHE_SIZE" in caplog.text
    for _, descriptor in held:
        os.close(descriptor)
    tiny._make_room(0)
    assert len([path for path in (tiny.root / "files").rglob("*") if path.is_file()]) == 1


def test_the_limit_is_read_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv(cache.FOLDER, str(tmp_path))
    for text, size in (("500MB", 500 * 10**6), ("20 GB", 20 * 10**9), ("1.5GiB", 15 * 10**8), ("1234", 1234)):
        monkeypatch.setenv(cache.SIZE, text)
        node_cache.cache_clear()
        assert node_cache().limit == size
    monkeypatch.setenv(cache.SIZE, "much")
    node_cache.cache_clear()
    with pytest.raises(ConfigError, match="SMALTI_CACHE_SIZE=much: must be a size such as"):
        node_cache()
    monkeypatch.delenv(cache.SIZE)
    node_cache.cache_clear()
    assert 0 < node_cache().limit <= 50 * 10**9
    node_cache.cache_clear()


READER = """
    import sys, random, time, json; sys.path.insert(0, {root!r})
    from pathlib import Path
    from pipeline.storage.cache import Cache
    from pipeline.manifest import FileEntry
    known = {{row["path"]: FileEntry(**row) for row in json.loads({known!r})}}
    luck, shared = random.Random({seed}), Cache(Path({cache!r}), {limit})
    print("ready", flush=True)
    end, reads = time.monotonic() + {seconds}, 0
    while time.monotonic() < end:
        name = luck.choice(sorted(known))
        with shared.held({folder!r}, name, known[name]) as path:
            time.sleep(luck.uniform(0, 0.01))
            assert path.read_bytes() == random.Random(name).randbytes({size}), name
            reads += 1
    print(reads)
"""


@pytest.mark.slow
def test_readers_in_several_processes_share_a_cache_that_is_too_small(tmp_path):
    """Through fsspec's own view of a disk, which several processes see; one of them is killed at some point."""
    source = Folder.at(tmp_path / "source")
    known = json.dumps([entry.model_dump() for entry in fill(source, *"abcdefgh").values()])

    def start(seed):
        script = textwrap.dedent(READER).format(
            root=str(ROOT), known=known, seed=seed, cache=str(tmp_path / "cache"), limit=3 * SIZE,
            seconds=3.0, folder=f"local://{source.url}", size=SIZE,
        )  # fmt: skip
        return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)

    processes = [start(seed) for seed in range(4)]
    for process in processes:
        process.stdout.readline()
    time.sleep(1.0)
    processes[0].send_signal(signal.SIGKILL)
    answers = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes[1:]] == [0, 0, 0]
    assert all(int(text) > 5 for text in answers[1:])
    shared = Cache(tmp_path / "cache", 3 * SIZE)
    shared._make_room(0)
    left = [path for path in shared.root.rglob("*") if path.is_file()]
    assert not [path for path in left if path.parent.name == "partial"], "what the killed one left is swept"
    assert sum(path.stat().st_size for path in left if (shared.root / "files") in path.parents) <= 3 * SIZE


def test_two_that_want_the_same_object_fetch_it_once(remote_folder, faulty, monkeypatch):
    known, plain = fill(remote_folder, "a"), faulty.get_file

    def slow(self, path, local, **options):
        time.sleep(0.3)
        plain(self, path, local)

    monkeypatch.setattr(faulty, "get_file", slow)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(remote_folder.local("a", known["a"]).read_bytes()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [random.Random("a").randbytes(SIZE)] * 4
    assert faulty.count("get") == 1
