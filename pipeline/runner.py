"""Decides which stages run and why, runs them, commits what they made."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact, DamagedManifest, Source
from pipeline.config import flatten
from pipeline.errors import ConfigError, Interrupted, OutOfMemory, StageError, WorkerLost
from pipeline.manifest import MANIFEST
from pipeline.memory import keys_to_lower
from pipeline.output import Output
from pipeline.progress import Screen
from pipeline.provenance import provenance
from pipeline.runtime import BoundRuntime, LocalRuntime, Runtime
from pipeline.signals import StopRequest
from pipeline.stage import Stage, fingerprint
from pipeline.storage import Folder
from pipeline.tracking import NullTracker, StageTracker, Tracker
from pipeline.versions.registry import Published
from pipeline.workdir import Workdir

log = logging.getLogger(__name__)

INHERITED = "inherited"
"""Note of an artifact: those of its inputs that an earlier run had made, such as the weights it started from. Nobody
needs them to use it."""
SHOWN_FILES = (".png", ".html", "report.json")
"""Files of an artifact that the tracker keeps too: those that people open."""


@dataclass(frozen=True)
class Decision:
    """What happens to a stage and why. `artifact` is there when nothing needs to run."""

    stage: Stage
    reason: str
    artifact: Artifact | None = None
    recipe: Mapping[str, Any] | None = None
    """None while an input is unfinished."""
    damage: str = ""
    """What is missing of an artifact that was finished; the run makes it again."""

    @property
    def mark(self) -> str | None:
        """The fingerprint of what was decided on, None while an input is unfinished."""
        if self.artifact is not None:
            return self.artifact.fingerprint
        return fingerprint(self.recipe) if self.recipe is not None else None


@dataclass(frozen=True)
class Outcome:
    """What happened to a stage."""

    stage: Stage
    artifact: Artifact
    ran: bool
    seconds: float = 0.0
    reason: str = ""


@dataclass
class StageReporter:
    """Takes what running work says to the screen, the tracker and the manifest."""

    screen: Screen | None
    tracker: StageTracker
    stop: StopRequest
    warn_output: Callable[[str], None]

    def progress(self, done: int, total: int, numbers: Mapping[str, float]) -> None:
        """Show how far it is."""
        if self.screen is not None:
            self.screen.progress(done, total, numbers)

    def history(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Publish measured rows."""
        self.tracker.history(rows)

    def picture(self, name: str, data: bytes, step: int) -> None:
        """Publish a PNG."""
        self.tracker.picture(name, data, step)

    def warn(self, message: str) -> None:
        """Announce and record."""
        self.warn_output(message)

    def stopping(self) -> bool:
        """Whether the user asked to leave."""
        return bool(self.stop)


