"""One call of the command line from lock to closing summary: what the user asked for, what the user is told."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Protocol, TypeVar

import yaml

from pipeline.config import ClusterConfig, TrackingConfig, strings_in
from pipeline.errors import ConfigError, Interrupted, UserError
from pipeline.progress import Screen, duration, metrics_text
from pipeline.provenance import code_revision
from pipeline.redaction import RedactingFormatter, redacted, refuse_secrets
from pipeline.runner import Decision, Outcome, Runner, verify
from pipeline.runtime import LocalRuntime, Runtime
from pipeline.signals import listening
from pipeline.stage import Stage, select
from pipeline.storage import Folder, explaining, retries
from pipeline.storage.beside import kept_beside
from pipeline.tracking import MlflowTracker, NullTracker, Tracker, tracking_uri
from pipeline.workdir import Workdir

log = logging.getLogger(__name__)

LOG_BYTES, LOG_PARTS = 8 * 2**20, 4
"""A run's log, and that of each of Ray's processes, takes no more than so many files of so many bytes."""

C = TypeVar("C", bound="SessionConfig")


class SessionConfig(Protocol):
    """What a session needs to know of the whole configuration."""

    @property
    def cluster(self) -> ClusterConfig:
        """Where and how fast."""

    @property
    def tracking(self) -> TrackingConfig:
        """Where MLflow keeps runs."""

    def model_dump(self, *, mode: str) -> dict[str, object]:
        """Return it as a plain tree."""


@dataclass(frozen=True)
class Options:
    """What the user asked for at the command line."""

    stages: str
    workdir: str
    name: str
    force: tuple[str, ...]
    dry_run: bool
    status: bool
    verify: bool
    runtime: str
    address: str | None
    tracking: bool
    command: str
    gc: bool = False
    yes: bool = False
    keep: int = 1


def run_session(
    options: Options,
    load: Callable[[], C],
    build: Callable[[C], Sequence[Stage]],
    in_use: Sequence[Callable[[], C]] = (),
) -> int:
    """Do what was asked and return the exit code; a user's mistake ends in a message, never in a traceback.

    `in_use` loads further configs whose results --gc must leave.
    """
    logging.getLogger("pipeline").addHandler(logging.NullHandler())  # until the log file is open
    screen = Screen.open()
    retries.announce = lambda message: screen.line(f"note: {message}", style="yellow")
    log_path: Path | None = None
    try:
        if options.runtime not in ("ray", "local"):
            raise ConfigError(f"--runtime {options.runtime}: choose ray or local")
        config = load()
        told = {key: value for key, value in config.model_dump(mode="json").items() if key != "tracking"}
        refuse_secrets({**told, "--workdir": options.workdir})
        runner = Runner(build(config), Workdir(Folder.at(options.workdir)), screen=screen)
        selected = select(runner.stages, options.stages)
        force = [name for text in options.force for name in select(runner.stages, text)]
        if options.gc:
            _collect(options, runner, [config, *(other() for other in in_use)], build)
            return 0
        if options.status or options.verify or options.dry_run:
            _look(options, runner, selected, force)
            return 0
        with runner.workdir.locked(runner.announce):
            if any(runner.decide(stage, stage.name in force).artifact is None for stage in _chosen(runner, selected)):
                runner.workdir.folder.sweep()
                log_path = _open_log(runner.workdir.folder)
                with _copied(log_path, runner.workdir.folder):
                    _run(options, config, runner, selected, force)
            else:
                _summary(runner, runner.run(selected))
        return 0
    except UserError as error:
        log.error("%s", error)
        _explain(screen, options, error, log_path)
        return error.exit_code
    except KeyboardInterrupt:
        _explain(screen, options, Interrupted(2), log_path)
        return 130
    except Exception as error:  # the last line of defence: a bug is shown whole, and the person learns how to go on
        log.exception("failed")
        print(redacted(traceback.format_exc()), file=sys.stderr)
        _explain(screen, options, error, log_path)
        return 1


def _chosen(runner: Runner, selected: Collection[str]) -> list[Stage]:
    return [stage for stage in runner.stages if stage.name in selected]


def _run(
    options: Options, config: SessionConfig, runner: Runner, selected: Sequence[str], force: Sequence[str]
) -> None:
    """Run what must run, with signals heard and the tracker told of the end, whatever it is."""
    for stage in _chosen(runner, selected):
        runner.require_inputs(stage, also_running=selected)
    started, status = time.monotonic(), "FAILED"
    home = runner.workdir.folder
    tags = {"smalti.workdir": str(home), "smalti.code": code_revision(), "smalti.command": options.command}
    with listening() as stop:
        runner.stop = stop
        runner.tracker = _tracker(options, config.tracking, runner)
        runner.runtime = _runtime(options, config.cluster, home)
        try:
            runner.tracker.begin(options.name, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), tags)
            outcomes = runner.run(selected, force)
            status = "FINISHED"
        except (Interrupted, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            runner.tracker.end(status)
            runner.runtime.close()
    _summary(runner, outcomes, time.monotonic() - started)


def _runtime(options: Options, cluster: ClusterConfig, workdir: Folder) -> Runtime:
    if options.runtime == "local":
        return LocalRuntime(cluster)
    os.environ.setdefault("RAY_ROTATION_MAX_BYTES", str(LOG_BYTES))
    os.environ.setdefault("RAY_ROTATION_BACKUP_COUNT", str(LOG_PARTS - 1))
    from pipeline.ray_runtime import RayRuntime

    return RayRuntime(cluster, options.address, workdir)


def _tracker(options: Options, config: TrackingConfig, runner: Runner) -> Tracker:
    if not options.tracking:
        return NullTracker()
    home = runner.workdir.folder
    if config.uri is None and not home.is_local:
        runner.announce(f"the workdir is not on this machine: MLflow's SQLite and files are in {kept_beside(home)}")
    return MlflowTracker(
        tracking_uri(config.uri, home), config.experiment, kept_beside(home) / "mlflow", runner.announce
    )


def _open_log(home: Folder) -> Path:
    """Send the logs of this run to a file of its own; a workdir behind a URL gets a copy when the run ends.

    A long log goes on in a new file, and only its newest parts stay; --gc removes those of old runs.
    """
    folder = kept_beside(home).path / "logs"
    path = folder / time.strftime("run-%Y%m%d-%H%M%S.log")
    with explaining(str(path)):
        folder.mkdir(parents=True, exist_ok=True)
        file = RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_PARTS - 1)
    file.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[file], level=logging.WARNING, force=True)
    for room in ("pipeline", "stages"):
        logging.getLogger(room).setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
    logging.raiseExceptions = False  # a log that cannot be written must not bury the message of why
    return path


@contextlib.contextmanager
def _copied(log_path: Path, home: Folder) -> Iterator[None]:
    """After the block, however it ended, copy the log into a workdir behind a URL if that answers."""
    try:
        yield
    finally:
        if not home.is_local:
            with contextlib.suppress(UserError, OSError), retries.patience_of(10):
                home.write(f"logs/{log_path.name}", log_path.read_bytes())


def _look(options: Options, runner: Runner, selected: Sequence[str], force: Sequence[str]) -> None:
    """Answer --verify, --status or --dry-run; nothing runs and nothing is written."""
    screen = runner.screen
    assert screen is not None
    chosen = _chosen(runner, selected)
    if options.verify:
        decisions = [runner.decide(stage) for stage in chosen]
        artifacts = [decision.artifact for decision in decisions if decision.artifact is not None]
        verify(artifacts, [decision.damage for decision in decisions if decision.damage])
        files = [entry for artifact in artifacts for entry in artifact.files]
        screen.line(
            f"{len(artifacts)} finished artifacts, {len(files)} files, "
            f"{sum(entry.bytes for entry in files) / 1e6:.1f} MB: all as they were written"
        )
        return
    rows: list[tuple[str, ...]] = []
    running: set[str] = set()
    for stage in chosen:
        decision = runner.decide(stage, stage.name in force)
        feeding = [given.name for given in stage.inputs.values() if isinstance(given, Stage) and given.name in running]
        if options.status:
            rows.append(_status_row(stage, decision))
        elif decision.artifact is not None and feeding:
            rows.append((stage.name, "perhaps", f"runs if the result of {', '.join(feeding)} changes"))
            running.add(stage.name)
        elif decision.artifact is not None:
            rows.append((stage.name, "skip", decision.reason))
        else:
            rows.append((stage.name, "run", decision.reason))
            running.add(stage.name)
    if options.status:
        screen.table(f"{runner.workdir.folder}", ("stage", "state", "metrics", "where"), rows)
    else:
        screen.table("what would happen", ("stage", "action", "why"), rows)


def _collect(options: Options, runner: Runner, configs: Sequence[C], build: Callable[[C], Sequence[Stage]]) -> None:
    """Answer --gc: show what nothing in use refers to, and remove it where --yes says so."""
    from pipeline.gc import find_leftovers, remove, show

    workdir, screen = runner.workdir, runner.screen
    assert screen is not None
    if workdir.folder.is_local and not workdir.folder.path.is_dir():
        raise ConfigError(f"there is no workdir {workdir.folder}: name one with --workdir")
    with workdir.locked():
        runners = [runner, *(Runner(build(config), workdir) for config in configs[1:])]
        named = [text for config in configs for text in strings_in(config.model_dump(mode="json"))]
        leftovers = find_leftovers(workdir, runners, named, options.keep)
        total = f"{len(leftovers)} things, {sum(leftover.bytes for leftover in leftovers) / 1e6:,.1f} MB"
        if not leftovers:
            screen.line("everything here is in use: nothing to remove")
            return
        show(screen, leftovers)
        if options.yes:
            remove(workdir, leftovers)
            workdir.folder.sweep()
    screen.line(f"{total}: {'removed' if options.yes else 'nothing was removed; the same command with --yes does'}")


def _status_row(stage: Stage, decision: Decision) -> tuple[str, str, str, str]:
    artifact = decision.artifact
    if artifact is None:
        return stage.name, decision.reason, "", ""
    return stage.name, f"finished {artifact.notes['finished']}", metrics_text(artifact.metrics), str(artifact.folder)


def _summary(runner: Runner, outcomes: Sequence[Outcome], seconds: float | None = None) -> None:
    """Print the closing table and how to open what was made."""
    screen = runner.screen
    assert screen is not None
    rows = []
    for outcome in outcomes:
        reused = outcome.artifact.notes.get("units_reused", 0) if outcome.ran else 0
        did = f"ran, {reused} of {len(outcome.artifact.units)} units reused" if reused else "ran"
        rows.append(
            (
                outcome.stage.name,
                did if outcome.ran else ("kept" if outcome.reason.startswith("kept") else "skipped"),
                duration(outcome.seconds) if outcome.ran else "",
                metrics_text(outcome.artifact.metrics),
                _shown_path(outcome.artifact.folder),
            )
        )
    title = f"done in {duration(seconds)}" if seconds is not None else "nothing to do: all finished, nothing changed"
    screen.table(title, ("stage", "", "time", "", "where"), rows)
    for outcome in outcomes:
        if outcome.artifact.folder.exists("report.html"):
            screen.line(f"report   {_shown_path(outcome.artifact.folder)}/report.html")
    if isinstance(runner.tracker, MlflowTracker):
        screen.line(f"tracker  mlflow ui --backend-store-uri {runner.tracker.uri}")


def _shown_path(folder: Folder) -> str:
    if not folder.is_local:
        return str(folder)
    relative = os.path.relpath(folder.path)
    return str(folder) if relative.startswith("..") else relative


def _explain(screen: Screen, options: Options, error: BaseException, log_path: Path | None) -> None:
    """Print what ended the run and the command that goes on, as its last lines."""
    screen.end()
    screen.line(f"{'' if isinstance(error, Interrupted) else 'error: '}{error}", style="bold red")
    if log_path is not None:
        screen.line(f"log      {log_path}")
        screen.line(f"resume   {options.command}")
