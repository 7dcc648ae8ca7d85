"""The whole pipeline, as a person runs it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kill_and_resume import digests, run_with_kills
from tests.pictures import draw_picture, draw_pictures
from tests.small import COMMAND, ROOT, small_config

pytestmark = pytest.mark.slow


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, a config and the workdir of a run in one process; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("finished")
    draw_pictures(folder / "pictures", 120)
    config = small_config(folder)
    done = run("--config", str(config), "--workdir", str(folder / "runs"), "--runtime", "local", "--no-tracking")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    shutil.copytree(finished / "runs", tmp_path / "runs", symlinks=True)
    (tmp_path / "pictures").symlink_to(finished / "pictures")
    return tmp_path


def arguments(place: Path, **sections: dict[str, object]) -> list[str]:
    config = small_config(place, pictures=(place / "pictures").resolve(), **sections)
    return ["--config", str(config), "--workdir", str(place / "runs"), "--runtime", "local", "--no-tracking"]


def ran(done: subprocess.CompletedProcess[str]) -> set[str]:
    assert done.returncode == 0, done.stdout + done.stderr
    return {line.split(":")[0] for line in done.stdout.splitlines() if ": runs, " in line}


def test_the_pipeline_runs_through_ray_and_a_second_run_has_nothing_to_do(finished, tmp_path):
    shutil.copytree(finished / "pictures", tmp_path / "pictures", copy_function=shutil.copy2)
    config = small_config(tmp_path, cluster={"unit_workers": 2})
    command = ["--config", str(config), "--workdir", str(tmp_path / "runs")]
    first = run(*command)
    assert ran(first) == {"shard", "tokenizer", "encode", "prior", "sample", "evaluate", "publish"}
    assert "report.html" in first.stdout
    assert digests(tmp_path / "runs") == digests(finished / "runs"), "two workers make the bytes that one process makes"

    script = "import runpy, sys; sys.argv = sys.argv[1:]\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    script += "finally: print('heavy', [m for m in ('ray', 'torch', 'mlflow', 'pyarrow') if m in sys.modules])"
    second = subprocess.run(
        [sys.executable, "-c", script, COMMAND[1], *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "nothing to do" in second.stdout
    assert "heavy []" in second.stdout

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/runs/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("smalti").experiment_id])
    parents = [run for run in runs if run.data.tags["smalti.kind"] == "pipeline"]
    assert len(parents) == 1, "a run that did nothing is not tracked"
    children = {run.data.tags["smalti.stage"]: run for run in runs if run.data.tags["smalti.kind"] == "stage"}
    assert len(children) == 7
    assert all(run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id for run in children.values())
    steps = [m.step for m in client.get_metric_history(children["prior"].info.run_id, "validation/bits_per_token")]
    assert steps == [10, 20, 30]
    assert any(item.path == "report.html" for item in client.list_artifacts(children["evaluate"].info.run_id))


@pytest.mark.thorough
def test_kills_at_random_moments_change_nothing(finished, tmp_path):
    shutil.copytree(finished / "pictures", tmp_path / "pictures", copy_function=shutil.copy2)
    lines, code = run_with_kills(arguments(tmp_path), kills=3, longest=25, seed=7)
    assert code == 0, lines[-1]
    assert digests(tmp_path / "runs") == digests(finished / "runs")


def test_one_prior_key_reruns_prior_sample_and_evaluate(place):
    before = digests(place / "runs")
    assert ran(run(*arguments(place, prior={"learning_rate": 5e-4}))) == {"prior", "sample", "evaluate", "publish"}
    after = digests(place / "runs")
    assert {name for name in after if after[name] != before[name]} == {"prior", "sample", "evaluate", "publish"}


def test_raising_num_samples_draws_only_the_new_ones(place):
    before = json.loads((place / "runs/sample/latest/manifest.json").read_text())["units"]
    done = run(*arguments(place, sample={"num_samples": 24}), "--stages", "sample")
    assert ran(done) == {"sample"}
    manifest = json.loads((place / "runs/sample/latest/manifest.json").read_text())
    assert manifest["notes"]["units_reused"] == 2
    assert manifest["units"][:2] == before
    assert len(manifest["units"]) == 3


def test_new_pictures_make_only_new_shards_and_tokens(place):
    old = {
        stage: json.loads((place / f"runs/{stage}/latest/manifest.json").read_text())["units"]
        for stage in ("shard", "encode")
    }
    added = [draw_picture(place / "pictures", number) for number in range(5000, 5020)]
    done = run(*arguments(place, tokenizer={"policy": "keep"}), "--stages", "shard..encode")
    for path in added:
        path.unlink()
    assert ran(done) == {"shard", "encode"}, done.stdout
    assert "kept" in done.stdout
    for stage, count in (("shard", "samples"), ("encode", "pictures")):
        units = json.loads((place / f"runs/{stage}/latest/manifest.json").read_text())["units"]
        assert [unit for unit in units if unit in old[stage]] == old[stage]
        assert len(units) > len(old[stage])
        assert sum(unit["counts"][count] for unit in units) == 140


def test_steps_can_be_raised_and_training_goes_on(place):
    done = run(*arguments(place, tokenizer={"steps": 30}), "--stages", "tokenizer")
    assert ran(done) == {"tokenizer"}
    rows = [json.loads(line) for line in (place / "runs/tokenizer/latest/history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/reconstruction" in row] == list(range(2, 31, 2))
    assert "tokenizer: 26/30" in done.stdout, "it started from the checkpoint of step 24"


def test_shards_and_tables_are_read_by_the_plain_libraries(finished):
    import pandas
    import pyarrow.parquet
    import webdataset

    tars = sorted(str(path) for path in (finished / "runs/shard/latest").glob("train-*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("pil"))
    assert all(sample["png"].size == (32, 32) for sample in samples)
    tables = sorted((finished / "runs/encode/latest").glob("train-*.parquet"))
    frame = pandas.concat([pandas.read_parquet(path) for path in tables])
    assert list(frame["key"]) == [sample["__key__"] for sample in samples]
    assert all(len(tokens) == 16 and max(tokens) < 32 for tokens in frame["tokens"])
    metadata = pyarrow.parquet.read_schema(tables[0]).metadata
    assert metadata[b"tokenizer"].decode() == digests(finished / "runs")["tokenizer"]


def test_an_unfinished_input_and_a_damaged_file_are_explained(place):
    text = run(*arguments(place), "--verify")
    assert text.returncode == 0
    assert "all as they were written" in text.stdout
    weights = place / "runs/prior/latest/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    text = run(*arguments(place), "--verify")
    assert text.returncode == 1
    assert "model.safetensors differs" in text.stdout
    text = run(*arguments(place), "--workdir", str(place / "empty"), "--stages", "prior")
    assert text.returncode == 2
    assert "prior needs encode, which is not finished" in text.stdout
