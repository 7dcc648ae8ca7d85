"""Who can come in: what a run listens on, and what a cluster says to a wrong token."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.head import PATIENCE, RECIPE, Head, environment, running_head
from tests.kill_and_resume import descendants
from tests.small import ROOT

pytestmark = pytest.mark.thorough


def listening(pids: list[int]) -> dict[tuple[str, int], int]:
    """(address in hexadecimal, port) -> pid of all TCP sockets on which these processes listen."""
    owners: dict[str, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    target = os.readlink(descriptor)
                    if target.startswith("socket:["):
                        owners[target[8:-1]] = pid
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in owners:
                address, _, port = fields[1].partition(":")
                found[address, int(port, 16)] = owners[fields[9]]
    return found


@pytest.fixture
def head(request: pytest.FixtureRequest) -> Iterator[Head]:
    """A head started by the recipe with some more options."""
    with running_head(*request.param, name="doors") as running:
        yield running


def dashboard_addresses(head: Head) -> list[str]:
    """Where the dashboard's own port listens, in hexadecimal; its metrics' port is Ray's."""
    pids = [head.process.pid, *descendants(head.process.pid)]
    (port,) = (
        int(part.removeprefix("--port="))
        for pid in pids
        if b"dashboard.py" in (line := Path(f"/proc/{pid}/cmdline").read_bytes())
        for part in line.decode().split("\0")
        if part.startswith("--port=")
    )
    return [host for (host, listened) in listening(pids) if listened == port]


ASK = """
import sys; sys.path.insert(0, {root!r})
from pipeline.config import ClusterConfig
from pipeline.errors import UserError
from pipeline.ray_runtime import RayRuntime
from pipeline.storage import Folder
from pipeline.units import Unit, UnitStore
from tests.benchmarks.orchestration import Silent, make_waiter
import functools
runtime = RayRuntime(ClusterConfig(unit_workers=1), address={address!r})
store = UnitStore(Folder.at({folder!r}), "asked", 1)
try:
    print(len(list(runtime.map_units(store, functools.partial(make_waiter, seconds=0), [Unit("a", {{}})], Silent()))))
except UserError as error:
    print("error:", error)
    sys.exit(error.exit_code)
"""


def ask(address: str, token: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Make one unit on the cluster with this token."""
    script = ASK.format(root=str(ROOT), address=address, folder=str(folder))
    return subprocess.run(
        [sys.executable, "-c", script],
        env=environment(token),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize("head", [()], indirect=True, ids=["with a dashboard"])
def test_the_dashboard_listens_on_this_machine_alone(head):
    dashboards = dashboard_addresses(head)
    assert dashboards and all(it.endswith("0100007F") for it in dashboards), f"it listens on {dashboards}"


@pytest.mark.parametrize("head", [("--include-dashboard=false",)], indirect=True, ids=["without a dashboard"])
def test_the_right_token_works_and_a_wrong_one_ends_in_a_message(head, tmp_path):
    address, token = head.address, head.token
    assert token.stat().st_mode & 0o077 == 0 and len(token.read_text()) == 64
    right = ask(address, token, tmp_path / "units")
    assert right.returncode == 0 and right.stdout.strip() == "1", right.stdout + right.stderr

    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    wrong.chmod(0o600)
    refused = ask(address, wrong, tmp_path / "units")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "refuses the token" in refused.stdout and "Traceback" not in refused.stdout + refused.stderr

    worker = subprocess.run(
        [RECIPE, "worker", address, "--num-cpus=1"],
        env=environment(wrong),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert worker.returncode != 0
    assert "authentication" in (worker.stdout + worker.stderr).lower(), worker.stdout + worker.stderr


def test_a_token_that_others_may_read_is_refused(tmp_path):
    token = tmp_path / "token"
    token.write_text("0" * 64)
    token.chmod(0o644)
    done = subprocess.run([RECIPE, "head"], env=environment(token), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "others may read" in done.stderr
    absent = subprocess.run(
        [RECIPE, "worker", "host:6379"],
        env=environment(tmp_path / "absent"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert absent.returncode == 2 and "copy the head's file there" in absent.stderr
