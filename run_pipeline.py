"""Smalti: pictures in, a trained and judged image generator out. This page is the whole flow; start reading here."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipeline.artifacts import Source
from pipeline.config import ClusterConfig, StrictModel, TrackingConfig, load_config
from pipeline.session import Options, run_session
from pipeline.stage import Stage
from stages import encode, evaluate, prior, sample, shard, tokenizer


class Config(StrictModel):
    """One experiment: a section for each stage, and where it runs."""

    shard: shard.ShardConfig = shard.ShardConfig()
    tokenizer: tokenizer.TokenizerConfig = tokenizer.TokenizerConfig()
    encode: encode.EncodeConfig = encode.EncodeConfig()
    prior: prior.PriorConfig = prior.PriorConfig()
    sample: sample.SampleConfig = sample.SampleConfig()
    evaluate: evaluate.EvaluateConfig = evaluate.EvaluateConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()


def build(config: Config) -> list[Stage]:
    """Write out the graph of stages, in the order in which they run."""
    pictures = Source("pictures", partial(shard.list_source, config.shard.source))
    shards = Stage("shard", shard.shard, config.shard, {"source": pictures}, shard.VERSION)
    codes = Stage("tokenizer", tokenizer.train_tokenizer, config.tokenizer, {"shards": shards}, tokenizer.VERSION)
    tokens = Stage("encode", encode.encode, config.encode, {"shards": shards, "tokenizer": codes}, encode.VERSION)
    gpt = Stage("prior", prior.train_prior, config.prior, {"tokens": tokens}, prior.VERSION)
    drawn = Stage("sample", sample.sample, config.sample, {"tokenizer": codes, "prior": gpt}, sample.VERSION)
    judged = {"shards": shards, "tokenizer": codes, "tokens": tokens, "prior": gpt, "samples": drawn}
    report = Stage("evaluate", evaluate.evaluate, config.evaluate, judged, evaluate.VERSION)
    return [shards, codes, tokens, gpt, drawn, report]


def main(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. prior.learning_rate=3e-4")
    ] = None,
    stages: Annotated[str, typer.Option(help="Which stages: all | a,b | a..c")] = "all",
    config: Annotated[Path, typer.Option(help="The experiment's YAML file.")] = Path("configs/emoji.yaml"),
    workdir: Annotated[str, typer.Option(help="Folder or URL for all results.")] = "runs",
    force: Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Redo it though finished.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run and why; run nothing.")] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Show what is finished, its metrics, where it lies.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Re-hash finished artifacts.")] = False,
    runtime: Annotated[str, typer.Option(help="ray | local (everything in this process)")] = "ray",
    address: Annotated[str, typer.Option(help="Ray's address: local | auto | HOST:PORT")] = "local",
    no_tracking: Annotated[bool, typer.Option("--no-tracking", help="Do without MLflow.")] = False,
) -> None:
    """Shard pictures, train a tokenizer, encode, train a prior, sample, evaluate. The same command again resumes."""
    options = Options(
        stages=stages,
        workdir=workdir,
        name=config.stem,
        force=tuple(force or ()),
        dry_run=dry_run,
        status=status,
        verify=verify,
        runtime=runtime,
        address=address,
        tracking=not no_tracking,
        command="python run_pipeline.py " + shlex.join(sys.argv[1:]),
    )
    raise typer.Exit(run_session(options, lambda: load_config(Config, config, overrides or ()), build))


if __name__ == "__main__":
    typer.run(main)
