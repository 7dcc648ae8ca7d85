"""What nothing in use refers to any more: found, shown with sizes and reasons, removed once that is confirmed.

In use is an artifact that a given config asks for or names by its path, the latest of any stage (with `keep` above 1
the newest others too), one in whose folder lies a file KEEP, what the versions in use consist of (the champion, the one
before it, the challenger), and whatever any of these was made from, short of what an earlier run had made: a prior
needs its tokens, but not the prior that it once started from. Units stay with
the artifacts that are made of them, checkpoints and memories with those they served. While a stage of a given config
is unfinished, all its units, checkpoints and memories stay: only its work knows which of them it will ask for.
Logs stay up to the newest few. The tracker's runs, and whatever else lies in the workdir, are left alone.
"""

from __future__ import annotations

import datetime
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.artifacts import Artifact, DamagedManifest
from pipeline.errors import StorageError
from pipeline.manifest import MANIFEST
from pipeline.output import USED_BY
from pipeline.progress import Screen
from pipeline.runner import INHERITED, Runner
from pipeline.storage import Folder
from pipeline.units import RECORD, UnitStore
from pipeline.versions.registry import Registry
from pipeline.workdir import ATTEMPT, LATEST, Workdir

KEEP = "KEEP"
"""A file of this name in an artifact's folder keeps the artifact, and what it was made from, for ever."""
KEPT_LOGS = 10
"""Logs of so many runs stay."""
HANDED_OVER = "result-"
"""Prefix of a training's result on its way to the driver; one that is still there belonged to a driver that died."""

Place = tuple[str, ...]
"""Path parts below the workdir: (stage, artifact), (units | checkpoints | memory, stage, key), (logs, file)."""


@dataclass(frozen=True)
class Leftover:
    """Something that nothing in use refers to."""

    what: str
    """Its kind, with its stage."""
    place: Place
    bytes: int
    reason: str
    mark: str | None = None
    """The file that says it is finished: removed first, so that half of it is never taken for the whole."""


@dataclass
class _Contents:
    """What lies in a workdir, by one listing: the bytes of every file below each place."""

    workdir: Workdir
    artifacts: dict[Place, dict[str, int]]
    pieces: dict[str, dict[Place, dict[str, int]]]
    """Of units, checkpoints and memory."""
    logs: dict[str, int]

    @classmethod
    def of(cls, workdir: Workdir) -> _Contents:
        artifacts: dict[Place, dict[str, int]] = defaultdict(dict)
        pieces: dict[str, dict[Place, dict[str, int]]] = {
            kind: defaultdict(dict) for kind in ("units", "checkpoints", "memory")
        }
        logs = {}
        for name, size in workdir.folder.sizes().items():
            parts = name.split("/")
            if parts[0] in pieces and len(parts) > 3:
                pieces[parts[0]][tuple(parts[:3])]["/".join(parts[3:])] = size
            elif parts[0] == "logs" and len(parts) == 2:
                logs[parts[1]] = size
            elif len(parts) > 2 and re.fullmatch(r"[0-9a-f]{12}", parts[1]):
                artifacts[parts[0], parts[1]]["/".join(parts[2:])] = size
        ours = {place: files for place, files in artifacts.items() if MANIFEST in files or ATTEMPT in files}
        return cls(workdir, ours, pieces, logs)

    def load(self, place: Place) -> Artifact:
        """Read a finished artifact. Raises StorageError where its manifest is damaged: nobody knows what it needs."""
        store = UnitStore(self.workdir.folder / "units" / place[0], place[0], 0)
        try:
            return Artifact.load(self.workdir.folder / "/".join(place), store)
        except DamagedManifest as error:
            raise StorageError(
                f"{error}: remove it and run --gc again; its stage makes it anew if it is needed"
            ) from error


