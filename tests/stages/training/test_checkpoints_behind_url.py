"""Checkpoints in an object store: committed by their last object, fenced, verified, pruned."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.errors import StageError, StorageError
from pipeline.storage import Folder
from stages.training.checkpoints import Checkpoints
from tests.faulty_store import faulty  # noqa: F401

HOME = Folder("faulty://bucket/checkpoints/prior/0123")


def state_of(step: int) -> dict[str, Any]:
    return {"weights": torch.full((3,), float(step)), "step": step}


def claimed(attempt: str) -> Checkpoints:
    checkpoints = Checkpoints(HOME, attempt)
    checkpoints.claim()
    return checkpoints


def test_saved_state_comes_back_and_only_the_newest_are_kept(faulty: Any) -> None:  # noqa: F811
    first = claimed("000001-000")
    names = [first.save(step, state_of(step), [{"step": step, "loss": 1.0}]) for step in (1, 2, 3)]
    latest = claimed("000001-001").latest()
    assert latest is not None
    assert (latest.name, latest.step, latest.history) == (names[2], 3, [{"step": 3, "loss": 1.0}])
    assert torch.equal(latest.state["weights"], torch.full((3,), 3.0))
    assert {name.partition("/")[0] for name in HOME.names()} == {"LATEST", "OWNER", *names[1:]}


def test_an_orphan_of_an_older_attempt_saves_no_more(faulty: Any) -> None:  # noqa: F811
    orphan, newer = claimed("000001-000"), claimed("000001-001")
    with pytest.raises(StageError, match="attempt 000001-000 is superseded by attempt 000001-001"):
        orphan.save(1, state_of(1), [])
    assert newer.latest() is None


@pytest.mark.parametrize("before", [0, 2, 3, 4])
def test_a_save_that_breaks_off_leaves_the_one_before(before: int, faulty: Any) -> None:  # noqa: F811
    """Whichever of its objects, or LATEST, could not be written any more."""
    checkpoints = claimed("000001-000")
    checkpoints.save(1, state_of(1), [])
    plain, puts = faulty.put_file, []

    def refuse(self: Any, local: Any, path: str, **options: Any) -> None:
        puts.append(path)
        if len(puts) > before:
            raise PermissionError("Access Denied.")
        plain(self, local, path)

    faulty.put_file = refuse
    try:
        with pytest.raises(StorageError, match=r"cannot write .*: permission was denied"):
            checkpoints.save(2, state_of(2), [])
    finally:
        faulty.put_file = plain
    latest = claimed("000001-001").latest()
    assert latest is not None
    assert latest.step == 1


def test_a_damaged_object_is_passed_over_and_named(faulty: Any) -> None:  # noqa: F811
    checkpoints = claimed("000001-000")
    checkpoints.save(1, state_of(1), [])
    newest = checkpoints.save(2, state_of(2), [])
    weights = next(name for name in HOME.names() if name.startswith(newest) and name.endswith(".safetensors"))
    data = bytearray(HOME.read(weights))
    data[-1] ^= 1
    HOME.write(weights, bytes(data))
    latest = claimed("000001-001").latest()
    assert latest is not None
    assert latest.step == 1
    assert newest in latest.warnings[0]
