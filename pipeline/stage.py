"""A stage is a value: a function that turns finished artifacts into one new artifact, and its fingerprint."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from pipeline.artifacts import Artifact, Metrics, Source
from pipeline.errors import ConfigError
from pipeline.manifest import FORMAT_VERSION
from pipeline.storage import canonical_json


@dataclass(frozen=True)
class Stage:
    """A function that turns finished artifacts into one new artifact."""

    name: str
    """What the user types after --stages; the artifact's folder."""
    work: Callable[..., Metrics]
    """`work(config, *, <inputs>, output, runtime) -> metrics`."""
    config: BaseModel
    """Only what changes the result."""
    inputs: Mapping[str, Stage | Source | Artifact]
    """Names match the keyword parameters of `work`; one with a default may be absent. An artifact is taken as it is:
    it was made by an earlier run, and its content counts."""
    version: int = 1
    """Bumped by hand when the work changes its meaning."""
    policy: str = ""
    """Of a stage that may make use of the version in use, how it does; no part of the fingerprint. `keep`: what that
    version has, or else what the stage made last, stays while nothing changed but what other stages feed it."""
    publishes: tuple[str, ...] = ()
    """Of the stage whose artifact is a version of the model: those of its inputs that are this model."""
    beside: str = ""
    """Name of another stage that does the same work: what both make lies in one place, so that neither does again what
    the other has done. Empty: it has a place of its own."""

    def __post_init__(self) -> None:
        parameters = dict(inspect.signature(self.work).parameters)
        wanted = {name: p for name, p in list(parameters.items())[1:] if name not in ("output", "runtime")}
        required = {name for name, p in wanted.items() if p.default is inspect.Parameter.empty}
        assert {"output", "runtime"} <= set(parameters), f"{self.name}: work must take output and runtime"
        assert set(self.inputs) <= set(wanted), f"{self.name}: work takes no input {set(self.inputs) - set(wanted)}"
        assert required <= set(self.inputs), f"{self.name}: inputs {required - set(self.inputs)} are missing"

    @property
    def home(self) -> str:
        """The name below which its artifacts, units and checkpoints lie."""
        return self.beside or self.name

    def recipe(self, input_digests: Mapping[str, str]) -> dict[str, Any]:
        """Return all that decides the result; its hash is the fingerprint."""
        return {
            "format": FORMAT_VERSION,
            "stage": self.home,
            "version": self.version,
            "config": self.config.model_dump(mode="json"),
            "inputs": dict(input_digests),
        }


def fingerprint(recipe: Mapping[str, Any]) -> str:
    """Return the sha256 of a recipe's canonical JSON."""
    return hashlib.sha256(canonical_json(recipe).encode()).hexdigest()


def select(stages: Sequence[Stage], text: str) -> list[str]:
    """Return the stages that `all`, `a,b` or `a..c` names. Raises ConfigError naming the known ones."""
    names = [stage.name for stage in stages]

    def position(name: str) -> int:
        if name not in names:
            raise ConfigError(f"there is no stage {name!r}: choose from {', '.join(names)}, or all")
        return names.index(name)

    chosen: set[str] = set()
    for part in text.split(","):
        first, dots, last = part.strip().partition("..")
        if part.strip() == "all":
            chosen |= set(names)
        elif dots:
            start, stop = position(first or names[0]), position(last or names[-1])
            if start > stop:
                raise ConfigError(f"--stages {part}: {first} comes after {last}; did you mean {last}..{first}?")
            chosen |= set(names[start : stop + 1])
        else:
            chosen.add(names[position(first)])
    return [name for name in names if name in chosen]
