"""A small week of retraining, each day a process of its own."""

import subprocess
import sys

import pytest

from tests.small import ROOT


@pytest.mark.thorough
def test_a_small_week_is_as_it_must_be():
    command = [sys.executable, "-m", "tests.week", "--small"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if line.lstrip()[:1].isdigit()] == list("1234567")
    assert lines[-1].endswith("all as it must be")
