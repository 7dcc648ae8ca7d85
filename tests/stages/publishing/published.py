"""A small published bundle: made-up artifacts, a made-up judgement, and the real writer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact, Metrics
from pipeline.config import StrictModel
from pipeline.output import Output
from pipeline.runner import run_stage
from pipeline.runtime import BoundRuntime, LocalRuntime
from pipeline.stage import Stage
from stages.publishing.bundle import write_bundle
from tests.stages import made_up

KID = {
    "better": "lower",
    "computed_on": "samples against held-out pictures; pooled features",
    "interval": [0.031, 0.052],
    "samples": 36,
    "value": 0.0421,
    "what": "squared kernel distance",
}
PSNR = {
    "better": "higher",
    "computed_on": "held-out pictures, on the scale [0, 1]",
    "samples": 40,
    "value": 21.25,
    "what": "dB of each picture",
}
DECISION: dict[str, Any] = {
    "verdict": "champion",
    "reasons": ["kid_samples fell from 0.06 to 0.0421."],
    "incumbent": {"version": 6, "tokenizer": "ab" * 32, "prior": "cd" * 32},
    "rules": [
        {
            "metric": "kid_samples",
            "direction": "lower",
            "margin": 0.0,
            "challenger": {"value": 0.0421, "low": 0.031, "high": 0.052},
            "champion": {"value": 0.06, "low": 0.05, "high": 0.07},
            "passed": True,
            "reason": "0.0421 is below 0.06 | by more than 0",
        }
    ],
}


class Nothing(StrictModel):
    """Nothing to choose."""


def evaluate(config: Nothing, *, prior: Artifact, output: Output, runtime: BoundRuntime) -> Metrics:
    """A judgement that nobody made."""
    report = {"verdict": "Rough samples.", "findings": ["Shapes survive."]}
    output.write_json("report.json", report | {"figures": {"kid_samples": KID, "psnr": PSNR}})
    return {}


def publish(
    config: Nothing,
    *,
    shards: Artifact,
    tokenizer: Artifact,
    tokens: Artifact,
    prior: Artifact,
    samples: Artifact,
    evaluation: Artifact,
    cond_tokenizer: Artifact | None = None,
    output: Output,
    runtime: BoundRuntime,
) -> Metrics:
    """The bundle and the decision."""
    inputs = {"shards": shards, "tokenizer": tokenizer, "tokens": tokens, "prior": prior}
    inputs |= {"samples": samples, "evaluation": evaluation}
    inputs |= {"cond_tokenizer": cond_tokenizer} if cond_tokenizer else {}
    write_bundle(output, inputs, DECISION)
    output.write_json("decision.json", DECISION)
    return {}


def publish_made_up(workdir: Path, **changed: Any) -> Artifact:
    """Make all that is published, and publish it; `changed` replaces inputs by name."""
    made = made_up.make(workdir, made_up.World(train=(8,), val=(6,), samples=(6,), history=False))
    prior = {"prior": made["prior"]}
    made["evaluation"] = run_stage(
        Stage("evaluate", evaluate, Nothing(), prior),  # type: ignore[arg-type]  # run_stage takes finished inputs
        prior,
        str(workdir),
        LocalRuntime(),
    )
    inputs = made | changed
    return run_stage(Stage("publish", publish, Nothing(), inputs), inputs, str(workdir), LocalRuntime())  # type: ignore[arg-type]
