import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

MAIN = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
from pipeline.config import load_config
from pipeline.session import Options, run_session
from tests.pipeline import toy
{extra}
options = Options(stages="all", workdir={workdir!r}, name="toy", force=(), dry_run={dry!r}, status=False, verify=False,
                  runtime="local", address="local", tracking=False, command="python toy.py")
sys.exit(run_session(options, lambda: load_config(toy.ToyConfig, Path({config!r}), sys.argv[1:]), toy.build))
"""


@pytest.fixture
def call(numbers, tmp_path):
    """Return a function that starts the toy's command line."""
    config = tmp_path / "toy.yaml"
    config.write_text(f"folder: {numbers}\n")

    def start(*overrides: str, extra: str = "", dry: bool = False) -> subprocess.Popen[str]:
        script = MAIN.format(
            root=str(Path.cwd()),
            workdir=str(tmp_path / "runs"),
            config=str(config),
            dry=dry,
            extra=textwrap.dedent(extra),
        )
        command = [sys.executable, "-c", script, *overrides]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


SLOW = """
import time
from pipeline.errors import Interrupted
def slow(config, *, cut, output, runtime):
    print("working", flush=True)
    for i in range(200):
        time.sleep(0.05)
        if runtime.reporter.stopping():
            output.write("kept.txt", b"1")
            raise Interrupted
    return {}
toy.total = slow
"""


def test_the_summary_lists_every_stage_and_a_second_run_skips_all(call):
    first, _ = (process := call()).communicate()
    assert process.returncode == 0
    assert "ran" in first
    assert "total 20" in first
    second, _ = (process := call()).communicate()
    assert process.returncode == 0
    assert "nothing to do" in second
    assert second.count("skipped") == 2


def test_dry_run_says_what_would_happen_and_writes_nothing(call, tmp_path):
    text, _ = call(dry=True).communicate()
    assert "never finished here" in text
    assert "waits for cut" in text
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("override", "code", "words"),
    [
        ("total.factr=2", 2, "did you mean factor?"),
        ("total.steps=many", 2, "total.steps"),
        ("folder=/absent", 3, "/absent does not exist"),
    ],
)
def test_mistakes_end_in_a_message_and_the_right_exit_code(call, override, code, words):
    process = call(override)
    text, errors = process.communicate()
    assert process.returncode == code
    assert words in text
    assert "Traceback" not in text + errors


def test_a_second_driver_is_told_who_holds_the_workdir(call):
    first = call(extra=SLOW)
    assert first.stdout is not None
    while "working" not in first.stdout.readline():
        pass
    second = call("total.factor=5")
    text, _ = second.communicate()
    assert second.returncode == 75
    assert f"in use by process {first.pid}" in text
    first.kill()
    first.communicate()
    third = call()
    third.communicate()
    assert third.returncode == 0, "a killed run leaves no stale lock"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_let_the_work_leave_at_a_safe_point(call, tmp_path, number, code):
    process = call(extra=SLOW)
    assert process.stdout is not None
    while "working" not in process.stdout.readline():
        pass
    time.sleep(0.2)
    process.send_signal(number)
    text, errors = process.communicate()
    assert process.returncode == code
    assert "resume   python toy.py" in text
    assert "Traceback" not in errors
    assert len(list((tmp_path / "runs/total").glob("*/kept.txt"))) == 1


def test_a_bug_shows_its_traceback_and_how_to_go_on(call, monkeypatch):
    monkeypatch.setenv("TOY_FAIL", "1")
    process = call()
    text, errors = process.communicate()
    assert process.returncode == 1
    assert "a bug in the toy" in errors
    assert "resume   python toy.py" in text
