"""Stage sample: draws pictures from the prior, decodes them, and lays them out for people and for evaluation."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact, Metrics, Source
from pipeline.errors import StageError
from pipeline.output import Output
from pipeline.runtime import BoundRuntime
from pipeline.storage import Folder
from pipeline.units import Unit, Worker
from stages.sampling.sample_config import SampleConfig

if TYPE_CHECKING:
    from pipeline.manifest import UnitRecord
    from stages.models.priors.configs import PriorDescription
    from stages.sampling.orders import Orders
    from stages.sampling.overview import DrawTold


def sample(
    config: SampleConfig,
    *,
    tokenizer: Artifact,
    prior: Artifact,
    tokens: Artifact | None = None,
    maps: Artifact | None = None,
    requests: Source | None = None,
    scorer: Source | None = None,
    output: Output,
    runtime: BoundRuntime,
) -> Metrics:
    """Draw the samples in units of fixed id ranges, then a grid and a summary of all of them.

    Conditions other than classes are taken from `tokens`; `maps` shows the spatial ones beside the samples. The files
    of `requests` and of the `scorer` to select by are those that the config names.
    """
    from stages.models.priors.configs import PriorDescription
    from stages.sampling.orders import take_orders

    described = PriorDescription.model_validate(prior.read_json("config.json"))
    if tokenizer.digest != described.tokenizer:
        raise StageError(
            f"the prior learned tokens of tokenizer {described.tokenizer[:12]}, this one is {tokenizer.digest[:12]}: "
            "run --stages encode,prior"
        )
    orders = take_orders(config, described, tokens, requests)
    if config.requests is None and config.num_samples % config.samples_per_unit:
        output.warn(
            f"num_samples {config.num_samples} is not a multiple of samples_per_unit {config.samples_per_unit}: "
            f"raising it later draws the last {config.num_samples % config.samples_per_unit} again"
        )
    scorer_folder = check_scorer(config, described, orders)
    make_worker = functools.partial(load_drawer, config, tokenizer.folder, prior.folder, scorer_folder)
    digests = {"tokenizer": tokenizer.digest, "prior": prior.digest}
    units = orders.units({**config.drawing(), **digests} | ({"scorer": scorer.digest} if scorer else {}))
    started = time.monotonic()
    records = output.map_units(make_worker, units, runtime, label="sample", rate_of="samples")
    seconds = time.monotonic() - started
    if output.units_reused < len(records):
        drawn = orders.num_samples * (1 - output.units_reused / len(records))
        output.notes["samples_per_second"] = round(drawn / seconds, 2)
    metrics = _metrics(config, described, orders, records)
    told = _draw_told(described, orders, tokens, maps) if tokens is not None else None
    _write_grid(output, config, orders, units, records, told)
    _write_summary(output, config, described, orders, metrics)
    return metrics


def load_drawer(
    config: SampleConfig, tokenizer_folder: Folder, prior_folder: Folder, scorer_folder: Folder | None, device: str
) -> Worker:
    """Load tokenizer, prior and scorer once; return the worker that draws one unit at a time."""
    from stages.sampling.filters import LogitFilter
    from stages.sampling.generator import Generator
    from stages.sampling.guidance import Guidance
    from stages.sampling.scorers import load_scorer_of
    from stages.sampling.unit import UnitDrawer

    return UnitDrawer(
        Generator.of_folders(tokenizer_folder, prior_folder, device=device, precision=config.precision),
        LogitFilter(config.temperature, config.top_k, config.top_p),
        Guidance(config.guidance, config.guidance_schedule),
        config.batch_size,
        config.threads,
        config.select,
        load_scorer_of(config.select, _fetched(scorer_folder), device, config.batch_size) if config.select else None,
    )


def check_scorer(config: SampleConfig, prior: PriorDescription, orders: Orders) -> Folder | None:
    """The folder of the scorer's files, if there is one. Raises ConfigError where it cannot score the orders."""
    from stages.models.scorers.description import read_description
    from stages.sampling.selection_config import check_selection

    if config.select is None or config.select.kind == "likelihood":
        return None
    folder = Folder.at(config.select.path)
    check_selection(
        config.select,
        prior,
        read_description(folder),
        orders.classes or prior.classes,
        names_classes=orders.names_classes,
        names_captions=orders.names_captions,
    )
    return folder


def _fetched(scorer: Folder | None) -> Path | None:
    """The local path of a scorer's folder, wherever it lies; for the process that loads it."""
    if scorer is None:
        return None
    from stages.models.scorers.description import list_scorer

    paths = [scorer.local(entry.path) for entry in list_scorer(scorer.url)]
    return paths[0].parent


def _metrics(config: SampleConfig, prior: PriorDescription, orders: Orders, records: Sequence[UnitRecord]) -> Metrics:
    def total(key: str) -> float:
        return float(sum(record.counts[key] for record in records))

    tokens = sum(record.counts.get("tokens", record.counts["samples"] * prior.num_tokens) for record in records)
    metrics: Metrics = {
        "samples": orders.num_samples,
        "classes": len(orders.classes),
        "bits_per_token": -total("log_likelihood") / math.log(2) / tokens,
    }
    if config.select is not None:
        candidates = total("candidates")
        metrics |= {
            "score": total("score_of_kept") / orders.num_samples,
            "score_of_all": total("score_of_all") / candidates,
            "kept_share": orders.num_samples / candidates,
        }
        if config.select.min_score is not None:
            metrics |= {"accepted_share": total("accepted") / candidates, "kept_below": int(total("kept_below"))}
    return metrics


def _draw_told(prior: PriorDescription, orders: Orders, tokens: Artifact, maps: Artifact | None) -> DrawTold | None:
    """What draws the condition of a number."""
    from stages.data.condition_pictures import ConditionPictures

    given = orders.given
    if given is None:
        return None
    pictures = ConditionPictures.of(tokens, maps)
    boxes_NL = given.values(prior.vocabulary, "boxes")

    def draw(number: int, side: int) -> list[Any]:
        target = (given.keys[number], given.variants[number])
        return pictures.draw(target, None if boxes_NL is None else boxes_NL[number].tolist(), side)

    return draw


def _write_grid(
    output: Output,
    config: SampleConfig,
    orders: Orders,
    units: Sequence[Unit],
    records: Sequence[UnitRecord],
    draw_told: DrawTold | None,
) -> None:
    from stages.sampling.overview import Gallery, draw_overview

    gallery = Gallery(output, records, [unit.payload for unit in units])
    selected = f"best {config.keep} of {config.select.candidates}" if config.select else ""
    output.write("grid.png", draw_overview(gallery, orders.rows(), draw_told, selected))


def _write_summary(
    output: Output, config: SampleConfig, prior: PriorDescription, orders: Orders, metrics: Metrics
) -> None:
    about = {name: value for name, value in metrics.items() if name not in ("samples", "classes")}
    output.write_json(
        "samples.json",
        {
            **config.model_dump(mode="json", exclude={"samples_per_unit"}),
            "num_samples": orders.num_samples,
            "classes": orders.counts,
            **about,
            "tokenizer": prior.tokenizer,
            "image_size": prior.image_size,
            "channels": prior.channels,
            "grid": list(prior.grid),
        },
    )
