"""One job a slot: which id, which attempt, what is told of it, how its log is followed."""

from __future__ import annotations

import dataclasses
import signal
import time

import pytest

from pipeline.errors import ConfigError, Interrupted, StageError
from pipeline.jobs import Job, follow, submission_id, submit_once
from pipeline.signals import StopRequest
from pipeline.submit import entrypoint


class Cluster:
    """Jobs in memory. `race`: another submitter is faster with the next one."""

    def __init__(self, *jobs: Job, race: Job | None = None) -> None:
        self.jobs = {job.id: job for job in jobs}
        self.race = race
        self.submitted: list[str] = []
        self.ended: list[str] = []
        self.text = ""

    def find(self, job_id: str) -> Job | None:
        return self.jobs.get(job_id)

    def submit(self, job_id: str, entrypoint: str) -> bool:
        if self.race is not None:
            self.jobs[self.race.id], self.race = self.race, None
        if job_id in self.jobs:
            return False
        self.submitted.append(job_id)
        self.jobs[job_id] = job(job_id, "PENDING", entrypoint=entrypoint)
        return True

    def end(self, job_id: str) -> None:
        self.ended.append(job_id)

    def log(self, job_id: str) -> str | None:
        return self.text or None

    def becomes(self, job_id: str, status: str, code: int | None = None) -> None:
        self.jobs[job_id] = dataclasses.replace(self.jobs[job_id], status=status, code=code)


def job(job_id: str, status: str, code: int | None = None, entrypoint: str = "run", started: float = 0.0) -> Job:
    return Job(job_id, status, entrypoint, started, code)


NOON = time.mktime((2025, 1, 31, 12, 34, 56, 0, 0, -1))


@pytest.mark.parametrize(
    ("slot", "expected"),
    [
        ("day", "nightly-20250131"),
        ("hour", "nightly-20250131-1200"),
        ("minute", "nightly-20250131-1234"),
        ("smalti-retrain-28972080", "nightly-smalti-retrain-28972080"),
    ],
)
def test_a_slot_has_one_id_whenever_it_is_asked_for(slot, expected):
    assert submission_id("nightly", slot, NOON) == submission_id("nightly", slot, NOON + 3) == expected


@pytest.mark.parametrize("slot", ["", "a b", "../x", "-x", "x" * 101, "20250131-retry2", "a;b"])
def test_what_cannot_be_part_of_an_id_is_named(slot):
    with pytest.raises(ConfigError, match="--slot"):
        submission_id("nightly", slot)
    with pytest.raises(ConfigError, match="--name"):
        submission_id(slot, "day")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("PENDING", None, None),
        ("RUNNING", None, None),
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", 3, 3),
        ("FAILED", 75, 75),
        ("FAILED", 143, 143),
        ("FAILED", -9, 137),
        ("FAILED", None, 1),
        ("STOPPED", None, 143),
    ],
)
def test_exit_codes_are_those_of_the_run(status, code, expected):
    assert job("a", status, code).exit_code == expected


def test_what_is_told_of_a_job():
    assert "a is RUNNING since 2025-01-31 12:34:56" in str(job("a", "RUNNING", started=NOON))
    lost = Job("a", "FAILED", "run", NOON, None, "Job supervisor actor died\n")
    assert str(lost) == "a of 2025-01-31 12:34:56 FAILED, exit code 1: Job supervisor actor died"


@pytest.mark.parametrize(("status", "code"), [("PENDING", None), ("RUNNING", None), ("SUCCEEDED", 0), ("FAILED", 3)])
def test_a_slot_that_has_a_job_keeps_it(status, code):
    cluster = Cluster(job("n-1", status, code))
    found, submitted = submit_once(cluster, "n-1", "run")
    assert (found.status, submitted, cluster.submitted) == (status, False, [])


def test_a_free_slot_gets_a_job():
    cluster = Cluster()
    found, submitted = submit_once(cluster, "n-1", "run")
    assert (found.id, submitted, cluster.submitted) == ("n-1", True, ["n-1"])


