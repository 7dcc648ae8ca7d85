"""Published bundles as versions of a model in MLflow's registry, where `models:/NAME@champion` finds the one in use.

A mirror: what a run decides by is kept in the workdir. A registry that fails is announced and given up; it never takes
the run with it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.redaction import redacted
from pipeline.storage import Folder
from pipeline.tracking import experiment_of, quiet_client
from pipeline.versions.checksums import copy_checked

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

CHAMPION, CHALLENGER = "champion", "challenger"
"""Aliases: the version in use, and the version made last."""
FINGERPRINT = "smalti.publish"
"""The tag that says which publish artifact a version is, so that none is registered twice."""
LOADER = "stages.publishing.pyfunc"
"""The module that MLflow imports to serve a version, from the code that is registered with it."""
SERVING = "serving.json"
"""A bundle's own description of the table it takes and gives."""


@dataclass
class ModelRegistry:
    """A registered model and its versions."""

    uri: str
    """Of the tracking server, or of the SQLite, that holds the registry too."""
    name: str
    """Of the registered model."""
    experiment: str
    """In which the models' files are kept."""
    artifacts: Folder
    """Where MLflow keeps files when `uri` is an SQLite."""
    warn: Callable[[str], None]
    _client: MlflowClient | None = None

    def register(
        self, bundle: Folder, fingerprint: str, tags: Mapping[str, str], run_id: str | None = None
    ) -> int | None:
        """Register a published bundle and return its version; None where that failed, which is announced.

        The version that already carries this fingerprint is returned as it is. What is registered can be loaded
        anywhere: the bundle's listed files, each verified, and this checkout's code; nothing is pickled, nothing is
        executed and no network is asked, except for the registry's own. `run_id` is the tracker's run that published,
        see the artifact's notes; without one the version gets a run of its own.
        """
        with self._tolerating("registering"):
            client = self._connected()
            known = self._version_of(client, fingerprint)
            if known is None:
                told = {key: redacted(value) for key, value in tags.items()} | {FINGERPRINT: fingerprint}
                known = self._register(client, bundle, told, run_id)
            return known
        return None

    def set_alias(self, alias: str, version: int) -> bool:
        """Let an alias name a version; False where that failed, which is announced."""
        with self._tolerating(f"naming version {version} {alias}"):
            self._connected().set_registered_model_alias(self.name, alias, str(version))
            return True
        return False

    def aliases(self) -> dict[str, int]:
        """Return alias -> version; empty where nothing is registered, or the registry fails, which is announced."""
        with self._tolerating("reading aliases"):
            client = self._connected()
            found = client.search_registered_models(f"name = '{self.name}'")
            # A search leaves aliases out on some stores.
            known = client.get_registered_model(self.name).aliases if found else {}
            return {alias: int(version) for alias, version in known.items()}
        return {}

    def _version_of(self, client: MlflowClient, fingerprint: str) -> int | None:
        found = client.search_model_versions(f"name = '{self.name}' and tags.`{FINGERPRINT}` = '{fingerprint}'")
        return max((int(version.version) for version in found), default=None)

    def _register(self, client: MlflowClient, bundle: Folder, tags: dict[str, str], run_id: str | None) -> int:
        if not client.search_registered_models(f"name = '{self.name}'"):
            client.create_registered_model(self.name)
        experiment = experiment_of(client, self.experiment, self.uri, self.artifacts)
        # Of a version without a run MLflow 3.17 asks the process's default tracker, whatever this client's is.
        run = run_id or client.create_run(experiment, run_name="publish", tags=tags).info.run_id
        model = client.create_logged_model(experiment, self.name, source_run_id=run, tags=tags, model_type="pyfunc")
        status = "FAILED"
        try:
            with tempfile.TemporaryDirectory(prefix="smalti-") as scratch:
                copy_checked(bundle, Path(scratch) / "bundle")
                _save(Path(scratch) / "bundle", Path(scratch) / "model", model)
                client.log_model_artifacts(model.model_id, str(Path(scratch) / "model"))
            status = "READY"
        finally:
            client.finalize_logged_model(model.model_id, status)
            if run_id is None:
                client.set_terminated(run, "FINISHED" if status == "READY" else "FAILED")
        version = client.create_model_version(
            self.name, source=model.artifact_location, run_id=run, tags=tags, model_id=model.model_id
        )
        return int(version.version)

    def _connected(self) -> MlflowClient:
        if self._client is None:
            self._client = quiet_client(self.uri)
        return self._client

    @contextlib.contextmanager
    def _tolerating(self, act: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever MLflow's client raises must not end a run that has published
            log.exception("%s failed", act)
            reason = redacted(f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}")
            self.warn(f"MLflow's registry: {act} failed, the run goes on without it: {reason}")


def _save(bundle: Path, target: Path, model: Any) -> None:
    """Write the folder that MLflow serves: bundle, code, requirements and signature."""
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import ColSpec, Schema

    serving = json.loads((bundle / SERVING).read_bytes())
    sides = [
        Schema([ColSpec(column["type"], column["name"], required=column["required"]) for column in serving[side]])
        for side in ("inputs", "outputs")
    ]
    root = Path(__file__).resolve().parents[2]
    save_model(
        path=str(target),
        mlflow_model=Model(artifact_path=model.artifact_location, model_uuid=model.model_id, model_id=model.model_id),
        loader_module=LOADER,
        data_path=str(bundle),
        code_paths=[str(root / room) for room in ("pipeline", "stages")],
        signature=ModelSignature(*sides),
        input_example=[serving["example"]],
        pip_requirements=[_pinned(name) for name in serving["packages"]],
    )


def _pinned(package: str) -> str:
    """The installed version, without the local part that no index knows (2.11.0+cpu)."""
    return f"{package}=={metadata.version(package).partition('+')[0]}"
