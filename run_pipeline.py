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
from stages.data.condition_config import ClassCondition, Conditions, map_condition
from stages.data.sources import list_source
from stages.encode import EncodeConfig, EncodeWork, encode
from stages.evaluate import EvaluateConfig, evaluate, evaluate_inputs
from stages.maps import make_maps
from stages.models.pretrained import start_of
from stages.prior import PriorConfig, train_prior
from stages.sample import SampleConfig, sample
from stages.sampling.requests import request_inputs
from stages.sampling.selection_config import scorer_inputs
from stages.shard import ShardConfig, shard
from stages.tokenizer import MapTokenizerConfig, TokenizerConfig, train_tokenizer


class Config(StrictModel):
    """One experiment: a section for each stage, and where it runs."""

    condition: Conditions = (ClassCondition(),)
    """What the prior is told of each picture, one thing or several: none, class, caption, coordinates, boxes, and
    one map: edges, sketch, low_resolution (computed from the picture), alpha, segmentation, depth or pose (given)."""

    shard: ShardConfig = ShardConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    cond_tokenizer: MapTokenizerConfig = MapTokenizerConfig()
    encode: EncodeConfig = EncodeConfig()
    prior: PriorConfig = PriorConfig()
    sample: SampleConfig = SampleConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()


def build(config: Config) -> list[Stage]:
    """Write out the graph of stages, in the order in which they run. Bump a version when its work changes meaning."""
    pictures = Source("pictures", partial(list_source, config.shard.source))
    kinds = {condition.kind for condition in config.condition}
    cutting = config.shard.model_copy(update={"alpha": config.shard.alpha or "alpha" in kinds})
    shards = Stage("shard", shard, cutting, {"source": pictures}, version=2)
    keep = config.tokenizer.policy == "keep"
    learning_from = {"shards": shards, **start_of("tokenizer", config.tokenizer.from_checkpoint)}
    tokenizer = Stage("tokenizer", train_tokenizer, config.tokenizer, learning_from, version=2, keep=keep)
    spatial = map_condition(config.condition)
    maps, beside = {}, {}
    if spatial is not None:  # a map beside each picture, with a tokenizer of its own
        maps["maps"] = Stage("maps", make_maps, spatial, {"shards": shards})
        labels = spatial.num_classes if spatial.kind == "segmentation" else None
        learning = config.cond_tokenizer.of_labels(labels) if labels else config.cond_tokenizer
        learning_from = {"shards": maps["maps"], **start_of("cond_tokenizer", learning.from_checkpoint)}
        keep = learning.policy == "keep"
        beside["cond_tokenizer"] = Stage("cond_tokenizer", train_tokenizer, learning, learning_from, keep=keep)
    encoding = EncodeWork.of(config.encode, config.condition)
    encoded = {"shards": shards, "tokenizer": tokenizer, **maps, **beside}
    tokens = Stage("encode", encode, encoding, encoded, version=3)
    learning_from = {"tokens": tokens, **start_of("prior", config.prior.from_checkpoint)}
    prior = Stage("prior", train_prior, config.prior, learning_from, version=2)
    # Classes are known to the prior; of other conditions, held-out pictures give examples to draw from.
    given = {"tokens": tokens, **maps} if kinds - {"none", "class"} else {}
    given |= {**request_inputs(config.sample.requests), **scorer_inputs(config.sample.select)}
    samples = Stage("sample", sample, config.sample, {"tokenizer": tokenizer, "prior": prior, **given}, version=3)
    judged = {"shards": shards, "tokenizer": tokenizer, "tokens": tokens, "prior": prior, "samples": samples, **maps}
    judged |= evaluate_inputs(config.evaluate)
    judging = Stage("evaluate", evaluate, config.evaluate, judged, version=4)
    return [shards, tokenizer, *maps.values(), *beside.values(), tokens, prior, samples, judging]


def main(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. prior.learning_rate=3e-4")
    ] = None,
    stages: Annotated[str, typer.Option(help="Which stages: all | a,b | a..c")] = "all",
    config: Annotated[Path, typer.Option(help="The experiment's YAML file.")] = Path("configs/emoji.yaml"),
    smoke: Annotated[bool, typer.Option("--smoke", help="The config's tiny version, to see that it runs.")] = False,
    workdir: Annotated[str | None, typer.Option(help="Folder or URL for all results. Default: runs")] = None,
    force: Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Redo it though finished.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run and why; run nothing.")] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Show what is finished, its metrics, where it lies.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Re-hash finished artifacts.")] = False,
    runtime: Annotated[str, typer.Option(help="ray | local (everything in this process)")] = "ray",
    address: Annotated[str | None, typer.Option(help="local | auto | HOST:PORT. Default: cluster.address")] = None,
    gc: Annotated[bool, typer.Option("--gc", help="Show what no config in use refers to, with sizes.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --gc: remove it.")] = False,
    keep: Annotated[
        int, typer.Option(min=1, help="With --gc: artifacts of each stage that stay, the latest first.")
    ] = 1,
    in_use: Annotated[
        list[Path] | None, typer.Option(metavar="CONFIG", help="With --gc: another config in use. Repeatable.")
    ] = None,
    no_tracking: Annotated[bool, typer.Option("--no-tracking", help="Do without MLflow.")] = False,
) -> None:
    """Shard pictures, train a tokenizer, encode, train a prior, sample, evaluate. The same command again resumes."""
    options = Options(
        stages=stages,
        workdir=workdir or (f"runs/smoke/{config.stem}" if smoke else "runs"),
        name=config.stem,
        force=tuple(force or ()),
        dry_run=dry_run,
        status=status,
        verify=verify,
        runtime=runtime,
        address=address,
        tracking=not no_tracking,
        command="python run_pipeline.py " + shlex.join(sys.argv[1:]),
        gc=gc,
        yes=yes,
        keep=keep,
    )
    others = [partial(load_config, Config, path, smoke=smoke) for path in in_use or ()]
    raise typer.Exit(
        run_session(options, lambda: load_config(Config, config, overrides or (), smoke=smoke), build, others)
    )


if __name__ == "__main__":
    typer.run(main)
