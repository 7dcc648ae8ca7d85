"""Which version a run starts from and which it is judged against: decided once, so that the same command again
decides the same although a version was published in between.

The parent of a training is the champion as it was when the training's config and data were first seen. A new model is
judged against the champion as it is; one that was judged already, against the same version as then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline.artifacts import Artifact, Source
from pipeline.errors import StorageError
from pipeline.runner import Runner
from pipeline.stage import Stage
from pipeline.storage import canonical_json
from pipeline.versions.registry import Published, Registry, Version, now
from pipeline.workdir import Workdir

Build = Callable[[Published | None, Published | None], Sequence[Stage]]
"""Returns the graph for a parent and an incumbent."""


TAKES_FROM_PARENT = ("keep", "finetune", "warm")
"""Policies of stages that make use of the parent."""


@dataclass(frozen=True)
class Standing:
    """Where a run stands among the versions of its workdir."""

    registry: Registry = field(default_factory=Registry)
    training: str = ""
    """Hash of what decides the training: config and data. Empty: the graph publishes nothing."""
    data: str = ""
    asked: Mapping[str, str] = field(default_factory=dict)
    parent: int | None = None
    incumbent: int | None = None
    again: Callable[[Runner], tuple[Runner, Standing]] = lambda runner: (runner, Standing())
    """Place a runner once more, on the same listing of the sources: when the model is finished, it is known whether it
    was judged before."""

    def remember(self, workdir: Workdir) -> Standing:
        """Write down the training's parent when it starts for the first time. The caller holds the lock."""
        if not self.training or self.training in self.registry.incumbents:
            return self
        registry = self.registry.remembering(self.training, self.parent)
        registry.write(workdir.folder)
        return replace(self, registry=registry)


def place(runner: Runner, build: Build, *, trained: bool = False) -> tuple[Runner, Standing]:
    """Return a runner of the graph with its parent and incumbent, and where it stands. Writes nothing.

    `runner` holds the graph of `build(None, None)`. Once the model is `trained` there must be something to judge it
    against, if a version is in use. Raises StorageError where the registry is damaged, or that version is.
    """
    if publishing_stage(runner.stages) is None:
        return runner, Standing()
    registry = Registry.read(runner.workdir.folder)
    taught = list(_with_inputs([stage for stage in runner.stages if stage.policy]))
    data = _hash({name: source.digest for name, source in _sources(taught).items()})
    recipes = {stage.name: [stage.version, stage.policy, stage.config.model_dump(mode="json")] for stage in taught}
    standing = Standing(
        registry=registry,
        training=_hash({"stages": recipes, "data": data}),
        data=data,
        asked={stage.name: _asked_of(stage) for stage in taught if stage.policy},
        again=lambda later: place(
            replace(later, stages=runner.stages, parent=None, asked={}, _finished={}), build, trained=True
        ),
    )
    if not registry.versions:
        return runner, standing
    graphs = _Graphs(runner, build, standing)
    parent = graphs.parent()
    found, incumbent = graphs.judged(graphs.of(parent, None), parent, trained=trained)
    number = registry.incumbents.get(standing.training, registry.champion)
    return found, replace(standing, parent=number, incumbent=incumbent.number if incumbent else None)


def publishing_stage(stages: Sequence[Stage]) -> Stage | None:
    """The stage whose artifact is a version, if the graph has one."""
    return next((stage for stage in stages if stage.publishes), None)


