"""Checkpoints: bit-exact state, atomic commits, fencing, damage, pruning."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import StageError
from pipeline.storage import Folder
from stages.training.checkpoints import Checkpoints, load_state, reseed, save_state
from tests.stages.training.gangs import processes


def checkpoints_at(path: Path, attempt: str = "000001-000", keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(Folder.at(path), attempt, keep)
    checkpoints.claim()
    return checkpoints


def state_of(step: int) -> dict[str, Any]:
    return {"weights": torch.full((3,), float(step)), "step": step}


def assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(ours, Tensor):
        assert ours.dtype == theirs.dtype
        assert ours.stride() == theirs.stride()
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert sorted(ours, key=str) == sorted(theirs, key=str)
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert_same(our, their)
    else:
        assert ours == theirs


def test_every_kind_of_value_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    state = {
        "dtypes": [torch.randn(2, 3).to(dtype) for dtype in (torch.bfloat16, torch.float16, torch.float64)],
        "integers": {0: torch.tensor(7), 3: torch.tensor([True, False]), 11: torch.tensor([], dtype=torch.int32)},
        "scalars": [1, 2.5, 1e-300, 0.1, True, None, "text", math.inf, -math.inf],
        "betas": (0.9, 0.95),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "empty": {"dict": {}, "list": [], "tuple": ()},
        "views": [shared, shared[:2]],
        "special": torch.tensor([math.inf, -0.0, 1e-45]),
    }

    save_state(tmp_path, "state", state)

    assert_same(load_state(tmp_path, "state"), state)


def test_an_optimizer_goes_on_from_its_saved_state_bit_for_bit(tmp_path: Path) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 4, 2)).to(
            memory_format=torch.channels_last
        )
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            reseed(5, step, 0)
            optimizer.zero_grad()
            model(torch.randn(2, 3, 4, 4)).square().sum().backward()
            optimizer.step()

    straight = build()
    train(*straight, range(6))
    first = build()
    train(*first, range(3))
    save_state(tmp_path, "state", {"model": first[0].state_dict(), "optimizer": first[1].state_dict()})
    second = build()
    loaded = load_state(tmp_path, "state")
    second[0].load_state_dict(loaded["model"])
    second[1].load_state_dict(loaded["optimizer"])
    train(*second, range(3, 6))

    assert_same(second[1].state_dict(), straight[1].state_dict())
    assert_same(dict(second[0].state_dict()), dict(straight[0].state_dict()))


def test_equal_states_give_equal_bytes_whatever_their_order(tmp_path: Path) -> None:
    a, b = torch.randn(3), torch.randn(4)
    for name, state in (("one", {"a": a, "n": {1: 2, 0: b}}), ("two", {"n": {0: b, 1: 2}, "a": a})):
        (tmp_path / name).mkdir()
        save_state(tmp_path / name, "state", state)

    for file in ("state.safetensors", "state.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize("value", [np.float64(1.0), {1: 2, "1": 3}, {"a", "b"}, lambda: None])
def test_values_that_would_need_pickle_are_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match="state"):
        save_state(tmp_path, "state", {"value": value})


def test_the_newest_checkpoint_is_found_and_older_ones_are_dropped(tmp_path: Path) -> None:
    checkpoints = checkpoints_at(tmp_path)
    assert checkpoints.latest() is None
    for step in (10, 20, 30):
        checkpoints.save(step, state_of(step), [{"step": step, "train/loss": 0.5}])

    newest = checkpoints_at(tmp_path, "000002-000").latest()

    assert newest is not None
    assert (newest.step, newest.warnings) == (30, ())
    assert newest.history == [{"step": 30, "train/loss": 0.5}]
    assert_same(newest.state, state_of(30))
    folders = sorted(path.name.split("-")[1] for path in tmp_path.glob("step-*"))
    assert folders == ["00000020", "00000030"]


def test_saving_drops_a_result_that_no_driver_fetched(tmp_path: Path) -> None:
    checkpoints = checkpoints_at(tmp_path)
    (tmp_path / "result-0123").mkdir()
    (tmp_path / "result-0123/model").touch()
    checkpoints.save(1, state_of(1), [])
    assert not (tmp_path / "result-0123").exists()


def test_a_checkpoint_can_be_passed_over(tmp_path: Path) -> None:
    checkpoints = checkpoints_at(tmp_path)
    for step in (10, 20):
        checkpoints.save(step, state_of(step), [])

    older = checkpoints.latest(lambda checkpoint: checkpoint.step <= 15)

    assert older is not None
    assert older.step == 10
    assert checkpoints.latest(lambda checkpoint: checkpoint.step <= 5) is None


def test_a_flipped_bit_falls_back_to_the_previous_checkpoint_with_a_warning(tmp_path: Path) -> None:
    checkpoints = checkpoints_at(tmp_path)
    for step in (10, 20):
        checkpoints.save(step, state_of(step), [])
    flip_bit(next(tmp_path.glob("step-00000020-*/state.safetensors")))

    checkpoint = checkpoints.latest()

    assert checkpoint is not None
    assert checkpoint.step == 10
    assert len(checkpoint.warnings) == 1
    assert "step-00000020" in checkpoint.warnings[0]
    assert "state.safetensors has sha256" in checkpoint.warnings[0]
    # Going on from there replaces the damaged one for good.
    checkpoints.save(20, state_of(20), [])
    repaired = checkpoints.latest()
    assert repaired is not None
    assert (repaired.step, repaired.warnings) == (20, ())


def test_nothing_intact_is_a_clear_error(tmp_path: Path) -> None:
    checkpoints = checkpoints_at(tmp_path)
    for step in (10, 20):
        checkpoints.save(step, state_of(step), [])
    flip_bit(next(tmp_path.glob("step-00000010-*/state.json")))
    next(tmp_path.glob("step-00000020-*/history.jsonl")).unlink()

    with pytest.raises(
        StageError, match=r"(?s)history.jsonl is missing.*state.json has sha256.*remove .* to start over"
    ):
        checkpoints.latest()


def test_what_was_not_committed_by_latest_does_not_exist(tmp_path: Path) -> None:
    checkpoints = checkpoints_at(tmp_path)
    checkpoints.save(10, state_of(10), [])
    latest = (tmp_path / "LATEST").read_bytes()
    checkpoints.save(20, state_of(20), [])
    (tmp_path / "LATEST").write_bytes(latest)  # as if killed between the rename and LATEST

    found = checkpoints_at(tmp_path, "000002-000").latest()

    assert found is not None
    assert (found.step, found.warnings) == (10, ())


def test_an_older_attempt_may_not_save_any_more(tmp_path: Path) -> None:
    orphan = checkpoints_at(tmp_path, "000001-000")
    orphan.save(10, state_of(10), [])
    heir = checkpoints_at(tmp_path, "000001-001")
    heir.save(15, state_of(15), [])

    with pytest.raises(StageError, match="attempt 000001-000 is superseded by attempt 000001-001"):
        orphan.save(20, state_of(20), [])

    newest = heir.latest()
    assert newest is not None
    assert newest.step == 15
    assert not list(tmp_path.glob("step-00000020-*"))


def test_two_gangs_with_one_attempt_name_are_told_apart(tmp_path: Path) -> None:
    orphan = checkpoints_at(tmp_path)
    checkpoints_at(tmp_path)
    with pytest.raises(StageError, match="superseded"):
        orphan.save(20, state_of(20), [])


@pytest.mark.slow
def test_a_process_killed_while_saving_leaves_an_intact_checkpoint(tmp_path: Path) -> None:
    context = processes()
    for round_number, delay in enumerate((0.05, 0.13, 0.21, 0.3)):
        child = context.Process(target=_save_for_ever, args=(str(tmp_path), f"{round_number:06d}-000"))
        before = _step_at(tmp_path)
        child.start()
        _wait_for_step(tmp_path, before + 1)
        time.sleep(delay)
        os.kill(child.pid, signal.SIGKILL)
        child.join()

        newest = checkpoints_at(tmp_path, "999999-000").latest()
        assert newest is not None
        assert newest.warnings == ()
        assert_same(newest.state, {"weights": torch.full((300_000,), float(newest.step)), "step": newest.step})


def _save_for_ever(path: str, attempt: str) -> None:
    checkpoints = checkpoints_at(Path(path), attempt)
    newest = checkpoints.latest()
    step = newest.step if newest else 0
    while True:
        step += 1
        checkpoints.save(step, {"weights": torch.full((300_000,), float(step)), "step": step}, [])


def _step_at(path: Path) -> int:
    latest = path / "LATEST"
    return int(json.loads(latest.read_text())[0].split("-")[1]) if latest.exists() else 0


def _wait_for_step(path: Path, step: int) -> None:
    deadline = time.monotonic() + 60
    while _step_at(path) < step:
        assert time.monotonic() < deadline, "the child saved nothing"
        time.sleep(0.01)


def test_reseeding_gives_each_seed_step_and_rank_a_stream_of_its_own() -> None:
    def draws(seed: int, step: int, rank: int) -> tuple[float, float]:
        reseed(seed, step, rank)
        return torch.rand(()).item(), float(np.random.random())

    assert draws(1, 2, 3) == draws(1, 2, 3)
    triples = [(seed, step, rank) for seed in range(3) for step in range(5) for rank in range(3)]
    assert len({draws(*triple) for triple in triples}) == len(triples)
    assert len({value for triple in triples for value in draws(*triple)}) == 2 * len(triples)


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(bytes(data))
