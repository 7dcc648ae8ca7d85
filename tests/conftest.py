"""Shared by all tests: quiet libraries, and one Ray for the whole session."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers of a parallel run share the cores
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


LONGEST_FIRST = (
    "test_end_to_end.py",
    "test_hostile_input.py",
    "test_configs.py",
    "test_ray_runtime.py",
    "test_faults.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest files, so that parallel workers end at about the same time."""
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(scope="session")
def ray_started() -> Iterator[None]:
    """A local Ray with three slots that all tests share; RayRuntime uses it as it finds it."""
    import ray

    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=128 * 2**20)
    yield
    ray.shutdown()
