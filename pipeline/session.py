"""One call of the command line from lock to closing summary: what the user asked for, what the user is told."""

from __future__ import annotations

import functools
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import yaml

from pipeline.closing import explain, report_of, summary
from pipeline.config import ClusterConfig, TrackingConfig, strings_in
from pipeline.errors import ConfigError, Interrupted, UserError
from pipeline.inspection import show_plan, show_status, show_verified, show_versions
from pipeline.progress import Screen
from pipeline.provenance import code_revision
from pipeline.redaction import redacted, refuse_secrets
from pipeline.run_log import LOG_BYTES, LOG_PARTS, copied, open_log
from pipeline.runner import Runner
from pipeline.runtime import LocalRuntime, Runtime
from pipeline.signals import listening
from pipeline.stage import Stage, select
from pipeline.storage import Folder, retries
from pipeline.storage.beside import kept_beside
from pipeline.telling.ending import Ending
from pipeline.telling.notify import NotifyConfig, telling
from pipeline.tracking import MlflowTracker, NullTracker, Tracker, tracking_uri
from pipeline.versions.incumbents import Standing, place, publishing_stage
from pipeline.versions.model_registry import ModelRegistry
from pipeline.versions.publication import mirror, register, roll_back, verdict_line
from pipeline.versions.registry import Published, Registry
from pipeline.workdir import Workdir

log = logging.getLogger(__name__)

BESIDE = ("tracking", "notify")
"""Sections that no manifest keeps: their URLs may hold a secret."""

C = TypeVar("C", bound="SessionConfig")
C_contra = TypeVar("C_contra", bound="SessionConfig", contravariant=True)


class Build(Protocol[C_contra]):
    """How the page writes out the graph of stages."""

    def __call__(
        self, config: C_contra, parent: Published | None = None, incumbent: Published | None = None
    ) -> Sequence[Stage]:
        """Return what a config describes, for the versions to start from and to be judged against."""


class SessionConfig(Protocol):
    """What a session needs to know of the whole configuration."""

    @property
    def cluster(self) -> ClusterConfig:
        """Where and how fast."""

    @property
    def tracking(self) -> TrackingConfig:
        """Where MLflow keeps runs."""

    @property
    def notify(self) -> NotifyConfig:
        """Who is told how a run ended."""

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
    versions: bool = False
    rollback: bool = False
    rollback_to: int | None = None
    """The version to go back to; None: the one before the champion."""


