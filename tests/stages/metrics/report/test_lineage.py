"""Lineage says what made a model, and what is different from another one."""

from types import SimpleNamespace
from typing import Any

from stages.metrics.report.lineage import Change, difference, lineage_of


def artifact(stage: str, config: dict[str, Any], inputs: dict[str, str], **notes: Any) -> Any:
    return SimpleNamespace(stage=stage, digest=f"of {stage}", recipe={"config": config, "inputs": inputs}, notes=notes)


def lineage(source: str = "s1", steps: int = 10, code: str = "c1", **packages: str) -> dict[str, Any]:
    return lineage_of(
        [
            artifact("shard", {"size": 8}, {"source": source}, code="c1", python="3.11", packages={"torch": "2.9"}),
            artifact("prior", {"steps": steps, "model": {"width": 4}}, {"tokens": "t"}, code=code, packages=packages),
        ]
    )


def test_lineage_holds_the_source_and_every_stage_and_the_versions_of_packages() -> None:
    found = lineage(torch="2.8")
    assert found["source"] == "s1"
    assert found["stages"]["prior"] == {
        "digest": "of prior",
        "code": "c1",
        "inputs": {"tokens": "t"},
        "config": {"model.width": "4", "steps": "10"},
    }
    assert found["packages"] == {"python": "3.11", "torch": "2.8 and 2.9"}


def test_the_difference_names_what_changed_and_nothing_else() -> None:
    changes = difference(lineage(), lineage(source="s2", steps=20, code="c2", numpy="2.4"))
    assert changes.data == [Change("source", "s1", "s2")]
    assert changes.config == [Change("prior.steps", "10", "20")]
    assert changes.code == [Change("prior", "c1", "c2")]
    assert changes.packages == [Change("numpy", "", "2.4")]
    assert not any(difference(lineage(), lineage()))


def test_a_stage_that_only_one_of_them_has_is_no_change() -> None:
    more = lineage()
    more["stages"]["maps"] = {"digest": "m", "code": None, "inputs": {}, "config": {"kind": '"edges"'}}
    assert not any(difference(lineage(), more)) and not any(difference(more, lineage()))


def test_old_manifests_say_less() -> None:
    found = lineage_of([artifact("shard", {}, {})])
    assert found == {
        "source": "",
        "stages": {"shard": {"digest": "of shard", "code": None, "inputs": {}, "config": {}}},
        "packages": {},
    }
