import json
import os
import subprocess
import sys
import threading
import time

import pytest

from pipeline.errors import StorageError, WorkdirBusy
from pipeline.storage import Folder, remote
from pipeline.storage.lease import Lease, leased
from pipeline.workdir import Workdir

HOME = "faulty://bucket/runs"


def lease(said=None, seconds=1.0):
    return Lease(HOME, (said if said is not None else []).append, seconds, conditional=True)


def elsewhere():
    """Rewrite the lease as if another machine held it: nothing can be known of its process."""
    held = {**Folder.at(HOME).read_json("lease.json"), "boot": "another", "host": "far", "pid": 7}
    Folder.at(HOME).write_json("lease.json", held)


@pytest.fixture(autouse=True)
def bucket(faulty, monkeypatch):
    monkeypatch.setenv("SMALTI_LEASE_SECONDS", "1")
    Folder.at("faulty://bucket").write("there", b"")


def test_a_living_holder_is_named_and_keeps_the_workdir():
    said = []
    with leased(HOME, said.append):
        elsewhere_lease = lease(said, seconds=3.0)
        with pytest.raises(WorkdirBusy, match=rf"in use by process {os.getpid()} on .* since 20\d\d-") as caught:
            elsewhere_lease.acquire()
        assert caught.value.exit_code == 75
        assert "watching for 3 s" in said[0]
        Folder.at(HOME).write("a", b"1")
    assert not Folder.at(HOME).exists("lease.json")
    with leased(HOME, said.append):
        Folder.at(HOME).write("a", b"2")


def test_a_lease_that_is_not_renewed_is_taken_over_and_its_holder_writes_no_more():
    sleeper, newcomer = lease(), lease()
    sleeper.acquire()
    elsewhere()
    sleeper._stamp = remote.facts(sleeper.url).stamp
    remote.FENCES[HOME] = sleeper.check
    try:
        Folder.at(HOME).write("a", b"of the sleeper")
        started = time.monotonic()
        newcomer.acquire()
        assert 0.9 < time.monotonic() - started < 5
        with pytest.raises(StorageError, match="was taken over by process"):
            Folder.at(HOME).write("a", b"too late")
    finally:
        del remote.FENCES[HOME]
    assert Folder.at(HOME).read("a") == b"of the sleeper"
    sleeper.release()
    newcomer.check()
    assert Folder.at(HOME).exists("lease.json"), "who lost a lease does not release it"


def test_a_dead_process_of_this_machine_is_known_to_be_dead():
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    lease(seconds=3600).acquire()
    held = {**Folder.at(HOME).read_json("lease.json"), "pid": int(gone.stdout)}
    Folder.at(HOME).write_json("lease.json", held)
    started = time.monotonic()
    lease(seconds=3600).acquire()
    assert time.monotonic() - started < 5


def test_of_many_that_start_together_one_gets_the_lease():
    outcomes, barrier = [], threading.Barrier(6)

    def start():
        mine = lease(seconds=2.0)
        barrier.wait()
        try:
            mine.acquire()
            keeper = threading.Thread(target=mine.keep, daemon=True)
            keeper.start()
            outcomes.append("got it")
            ended.wait(15)
            mine.release()
        except WorkdirBusy:
            outcomes.append("busy")

    ended = threading.Event()
    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 15
    while len(outcomes) < 6 and time.monotonic() < deadline:
        time.sleep(0.05)
    ended.set()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["busy"] * 5 + ["got it"]


def test_a_renewal_whose_answer_was_lost_is_no_loss(faulty):
    mine = lease()
    mine.acquire()
    plain = faulty.pipe_file

    def lose_the_answer(self, path, data, **options):
        faulty.pipe_file = plain
        plain(self, path, data, **options)
        raise ConnectionResetError(104, "reset")

    faulty.pipe_file = lose_the_answer
    mine._renew()
    mine.check()
    assert json.loads(remote.read(mine.url))["renewals"] == mine._renewals


def test_a_server_that_is_away_for_long_costs_no_lease(faulty):
    mine = lease()
    mine.acquire()
    time.sleep(1.2)
    faulty.faults += [("pipe", ConnectionRefusedError(111, "refused"))] * 3
    mine.check()
    assert mine._lost == ""


def test_a_store_without_conditions_is_announced_and_the_last_writer_wins(faulty, monkeypatch):
    said = []
    monkeypatch.setattr(remote, "CONDITIONAL", frozenset())
    with Workdir(Folder.at(HOME)).locked(said.append):
        assert "no conditional writes" in said[0]
        assert Folder.at(HOME).exists("lease.json")
    assert not Folder.at(HOME).exists("lease.json")


def test_a_server_that_ignores_conditions_is_found_out(faulty, monkeypatch):
    plain, said = faulty.pipe_file, []
    monkeypatch.setattr(faulty, "pipe_file", lambda self, path, data, **options: plain(self, path, data))
    mine = lease(said)
    mine.acquire()
    assert mine.conditional is False
    assert "no conditional writes" in said[0]
