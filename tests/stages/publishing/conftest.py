"""One published bundle for all tests here; they read it only."""

from pathlib import Path

import pytest

from pipeline.artifacts import Artifact
from tests.stages.publishing.published import publish_made_up


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return publish_made_up(tmp_path_factory.mktemp("publish") / "runs")


@pytest.fixture(scope="session")
def bundle(published: Artifact) -> Path:
    return published.folder.path / "bundle"
