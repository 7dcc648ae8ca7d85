"""A toy that publishes: numbers are cut, a model is their mean moved by a rate, and nearer to a target is better."""

from __future__ import annotations

from typing import Any

from pipeline.artifacts import Artifact
from pipeline.config import StrictModel
from pipeline.output import Output
from pipeline.runtime import BoundRuntime
from pipeline.stage import Stage
from pipeline.versions.registry import Published
from tests.pipeline import toy


class TrainConfig(StrictModel):
    rate: float = 1.0
    fails: bool = False


class JudgeConfig(StrictModel):
    target: float = 10.0


class GateConfig(StrictModel):
    margin: float = 0.0
    incumbent: int | None = None


class NightlyConfig(toy.ToyConfig):
    train: TrainConfig = TrainConfig()
    judge: JudgeConfig = JudgeConfig()
    gate: GateConfig = GateConfig()
    policy: str = "scratch"


def train(
    config: TrainConfig, *, cut: Artifact, checkpoint: Artifact | None = None, output: Output, runtime: BoundRuntime
) -> dict[str, Any]:
    if config.fails:
        raise RuntimeError("killed while training")
    started = float(checkpoint.local("model").read_text()) if checkpoint is not None else 0.0
    output.write("model", repr(started + config.rate).encode())
    return {}


def judge(
    config: JudgeConfig, *, cut: Artifact, train: Artifact, output: Output, runtime: BoundRuntime
) -> dict[str, Any]:
    error = abs(float(train.local("model").read_text()) - config.target)
    output.write_json("report.json", {"error": error, "seen": cut.digest})
    return {"error": error}


def publish(
    config: GateConfig,
    *,
    train: Artifact,
    judged: Artifact,
    incumbent: Artifact | None = None,
    incumbent_judged: Artifact | None = None,
    output: Output,
    runtime: BoundRuntime,
) -> dict[str, Any]:
    error = judged.read_json("report.json")["error"]
    better = incumbent_judged is None or incumbent_judged.read_json("report.json")["error"] - error > config.margin
    verdict = "champion" if better else "challenger"
    output.write_json("decision.json", {"verdict": verdict, "reasons": [f"error {error}"]})
    return {"verdict": verdict, "error": error}


def build(config: NightlyConfig, parent: Published | None = None, incumbent: Published | None = None) -> list[Stage]:
    cut = toy.build(config)[0]
    start = {"checkpoint": parent.artifacts["train"]} if parent is not None and config.policy == "warm" else {}
    training = Stage("train", train, config.train, {"cut": cut, **start}, policy=config.policy)
    judging = Stage("judge", judge, config.judge, {"cut": cut, "train": training})
    stages, inputs = [cut, training, judging], {"train": training, "judged": judging}
    gate = config.gate
    if incumbent is not None:
        gate = gate.model_copy(update={"incumbent": incumbent.number})
        judged = {"cut": cut, "train": incumbent.artifacts["train"]}
        stages.append(Stage("incumbent", judge, config.judge, judged, beside="judge"))
        inputs |= {"incumbent_judged": stages[-1], "incumbent": incumbent.artifacts["publish"]}
    return [*stages, Stage("publish", publish, gate, inputs, publishes=("train",))]