def find_leftovers(workdir: Workdir, runners: Sequence[Runner], named: Iterable[str], keep: int) -> list[Leftover]:
    """Return what nothing in use refers to, in the order in which it may be removed. The caller holds the lock.

    `runners` are the graphs of the configs in use, `named` all strings in those configs. Raises StorageError for a
    damaged manifest.
    """
    contents = _Contents.of(workdir)
    finished = {place: contents.load(place) for place, files in contents.artifacts.items() if MANIFEST in files}
    decisions = [runner.decide(stage) for runner in runners for stage in runner.stages]
    unfinished = {decision.stage.home for decision in decisions if decision.artifact is None}
    used: set[Place] = {
        (decision.stage.home, mark[:12]) for decision in decisions if (mark := decision.mark) is not None
    }
    taken = [given for runner in runners for stage in runner.stages for given in stage.inputs.values()]
    used |= {(given.stage, given.fingerprint[:12]) for given in taken if isinstance(given, Artifact)}
    used |= _of_versions(Registry.read(workdir.folder))
    used |= {place for place, files in contents.artifacts.items() if KEEP in files}
    latest = _latest(contents)
    used |= latest | _newest(finished.keys() - latest, finished, keep - 1) | _named(workdir.folder, named)
    # Of a stage that waits for its inputs nobody knows the fingerprint yet: what was begun may be what it asks for.
    used |= {place for place in contents.artifacts if place not in finished and place[0] in unfinished}
    used = _with_inputs(finished, used)
    unfinished |= {place[0] for place in used if place in contents.artifacts and place not in finished}
    return [
        *_artifacts(contents, finished, used),
        *_served(contents, used, unfinished),
        *_units(contents, finished, used, unfinished),
        *_logs(contents),
    ]


def remove(workdir: Workdir, leftovers: Sequence[Leftover]) -> None:
    """Remove them in their order; killed on the way, it leaves nothing that would be taken for finished."""
    for leftover in leftovers:
        name = "/".join(leftover.place)
        if leftover.mark is not None:
            workdir.folder.remove(f"{name}/{leftover.mark}")
        workdir.folder.remove(name)


def show(screen: Screen, leftovers: Sequence[Leftover]) -> None:
    """Print a table: kinds that come by the hundred share a row."""
    rows: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for leftover in leftovers:
        single = leftover.what.startswith("artifact")
        shown = "/".join(leftover.place if single else leftover.place[:2] if len(leftover.place) > 2 else ("logs",))
        rows[leftover.what, shown, leftover.reason].append(leftover.bytes)
    table = [
        (what, str(len(sizes)), f"{sum(sizes) / 1e6:,.1f}", shown, reason)
        for (what, shown, reason), sizes in rows.items()
    ]
    screen.table("what nothing in use refers to", ("what", "number", "MB", "where", "why"), table)


def _latest(contents: _Contents) -> set[Place]:
    """The latest artifact of every stage, in the graph or not."""
    stages = {place[0] for place in contents.artifacts}
    homes = {stage: contents.workdir.folder / stage for stage in stages}
    return {(stage, home.read_json(LATEST)["fingerprint"][:12]) for stage, home in homes.items() if home.exists(LATEST)}


def _of_versions(registry: Registry) -> set[Place]:
    """What the champion, the version before it and the challenger consist of."""
    numbers = {registry.champion, registry.before_champion, registry.challenger} - {None}
    versions = [version for version in registry.versions if version.number in numbers]
    return {
        (name, mark[:12])
        for version in versions
        for name, mark in (*version.artifacts.items(), (version.stage, version.fingerprint))
    }


def _newest(places: Iterable[Place], finished: Mapping[Place, Artifact], most: int) -> set[Place]:
    """At most so many of each stage's artifacts, those that were finished last."""
    of_stage: dict[str, list[Place]] = defaultdict(list)
    for place in sorted(places, key=lambda place: _finished_at(finished[place]), reverse=True):
        of_stage[place[0]].append(place)
    return {place for places in of_stage.values() for place in places[:most]}


def _finished_at(artifact: Artifact) -> datetime.datetime:
    return datetime.datetime.fromisoformat(artifact.notes["finished"])


