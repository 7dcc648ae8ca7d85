"""No secret reaches anything that is written."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.redaction import redacted, refuse_secrets
from pipeline.storage import Folder
from pipeline.tracking import MlflowTracker, tracking_uri

CANARIES = tuple(f"canary{number}Q7x9" for number in range(5))
ENVIRONMENT = {"AWS_SECRET_ACCESS_KEY": CANARIES[0], "MLFLOW_TRACKING_PASSWORD": CANARIES[1]}
URL = f"http://reader:{CANARIES[2]}@127.0.0.1:9/?token={CANARIES[3]}"

MAIN = """
import logging, os, sys; sys.path.insert(0, {root!r})
from pipeline.config import load_config
from pipeline.session import Options, run_session
from tests.pipeline import toy
from pathlib import Path

def careless(config, *, cut, output, runtime):
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    output.warn(f"signed with {{secret}}")
    logging.getLogger("stages.careless").warning("asking %s with %s", "https://u:{hook}@host/x", secret)
    if os.environ.get("TOY_FAIL"):
        raise RuntimeError(f"refused: {{secret}}")
    return {{}}

toy.total = careless
options = Options(stages="all", workdir={workdir!r}, name="toy", force=(), dry_run=False, status=False, verify=False,
                  runtime="local", address="local", tracking=True, command={command!r})
sys.exit(run_session(options, lambda: load_config(toy.ToyConfig, Path({config!r}), sys.argv[1:]), toy.build))
"""


def call(tmp_path: Path, numbers: Path, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    config = tmp_path / "toy.yaml"
    config.write_text(f"folder: {numbers}\n")
    places = {
        "root": str(Path.cwd()),
        "workdir": str(tmp_path / "runs"),
        "config": str(config),
        "command": f"python toy.py tracking.uri={URL}",
    }
    script = MAIN.format(**places, hook=CANARIES[4])
    quick = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "PATH": "/usr/bin:/bin", "TOY_FOLDER": str(numbers)}
    return subprocess.run(
        [sys.executable, "-c", script, *overrides],
        env={**ENVIRONMENT, **quick, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def leaks(folder: Path, *texts: str) -> list[str]:
    """Every place that holds a canary."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    found = [f"{path}: {canary}" for path in files for canary in CANARIES if canary.encode() in path.read_bytes()]
    return found + [f"said: {canary}" for text in texts for canary in CANARIES if canary in text]


@pytest.mark.thorough
def test_a_careless_run_writes_and_says_no_secret(tmp_path, numbers):
    done = call(tmp_path, numbers, f"tracking.uri={URL}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tracking failed, the run goes on" in done.stdout, "nobody listens there"
    log = next((tmp_path / "runs/logs").iterdir()).read_text()
    assert "asking https://***@host/x with ***" in log
    assert "signed with ***" in (tmp_path / "runs/total/latest/manifest.json").read_text()
    assert leaks(tmp_path / "runs", done.stdout, done.stderr) == []


@pytest.mark.slow
def test_a_failing_run_with_a_tracker_keeps_secrets_out_of_database_log_and_screen(tmp_path, numbers):
    done = call(tmp_path, numbers, TOY_FAIL="1")
    assert done.returncode == 1
    assert "refused: ***" in done.stdout and "Traceback" in done.stderr
    assert "resume   python toy.py tracking.uri=http://***@127.0.0.1:9/?token=***" in done.stdout
    assert (tmp_path / "runs/mlflow.db").stat().st_size > 0
    assert leaks(tmp_path / "runs", done.stdout, done.stderr) == []


@pytest.mark.slow
def test_the_trackers_copy_of_config_and_command_has_no_secret(tmp_path):
    home = Folder.at(tmp_path)
    tracker = MlflowTracker(tracking_uri(None, home), "smalti", home / "mlflow", print)
    tracker.begin("emoji", f"tracking:\n  uri: {URL}\n", {"smalti.workdir": str(home), "smalti.command": f"run {URL}"})
    tracker.stage("prior", {"hook": URL}, {}, None).finish("FINISHED", {}, [])
    tracker.end("FINISHED")
    (config,) = tmp_path.glob("mlflow/*/artifacts/config.yaml")
    assert config.read_text() == "tracking:\n  uri: http://***@127.0.0.1:9/?token=***\n"
    for path in (it for it in tmp_path.rglob("*") if it.is_file()):
        assert not any(canary.encode() in path.read_bytes() for canary in CANARIES), path


@pytest.mark.parametrize(
    "settings",
    [
        {"--workdir": f"s3://key:{CANARIES[2]}@bucket/runs"},
        {"shard": {"source": {"path": f"https://{CANARIES[2]}@host/pictures"}}},
        {"shard": {"source": {"paths": ["/plain", f"https://host/x.tar?X-Amz-Signature={CANARIES[3]}"]}}},
    ],
)
def test_secrets_in_what_manifests_keep_are_refused_without_being_repeated(settings):
    with pytest.raises(ConfigError, match="through the environment") as caught:
        refuse_secrets(settings)
    assert not any(canary in str(caught.value) for canary in CANARIES)


@pytest.mark.parametrize(
    "text",
    ["/data/birds@home", "s3://bucket/a@b.png", "https://host/x?page=3#top", "sqlite:////runs/mlflow.db", "a: b@c"],
)
def test_what_is_no_secret_stays_as_it_is(text):
    refuse_secrets({"path": text})
    assert redacted(text) == text


def test_only_variables_named_for_a_secret_are_hidden(monkeypatch):
    monkeypatch.setenv("SERVICE_TOKEN", "0123456789")
    monkeypatch.setenv("SERVICE_TOKEN_FILE", "/etc/some/file")
    monkeypatch.setenv("MY_TOKEN_MODE", "permissive")
    monkeypatch.setenv("SHORT_TOKEN", "true")
    assert redacted("0123456789 /etc/some/file permissive true") == "*** /etc/some/file permissive true"
