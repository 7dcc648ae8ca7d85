"""Two tiny trainings to be disturbed: a prior over made-up tokens, a tokenizer of random pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts import Artifact
from pipeline.config import validate
from pipeline.runner import run_stage
from pipeline.runtime import Runtime
from pipeline.stage import Stage
from stages.prior import PriorConfig, train_prior
from stages.tokenizer import TokenizerConfig, train_tokenizer
from tests.small import SMALL
from tests.stages.tiny import tiny_shards
from tests.stages.training.corpora import make_corpus


@dataclass(frozen=True)
class Training:
    """One stage that trains, and what it is made from."""

    stage: Stage
    source: Artifact
    counts: tuple[int, ...]
    """Samples of each shard."""
    batch_size: int
    steps: int
    seed: int
    loss: str
    """A column of its history."""

    def run(self, workdir: Path, runtime: Runtime) -> Artifact:
        (name,) = self.stage.inputs
        return run_stage(self.stage, {name: self.source}, str(workdir), runtime)


def training(kind: str, folder: Path, steps: int) -> Training:
    """Return the training of a `prior` or a `tokenizer`, its data below `folder`."""
    if kind == "prior":
        tokens = make_corpus(folder / "data")
        config = validate(
            PriorConfig,
            {
                "model": {"kind": "gpt", "num_layers": 1, "num_heads": 2, "width": 16},
                "steps": steps, "batch_size": 8, "warmup_steps": 2, "schedule_steps": 10_000, "record_every": 1,
                "validate_every": max(20, steps // 4),
            },
            "prior",
        )  # fmt: skip
        stage = Stage("prior", train_prior, config, {"tokens": _unused})
        return Training(stage, tokens, (50, 30, 40), 8, steps, config.seed, "train/bits_per_token")
    shards = tiny_shards(folder / "data", pictures=(25, 15, 20))
    tree = {
        **SMALL["tokenizer"],
        "steps": steps, "batch_size": 6, "record_every": 1, "validate_every": max(20, steps // 4),
    }  # fmt: skip
    config = validate(TokenizerConfig, tree, "tokenizer")
    stage = Stage("tokenizer", train_tokenizer, config, {"shards": _unused})
    return Training(stage, shards, (25, 15, 20), 6, steps, config.seed, "train/reconstruction")


_unused = Stage("data", lambda config, *, output, runtime: {}, validate(PriorConfig, {}, "data"), {})
"""Stands for the stage whose finished artifact is given."""
