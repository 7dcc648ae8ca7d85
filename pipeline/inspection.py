"""Answers --verify, --status, --dry-run and --versions: nothing runs and nothing is written."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.progress import Screen, metrics_text
from pipeline.runner import Decision, Runner, verify
from pipeline.stage import Stage
from pipeline.versions.registry import Registry, is_there
from pipeline.workdir import Workdir


def show_status(screen: Screen, runner: Runner, chosen: Sequence[Stage], registry: Registry) -> None:
    """Print what is finished, its metrics, where it lies, and which version is in use."""
    rows = [_status_row(stage, runner.decide(stage)) for stage in chosen]
    screen.table(f"{runner.workdir.folder}", ("stage", "state", "metrics", "where"), rows)
    if registry.versions:
        screen.line(in_use(registry))


def in_use(registry: Registry) -> str:
    """Say which version is in use and which was made last."""
    since = next((it.when for it in reversed(registry.events) if it.what != "registered"), "")
    champion = f"version {registry.champion} since {since}" if registry.champion is not None else "none"
    return f"champion {champion}; challenger, the one made last: version {registry.challenger}"


def show_verified(screen: Screen, runner: Runner, chosen: Sequence[Stage]) -> None:
    """Re-hash finished artifacts. Raises StageError listing what is missing or differs."""
    decisions = [runner.decide(stage) for stage in chosen]
    artifacts = [decision.artifact for decision in decisions if decision.artifact is not None]
    verify(artifacts, [decision.damage for decision in decisions if decision.damage])
    files = [entry for artifact in artifacts for entry in artifact.files]
    screen.line(
        f"{len(artifacts)} finished artifacts, {len(files)} files, "
        f"{sum(entry.bytes for entry in files) / 1e6:.1f} MB: all as they were written"
    )


def show_plan(screen: Screen, runner: Runner, chosen: Sequence[Stage], force: Sequence[str]) -> None:
    """Print what would run and why."""
    rows: list[tuple[str, ...]] = []
    running: set[str] = set()
    for stage in chosen:
        decision = runner.decide(stage, stage.name in force)
        feeding = [given.name for given in stage.inputs.values() if isinstance(given, Stage) and given.name in running]
        if decision.artifact is not None and feeding:
            rows.append((stage.name, "perhaps", f"runs if the result of {', '.join(feeding)} changes"))
            running.add(stage.name)
        elif decision.artifact is not None:
            rows.append((stage.name, "skip", decision.reason))
        else:
            rows.append((stage.name, "run", decision.reason))
            running.add(stage.name)
    screen.table("what would happen", ("stage", "action", "why"), rows)


def show_versions(screen: Screen, workdir: Workdir) -> None:
    """Print every version: when, what was decided, its main figures, and which one is in use."""
    registry = Registry.read(workdir.folder)
    if not registry.versions:
        screen.line(f"no version was published in {workdir.folder} yet: --stages all does")
        return
    rows = []
    for version in registry.versions:
        marks = [name for name in ("champion", "challenger") if getattr(registry, name) == version.number]
        marks += [] if is_there(workdir, version) else ["removed"]
        against = f" against {version.incumbent}" if version.incumbent is not None else ""
        figures = metrics_text(version.figures)
        rows.append((str(version.number), ", ".join(marks), version.when, f"{version.verdict}{against}", figures))
    screen.table(f"{workdir.folder}", ("version", "is", "made", "verdict", "figures"), rows)


def _status_row(stage: Stage, decision: Decision) -> tuple[str, str, str, str]:
    artifact = decision.artifact
    if artifact is None:
        return stage.name, decision.reason, "", ""
    return stage.name, f"finished {artifact.notes['finished']}", metrics_text(artifact.metrics), str(artifact.folder)
