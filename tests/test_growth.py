"""Work grows with the number of shards at most, and never with the samples in them: counted, not timed."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.data.order import Order
from tests.growth import World, exponent, tasks

SHARDS = (40, 80, 160)
SAMPLES = (4_000, 40_000, 400_000)
GROWS_WITH_SHARDS = {
    "print the status",
    "fingerprint",
    "plan the encode stage",
    "open the order",
    "commit the artifact",
}
CONSTANT = {"commit a unit", "find sample N"}


def operations(task: Callable[[], Any]) -> int:
    """Calls of functions, Python's and C's, while a task runs."""
    count = 0

    def seen(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        task()
    finally:
        sys.setprofile(before)
    return count


def counted(folder: Path, shards: int, samples: int) -> dict[str, int]:
    world = World.make(folder / f"{shards}-{samples}", shards, samples)
    for task in tasks(world).values():  # what is imported and cached at the first time is not counted
        task()
    return {name: operations(task) for name, task in tasks(world).items()}


def test_work_grows_with_shards_at_most_linearly_and_committing_a_unit_not_at_all(tmp_path: Path) -> None:
    found = [counted(tmp_path, shards, 100 * shards) for shards in SHARDS]
    assert set(found[0]) == GROWS_WITH_SHARDS | CONSTANT
    for name in GROWS_WITH_SHARDS:
        assert exponent(SHARDS, [it[name] for it in found]) < 1.05, name
    for name in CONSTANT:
        assert max(it[name] for it in found) <= min(it[name] for it in found) + 5, name


def test_no_work_grows_with_the_samples_in_the_shards(tmp_path: Path) -> None:
    found = [counted(tmp_path, 40, samples) for samples in SAMPLES]
    for name in found[0]:
        assert max(it[name] for it in found) <= 1.01 * min(it[name] for it in found) + 20, name


def test_an_order_touches_no_more_than_the_window_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    permuted: list[int] = []
    from stages.data import order as module

    permutation = module._permutation

    def counting(count: int, name: str) -> Any:
        permuted.append(count)
        return permutation(count, name)

    monkeypatch.setattr(module, "_permutation", counting)
    order = Order([1000] * 500, seed=0, window=4)
    order.at(123_456)
    order.at(500_000 * 7 + 3)
    assert permuted == [500, 4000, 500, 4000], "the shards of an epoch and the samples of a window, whatever there is"