@dataclass
class Runner:
    """Runs a graph of stages in a workdir."""

    stages: Sequence[Stage]
    workdir: Workdir
    runtime: Runtime = field(default_factory=LocalRuntime)
    tracker: Tracker = field(default_factory=NullTracker)
    screen: Screen | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    parent: Published | None = None
    """The version in use that stages of the policy `keep` take from."""
    asked: Mapping[str, str] = field(default_factory=dict)
    """What the config asks of each stage that has a policy, see `incumbents.asked_of`."""
    outcomes: list[Outcome] = field(default_factory=list)
    """Of all stages so far."""
    _finished: dict[str, Decision] = field(default_factory=dict)

    def decide(self, stage: Stage, force: bool = False) -> Decision:
        """Compare a stage with what is finished. Asks its inputs first, as far as they are finished."""
        if not force and stage.name in self._finished:
            return self._finished[stage.name]
        digests: dict[str, str] = {}
        for name, given in stage.inputs.items():
            if not isinstance(given, Stage):
                digests[name] = given.digest
                continue
            artifact = self.decide(given).artifact
            if artifact is None:
                return Decision(stage, ", ".join([f"waits for {given.name}", *self._changed_keys(stage)]))
            digests[name] = artifact.digest
        decision = self._compare(stage, stage.recipe(digests), force)
        if decision.artifact is not None:
            self._finished[stage.name] = decision
        return decision

    def _compare(self, stage: Stage, recipe: Mapping[str, Any], force: bool) -> Decision:
        """Compare a stage whose inputs are finished with what it made."""
        if force:
            return Decision(stage, "forced", None, recipe)
        mark = fingerprint(recipe)
        artifact, damage = self._find(stage, mark)
        if damage:
            return Decision(stage, f"no longer whole: {damage}", None, recipe, damage)
        if artifact is not None:
            return Decision(stage, "finished, nothing changed", artifact, recipe)
        if stage.policy == "keep" and (kept := self._kept(stage, recipe)) is not None:
            return Decision(stage, "kept although its input changed: its policy is keep", kept, kept.recipe)
        started = self.workdir.read_attempt(stage, mark)["number"] > 0
        return Decision(stage, "goes on where it was left" if started else self._why(stage, recipe), None, recipe)

    def _find(self, stage: Stage, mark: str) -> tuple[Artifact | None, str]:
        """Return the finished artifact, and what is missing of it."""
        try:
            artifact = self.workdir.find(stage, mark)
        except DamagedManifest as error:
            return None, str(error)
        return artifact, artifact.incomplete() if artifact is not None else ""

    def decisions(self, names: Iterable[str]) -> dict[str, Decision]:
        """Return what was decided so far of finished stages of these names."""
        return {name: self._finished[name] for name in names if name in self._finished}

    def run(self, selected: Collection[str], force: Collection[str] = ()) -> list[Outcome]:
        """Run what must run of the selected stages, in the order of the graph; what happened is in `outcomes` too."""
        before = len(self.outcomes)
        for stage in self.stages:
            if stage.name not in selected:
                continue
            self.require_inputs(stage)
            decision = self.decide(stage, force=stage.name in force)
            assert decision.recipe is not None, "require_inputs saw to it"
            if decision.artifact is not None:
                self.outcomes.append(Outcome(stage, decision.artifact, ran=False, reason=decision.reason))
                self.workdir.point_latest(stage, decision.artifact.fingerprint)
                continue
            if self.stop:
                raise Interrupted(self.stop.signal_number or 2)
            if self.screen is not None:
                self.screen.line(f"{stage.name}: runs, {decision.reason}", style="bold")
            started = time.monotonic()
            inputs = {name: self._input(given) for name, given in stage.inputs.items()}
            artifact = self.execute(stage, decision.recipe, inputs, fresh=stage.name in force)
            self._finished[stage.name] = Decision(stage, "finished just now", artifact, decision.recipe)
            self.outcomes.append(Outcome(stage, artifact, ran=True, seconds=time.monotonic() - started))
        return self.outcomes[before:]

    def require_inputs(self, stage: Stage, also_running: Collection[str] = ()) -> None:
        """Raise ConfigError where an input is unfinished and will not be made by this run."""
        for given in stage.inputs.values():
            if isinstance(given, Stage) and given.name not in also_running:
                decision = self.decide(given)
                if decision.artifact is None:
                    raise ConfigError(
                        f"{stage.name} needs {given.name}, which is not finished ({decision.reason}): "
                        f"run --stages {given.name} first, or --stages {given.name}..{stage.name}"
                    )

    def execute(
        self, stage: Stage, recipe: Mapping[str, Any], inputs: Mapping[str, Artifact | Source], *, fresh: bool
    ) -> Artifact:
        """Run a stage's work on given inputs and commit what it made. `fresh`: use nothing finished before."""
        mark = fingerprint(recipe)
        folder = self.workdir.artifact_folder(stage, mark)
        attempt = self.workdir.read_attempt(stage, mark)
        if fresh:
            folder.remove(MANIFEST)
            attempt["run_id"] = None
        tracked = self.tracker.stage(stage.name, flatten(recipe["config"]), recipe["inputs"], attempt["run_id"])
        number = attempt["number"] + 1
        self.workdir.write_attempt(stage, mark, {"number": number, "run_id": tracked.run_id})
        output = Output(
            folder=folder,
            store=self.workdir.store(stage),
            workdir=self.workdir.folder,
            stage=stage.home,
            fingerprint=mark,
            recipe=recipe,
            warner=self.announce,
            fresh=fresh,
        )
        inherited = sorted(name for name, given in stage.inputs.items() if isinstance(given, Artifact))
        output.notes |= {INHERITED: inherited} if inherited else {}
        reporter = StageReporter(self.screen, tracked, self.stop, output.warn)
        if self.screen is not None:
            self.screen.begin(stage.name)
        status, started = "FAILED", time.monotonic()
        metrics: dict[str, Any] = {}
        shown: list[Path] = []
        try:
            bound = BoundRuntime(self.runtime, reporter, number)
            metrics = stage.work(stage.config, **inputs, output=output, runtime=bound)
            seconds = time.monotonic() - started
            made = provenance(seconds, bound.device_seconds, number, tracked.run_id, bound.gang_starts)
            artifact = output.commit(metrics, made)
            self.workdir.point_latest(stage, mark)
            status = "FINISHED"
            shown = [folder.local(name) for name in folder.names() if name.endswith(SHOWN_FILES)]
            return artifact
        except (Interrupted, KeyboardInterrupt):
            status = "KILLED"
            raise Interrupted(self.stop.signal_number or 2) from None
        except OutOfMemory as error:
            raise StageError(
                f"{stage.name} ran out of memory ({error}): {self._to_lower(stage, error.keys)}"
            ) from error
        except WorkerLost as error:
            cluster = {
                "unit_workers": self.runtime.cluster.unit_workers,
                "micro_batch": self.runtime.cluster.micro_batch,
            }
            raise StageError(f"{error}. If memory ran out, {self._to_lower(stage, cluster)}") from error
        finally:
            if self.screen is not None:
                self.screen.end()
            tracked.finish(status, metrics, shown)

    def _to_lower(self, stage: Stage, cluster: Mapping[str, Any]) -> str:
        return f"{keys_to_lower(stage.name, stage.config, cluster)}, then run the same command again"

    def _input(self, given: Stage | Source | Artifact) -> Artifact | Source:
        if not isinstance(given, Stage):
            return given
        artifact = self.decide(given).artifact
        assert artifact is not None, "require_inputs saw to it"
        return artifact

    def announce(self, message: str) -> None:
        """Say something worth noticing, on the screen and in the log."""
        log.warning("%s", message)
        if self.screen is not None:
            self.screen.line(f"note: {message}", style="yellow")

    def _kept(self, stage: Stage, recipe: Mapping[str, Any]) -> Artifact | None:
        """Return what stays in use: the version's if the same was asked for then, or else what the stage made last if
        that differs in nothing but what other stages fed it."""
        parent = self.parent
        if parent is not None and parent.asked.get(stage.name, "") == self.asked.get(stage.name):
            return parent.artifacts[stage.name]
        latest = self.workdir.latest(stage)
        fed = {name for name, given in stage.inputs.items() if isinstance(given, Stage)}

        def chosen(recipe: Mapping[str, Any]) -> dict[str, Any]:
            return {**recipe, "inputs": {name: d for name, d in recipe["inputs"].items() if name not in fed}}

        return latest if latest is not None and chosen(latest.recipe) == chosen(recipe) else None

    def _why(self, stage: Stage, recipe: Mapping[str, Any]) -> str:
        """Say what differs from the artifact that the stage made last."""
        latest = self.workdir.latest(stage)
        if latest is None:
            return "never finished here"
        before = latest.recipe["inputs"]
        inputs = [f"{name} changed" for name, digest in recipe["inputs"].items() if digest != before.get(name)]
        return ", ".join([*inputs, *self._changed_keys(stage)]) or "its artifact is gone"

    def _changed_keys(self, stage: Stage) -> list[str]:
        """Say which keys of the config, or the version, differ from the artifact that the stage made last."""
        latest = self.workdir.latest(stage)
        if latest is None:
            return []
        now, before = flatten(stage.config.model_dump(mode="json")), flatten(latest.recipe["config"])
        changes = [
            f"{stage.name}.{key} {before.get(key)} -> {now.get(key)}"
            for key in sorted({*now, *before})
            if now.get(key) != before.get(key)
        ]
        if stage.version != latest.recipe["version"]:
            changes.append(f"version {latest.recipe['version']} -> {stage.version}")
        return changes


def run_stage(
    stage: Stage, inputs: Mapping[str, Artifact | Source], workdir: str, runtime: Runtime, *, fresh: bool = False
) -> Artifact:
    """Run one stage alone on given inputs, without screen or tracker, unless it is finished; return its artifact."""
    place = Workdir(Folder.at(workdir))
    recipe = stage.recipe({name: given.digest for name, given in inputs.items()})
    finished = None if fresh else place.find(stage, fingerprint(recipe))
    return finished or Runner([stage], place, runtime).execute(stage, recipe, inputs, fresh=fresh)


def verify(artifacts: Sequence[Artifact], known: Sequence[str] = ()) -> None:
    """Re-hash finished artifacts. Raises StageError listing what is missing or differs, besides the `known` damage."""
    complaints = [*known, *(line for artifact in artifacts for line in artifact.damaged())]
    if complaints:
        remedy = "finished artifacts are damaged; remove the files that differ, and the same command makes them again:"
        raise StageError("\n".join([remedy, *complaints]))
