"""What the driver does with a version once its stage has finished, and what a person does by hand.

Each step can be done again: a driver that died before it had registered a version does so at the next run.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.errors import ConfigError
from pipeline.redaction import redacted
from pipeline.runner import Runner
from pipeline.versions.incumbents import Standing, publishing_stage, version_of
from pipeline.versions.model_registry import CHALLENGER, CHAMPION, ModelRegistry
from pipeline.versions.registry import Registry, Version, is_there
from pipeline.workdir import Workdir

BUNDLE = "bundle"
"""The folder of a publishing stage's artifact that is handed out."""
MIRRORED = "mirrored.json"
"""Which state of the registry MLflow's has followed."""


def register(runner: Runner, standing: Standing) -> tuple[Standing, Version | None]:
    """Register what the graph's publishing stage has finished, if anything; return it, None if nothing was published.

    Its verdict decides whether it is the champion from now on. One that is registered already stays as it is, so that
    a rollback is not undone by running the same command again. The caller holds the workdir's lock.
    """
    publishing = publishing_stage(runner.stages)
    artifact = runner.decide(publishing).artifact if publishing is not None else None
    if artifact is None:
        return standing, None
    known = standing.registry.of(artifact.fingerprint)
    if known is not None:
        return standing, known
    version = version_of(standing, runner, artifact)
    registry = standing.registry.registered(version)
    registry.write(runner.workdir.folder)
    return replace(standing, registry=registry), version


def verdict_line(before: Registry, after: Registry, version: Version) -> str:
    """What became of a version, in one line."""
    reasons = " ".join(version.reasons)
    if before == after:
        stands = "the champion" if version.number == after.champion else f"no champion, version {after.champion} is"
        return f"version {version.number}, registered before, is {stands}"
    if version.verdict == "champion":
        took = f" in place of version {before.champion}" if before.champion is not None else ""
        return f"version {version.number} is the champion from now on{took}: {reasons}"
    return f"version {version.number} is not published, version {after.champion} stays in use: {reasons}"


def roll_back(workdir: Workdir, number: int | None) -> tuple[Registry, str]:
    """Put a version into use by hand; without a number the one before the champion. Return what was and what is.

    Raises ConfigError where there is no such version, or where it was removed. The caller holds the workdir's lock.
    """
    registry = Registry.read(workdir.folder)
    if number is None:
        number = registry.before_champion
        if number is None:
            raise ConfigError(
                f"{workdir.folder} has no version before its champion: name one, --rollback VERSION; --versions lists "
                "them"
            )
    version = registry.version(number)
    if number == registry.champion:
        return registry, f"version {number} is the champion already: nothing changed"
    if not is_there(workdir, version):
        raise ConfigError(f"version {number} was removed from {workdir.folder}: --versions shows which are there")
    after = registry.rolled_back(number, "by hand")
    after.write(workdir.folder)
    return after, f"the champion was version {registry.champion} and is version {number} from now on"


def mirror(workdir: Workdir, registry: Registry, models: ModelRegistry) -> None:
    """Let MLflow's registered model follow the registry: the champion and the challenger as versions, and the aliases.

    Done once for each state of the registry. What fails is announced and tried again by the next run.
    """
    wanted = {CHAMPION: registry.champion, CHALLENGER: registry.challenger}
    state = {"uri": redacted(models.uri), "model": models.name, **wanted}
    if workdir.folder.exists(MIRRORED) and workdir.folder.read_json(MIRRORED) == state:
        return
    for alias, number in wanted.items():
        if number is None:
            continue
        version = registry.version(number)
        artifact = workdir.made(version.stage, version.fingerprint)
        if artifact is None:
            models.warn(f"MLflow's registry: version {number} is no longer whole here and was not brought there")
            return
        tags = {"smalti.version": str(number), "smalti.verdict": version.verdict, "smalti.data": version.data}
        run = artifact.notes.get("run_id")
        known = models.register(artifact.folder / BUNDLE, version.fingerprint, tags, run)
        if known is None or not models.set_alias(alias, known):
            return
    workdir.folder.write_json(MIRRORED, state)
