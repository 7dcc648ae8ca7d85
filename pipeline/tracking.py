"""MLflow's tracking: one parent run for a pipeline run, one child for each stage that runs.

Only the driver writes. A stage that is resumed goes on in its own run, and rows it already published are left out.
A tracker that fails is announced and given up; it never takes the training with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import ConfigError
from pipeline.redaction import redacted
from pipeline.storage import Folder
from pipeline.storage.beside import kept_beside

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

Clock = Callable[[], float]


class StageTracker(Protocol):
    """The tracker's view of one running stage."""

    run_id: str | None

    def history(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Publish measured rows, each with its `step`; rows already there are left out."""

    def picture(self, name: str, data: bytes, step: int) -> None:
        """Keep a PNG."""

    def finish(self, status: str, metrics: Mapping[str, Any], files: Sequence[Path]) -> None:
        """End the run as FINISHED, FAILED or KILLED with its last metrics and some files."""


class Tracker(Protocol):
    """Records what a pipeline run does."""

    def begin(self, name: str, config_text: str, tags: Mapping[str, str]) -> None:
        """Open the parent run."""

    def stage(
        self, name: str, params: Mapping[str, Any], inputs: Mapping[str, str], run_id: str | None
    ) -> StageTracker:
        """Open a stage's run, or go on in `run_id`."""

    def end(self, status: str) -> None:
        """Close the parent run."""


@dataclass
class NullTracker:
    """Tracks nothing; both a tracker and a stage's tracker."""

    run_id: str | None = None

    def begin(self, name: str, config_text: str, tags: Mapping[str, str]) -> None:
        """Nothing."""

    def stage(
        self, name: str, params: Mapping[str, Any], inputs: Mapping[str, str], run_id: str | None
    ) -> StageTracker:
        """Return itself."""
        return NullTracker(run_id)

    def end(self, status: str) -> None:
        """Nothing."""

    def history(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Nothing."""

    def picture(self, name: str, data: bytes, step: int) -> None:
        """Nothing."""

    def finish(self, status: str, metrics: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Nothing."""


def tracking_uri(uri: str | None, workdir: Folder) -> str:
    """Return the tracking URI: the given one, or SQLite inside a local workdir, or beside one behind a URL."""
    return uri if uri is not None else f"sqlite:///{kept_beside(workdir).url}/mlflow.db"


def quiet_client(uri: str) -> MlflowClient:
    """Return a client that sends no telemetry and says no more than warnings."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    for chatty in ("alembic", "mlflow.store", "mlflow.tracking", "mlflow.pyfunc"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def experiment_of(client: MlflowClient, name: str, uri: str, artifacts: Folder) -> str:
    """Return the id of the experiment of this name, made where there is none; `artifacts` is for an SQLite's files."""
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    location = artifacts.path.as_uri() if uri.startswith("sqlite") else None
    return str(client.create_experiment(name, artifact_location=location))


@dataclass
class MlflowTracker:
    """Writes runs to MLflow."""

    uri: str
    experiment: str
    artifacts: Folder
    warn: Callable[[str], None]
    _client: MlflowClient | None = None
    _experiment_id: str = ""
    _parent: str = ""
    _workdir: str = ""

    def begin(self, name: str, config_text: str, tags: Mapping[str, str]) -> None:
        """Open the parent run; runs of this workdir that a killed driver left running are closed as KILLED."""
        with _tolerating(self.warn):
            self._client = self._connect()
            self._workdir = tags["smalti.workdir"]
            stale = self._client.search_runs(
                [self._experiment_id],
                filter_string=f"attributes.status = 'RUNNING' and tags.`smalti.workdir` = '{tags['smalti.workdir']}'",
            )
            for run in stale:
                self._client.set_terminated(run.info.run_id, "KILLED")
            shown = {key: redacted(value) for key, value in tags.items()} | {"smalti.kind": "pipeline"}
            run = self._client.create_run(self._experiment_id, run_name=name, tags=shown)
            self._parent = run.info.run_id
            self._client.log_text(self._parent, redacted(config_text), "config.yaml")

    def stage(
        self, name: str, params: Mapping[str, Any], inputs: Mapping[str, str], run_id: str | None
    ) -> StageTracker:
        """Open a child run of the parent with the stage's config as parameters and its inputs' digests as lineage."""
        if self._client is None:
            return NullTracker(run_id)  # it could not begin, and said so
        with _tolerating(self.warn):
            if run_id is not None:
                with contextlib.suppress(Exception):  # the tracker's files may have been removed since
                    self._client.update_run(run_id, status="RUNNING")
                    return _MlflowStage(self._client, run_id, self.warn)
            tags = {"mlflow.parentRunId": self._parent, "smalti.kind": "stage", "smalti.stage": name}
            tags["smalti.workdir"] = self._workdir
            tags |= {f"smalti.input.{key}": digest for key, digest in inputs.items()}
            run = self._client.create_run(self._experiment_id, run_name=name, tags=tags)
            self._log_inputs(run.info.run_id, inputs)
            self._client.log_batch(run.info.run_id, params=_params(params))
            return _MlflowStage(self._client, run.info.run_id, self.warn)
        return NullTracker(run_id)

    def end(self, status: str) -> None:
        """Close the parent run."""
        if self._client is not None and self._parent:
            with _tolerating(self.warn):
                self._client.set_terminated(self._parent, status)

    def _connect(self) -> MlflowClient:
        client = quiet_client(self.uri)
        self._experiment_id = experiment_of(client, self.experiment, self.uri, self.artifacts)
        return client

    def _log_inputs(self, run_id: str, inputs: Mapping[str, str]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        assert self._client is not None
        datasets = [
            DatasetInput(
                Dataset(name=name, digest=digest[:36], source_type="artifact", source=f"{name}:{digest}"),
                [InputTag("mlflow.data.context", "input")],
            )
            for name, digest in inputs.items()
        ]
        self._client.log_inputs(run_id, datasets)


@dataclass
class _MlflowStage:
    client: MlflowClient
    run_id: str | None
    warn: Callable[[str], None]
    _last_step: int | None = None

    def history(self, rows: Sequence[Mapping[str, float]]) -> None:
        from mlflow.entities import Metric

        with _tolerating(self.warn):
            now, last = int(time.time() * 1000), self._published()
            new = [row for row in rows if row["step"] > last]
            metrics = [
                Metric(key, float(value), now, int(row["step"]))
                for row in new
                for key, value in row.items()
                if key != "step"
            ]
            for start in range(0, len(metrics), 1000):
                self.client.log_batch(self.run_id, metrics=metrics[start : start + 1000])
            if new:
                self._last_step = int(new[-1]["step"])
                self.client.set_tag(self.run_id, "smalti.last_step", str(self._last_step))

    def picture(self, name: str, data: bytes, step: int) -> None:
        import tempfile

        with _tolerating(self.warn), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}-{step:06d}.png"
            path.write_bytes(data)
            self.client.log_artifact(self.run_id, str(path), "pictures")

    def finish(self, status: str, metrics: Mapping[str, Any], files: Sequence[Path]) -> None:
        with _tolerating(self.warn):
            for key, value in metrics.items():
                if isinstance(value, int | float):
                    self.client.log_metric(self.run_id, f"final/{key}", float(value))
            for path in files:
                self.client.log_artifact(self.run_id, str(path))
            self.client.set_terminated(self.run_id, status)

    def _published(self) -> int:
        """Return the last step that was published, asking the tracker once: an earlier driver may have."""
        if self._last_step is None:
            tags = self.client.get_run(self.run_id).data.tags
            self._last_step = int(tags.get("smalti.last_step", -1))
        return self._last_step


def _params(params: Mapping[str, Any]) -> list[Any]:
    from mlflow.entities import Param

    return [Param(key, redacted(str(value))[:500]) for key, value in params.items()]


@contextlib.contextmanager
def _tolerating(warn: Callable[[str], None]) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # whatever the tracker's client raises must not end a night's training
        log.exception("tracking failed")
        warn(f"tracking failed, the run goes on without it: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