def test_a_failed_job_is_submitted_again_only_when_asked_and_only_once_at_a_time():
    cluster = Cluster(job("n-1", "FAILED", 1), job("n-1-retry2", "FAILED", -9))
    assert submit_once(cluster, "n-1", "run")[0].exit_code == 137
    assert cluster.submitted == []
    assert submit_once(cluster, "n-1", "run", retry=True)[0].id == "n-1-retry3"
    assert submit_once(cluster, "n-1", "run", retry=True) == (cluster.jobs["n-1-retry3"], False)
    cluster.becomes("n-1-retry3", "SUCCEEDED", 0)
    assert submit_once(cluster, "n-1", "run", retry=True)[0].exit_code == 0
    assert cluster.submitted == ["n-1-retry3"]


def test_a_retry_may_run_another_command_than_the_attempt_that_failed():
    cluster = Cluster(job("n-1", "FAILED", 2, entrypoint="run --bogus"))
    found, submitted = submit_once(cluster, "n-1", "run", retry=True)
    assert (found.id, found.entrypoint, submitted) == ("n-1-retry2", "run", True)


def test_of_two_that_submit_at_once_one_does():
    cluster = Cluster(race=job("n-1", "RUNNING"))
    found, submitted = submit_once(cluster, "n-1", "run")
    assert (found.status, submitted, cluster.submitted) == ("RUNNING", False, [])


@pytest.mark.parametrize("cluster", [Cluster(job("n-1", "RUNNING")), Cluster(race=job("n-1", "RUNNING"))])
def test_another_command_for_the_same_slot_is_refused(cluster):
    with pytest.raises(ConfigError, match="n-1 runs another command: run"):
        submit_once(cluster, "n-1", "run --force prior")


def test_following_writes_the_log_once_and_ends_with_the_job():
    cluster, heard, looks = Cluster(job("n-1", "PENDING")), [], []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        cluster.becomes("n-1", "RUNNING")
        cluster.text += f"line {len(looks)}\n"
        if len(looks) == 3:
            cluster.becomes("n-1", "FAILED", 75)

    ended = follow(cluster, cluster.jobs["n-1"], heard.append, StopRequest(), sleep=sleep)
    assert ended.exit_code == 75
    assert "".join(heard) == "line 1\nline 2\nline 3\n"


def test_a_long_log_is_fetched_less_often():
    cluster = Cluster(job("n-1", "RUNNING"))
    cluster.text = "x" * 10_000_000  # ten seconds at the rate allowed
    fetched, sleeps = [], []
    cluster.log = lambda job_id: fetched.append(job_id) or cluster.text

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 4:
            cluster.becomes("n-1", "SUCCEEDED", 0)

    follow(cluster, cluster.jobs["n-1"], lambda text: None, StopRequest(), sleep=sleep)
    assert len(fetched) == 2  # the first, and the last one whatever its length


def test_who_is_asked_to_leave_leaves_the_job_running():
    cluster = Cluster(job("n-1", "RUNNING"))
    with pytest.raises(Interrupted) as left:
        follow(cluster, cluster.jobs["n-1"], lambda text: None, StopRequest(signal.SIGTERM), sleep=lambda seconds: None)
    assert left.value.exit_code == 143
    assert cluster.ended == []


def test_a_job_that_runs_too_long_is_asked_to_leave_once():
    cluster, heard = Cluster(job("n-1", "RUNNING", started=time.time() - 100)), []

    def sleep(seconds: float) -> None:
        if heard and len(heard) < 3:
            heard.append("slept")
        else:
            cluster.becomes("n-1", "STOPPED")

    ended = follow(cluster, cluster.jobs["n-1"], heard.append, StopRequest(), stop_after=60, sleep=sleep)
    assert ended.exit_code == 143
    assert cluster.ended == ["n-1"]
    assert "asked to leave after 60 s" in heard[0]


def test_a_cluster_that_was_started_anew_is_told_of():
    with pytest.raises(StageError, match="no longer knows n-1"):
        follow(Cluster(), job("n-1", "RUNNING"), lambda text: None, StopRequest())


def test_the_job_runs_the_pipeline_on_its_own_cluster():
    assert entrypoint(["--config", "my birds.yaml"], "/code", "/env/python") == (
        "cd /code && exec /env/python run_pipeline.py --config 'my birds.yaml' --address auto"
    )
    assert entrypoint(["--address=h:1"], "/c", "p") == "cd /c && exec p run_pipeline.py --address=h:1"
