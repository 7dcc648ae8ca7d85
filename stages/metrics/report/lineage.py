"""Where a model comes from: the data, code, configuration and packages of every stage, and how two models differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.config import flatten

if TYPE_CHECKING:
    from pipeline.artifacts import Artifact

LINEAGE = "lineage.json"
"""The file beside report.json that keeps it. Not content: equal results can come from different machines."""


def lineage_of(artifacts: Iterable[Artifact]) -> dict[str, Any]:
    """What lineage.json holds: `source` (digest of the source's listing), `stages` and `packages`.

    Of each stage `digest`, `code`, `inputs` (digests), `config` (dotted keys to JSON); of all of them each package's
    versions.
    """
    stages, versions = {}, dict[str, set[str]]()
    source = ""
    for artifact in artifacts:
        inputs = dict(artifact.recipe["inputs"])
        source = inputs.get("source", source)
        config = flatten(artifact.recipe["config"])
        stages[artifact.stage] = {
            "digest": artifact.digest,
            "code": artifact.notes.get("code"),
            "inputs": inputs,
            "config": {key: json.dumps(value) for key, value in sorted(config.items())},
        }
        installed = {"python": artifact.notes.get("python"), **artifact.notes.get("packages", {})}
        for name, version in installed.items():
            if version:
                versions.setdefault(name, set()).add(version)
    packages = {name: " and ".join(sorted(found)) for name, found in versions.items()}
    return {"source": source, "stages": stages, "packages": packages}


class Change(NamedTuple):
    """Something that two lineages do not share; empty where one of them lacks it."""

    name: str
    before: str
    after: str


class Difference(NamedTuple):
    """What changed from one lineage to another."""

    data: list[Change]
    config: list[Change]
    code: list[Change]
    packages: list[Change]


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> Difference:
    """What changed between two contents of lineage.json. Only stages of both are compared."""
    shared = [stage for stage in after["stages"] if stage in before["stages"]]
    pairs = [(stage, before["stages"][stage], after["stages"][stage]) for stage in shared]
    data = _changed({"source": before["source"]}, {"source": after["source"]})
    config = [
        Change(f"{stage}.{name}", old, new)
        for stage, was, now in pairs
        for name, old, new in _changed(was["config"], now["config"])
    ]
    code = [
        Change(stage, was["code"] or "", now["code"] or "") for stage, was, now in pairs if was["code"] != now["code"]
    ]
    return Difference(data, config, code, _changed(before["packages"], after["packages"]))


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[Change]:
    names = sorted({*before, *after})
    changes = (Change(name, before.get(name, ""), after.get(name, "")) for name in names)
    return [change for change in changes if change.before != change.after]
