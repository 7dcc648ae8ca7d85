"""Pages to look at: an evaluation with 500 pictures, a publication that did not come about, and a small one."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime
from pipeline.stage import Stage
from stages.evaluate import EvaluateConfig, evaluate
from stages.metrics.report.published import published_page
from tests.stages.made_up import World, make
from tests.stages.metrics.report.versions import HOSTILE, Version, decision, finished

LONG = "a-class-whose-name-has-no-place-to-break-and-goes-on-" + "and-on-" * 8
CLASSES = ("discs", "squares", "stripes", LONG, *HOSTILE, "flags", "food & drink", "quotes \"'`")
WORLD = World(
    classes=CLASSES,
    shares=(0.1,) * len(CLASSES),
    train=(40, 40),
    val=(30, 30),
    samples=(210, 210),
    sample_noise=10.0,
    size=64,
)
CONFIG = EvaluateConfig(
    feature_size=32, chance_pictures=12, shown_per_class=40, shown_reconstructions=24, shown_neighbours=30
)
OLD = Version(tokenizer="c" * 64, kid=0.001, classes=CLASSES, size=64, samples_each=6)


class Pages(NamedTuple):
    """Files."""

    evaluation: Path
    publication: Path


def make_pages(workdir: Path) -> Pages:
    """Evaluate made-up artifacts, and compare the result with a version that was better."""
    inputs = make(workdir, WORLD)
    stage = Stage("evaluate", evaluate, CONFIG, inputs)  # type: ignore[arg-type]  # run_stage takes finished inputs
    judged = run_stage(stage, inputs, str(workdir), LocalRuntime())
    incumbent, old_samples = finished(workdir / "old", OLD)
    figure = judged.read_json("report.json")["figures"]["kid_samples"]
    new = {"value": figure["value"], "low": figure["interval"][0], "high": figure["interval"][1]}
    made = decision("challenger", champion=OLD, kid=(1, 0.001), challenger=new)
    page = published_page(made, judged, incumbent, inputs["samples"], old_samples, 7)
    evaluation, publication = workdir / "evaluation.html", workdir / "publication.html"
    evaluation.write_bytes(judged.folder.read("report.html"))
    publication.write_text(page)
    return Pages(evaluation, publication)


def make_small_page(workdir: Path) -> Path:
    """The page of a publication that came about, in no time: of an evaluation that never was."""
    evaluation, samples = finished(workdir / "new", Version(classes=CLASSES, kid=0.0005, samples_each=6))
    incumbent, old_samples = finished(workdir / "old", OLD)
    made = decision("champion", champion=OLD, kid=(0.0005, 0.001))
    path = workdir / "small.html"
    path.write_text(published_page(made, evaluation, incumbent, samples, old_samples, None))
    return path
