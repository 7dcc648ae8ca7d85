"""Bundles as versions in MLflow's registry: a real SQLite, a real client. Loading them: tests/test_serve_model.py."""

import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from pipeline.storage import Folder, content_hash
from pipeline.versions.checksums import SUMS, sums_text
from pipeline.versions.model_registry import CHALLENGER, CHAMPION, FINGERPRINT, ModelRegistry

SERVING = {
    "inputs": [
        {"name": "label", "type": "string", "required": False},
        {"name": "seed", "type": "long", "required": True},
    ],
    "outputs": [{"name": "png", "type": "string", "required": True}],
    "example": {"label": "flags", "seed": 3},
    "packages": ["numpy", "pyyaml"],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Where one database is made for all tests: that takes seconds."""
    return tmp_path_factory.mktemp("registry")


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "publish" / "bundle"
    home.mkdir(parents=True)
    (home / "serving.json").write_text(json.dumps(SERVING))
    (home / "weights.bin").write_bytes(b"\x00" * 1000)
    (home / SUMS).write_text(sums_text({name: content_hash(home / name) for name in ("serving.json", "weights.bin")}))
    (home / "stray.txt").write_text("not listed")
    return Folder.at(home)


@pytest.mark.thorough
def test_a_bundle_is_registered_once_and_aliases_move(store, folder, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SERVICE_TOKEN", "canary-canary")
    said: list[str] = []
    uri, files = f"sqlite:///{store}/mlflow.db", Folder.at(store / "mlflow")
    registry = ModelRegistry(uri, "emoji", "smalti", files, said.append)
    assert registry.aliases() == {}
    first = registry.register(folder, "a" * 64, {"verdict": "champion", "note": "with canary-canary"})
    again = ModelRegistry(uri, "emoji", "smalti", files, said.append)
    assert (first, again.register(folder, "a" * 64, {})) == (1, 1)
    assert registry.register(folder, "b" * 64, {}) == 2
    assert registry.set_alias(CHAMPION, 1)
    assert registry.set_alias(CHALLENGER, 2)
    assert again.aliases() == {CHAMPION: 1, CHALLENGER: 2}
    assert again.set_alias(CHAMPION, 2)
    assert registry.aliases() == {CHAMPION: 2, CHALLENGER: 2}
    assert said == []

    client = MlflowClient(tracking_uri=uri)
    version = client.get_model_version("emoji", "1")
    assert version.tags == {"verdict": "champion", "note": "with ***", FINGERPRINT: "a" * 64}
    assert client.get_run(version.run_id).info.status == "FINISHED"
    home = Path(urlsplit(version.source).path)
    assert home.parents[2] == store / "mlflow"
    assert client.get_logged_model(home.parent.name).source_run_id == version.run_id
    kept = {path.name for path in (home / "data/bundle").iterdir()}
    assert kept == {"serving.json", "weights.bin", SUMS}
    described = yaml.safe_load((home / "MLmodel").read_text())
    assert described["flavors"]["python_function"]["loader_module"] == "stages.publishing.pyfunc"
    assert [column["name"] for column in json.loads(described["signature"]["inputs"])] == ["label", "seed"]
    requirements = (home / "requirements.txt").read_text().split()
    assert [line.partition("==")[0] for line in requirements if line.startswith(("numpy", "pyyaml"))] == [
        "numpy",
        "pyyaml",
    ]
    assert (home / "code/stages/publishing/pyfunc.py").is_file()
    assert (home / "code/pipeline/versions/checksums.py").is_file()
    assert not [path for path in home.rglob("*") if path.suffix in (".pkl", ".pickle", ".pyc")]
    assert [path.name for path in tmp_path.iterdir()] == ["publish"], "nothing where the process happens to be"


@pytest.mark.thorough
def test_a_damaged_bundle_is_not_registered(store, folder):
    said: list[str] = []
    files = Folder.at(store / "mlflow")
    registry = ModelRegistry(f"sqlite:///{store}/mlflow.db", "other", "smalti", files, said.append)
    (folder.path / "weights.bin").write_bytes(b"\x01" * 1000)
    assert registry.register(folder, "a" * 64, {}) is None
    assert "weights.bin has sha256" in said[0]
    assert registry.set_alias(CHAMPION, 1) is False
    assert "naming version 1 champion failed" in said[1]


@pytest.mark.slow
def test_a_registry_that_fails_is_announced_and_ends_nothing(tmp_path, folder):
    said: list[str] = []
    registry = ModelRegistry("sqlite:////proc/absent/mlflow.db", "emoji", "smalti", Folder.at(tmp_path), said.append)
    assert registry.register(folder, "a" * 64, {}) is None
    assert registry.set_alias(CHAMPION, 1) is False
    assert registry.aliases() == {}
    assert [line.partition(", the run goes on without it: ")[0] for line in said] == [
        "MLflow's registry: registering failed",
        "MLflow's registry: naming version 1 champion failed",
        "MLflow's registry: reading aliases failed",
    ]


@pytest.mark.slow
def test_a_registry_loads_nothing_before_it_is_asked():
    script = (
        "import sys, pipeline.versions.model_registry, pipeline.telling.notify; "
        "print(sorted({'mlflow', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
