"""Submitting to a cluster: once a slot, with the job's exit code, and never waiting without end."""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import ClusterUnreachable, ConfigError
from tests.cluster.head import PATIENCE, Head, local_address, running_head
from tests.small import ROOT

TOY = """
import pathlib, signal, sys, time
code, seconds, home = int(sys.argv[1]), float(sys.argv[2]), pathlib.Path(sys.argv[3])
def leave(*_):
    (home / "checkpoint").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, leave)
with (home / "runs").open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
print("the toy runs")
time.sleep(seconds)
sys.exit(code)
"""
"""Stands where run_pipeline.py is looked for."""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running_head(name="submit") as running:
        yield running


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    (tmp_path / "run_pipeline.py").write_text(TOY)
    return tmp_path


def submit(head: Head, toy: Path, *options: str, code: int = 0, seconds: float = 0, token: Path | None = None) -> str:
    """Submit the toy with the test's folder as its slot; return what was told and, last, the exit code."""
    command = [sys.executable, "-m", "pipeline.submit", "--slot", toy.name, "--checkout", str(toy), *options]
    done = subprocess.run(
        [*command, "--address", head.dashboard, "--", str(code), str(seconds), str(toy)],
        cwd=ROOT,
        env=head.environment(token),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return f"{done.stdout}{done.stderr}exit {done.returncode}"


def runs(toy: Path) -> int:
    """Return how often the toy has run."""
    return len((toy / "runs").read_text().splitlines()) if (toy / "runs").exists() else 0


@pytest.mark.thorough
def test_submitted_again_and_again_it_runs_once(head, toy):
    first = submit(head, toy, seconds=8)
    assert "submitted now" in first and first.endswith("exit 0")
    meanwhile = submit(head, toy, "--follow", seconds=8)
    assert "nothing is submitted now" in meanwhile and "the toy runs" in meanwhile
    assert "SUCCEEDED, exit code 0" in meanwhile and meanwhile.endswith("exit 0")
    after = submit(head, toy, seconds=8)
    assert "SUCCEEDED, exit code 0 (submitted before" in after and after.endswith("exit 0")
    assert runs(toy) == 1


@pytest.mark.thorough
@pytest.mark.parametrize("code", [1, 3, 75])
def test_the_exit_code_is_the_runs_and_a_failed_job_is_retried_when_asked(head, toy, code):
    assert submit(head, toy, "--follow", code=code).endswith(f"exit {code}")
    assert submit(head, toy, "--follow", code=code).endswith(f"exit {code}")
    assert runs(toy) == 1
    again = submit(head, toy, "--follow", "--retry", code=0)
    assert f"retrain-{toy.name}-retry2 of" in again and again.endswith("exit 0")
    assert runs(toy) == 2


@pytest.mark.thorough
def test_a_job_that_takes_too_long_leaves_at_its_checkpoint(head, toy):
    told = submit(head, toy, "--follow", "--stop-after", "20", seconds=600)  # on a busy machine it starts after 10 s
    assert "asked to leave after 20 s" in told and "STOPPED, exit code 143" in told and told.endswith("exit 143")
    assert (toy / "checkpoint").exists()


@pytest.mark.thorough
def test_a_wrong_token_submits_nothing(head, toy):
    wrong = toy / "wrong"
    wrong.write_text("0" * 64)
    wrong.chmod(0o600)
    refused = submit(head, toy, "--follow", token=wrong)
    assert "copy the head's ~/.ray/auth_token here" in refused and refused.endswith("exit 2")
    absent = submit(head, toy, token=toy / "absent")
    assert "cannot be opened or is empty" in absent and absent.endswith("exit 2")
    assert runs(toy) == 0


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_told_of_in_a_bounded_time(monkeypatch):
    from pipeline.ray_runtime import connection, jobs

    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # set by what is tested, and taken back afterwards
    monkeypatch.setattr(jobs, "REQUEST_SECONDS", 0.5)
    monkeypatch.setattr(jobs, "AGAIN_SECONDS", 0.1)
    with socket.create_server(("", 0)) as mute:
        place = f"{local_address()}:{mute.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(ClusterUnreachable, match="does not answer as it should for 1 s"):
            jobs.RayJobs(f"http://{place}", patience=1).find("n-1")
        with pytest.raises(ConfigError, match="no answer within 1 s"):
            connection.knock(place, seconds=1)
        assert time.monotonic() - began < 15
    with pytest.raises(ClusterUnreachable, match="Failed to connect"):
        jobs.RayJobs(f"http://{place}", patience=0).find("n-1")
    with pytest.raises(ConfigError, match=r"no Ray cluster at --address .* start one with"):
        connection.knock(place, seconds=5)
    with pytest.raises(ConfigError, match="dashboard's URL"):
        jobs.RayJobs(place, patience=0)


@pytest.mark.slow
def test_what_is_no_ray_cluster_is_told_of(monkeypatch):
    from pipeline.ray_runtime import jobs

    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")

    class Empty(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Empty) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ClusterUnreachable, match="404"):
            jobs.RayJobs(f"http://127.0.0.1:{server.server_port}", patience=0).find("n-1")
        server.shutdown()
