"""The toy graph with a training in it: units, artifacts, checkpoints, LATEST and manifests, all in half a second."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact
from pipeline.config import StrictModel
from pipeline.output import Output
from pipeline.runner import Runner
from pipeline.runtime import BoundRuntime, Rank, Reporter
from pipeline.stage import Stage
from pipeline.storage import Folder
from pipeline.workdir import Workdir
from stages.training.checkpoints import Checkpoints
from stages.training.handover import collect, hand_over, training_folder
from tests.pipeline import toy

STEPS = 4
SIZE = 3000
"""Numbers in the state: more than one write of a library's buffer."""


class LearnConfig(StrictModel):
    steps: int = STEPS


def learn(config: LearnConfig, *, cut: Artifact, output: Output, runtime: BoundRuntime) -> dict[str, Any]:
    folder = training_folder(output, stop_keys={"steps"})
    name = runtime.run_gang(functools.partial(learning, folder, config.steps))
    collect(folder, name, output)
    return {"steps": config.steps}


def learning(folder: Folder, steps: int, rank: Rank, reporter: Reporter) -> str:
    """A checkpoint a step; the weights depend on every step before."""
    import tempfile

    import torch

    checkpoints = Checkpoints(folder, rank.attempt)
    checkpoints.claim()
    found = checkpoints.latest()
    state, history = (found.state, found.history) if found else ({"w": torch.ones(SIZE), "step": 0}, [])
    while state["step"] < steps:
        step = state["step"] + 1
        state = {"w": state["w"] * 1.01 + step, "step": step}
        history = [*history, {"step": step, "loss": float(state["w"].sum())}]
        checkpoints.save(step, state, history)
        reporter.history(history[-1:])
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "w.bin").write_bytes(state["w"].numpy().tobytes())
        (Path(scratch) / "history.json").write_text(json.dumps(history, sort_keys=True))
        return hand_over(folder, Path(scratch))


def stages(numbers: Path) -> list[Stage]:
    """cut -> total, cut -> learn."""
    first, total = toy.build(toy.ToyConfig(folder=str(numbers)))
    return [first, total, Stage("learn", learn, LearnConfig(), {"cut": first})]


def run(numbers: Path, workdir: Path, force: tuple[str, ...] = ()) -> int:
    """What a run of the command line does, without its screen."""
    home = Workdir(Folder.at(workdir))
    with home.locked():
        home.folder.sweep()
        Runner(stages(numbers), home).run(["cut", "total", "learn"], force)
    return 0


def digests(numbers: Path, workdir: Path) -> dict[str, str]:
    """The content digest of every stage that is finished."""
    runner = Runner(stages(numbers), Workdir(Folder.at(workdir)))
    found = {stage.name: runner.decide(stage).artifact for stage in runner.stages}
    return {name: artifact.digest for name, artifact in found.items() if artifact is not None}
