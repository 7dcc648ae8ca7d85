"""Stage publish: judges the new model against the one in use and writes what is handed out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.artifacts import Artifact, Metrics
from pipeline.config import StrictModel
from pipeline.output import Output
from stages.publishing.gate import Incumbent, Requirement, decide

if TYPE_CHECKING:
    from pipeline.runtime import BoundRuntime
    from pipeline.versions.registry import Published

REPORT = "report.json"
OTHER_PICTURES = "it draws pictures of another size or kind, or is told other things"
"""Why a version in use has no evaluation on today's pictures."""


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
    from stages.metrics.report.lineage import LINEAGE
    from stages.metrics.report.published import published_page
    from stages.publishing.bundle import write_bundle

    report = evaluation.read_json(REPORT)
    judged = incumbent_evaluation.read_json(REPORT)["figures"] if incumbent_evaluation is not None else None
    against = None
    if incumbent is not None and config.incumbent is not None:
        made_from = incumbent.recipe["inputs"]
        against = Incumbent(version=config.incumbent, tokenizer=made_from["tokenizer"], prior=made_from["prior"])
    decision = decide(config.require, report["figures"], judged, against, OTHER_PICTURES).model_dump(mode="json")
    output.write_json("decision.json", decision)
    made = {"shards": shards, "tokenizer": tokenizer, "tokens": tokens, "prior": prior, "samples": samples}
    made |= {"cond_tokenizer": cond_tokenizer} if cond_tokenizer is not None else {}
    write_bundle(output, {**made, "evaluation": evaluation}, decision)
    output.write_json(LINEAGE, evaluation.folder.read_json(LINEAGE), content=False)
    made_then = incumbent.folder.read_json(LINEAGE) if incumbent is not None else None
    page = published_page(
        decision, evaluation, incumbent_evaluation, samples, incumbent_samples, None, incumbent_lineage=made_then
    )
    output.write("report.html", page.encode(), content=False)
    figures = {rule["metric"]: rule["challenger"]["value"] for rule in decision["rules"] if rule["challenger"]}
    return {"verdict": decision["verdict"], **figures}
