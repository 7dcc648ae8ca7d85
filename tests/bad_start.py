"""Starts the discriminator badly, with the guard rails and without, and says what became of the reconstructions.

    python -m tests.bad_start [--curves FILE.svg]

trains a small tokenizer a few hundred steps on some hundred emoji of 32x32: with the default adversarial weight, the
published one and one of 10, with the rails (warm-up, ramp, cap) and without. In each run one batch is NaN; a last run
gets nothing but NaN from a step on, and is to end by itself. PSNR is that of held-out pictures in dB.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from pipeline.artifacts import Artifact, Source
from pipeline.config import ClusterConfig
from pipeline.errors import StageError
from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime
from pipeline.stage import Stage
from pipeline.storage import Folder
from stages.data.emoji import emoji_files, emoji_folder
from stages.data.sources import list_source
from stages.models.losses.configs import DiscriminatorConfig, LossConfig
from stages.models.tokenizer_config import EMAQuantizerConfig, LightBackboneConfig, TokenizerModelConfig
from stages.shard import ShardConfig, shard
from stages.training.checkpoints import Checkpoints
from stages.training.fabric import open_fabric
from stages.training.session import Session
from stages.training.tokenizer import TokenizerJob, TokenizerTrainer
from stages.training.tokenizer_config import TokenizerConfig, TokenizerOptimizerConfig
from tests.stages.training.gangs import RecordingReporter, rank_of

START, LOOK = 200, 20
RAILS = {"start": START, "warmup_steps": 50, "ramp_steps": 100}
NO_RAILS = {"start": START, "warmup_steps": 0, "ramp_steps": 0, "adaptive_cap": 1e30}


@dataclass(frozen=True)
class Case:
    """One run: its settings, and the steps whose batch is NaN."""

    name: str
    adversary: dict[str, Any]
    poisoned: range


class PoisonedTrainer(TokenizerTrainer):
    """Some of its batches are NaN."""

    poisoned: range

    def update(self, x_BCHW: Tensor) -> Any:
        """One step."""
        return super().update(x_BCHW * float("nan") if self.state.step in self.poisoned else x_BCHW)


def emoji_shards(folder: Path, every: int) -> Artifact:
    """A part of the packaged emoji, without skin variants, as shards of 32x32."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for number, file in enumerate(emoji_files(skin_variants=False)):
        if number % every == 0:
            (pictures / file.path).symlink_to(emoji_folder() / file.path)
    config = ShardConfig.model_validate(
        {"source": {"kind": "folder", "path": str(pictures)}, "image_size": 32, "validation_fraction": 0.15}
    )
    source = Source("pictures", partial(list_source, config.source))
    stage = Stage("shard", shard, config, {"source": source})
    return run_stage(stage, {"source": source}, str(folder / "runs"), LocalRuntime())


def run(case: Case, shards: Artifact, folder: Path, steps: int, threads: int) -> list[dict[str, float]]:
    """Train, print what happened, and return the measured rows."""
    config = TokenizerConfig(
        model=TokenizerModelConfig(
            backbone=LightBackboneConfig(channels=(16, 32, 64), residual_blocks=(0, 1, 1)),
            quantizer=EMAQuantizerConfig(num_codes=128, dim=16),
        ),
        losses=LossConfig(discriminator=DiscriminatorConfig(**case.adversary)),
        optimizer=TokenizerOptimizerConfig(schedule="constant"),
        steps=steps,
        validate_every=LOOK,
        record_every=5,
    )
    place, rank, reporter = (
        Folder.at(folder / case.name.replace(" ", "-")),
        rank_of(threads=threads),
        RecordingReporter(),
    )
    ended = ""
    with open_fabric(rank) as fabric:
        session = Session(
            fabric, rank, reporter, Checkpoints(place, rank.attempt), steps=steps, checkpoint_every=START // 2
        )
        trainer = PoisonedTrainer(TokenizerJob(config, shards, place, ClusterConfig()), fabric, rank, session)
        trainer.poisoned = case.poisoned
        try:
            trainer.resume()
            trainer.run()
        except StageError as error:
            ended = str(error)
    report(case, config, trainer, session.history, reporter.warnings, ended)
    return session.history


def report(
    case: Case,
    config: TokenizerConfig,
    trainer: TokenizerTrainer,
    rows: list[dict[str, float]],
    warnings: list[str],
    ended: str,
) -> None:
    """Print one run."""
    felt = config.losses.discriminator.generator_start
    psnr = {row["step"]: row["validation/psnr"] for row in rows if "validation/psnr" in row}
    before = max(step for step in psnr if step <= felt)
    after = [value for step, value in psnr.items() if step > felt] or [float("nan")]
    weights = [row["train/adaptive_weight"] for row in rows if "train/adaptive_weight" in row] or [0.0]
    print(f"{case.name}: PSNR {psnr[before]:.2f} before the generator feels the discriminator (step {felt}),")
    print(f"    then at least {min(after):.2f}, in the end {after[-1]:.2f}; adaptive weight at most {max(weights):.3g}")
    print(f"    skipped {trainer.state.skipped.total} of {trainer.state.step} steps")
    for line in [*warnings, *([f"ENDED: {ended}"] if ended else [])]:
        print(f"    reported: {line}")


def draw_curves(path: Path, runs: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Held-out PSNR and adaptive weight of every run over its steps."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = {"validation/psnr": "held-out PSNR, dB", "train/adaptive_weight": "adaptive weight"}
    for axes, (key, title) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for name, rows in runs.items():
            points = [(row["step"], row[key]) for row in rows if key in row]
            axes.plot(*zip(*points, strict=True), label=name, marker=".")
        axes.axvline(START, color="grey", linestyle=":")
        axes.set(title=title, xlabel="step; dotted: the discriminator starts")
    axes.set_yscale("log")
    axes.legend(fontsize="small")
    figure.savefig(path)


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--every", type=int, default=3, help="take one of so many emoji")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--curves", type=Path, help="draw PSNR and adaptive weight into this file")
    options = parser.parse_args()
    one = range(START + 120, START + 121)
    cases = [
        Case("default weight, rails", RAILS, one),
        Case("weight 0.8, no rails", {"weight": 0.8, **NO_RAILS}, one),
        Case("weight 0.8, rails", {"weight": 0.8, **RAILS}, one),
        Case("weight 10, no rails", {"weight": 10.0, **NO_RAILS}, one),
        Case("weight 10, rails", {"weight": 10.0, **RAILS}, one),
        Case("nothing but NaN", RAILS, range(START + 120, options.steps)),
    ]
    with tempfile.TemporaryDirectory() as name:
        shards = emoji_shards(Path(name), options.every)
        print(f"{shards.read_json('dataset.json')['num_train']} pictures to train on", flush=True)
        runs = {case.name: run(case, shards, Path(name), options.steps, options.threads) for case in cases}
    if options.curves:
        draw_curves(options.curves, runs)


if __name__ == "__main__":
    main()