def run_session(
    options: Options,
    load: Callable[[], C],
    build: Build[C],
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
        told = {key: value for key, value in config.model_dump(mode="json").items() if key not in BESIDE}
        refuse_secrets({**told, "--workdir": options.workdir})
        workdir = Workdir(Folder.at(options.workdir))
        if _administered(options, screen, workdir, lambda: [config, *(other() for other in in_use)], build):
            return 0
        runner, standing = _placed(config, build, workdir, screen)
        selected = select(runner.stages, options.stages)
        force = [name for text in options.force for name in select(runner.stages, text)]
        if options.status or options.verify or options.dry_run:
            _look(options, runner, standing.registry, selected, force)
            return 0
        about = {"run": options.name, "workdir": str(workdir.folder), "resume": options.command}
        with telling(config.notify, **about, warn=runner.announce) as ending, workdir.locked(runner.announce):
            if Registry.read(workdir.folder) != standing.registry:  # another run published meanwhile
                runner, standing = _placed(config, build, workdir, screen)
            ending.outcomes = runner.outcomes
            if any(runner.decide(stage, stage.name in force).artifact is None for stage in _chosen(runner, selected)):
                workdir.folder.sweep()
                log_path = open_log(workdir.folder)
                with copied(log_path, workdir.folder):
                    _run(options, config, runner, standing.remember(workdir), selected, force, ending)
            else:
                runner.run(selected)
                summary(runner, _published(options, config, runner, standing, selected, ending))
        return 0
    except UserError as error:
        log.error("%s", error)
        explain(screen, options.command, error, log_path)
        return error.exit_code
    except KeyboardInterrupt:
        explain(screen, options.command, Interrupted(2), log_path)
        return 130
    except Exception as error:  # the last line of defence: a bug is shown whole, and the person learns how to go on
        log.exception("failed")
        print(redacted(traceback.format_exc()), file=sys.stderr)
        explain(screen, options.command, error, log_path)
        return 1


def _chosen(runner: Runner, selected: Collection[str]) -> list[Stage]:
    return [stage for stage in runner.stages if stage.name in selected]


def _placed(config: C, build: Build[C], workdir: Workdir, screen: Screen) -> tuple[Runner, Standing]:
    runner = Runner(build(config), workdir, screen=screen)
    return place(runner, lambda parent, incumbent: build(config, parent, incumbent))


def _administered(
    options: Options, screen: Screen, workdir: Workdir, configs: Callable[[], Sequence[C]], build: Build[C]
) -> bool:
    """Answer --versions, --rollback or --gc; return whether one of them was asked for."""
    if not (options.versions or options.rollback or options.gc):
        return False
    if workdir.folder.is_local and not workdir.folder.path.is_dir():
        raise ConfigError(f"there is no workdir {workdir.folder}: name one with --workdir")
    if options.versions:
        show_versions(screen, workdir)
        return True
    with workdir.locked():
        if options.rollback:
            registry, told = roll_back(workdir, options.rollback_to)
            warn = functools.partial(screen.line, style="yellow")
            _mirrored(options, configs()[0].tracking, workdir, registry, warn)
        else:
            told = _collect(options, screen, workdir, configs(), build)
    screen.line(told)
    return True


def _published(
    options: Options,
    config: SessionConfig,
    runner: Runner,
    standing: Standing,
    selected: Collection[str],
    ending: Ending,
) -> str:
    """Register what was published, if the stage that does was selected, and say what was decided."""
    ending.report = report_of(runner.outcomes)
    publishing = publishing_stage(runner.stages)
    if publishing is None or publishing.name not in selected:
        return ""
    after, version = register(runner, standing)
    if version is None:
        return ""
    _mirrored(options, config.tracking, runner.workdir, after.registry, runner.announce)
    ending.verdict, ending.reasons, ending.figures = version.verdict, version.reasons, version.figures
    ending.champion = after.registry.champion
    return verdict_line(standing.registry, after.registry, version)


def _mirrored(
    options: Options, config: TrackingConfig, workdir: Workdir, registry: Registry, warn: Callable[[str], None]
) -> None:
    """Let MLflow's registry follow, unless the run does without MLflow."""
    if options.tracking:
        uri, files = tracking_uri(config.uri, workdir.folder), kept_beside(workdir.folder) / "mlflow"
        mirror(workdir, registry, ModelRegistry(uri, config.model, config.experiment, files, warn))


def _run(
    options: Options,
    config: SessionConfig,
    runner: Runner,
    standing: Standing,
    selected: Sequence[str],
    force: Sequence[str],
    ending: Ending,
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
            trained = [stage.name for stage in _chosen(runner, selected) if not (stage.beside or stage.publishes)]
            runner.run(trained, force)
            runner, standing = standing.again(runner)
            runner.run([name for name in select(runner.stages, options.stages) if name not in trained], force)
            verdict = _published(options, config, runner, standing, selected, ending)
            status = "FINISHED"
        except (Interrupted, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            runner.tracker.end(status)
            runner.runtime.close()
    summary(runner, verdict, time.monotonic() - started)


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


def _look(options: Options, runner: Runner, registry: Registry, selected: Sequence[str], force: Sequence[str]) -> None:
    """Answer --verify, --status or --dry-run."""
    screen = runner.screen
    assert screen is not None
    chosen = _chosen(runner, selected)
    if options.verify:
        show_verified(screen, runner, chosen)
    elif options.status:
        show_status(screen, runner, chosen, registry)
    else:
        show_plan(screen, runner, chosen, force)


def _collect(options: Options, screen: Screen, workdir: Workdir, configs: Sequence[C], build: Build[C]) -> str:
    """Answer --gc: show what nothing in use refers to, and remove it where --yes says so; say what was done."""
    from pipeline.gc import find_leftovers, remove, show

    runners = [_placed(config, build, workdir, screen)[0] for config in configs]
    named = [text for config in configs for text in strings_in(config.model_dump(mode="json"))]
    leftovers = find_leftovers(workdir, runners, named, options.keep)
    if not leftovers:
        return "everything here is in use: nothing to remove"
    show(screen, leftovers)
    total = f"{len(leftovers)} things, {sum(leftover.bytes for leftover in leftovers) / 1e6:,.1f} MB"
    if not options.yes:
        return f"{total}: nothing was removed; the same command with --yes does"
    remove(workdir, leftovers)
    workdir.folder.sweep()
    return f"{total}: removed"
