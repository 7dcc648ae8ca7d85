from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.config import ClusterConfig
from pipeline.errors import StageError
from pipeline.ray_runtime import connection


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each start of Ray to come succeeds."""
    outcomes: list[bool] = []

    def init(**how: object) -> SimpleNamespace:
        if outcomes.pop(0):
            return SimpleNamespace(address_info={"session_dir": "/somewhere"})
        raise Exception("The current node timed out during startup. This could happen because of much.")

    fake = SimpleNamespace(init=init, shutdown=lambda: None, is_initialized=lambda: False)
    monkeypatch.setattr(connection, "ray", fake)
    return outcomes


def test_a_ray_that_does_not_appear_is_started_once_more(starts: list[bool]) -> None:
    starts += [False, True]
    assert connection.connect(ClusterConfig(), "local") == Path("/somewhere")
    assert not starts


def test_a_machine_too_busy_for_ray_is_told_of_with_the_way_on(starts: list[bool]) -> None:
    starts += [False, False]
    with pytest.raises(StageError, match=r"twice \(The current node timed out during startup\).*--runtime local"):
        connection.connect(ClusterConfig(), "local")
