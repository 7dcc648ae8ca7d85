"""Puts the report together: report.json's content, and the one-file HTML page around the same numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.metrics.judge import FEATURES, Judgement, Measured, class_table
from stages.metrics.report import words
from stages.metrics.report.curves import PRIOR_CHARTS, TOKENIZER_CHARTS, draw_charts, draw_codebook
from stages.metrics.report.pictures import Pair, data_uri, nearest_pairs, reconstruction_pairs, samples_by_class

if TYPE_CHECKING:
    from pipeline.artifacts import Artifact
    from stages.data.shards import Shard

FORMAT = 1
TEMPLATE = "page.html.j2"

FIGURE_NAMES = {
    "kid": "KID",
    "frechet": "Fr\u00e9chet distance",
    "psnr": "Reconstruction, PSNR",
    "l1": "Reconstruction, L1",
    "codebook_used_held_out": "Codebook in use, held-out",
    "codebook_used_corpus": "Codebook in use, corpus",
    "codebook_perplexity_held_out": "Codebook perplexity, held-out",
    "codebook_perplexity_corpus": "Codebook perplexity, corpus",
    "bits_per_token_held_out": "Bits per token, held-out",
    "bits_per_token_train": "Bits per token, training",
    "overfit_gap": "Overfit gap, bits per token",
    "nearest_training_ratio": "Distance to training pictures, ratio",
    "suspiciously_near": "Suspiciously near a training picture",
}
SUBJECTS = {
    "samples": "Samples",
    "reconstructions": "Reconstructions",
    "floor": "Other real pictures",
    "chance": "Random tokens",
}


class HowMany(NamedTuple):
    """How many pictures the page shows."""

    per_class: int
    reconstructions: int
    neighbours: int


@dataclass(frozen=True)
class Shown:
    """The pictures of the page."""

    samples: list[tuple[str, list[str]]]
    reconstructions: list[Pair]
    neighbours: list[Pair]

    @classmethod
    def collect(
        cls,
        how_many: HowMany,
        classes: Sequence[str],
        splits: Mapping[str, Sequence[Shard]],
        judgement: Judgement,
        reconstructions: Sequence[Mapping[str, Any]],
    ) -> Shown:
        """Choose and read them."""
        neighbours = (judgement.neighbour_N, judgement.neighbour_distance_N)
        return cls(
            samples=samples_by_class(splits["sample"], classes, how_many.per_class),
            reconstructions=reconstruction_pairs(reconstructions, how_many.reconstructions),
            neighbours=nearest_pairs(splits["sample"], splits["train"], *neighbours, how_many.neighbours),
        )


def describe(
    dataset: Mapping[str, Any],
    measured: Measured,
    judgement: Judgement,
    left_out: Sequence[str],
    inputs: Mapping[str, Artifact],
) -> dict[str, Any]:
    """The content of report.json: a function of the inputs' bytes alone."""
    figures = judgement.figures
    counts = (dataset["image_size"], dataset["num_train"], dataset["num_val"])
    return {
        "format": FORMAT,
        "verdict": words.verdict(figures),
        "findings": words.findings(figures, len(dataset["classes"]), *counts),
        "features": FEATURES,
        "figures": figures,
        "classes": class_table(dataset["classes"], dataset["class_counts"], measured),
        "classes_left_out": list(left_out),
        "dataset": {name: dataset[name] for name in ("image_size", "channels", "num_train", "num_val", "attribution")},
        "inputs": {name: {"stage": artifact.stage, "digest": artifact.digest} for name, artifact in inputs.items()},
    }


def render(
    report: Mapping[str, Any],
    shown: Shown,
    measured: Measured,
    inputs: Mapping[str, Artifact],
    own_warnings: Sequence[str],
) -> str:
    """The page: one file, no script, nothing to load; readable in light and dark and on paper."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": words.percent, "duration": duration}
    figures = report["figures"]
    warnings = [(artifact.stage, line) for artifact in inputs.values() for line in artifact.notes.get("warnings", ())]
    warnings += [("evaluate", line) for line in own_warnings]
    return environment.get_template(TEMPLATE).render(
        report=report,
        figures=figures,
        shown=shown,
        distrust=words.distrust(figures, report["classes"], report["classes_left_out"], len(warnings)),
        scale=_scale(figures),
        table=[(_figure_name(name), figure) for name, figure in figures.items()],
        charts={
            "tokenizer": draw_charts(TOKENIZER_CHARTS, _history(inputs["tokenizer"])),
            "prior": draw_charts(PRIOR_CHARTS, _history(inputs["prior"])),
        },
        codebook=draw_codebook(measured.train_codes_K + measured.held_out_codes_K, measured.held_out_codes_K),
        num_codes=len(measured.train_codes_K),
        tokens_per_picture=math.prod(inputs["tokens"].read_json("tokens.json")["grid"]),
        contact_sheet=_contact_sheet(inputs["shards"]),
        lineage=[_lineage_row(name, artifact) for name, artifact in inputs.items()],
        warnings=warnings,
    )


def number(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, thousands grouped, a true minus sign."""
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{max(digits - 3, 0) if abs(value) >= 100 else 1}f}"
    else:
        text = f"{value:#.{digits}g}" if abs(value) >= 1e-4 else f"{value:.1e}"
    return text.rstrip(".").replace("-", "\u2212")


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _scale(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Bars of the KID of everything that was compared, from the best possible to chance."""
    longest = max(figures[f"kid_{name}"]["interval"][1] for name in SUBJECTS)
    rows = []
    for name in ("floor", "reconstructions", "samples", "chance"):
        figure = figures[f"kid_{name}"]
        low, high = (min(max(end / longest, 0.0), 1.0) for end in figure["interval"])
        width = min(max(figure["value"] / longest, 0.0), 1.0)
        error = (figure["interval"][1] - figure["interval"][0]) / 2
        rows.append(
            {
                "key": name,
                "name": SUBJECTS[name],
                "figure": figure,
                "width": width,
                "low": low,
                "high": high,
                "error": error,
            }
        )
    return rows


def _figure_name(name: str) -> str:
    kind, _, subject = name.partition("_")
    return f"{FIGURE_NAMES[kind]}, {SUBJECTS[subject].lower()}" if subject in SUBJECTS else FIGURE_NAMES[name]


def _history(artifact: Artifact) -> list[dict[str, float]]:
    return [json.loads(line) for line in artifact.local("history.jsonl").read_text().splitlines()]


def _contact_sheet(shards: Artifact) -> str | None:
    names = [entry.path for entry in shards.own_files if entry.path == "contact_sheet.png"]
    return data_uri(shards.local(names[0]).read_bytes()) if names else None


def _lineage_row(name: str, artifact: Artifact) -> dict[str, Any]:
    from pipeline.config import flatten

    notes = artifact.notes
    return {
        "name": name,
        "stage": artifact.stage,
        "digest": artifact.digest,
        "seconds": notes.get("seconds"),
        "reused": notes.get("units_reused") or 0,
        "units": len(artifact.units),
        "finished": notes.get("finished"),
        "code": notes.get("code"),
        "config": {key: json.dumps(value) for key, value in sorted(flatten(artifact.recipe["config"]).items())},
    }
