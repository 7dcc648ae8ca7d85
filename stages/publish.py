"""Stage publish: judges the new model against the one in use and writes what is handed out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact, Metrics
from pipeline.config import StrictModel
from pipeline.output import Output
from stages.publishing.gate import Incumbent, Requirement, decide

if TYPE_CHECKING:
    from pipeline.registry import Published
    from pipeline.runtime import BoundRuntime

REPORT = "report.json"
INCOMPARABLE = "incomparable.json"
BUNDLE = "bundle"


class PublishConfig(StrictModel):
    """What a new model must be better in to be used from now on."""

    require: tuple[Requirement, ...] = (Requirement(metric="kid_samples", direction="lower"),)
    """A challenger becomes the champion if it passes them all; both are measured on today's held-out pictures. Changing
    them judges again and trains nothing. Empty: every new model is published."""


class PublishWork(PublishConfig):
    """All that decides the verdict, beside the figures."""

    incumbent: int | None = None
    """Number of the version to judge against; None: there is none."""

    @classmethod
    def of(cls, config: PublishConfig, incumbent: Published | None) -> PublishWork:
        """Join the section `publish` of a config with the version in use."""
        return cls(**dict(config), incumbent=incumbent.number if incumbent is not None else None)


def publish(
    config: PublishWork,
    *,
    shards: Artifact,
    tokenizer: Artifact,
    tokens: Artifact,
    prior: Artifact,
    samples: Artifact,
    evaluation: Artifact,
    cond_tokenizer: Artifact | None = None,
    incumbent: Artifact | None = None,
    incumbent_evaluation: Artifact | None = None,
    incumbent_samples: Artifact | None = None,
    output: Output,
    runtime: BoundRuntime,
) -> Metrics:
    """Write the bundle, decision.json and report.html.

    `incumbent` is what was published of the version in use; its evaluation is of today's held-out pictures, and
    missing where that version draws other pictures than these. Raises ConfigError where `require` names a figure that
    is not measured.
    """
    report = evaluation.read_json(REPORT)
    judged, incomparable = _judged(incumbent_evaluation)
    against = None
    if incumbent is not None and config.incumbent is not None:
        made_from = incumbent.recipe["inputs"]
        against = Incumbent(version=config.incumbent, tokenizer=made_from["tokenizer"], prior=made_from["prior"])
    decision = decide(config.require, report["figures"], judged, against, incomparable)
    output.write_json("decision.json", decision.model_dump(mode="json"))
    _write_bundle(output, shards, tokenizer, tokens, prior, cond_tokenizer)
    output.write("report.html", (evaluation.folder.read("report.html")), content=False)
    figures = {rule.metric: rule.challenger.value for rule in decision.rules if rule.challenger is not None}
    return {"verdict": decision.verdict, **figures}


def _judged(evaluation: Artifact | None) -> tuple[dict[str, Any] | None, str]:
    """The incumbent's figures, or why there are none."""
    if evaluation is None:
        return None, "it draws pictures of another size or kind, or is told other things"
    if any(entry.path == REPORT for entry in evaluation.own_files):
        return evaluation.read_json(REPORT)["figures"], ""
    return None, str(evaluation.read_json(INCOMPARABLE)["reason"])


def _write_bundle(
    output: Output,
    shards: Artifact,
    tokenizer: Artifact,
    tokens: Artifact,
    prior: Artifact,
    cond_tokenizer: Artifact | None,
) -> None:
    """What `Generator.load` takes anywhere, in the folder `bundle`."""
    from stages.sampling.bundle import BundleDescription, Parts

    told = BundleDescription(
        condition=tokens.recipe["config"]["condition"], crop=shards.recipe["config"].get("crop", "center")
    )
    maps = cond_tokenizer.folder if cond_tokenizer is not None else None
    parts = Parts(str(prior.folder), tokenizer.folder, prior.folder, maps, tokens.folder, told)
    with output.folder.scratch(BUNDLE) as scratch:
        parts.write(scratch)
        for path in sorted(scratch.rglob("*")):
            if path.is_file():
                output.write(f"{BUNDLE}/{path.relative_to(scratch).as_posix()}", path.read_bytes())