@dataclass(frozen=True)
class _Graphs:
    """The graphs that a config gives with one version or another to start from and to be judged against."""

    runner: Runner
    build: Build
    standing: Standing
    _versions: dict[int, Published | None] = field(default_factory=dict)

    def of(self, parent: Published | None, incumbent: Published | None, known: Runner | None = None) -> Runner:
        """A runner of one of them. `known` has the same parent: what it decided on models is decided."""
        stages = self.build(parent, incumbent)
        listed = _sources(self.runner.stages)
        for name, source in _sources(stages).items():
            if name in listed:
                source.take_listing(listed[name])
        decided = known.decisions(stage.name for stage in known.stages if not stage.publishes) if known else {}
        return replace(self.runner, stages=stages, parent=parent, asked=self.standing.asked, _finished=decided)

    def parent(self) -> Published | None:
        """The champion as it was when this training was first seen; as it is, where that one is gone."""
        registry = self.standing.registry
        if not any(stage.policy in TAKES_FROM_PARENT for stage in self.runner.stages):
            return None
        number = registry.incumbents.get(self.standing.training, registry.champion)
        found = self._version(number)
        if number is not None and found is None:
            self.runner.announce(
                f"version {number}, which this training started from, is no longer there: it starts anew, from the "
                "version in use if there is one"
            )
            return self._version(registry.champion)
        return found

    def judged(self, runner: Runner, parent: Published | None, *, trained: bool) -> tuple[Runner, Published | None]:
        """The graph with the version to be judged against."""
        registry, publishing = self.standing.registry, publishing_stage(runner.stages)
        assert publishing is not None
        same = _versions_of(runner, publishing, registry)
        for version in reversed(same):
            incumbent = self._version(version.incumbent)
            if version.incumbent is None or incumbent is not None:
                judged = self.of(parent, incumbent, runner)
                if judged.decide(_named(judged, publishing.name)).mark == version.fingerprint:
                    return judged, incumbent  # it was judged before, and its verdict stands
        in_use = next((version for version in same if version.number == registry.champion), None)
        number = in_use.incumbent if in_use is not None else registry.champion
        incumbent = self._version(number)
        if number is not None and incumbent is None and trained:
            raise StorageError(
                f"version {number}, which the new model is to be judged against, is no longer whole: put another into "
                "use with --rollback VERSION (--versions lists them) and run the same command again, which goes on here"
            )
        return self.of(parent, incumbent, runner), incumbent

    def _version(self, number: int | None) -> Published | None:
        if number is None:
            return None
        if number not in self._versions:
            self._versions[number] = Published.find(self.runner.workdir, self.standing.registry.version(number))
        return self._versions[number]


def _versions_of(runner: Runner, publishing: Stage, registry: Registry) -> list[Version]:
    """The versions of the very model that the graph gives; none while that is unfinished."""
    models = [given for name, given in publishing.inputs.items() if name in publishing.publishes]
    made = {model.name: runner.decide(model).artifact for model in models if isinstance(model, Stage)}
    marks = {(name, artifact.fingerprint) for name, artifact in made.items() if artifact is not None}
    if len(marks) < len(made):
        return []
    return [version for version in registry.versions if marks <= set(version.artifacts.items())]


def _named(runner: Runner, name: str) -> Stage:
    return next(stage for stage in runner.stages if stage.name == name)


def version_of(standing: Standing, runner: Runner, published: Artifact) -> Version:
    """Describe a finished artifact of the publishing stage as the registry's next version."""
    decision = published.read_json("decision.json")
    parts = [stage for stage in runner.stages if not stage.beside and not stage.publishes]
    decided = {stage.name: runner.decide(stage).artifact for stage in parts}
    return Version(
        number=len(standing.registry.versions) + 1,
        stage=published.stage,
        fingerprint=published.fingerprint,
        artifacts={name: artifact.fingerprint for name, artifact in decided.items() if artifact is not None},
        asked=dict(standing.asked),
        data=standing.data,
        incumbent=standing.incumbent,
        verdict=decision["verdict"],
        reasons=tuple(decision["reasons"]),
        figures={name: value for name, value in published.metrics.items() if not isinstance(value, str)},
        when=now(),
    )


def _asked_of(stage: Stage) -> str:
    """Hash of what the config asks of a stage, whatever it starts from and other stages feed it."""
    sources = {name: given.digest for name, given in stage.inputs.items() if isinstance(given, Source)}
    return _hash([stage.version, stage.config.model_dump(mode="json"), sources])


def _with_inputs(stages: Sequence[Stage]) -> Iterator[Stage]:
    """Yield stages and all that they are made from, each once."""
    waiting, seen = list(stages), set[str]()
    while waiting:
        stage = waiting.pop()
        if stage.name not in seen:
            seen.add(stage.name)
            yield stage
            waiting += [given for given in stage.inputs.values() if isinstance(given, Stage)]


def _sources(stages: Sequence[Stage]) -> dict[str, Source]:
    return {given.name: given for stage in stages for given in stage.inputs.values() if isinstance(given, Source)}


def _hash(value: object) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
