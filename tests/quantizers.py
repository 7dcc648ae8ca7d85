"""Trains a tokenizer with each quantizer for the same minutes on the same emoji, and prints what became of them.

    python -m tests.quantizers --minutes 5 [--kinds ema fsq] [--prior-steps 300]

Everything but the quantizer is configs/emoji.yaml; what it counts in steps is scaled to the number of steps that fill
the minutes, by the speed of a short run before. Stages run as the pipeline runs them, one after the other in this
process, and nothing is kept. PSNR (dB, higher is better) and KID (lower is better) are of reconstructions of held-out
pictures, codes used and perplexity of the whole corpus, bits of a held-out picture under a prior trained briefly.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact
from pipeline.config import ClusterConfig, load_config
from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime
from pipeline.stage import Stage
from run_pipeline import Config, build
from stages.data.loader import load_all
from stages.data.shards import open_split
from stages.data.tables import read_tokens
from stages.metrics.codebook import count_codes, perplexity
from stages.models.quantizers.configs import (
    CosineQuantizerConfig,
    EMAQuantizerConfig,
    FSQQuantizerConfig,
    GradientQuantizerConfig,
    GumbelQuantizerConfig,
    LookupFreeQuantizerConfig,
)
from stages.models.tokenizer import Tokenizer
from tests.benchmarks.same_minutes import CONFIG, judge, scaled, steps_that_fill

QUANTIZERS: Mapping[str, Any] = {
    "ema": EMAQuantizerConfig(),
    "cosine": CosineQuantizerConfig(),
    "gradient": GradientQuantizerConfig(),
    "gradient-not-legacy": GradientQuantizerConfig(legacy=False),
    "gumbel": GumbelQuantizerConfig(),
    "fsq": FSQQuantizerConfig(),
    "lookup_free": LookupFreeQuantizerConfig(),
}
"""All of 512 codes."""
COLUMNS = {
    "steps": "{:.0f}",
    "PSNR": "{:.2f}",
    "KID": "{:.3f}",
    "codes used": "{:.0f}",
    "perplexity": "{:.0f}",
    "bits a picture": "{:.0f}",
}
CALIBRATION_STEPS = (60, 180)


def main() -> None:
    """Train each, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, for each quantizer")
    parser.add_argument("--kinds", nargs="+", choices=QUANTIZERS, default=list(QUANTIZERS))
    parser.add_argument("--prior-steps", type=int, default=0, help="of the prior on each quantizer's tokens; 0: none")
    parser.add_argument("--threads", type=int, default=None, help="of training; default: the machine's cores")
    arguments = parser.parse_args()
    config = load_config(Config, CONFIG)
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="smalti-quantizers-") as name:
        for kind in arguments.kinds:
            rows[kind] = measure(config, QUANTIZERS[kind], Path(name), arguments)
            print(f"{kind}: {rows[kind]}", flush=True)
    width = max(map(len, rows))
    print(f"\n{'':{width}}" + "".join(f"{column:>16}" for column in COLUMNS))
    for kind, row in rows.items():
        cells = [form.format(row[column]) if column in row else "-" for column, form in COLUMNS.items()]
        print(f"{kind:{width}}" + "".join(f"{cell:>16}" for cell in cells))


def measure(config: Config, quantizer: Any, place: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Train a tokenizer with this quantizer for about so many minutes; the figures of a row."""
    runtime = LocalRuntime(cluster=ClusterConfig(threads=arguments.threads))
    done: dict[str, Artifact] = {}

    def run(stage: Stage) -> Artifact:
        inputs = {name: done[given.name] if isinstance(given, Stage) else given for name, given in stage.inputs.items()}
        done[stage.name] = run_stage(stage, inputs, str(place / "runs"), runtime)
        return done[stage.name]

    shards = run(build(config)[0])
    model = config.tokenizer.model.model_copy(update={"quantizer": quantizer})
    wanted = config.tokenizer.model_copy(update={"model": model})
    with tempfile.TemporaryDirectory() as calibration:
        steps = steps_that_fill(
            60 * arguments.minutes, wanted, shards, Path(calibration), CALIBRATION_STEPS, arguments.threads
        )
    steps_of_prior = {"steps": max(1, arguments.prior_steps), "warmup_steps": arguments.prior_steps // 10}
    schedule = {"schedule_steps": steps_of_prior["steps"], "patience": None}
    prior = config.prior.model_copy(update={**steps_of_prior, **schedule})
    experiment = config.model_copy(update={"tokenizer": scaled(wanted, steps), "prior": prior})
    stages = {stage.name: stage for stage in build(experiment)}
    folder = run(stages["tokenizer"]).local("model.safetensors").parent
    tokens = run(stages["encode"])
    held_out_NHWC = load_all(open_split(shards, "val"), shards.read_json("dataset.json")["channels"])[0]
    judged = judge(Tokenizer.load(folder).reconstruct, held_out_NHWC)
    counts_K = sum(
        count_codes(read_tokens(tokens.local(entry.path)).tokens_NT, quantizer.num_codes)
        for _, entry in tokens.unit_files(".parquet")
    )
    row = {"steps": steps, "PSNR": judged["psnr"], "KID": judged["kid"]}
    row |= {"codes used": int((counts_K > 0).sum()), "perplexity": perplexity(counts_K)}
    if arguments.prior_steps:
        row["bits a picture"] = float(run(stages["prior"]).metrics["bits_per_picture"])
    return row


if __name__ == "__main__":
    main()
