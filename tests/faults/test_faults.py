"""The experiments with faults, small enough for the suite; their commands say how to run them in full."""

import os
import subprocess
import sys

import pytest

from tests.faults.trace import SUPPORTED
from tests.kill_and_resume import STAGES
from tests.small import ROOT

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")


def command(*words: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not SUPPORTED, reason="Linux on x86-64")
def test_nothing_partial_is_accepted_after_a_kill_or_a_power_cut_inside_a_commit():
    assert "6 kill points, 18 disks reopened, 0 accepted or ended wrongly" in command(
        "tests.faults.commit_points", "--points", "6"
    )


@pytest.mark.thorough
@pytest.mark.skipif(not SUPPORTED, reason="Linux on x86-64")
def test_every_kill_point_of_the_commits():
    assert "0 accepted or ended wrongly" in command("tests.faults.commit_points", "--points", "210")


@pytest.mark.thorough
def test_kills_in_every_stage_change_nothing():
    text = command("tests.kill_and_resume", "--in-each-stage", "5")
    assert [line.split()[4] for line in text.splitlines()[1:]] == ["0"] * len(STAGES)


@pytest.mark.thorough
@as_root
def test_full_and_forbidden_disks_are_explained_and_the_same_command_goes_on():
    assert "0 not as promised" in command("tests.faults.full_disk")


@pytest.mark.thorough
def test_signals_edits_memory_and_the_clock():
    assert command("tests.faults.moments").count("as promised") == 7


@pytest.mark.thorough
def test_minutes_of_chaos_break_nothing():
    assert " 0 violations" in command("tests.chaos", "--minutes", "4", "--seed", "3")