def _named(home: Folder, texts: Iterable[str]) -> set[Place]:
    """Artifacts that a config names by their path, such as `prior.from_checkpoint: runs/prior/3fa9d2c17b10`."""
    root = os.path.realpath(home.path) if home.is_local else home.url
    found: set[Place] = set()
    for text in texts:
        full = os.path.realpath(os.path.expanduser(text)) if home.is_local else text  # noqa: PTH111 (unknown users raise there)
        if full.startswith(f"{root}/"):
            found.add(tuple(full[len(root) + 1 :].split("/")[:2]))
    return found


def _with_inputs(finished: Mapping[Place, Artifact], used: set[Place]) -> set[Place]:
    """Add what the used artifacts were made from, and what that was made from, by content digest."""
    by_digest: dict[str, set[Place]] = defaultdict(set)
    for place, artifact in finished.items():
        by_digest[artifact.digest].add(place)
    found, waiting = set(used), list(used)
    while waiting:
        place = waiting.pop()
        for digest in _made_from(finished[place]) if place in finished else ():
            new = by_digest[digest] - found
            found |= new
            waiting += new
    return found


def _made_from(artifact: Artifact) -> list[str]:
    """Digests of its inputs, but for those that an earlier run had made."""
    return [
        digest for name, digest in artifact.recipe["inputs"].items() if name not in artifact.notes.get(INHERITED, ())
    ]


def _artifacts(contents: _Contents, finished: Mapping[Place, Artifact], used: set[Place]) -> Iterator[Leftover]:
    # A unit's files appear in artifacts' folders as links: they take their room where the units lie.
    linked = {(place[1], name) for place, files in contents.pieces["units"].items() for name in files}
    for place, files in sorted(contents.artifacts.items()):
        if place in used:
            continue
        size = sum(count for name, count in files.items() if (place[0], name) not in linked)
        reason = "superseded: not the latest, and no config in use asks for it"
        if place not in finished:
            reason = "never finished, and no config in use asks for it"
        mark = MANIFEST if place in finished else None
        yield Leftover(f"artifact of {place[0]}", place, size, reason, mark)


def _served(contents: _Contents, used: set[Place], unfinished: set[str]) -> Iterator[Leftover]:
    """Checkpoints and memories of artifacts that are not in use, and results that nobody fetched."""
    for kind in ("checkpoints", "memory"):
        for place, files in sorted(contents.pieces[kind].items()):
            stage, folder = place[1], contents.workdir.folder / "/".join(place)
            served = set(folder.read_json(USED_BY)) if USED_BY in files else None
            if served is None or stage in unfinished or any((stage, mark[:12]) in used for mark in served):
                yield from _stranded(place, files)
                continue
            reason = "of artifacts that are not in use, finished or given up"
            yield Leftover(f"{kind} of {stage}", place, sum(files.values()), reason, "LATEST")


def _stranded(place: Place, files: Mapping[str, int]) -> Iterator[Leftover]:
    results: dict[str, int] = defaultdict(int)
    for name, size in files.items():
        if name.startswith(HANDED_OVER):
            results[name.partition("/")[0]] += size
    for name, size in sorted(results.items()):
        yield Leftover(f"results of {place[1]}", (*place, name), size, "handed over to a driver that died")


def _units(
    contents: _Contents, finished: Mapping[Place, Artifact], used: set[Place], unfinished: set[str]
) -> Iterator[Leftover]:
    kept = {(place[0], unit.key[:32]) for place in used if place in finished for unit in finished[place].units}
    for place, files in sorted(contents.pieces["units"].items()):
        if place[1] not in unfinished and place[1:] not in kept:
            reason = "no artifact in use is made of them"
            yield Leftover(f"units of {place[1]}", place, sum(files.values()), reason, RECORD)


def _logs(contents: _Contents) -> Iterator[Leftover]:
    """Logs are named for their time, `run-20260131-235959.log`; the parts of a long one follow it (`.1`)."""
    runs = sorted({name.split(".log")[0] for name in contents.logs}, reverse=True)
    for name, size in sorted(contents.logs.items()):
        if name.split(".log")[0] in runs[KEPT_LOGS:]:
            yield Leftover("logs", ("logs", name), size, f"older than those of the last {KEPT_LOGS} runs")
