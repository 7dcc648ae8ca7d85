import pytest

from pipeline.storage import Folder
from pipeline.tracking import MlflowTracker, tracking_uri

pytestmark = pytest.mark.slow


def test_a_resumed_stage_goes_on_in_its_own_run_without_gap_or_overlap(tmp_path):
    from mlflow import MlflowClient

    home, said = Folder.at(tmp_path), []
    uri = tracking_uri(None, home)
    first = MlflowTracker(uri, "smalti", home / "mlflow", said.append)
    first.begin("emoji", "a: 1\n", {"smalti.workdir": str(home)})
    stage = first.stage("prior", {"learning_rate": 0.1}, {"tokens": "ab" * 32}, None)
    stage.history([{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}])
    # the driver is killed here; the next one resumes from the checkpoint of step 2 and sends all rows again
    second = MlflowTracker(uri, "smalti", home / "mlflow", said.append)
    second.begin("emoji", "a: 1\n", {"smalti.workdir": str(home)})
    again = second.stage("prior", {"learning_rate": 0.1}, {"tokens": "ab" * 32}, stage.run_id)
    assert again.run_id == stage.run_id
    again.history([{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 1.0}])
    again.picture("grid", b"png", 3)
    (tmp_path / "report.json").write_text("{}")
    again.finish("FINISHED", {"bits": 1.5}, [tmp_path / "report.json"])
    second.end("FINISHED")

    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(stage.run_id)
    assert [(m.step, m.value) for m in client.get_metric_history(stage.run_id, "loss")] == [
        (1, 3.0),
        (2, 2.0),
        (3, 1.0),
    ]
    assert run.data.metrics["final/bits"] == 1.5
    assert run.data.params == {"learning_rate": "0.1"}
    assert run.data.tags["smalti.input.tokens"] == "ab" * 32
    assert run.inputs.dataset_inputs[0].dataset.name == "tokens"
    assert {item.path for item in client.list_artifacts(stage.run_id)} == {"pictures", "report.json"}
    parents = client.search_runs(["1"], "tags.`smalti.kind` = 'pipeline'", order_by=["attributes.start_time ASC"])
    assert [run.info.status for run in parents] == ["KILLED", "FINISHED"]
    assert said == []


def test_a_tracker_that_fails_is_announced_and_does_not_end_the_run(tmp_path):
    said = []
    tracker = MlflowTracker("sqlite:////proc/absent/mlflow.db", "smalti", Folder.at(tmp_path), said.append)
    tracker.begin("emoji", "", {"smalti.workdir": "x"})
    stage = tracker.stage("prior", {}, {}, None)
    stage.history([{"step": 1, "loss": 3.0}])
    assert len(said) >= 1
    assert "tracking failed, the run goes on without it" in said[0]


def test_a_remote_workdir_is_tracked_in_a_folder_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("SMALTI_STATE_DIR", str(tmp_path))
    uri = tracking_uri(None, Folder.at("s3://bucket/runs"))
    assert uri.startswith(f"sqlite:///{tmp_path}/s3-bucket-runs-")
    assert uri != tracking_uri(None, Folder.at("s3://bucket/other"))
    assert tracking_uri("http://127.0.0.1:5000", Folder.at("s3://bucket/runs")) == "http://127.0.0.1:5000"
