"""The gate, the publish stage, and who uses what it published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.artifacts import Artifact
from pipeline.errors import ConfigError
from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime
from pipeline.stage import Stage
from pipeline.storage import Folder
from pipeline.versions.registry import Registry, Version, now
from stages.publish import PublishWork, publish
from stages.publishing.gate import Decision, Incumbent, Requirement, decide
from stages.sampling.bundle import Parts
from stages.sampling.generator import Generator
from tests.stages.metrics.report import versions as made_up
from tests.stages.metrics.report.versions import finished
from tests.stages.sampling.bundles import tiny_run
from tests.stages.tiny import tiny_prior, tiny_shards

INCUMBENT = Incumbent(version=3, tokenizer="aa", prior="bb")


def figures(**values: float) -> dict[str, dict[str, Any]]:
    better = {"psnr": "higher"}
    return {
        name: {"value": value, "interval": [value - 0.1, value + 0.1], "better": better.get(name, "lower")}
        for name, value in values.items()
    }


def judged(ours: float, theirs: float, *, margin: float = 0.0, metric: str = "kid_samples") -> Decision:
    direction = "higher" if metric == "psnr" else "lower"
    requirement = Requirement.model_validate({"metric": metric, "direction": direction, "margin": margin})
    return decide([requirement], figures(**{metric: ours}), figures(**{metric: theirs}), INCUMBENT)


@pytest.mark.parametrize(
    ("ours", "theirs", "margin", "passes"),
    [
        (1.0, 1.2, 0.0, True),
        (1.2, 1.0, 0.0, False),
        (1.0, 1.0, 0.0, False),
        (1.0, 1.25, 0.25, False),
        (1.0, 1.5, 0.25, True),
        (1.1, 1.0, -0.25, True),
        (1.25, 1.0, -0.25, False),
    ],
)
def test_a_challenger_must_be_better_by_more_than_the_margin(ours, theirs, margin, passes):
    assert judged(ours, theirs, margin=margin).rules[0].passed is passes
    higher = judged(-ours, -theirs, margin=margin, metric="psnr")
    assert higher.rules[0].passed is passes
    assert higher.verdict == ("champion" if passes else "challenger")


def test_reasons_state_both_values_the_difference_and_whether_it_may_be_luck():
    (reason,) = judged(1.0, 1.1).reasons
    assert reason == "kid_samples is 1, the champion's 1.1: better by 0.1; their intervals overlap."
    (reason,) = judged(1.0, 1.5, margin=2.0).reasons
    assert reason == "kid_samples is 1, the champion's 1.5: better by 0.5, more than 2 was required."
    assert judged(1.0, 1.0).reasons == ("kid_samples is 1, the champion's 1: no better; their intervals overlap.",)


def test_every_requirement_counts_and_only_what_failed_is_a_reason():
    rules = [Requirement(metric="kid_samples", direction="lower"), Requirement(metric="psnr", direction="higher")]
    decision = decide(rules, figures(kid_samples=1.0, psnr=20.0), figures(kid_samples=2.0, psnr=21.0), INCUMBENT)
    assert decision.verdict == "challenger" and [rule.passed for rule in decision.rules] == [True, False]
    assert decision.reasons == ("psnr is 20, the champion's 21: worse by 1.",)
    assert decide([], figures(psnr=1.0), figures(psnr=2.0), INCUMBENT).verdict == "champion"


def test_the_first_version_is_the_champion_and_one_that_cannot_be_compared_is_not():
    rules = [Requirement(metric="psnr", direction="higher")]
    first = decide(rules, figures(psnr=20.0), None, None)
    assert (first.verdict, first.incumbent) == ("champion", None) and "first version" in first.reasons[0]
    assert first.rules[0].challenger is not None and first.rules[0].challenger.low == 19.9
    other = decide(rules, figures(psnr=20.0), None, INCUMBENT, "it draws larger pictures")
    assert other.verdict == "challenger" and "it draws larger pictures" in other.reasons[0]


def test_a_figure_that_is_no_number_fails_and_one_that_is_not_there_is_a_mistake():
    assert not judged(float("nan"), 1.0).rules[0].passed and not judged(1.0, float("inf")).rules[0].passed
    with pytest.raises(ConfigError, match=r"publish.require names 'fid'.* it measures kid_samples, psnr"):
        decide([Requirement(metric="fid", direction="lower")], figures(psnr=1.0, kid_samples=1.0), None, None)
    with pytest.raises(ConfigError, match="set its direction to higher"):
        decide([Requirement(metric="psnr", direction="lower")], figures(psnr=1.0), None, None)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("publish") / "runs"


@pytest.fixture(scope="module")
def model(workdir: Path) -> dict[str, Artifact]:
    return {"shards": tiny_shards(workdir), **tiny_run(workdir)}


def published(
    workdir: Path, model: dict[str, Artifact], kid: float, incumbent: Artifact | None = None, *, judged: bool = True
) -> Artifact:
    evaluation, samples = finished(workdir, made_up.Version(kid=kid))
    inputs, config = {**model, "samples": samples, "evaluation": evaluation}, PublishWork()
    if incumbent is not None:
        theirs = finished(workdir, made_up.Version(kid=1.0))
        inputs |= {"incumbent": incumbent, "incumbent_samples": theirs[1]}
        inputs |= {"incumbent_evaluation": theirs[0]} if judged else {}
        config = PublishWork(incumbent=1)
    return run_stage(Stage("publish", publish, config, inputs), inputs, str(workdir), LocalRuntime())


def test_the_artifact_holds_a_bundle_that_draws_the_decision_and_the_report(workdir, model, tmp_path):
    first = published(workdir, model, 1.0)
    assert first.read_json("decision.json")["verdict"] == "champion"
    page = (first.folder.path / "report.html").read_text()
    assert "the new version is the first in use" in page and "What it cost" in page, "the evaluation follows"
    lineage = json.loads((first.folder.path / "lineage.json").read_text())
    assert lineage["stages"]["prior"]["code"] == "0123abc"
    assert not any(entry.path.endswith((".pkl", ".pt", ".ckpt")) for entry in first.own_files)
    asked: dict[str, Any] = {"label": "dogs", "caption": "picture 1", "seed": 3}
    ours, theirs = (Generator.load(it).generate(**asked)[0] for it in (first.folder.path / "bundle", workdir))
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    better = published(workdir, model, 0.5, first)
    decision = better.read_json("decision.json")
    assert decision["verdict"] == "champion" and decision["incumbent"] == {
        "version": 1,
        "tokenizer": model["tokenizer"].digest,
        "prior": model["prior"].digest,
    }
    assert decision["rules"][0]["champion"] == {"value": 1.0, "low": 0.9, "high": 1.1}
    assert "takes over from version 1" in (better.folder.path / "report.html").read_text()
    assert published(workdir, model, 1.5, first).metrics == {"verdict": "challenger", "kid_samples": 1.5}
    other = published(workdir, model, 0.5, first, judged=False).read_json("decision.json")
    assert other["verdict"] == "challenger" and "it draws pictures of another size" in other["reasons"][0]


def register(workdir: Path, prior: Artifact, number: int, verdict: str) -> None:
    version = Version.model_validate(
        {
            "number": number,
            "stage": "publish",
            "fingerprint": f"{number:064}",
            "artifacts": {"prior": prior.fingerprint},
            "asked": {},
            "data": "",
            "incumbent": None,
            "verdict": verdict,
            "reasons": ["so"],
            "figures": {},
            "when": now(),
        }
    )
    Registry.read(Folder.at(workdir)).registered(version).write(Folder.at(workdir))


def test_who_draws_from_a_workdir_uses_the_version_in_use(tmp_path):
    run = tiny_run(tmp_path)
    later = tiny_prior(tmp_path, run["tokenizer"], seed=5)
    assert Parts.find(tmp_path).prior.path.resolve().name == later.fingerprint[:12], "what was made last"
    register(tmp_path, run["prior"], 1, "champion")
    register(tmp_path, later, 2, "challenger")
    parts = Parts.find(tmp_path)
    assert (parts.version, parts.prior.path.name) == (1, run["prior"].fingerprint[:12])
    Registry.read(Folder.at(tmp_path)).rolled_back(2, "by hand").write(Folder.at(tmp_path))
    assert Parts.find(tmp_path).version == 2
    later.folder.remove("manifest.json")
    with pytest.raises(ConfigError, match=r"version 2, which is in use in .*, was removed: .*--rollback VERSION"):
        Parts.find(tmp_path)
    assert json.loads((tmp_path / "registry.json").read_text())["champion"] == 2
