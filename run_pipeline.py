"""Smalti: pictures in, a trained, judged and published image generator out. This page is the whole flow; start here."""

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
from pipeline.telling.notify import NotifyConfig
from pipeline.versions.registry import Published
from stages.data.condition_config import ClassCondition, Conditions, map_condition
from stages.data.sources import list_source
from stages.encode import EncodeConfig, EncodeWork, encode
from stages.evaluate import EvaluateConfig, evaluate, evaluate_inputs
from stages.maps import make_maps
from stages.prior import PriorConfig, train_prior
from stages.publish import PublishConfig, PublishWork, publish
from stages.sample import SampleConfig, sample
from stages.sampling.requests import request_inputs
from stages.sampling.selection_config import scorer_inputs
from stages.shard import ShardConfig, shard
from stages.tokenizer import MapTokenizerConfig, TokenizerConfig, train_tokenizer
from stages.training.parents import with_start


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
    publish: PublishConfig = PublishConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()
    notify: NotifyConfig = NotifyConfig()


def build(config: Config, parent: Published | None = None, incumbent: Published | None = None) -> list[Stage]:
    """Write out the graph of stages, in the order in which they run. Bump a version when its work changes meaning.

    `parent` is the version that trainings may start from, `incumbent` the one that the new model is judged against.
    """
    pictures = Source("pictures", partial(list_source, config.shard.source))
    kinds = {condition.kind for condition in config.condition}
    cutting = config.shard.model_copy(update={"alpha": config.shard.alpha or "alpha" in kinds})
    shards = Stage("shard", shard, cutting, {"source": pictures}, version=2)
    learning, start = with_start(config.tokenizer, parent)
    learning_from = {"shards": shards, **start}
    tokenizer = Stage("tokenizer", train_tokenizer, learning, learning_from, version=2, policy=learning.policy)
    spatial = map_condition(config.condition)
    maps, beside = {}, {}
    if spatial is not None:  # a map beside each picture, with a tokenizer of its own
        maps["maps"] = Stage("maps", make_maps, spatial, {"shards": shards})
        labels = spatial.num_classes if spatial.kind == "segmentation" else None
        mapping = config.cond_tokenizer.of_labels(labels) if labels else config.cond_tokenizer
        mapping, start = with_start(mapping, parent)
        learning_from = {"shards": maps["maps"], **start}
        beside["cond_tokenizer"] = Stage(
            "cond_tokenizer", train_tokenizer, mapping, learning_from, policy=mapping.policy
        )
    encoding = EncodeWork.of(config.encode, config.condition)
    encoded = {"shards": shards, "tokenizer": tokenizer, **maps, **beside}
    keeps_words = "caption" in kinds and config.prior.policy == "warm"
    words = {"vocabulary": parent.artifacts["encode"]} if parent is not None and keeps_words else {}
    tokens = Stage("encode", encode, encoding, {**encoded, **words}, version=3)
    composing, start = with_start(config.prior, parent)
    prior = Stage("prior", train_prior, composing, {"tokens": tokens, **start}, version=2, policy=composing.policy)
    # Classes are known to the prior; of other conditions, held-out pictures give examples to draw from.
    given = {"tokens": tokens, **maps} if kinds - {"none", "class"} else {}
    given |= {**request_inputs(config.sample.requests), **scorer_inputs(config.sample.select)}
    samples = Stage("sample", sample, config.sample, {"tokenizer": tokenizer, "prior": prior, **given}, version=3)
    model = {"tokenizer": tokenizer, "tokens": tokens, "prior": prior, "samples": samples}
    judged = {"shards": shards, **model, **maps, **evaluate_inputs(config.evaluate)}
    judging = Stage("evaluate", evaluate, config.evaluate, judged, version=4)
    judged_too = incumbent_stages(config, incumbent, shards, maps, tokens, judging) if incumbent is not None else {}
    published = {"shards": shards, **model, **beside, "evaluation": judging}
    if incumbent is not None:
        published |= {"incumbent": incumbent.artifacts["publish"], "incumbent_samples": incumbent.artifacts["sample"]}
        published |= {"incumbent_evaluation": judged_too["incumbent"]} if judged_too else {}
    publishing = Stage(
        "publish",
        publish,
        PublishWork.of(config.publish, incumbent),
        published,
        publishes=("tokenizer", "cond_tokenizer", "prior", "samples"),
    )
    stages = [shards, tokenizer, *maps.values(), *beside.values(), tokens, prior, samples, judging]
    return [*stages, *judged_too.values(), publishing]


def incumbent_stages(
    config: Config, incumbent: Published, shards: Stage, maps: dict[str, Stage], tokens: Stage, judging: Stage
) -> dict[str, Stage]:
    """Judge the version in use on today's pictures; none where it draws other pictures or is told other things."""
    made = incumbent.artifacts
    cut, told = made["shard"].recipe["config"], made["encode"].recipe["config"]["condition"]
    same = [condition.model_dump(mode="json") for condition in config.condition] == told
    if not same or (cut["image_size"], cut["channels"]) != (config.shard.image_size, config.shard.channels):
        return {}
    encoded = {"shards": shards, "tokenizer": made["tokenizer"], **maps}
    encoded |= {"cond_tokenizer": made["cond_tokenizer"]} if maps else {}
    encoded |= {"vocabulary": made["encode"]} if any(it["kind"] == "caption" for it in told) else {}
    again = Stage("incumbent_encode", encode, tokens.config, encoded, version=tokens.version, beside="encode")
    model = {"tokenizer": made["tokenizer"], "tokens": again, "prior": made["prior"], "samples": made["sample"]}
    judged = {**judging.inputs, **model}
    version, where = judging.version, judging.name
    evaluated = Stage("incumbent", evaluate, config.evaluate, judged, version=version, beside=where)
    return {"incumbent_encode": again, "incumbent": evaluated}


def main(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. prior.learning_rate=3e-4; or of --rollback."),
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
    versions: Annotated[bool, typer.Option("--versions", help="List what was published, and what is in use.")] = False,
    rollback: Annotated[
        bool,
        typer.Option("--rollback", help="Put the version before the champion into use, or --rollback VERSION."),
    ] = False,
    no_tracking: Annotated[bool, typer.Option("--no-tracking", help="Do without MLflow.")] = False,
) -> None:
    """Shard pictures, train a tokenizer, encode, train a prior, sample, evaluate, publish what is better.

    The same command again resumes.
    """
    numbers = [text for text in overrides or () if rollback and text.isdecimal()]
    overrides = [text for text in overrides or () if text not in numbers]
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
        versions=versions,
        rollback=rollback,
        rollback_to=int(numbers[0]) if numbers else None,
    )
    others = [partial(load_config, Config, path, smoke=smoke) for path in in_use or ()]
    raise typer.Exit(run_session(options, lambda: load_config(Config, config, overrides, smoke=smoke), build, others))


if __name__ == "__main__":
    typer.run(main)
