"""Made-up finished evaluations and samples of two versions, made in no time: no network looks at a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from safetensors.numpy import save_file

from pipeline.artifacts import Artifact, Metrics
from pipeline.config import StrictModel
from pipeline.output import Output
from pipeline.runner import run_stage
from pipeline.runtime import BoundRuntime, LocalRuntime
from pipeline.stage import Stage
from pipeline.units import Unit
from stages.data.images import encode_image
from stages.data.shards import Sample, write_shard
from stages.metrics.report.lineage import LINEAGE
from stages.metrics.report.rendering import BODY, END_OF_BODY

HOSTILE = (
    "<script>alert('class')</script>",
    '"><img src=http://example.org/x onerror=alert(1)>',
    "<svg onload=alert(2)>",
)
"""Names of classes that would like to be markup."""


class Version(StrictModel):
    """What an evaluation of one version says."""

    tokenizer: str = "a" * 64
    kid: float = 0.5
    bits: float = 5.0
    classes: tuple[str, ...] = ("discs", "squares")
    size: int = 16
    config: dict[str, Any] = Field({"steps": 100})
    packages: dict[str, str] = Field({"torch": "2.9"})
    lineage: bool = True
    marked: bool = True
    """Whether its page's sections can be told from the rest."""
    samples_each: int = 3


def report(version: Version) -> dict[str, Any]:
    """What report.json holds, as far as a publication reads it."""

    def figure(value: float, better: str) -> dict[str, Any]:
        interval = [0.9 * value, 1.1 * value]
        return {"value": value, "interval": interval, "better": better, "what": "", "computed_on": "", "samples": 40}

    return {
        "verdict": "Rough samples: the gist is there, the form is not.",
        "findings": ["Trained on 60 pictures."],
        "figures": {
            "kid_samples": figure(version.kid, "lower"),
            "kid_floor": figure(0.01, "lower"),
            "precision_samples": figure(0.5, "higher"),
            "bits_per_token_held_out": figure(version.bits, "lower"),
            "l1": figure(version.kid / 10, "lower"),
        },
        "classes": [{"class": name} for name in version.classes],
        "dataset": {"num_train": 60, "num_val": 1040},
        "inputs": {"tokenizer": {"stage": "tokenizer", "digest": version.tokenizer}},
    }


def lineage(version: Version) -> dict[str, Any]:
    """What lineage.json holds."""
    config = {key: json.dumps(value) for key, value in version.config.items()}
    prior = {"digest": "d" * 64, "code": "0123abc", "inputs": {}, "config": config}
    return {"source": "e" * 64, "stages": {"prior": prior}, "packages": version.packages}


def _evaluate(config: Version, *, output: Output, runtime: BoundRuntime) -> Metrics:
    def worker(unit: Unit, folder: Path) -> dict[str, Any]:
        rng = np.random.default_rng(0)
        originals = rng.integers(0, 256, (5, config.size, config.size, 3), dtype=np.uint8)
        save_file(
            {"originals": originals, "reconstructions": originals // 2 + len(config.tokenizer.strip("a"))},
            folder / f"{unit.name}.safetensors",
        )
        return {"pictures": 5}

    unit = Unit("reconstruction-val-000000", config.model_dump(mode="json"))
    output.map_units(lambda _: worker, [unit], runtime, label="made up")
    output.write_json("report.json", report(config))
    if config.lineage:
        output.write_json(LINEAGE, lineage(config), content=False)
    body = '<section id="cost">\n  <h2>What it cost</h2></section>'
    page = f"before {BODY}{body}{END_OF_BODY} after" if config.marked else f"before {body} after"
    output.write("report.html", page.encode(), content=False)
    return {}


def _sample(config: Version, *, output: Output, runtime: BoundRuntime) -> Metrics:
    def worker(unit: Unit, folder: Path) -> dict[str, Any]:
        rng = np.random.default_rng(round(config.kid * 1000))
        pictures = []
        for index in range(config.samples_each * max(len(config.classes), 1)):
            label = index % len(config.classes) if config.classes else -1
            picture = encode_image(rng.integers(0, 256, (config.size, config.size, 3), dtype=np.uint8), "png")
            pictures.append(Sample(f"s{index}", label, "", f"s{index}", picture))
        return {"samples": write_shard(folder, unit.name, pictures)["samples"]}

    unit = Unit("sample-000000", config.model_dump(mode="json"))
    output.map_units(lambda _: worker, [unit], runtime, label="made up")
    return {}


def finished(workdir: Path, version: Version) -> tuple[Artifact, Artifact]:
    """An evaluation and the samples that it judged."""
    evaluation, samples = (
        run_stage(Stage(name, work, version, {}), {}, str(workdir), LocalRuntime())
        for name, work in (("evaluate", _evaluate), ("sample", _sample))
    )
    return evaluation, samples


def decision(
    verdict: str, *, champion: Version | None, kid: tuple[float, float] = (0.5, 1.0), **changes: Any
) -> dict[str, Any]:
    """What decision.json holds: one rule, on the KID of samples, new and old."""
    new, old = ({"value": value, "low": 0.9 * value, "high": 1.1 * value} for value in kid)
    rule: Mapping[str, Any] = {
        "metric": "kid_samples",
        "direction": "lower",
        "margin": 0.0,
        "challenger": new,
        "champion": old if champion else None,
        "passed": verdict == "champion",
        "reason": "as the numbers say",
    }
    incumbent = {"version": 6, "tokenizer": champion.tokenizer, "prior": "b" * 64} if champion else None
    rules = [{**rule, **changes}] if champion or changes else []
    return {"verdict": verdict, "reasons": ["as the numbers say"], "incumbent": incumbent, "rules": rules}
