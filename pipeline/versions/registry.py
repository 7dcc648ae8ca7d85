"""The versions of a workdir's model: which is in use, which was made last, and what happened to them.

`registry.json` is the truth; whatever else shows versions mirrors it. Only a driver that holds the workdir's lock
writes it, whole and at once, so a killed one leaves the file of before or of after.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from pipeline.artifacts import Artifact, DamagedManifest
from pipeline.config import StrictModel
from pipeline.errors import ConfigError, StorageError, shown
from pipeline.manifest import MANIFEST
from pipeline.storage import Folder
from pipeline.workdir import Workdir

REGISTRY = "registry.json"

Verdict = Literal["champion", "challenger"]
Name = Annotated[str, Field(pattern=r"^[a-z_]+$")]
Mark = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A fingerprint. Both become paths, so they can be nothing else."""


class Version(StrictModel):
    """One published model: what it is made of, and what was decided about it."""

    number: int
    """From 1, in the order of registration."""
    stage: Name
    """Name of the stage that published it."""
    fingerprint: Mark
    """Of that stage's artifact."""
    artifacts: dict[Name, Mark]
    """Stage name -> fingerprint of what it is made of, from the data to the figures."""
    asked: dict[str, str]
    """Stage name -> hash of what the config asked of the stages that have a policy, whatever they started from."""
    data: str
    """Digest of the sources."""
    incumbent: int | None
    """Version that it was judged against."""
    verdict: Verdict
    reasons: tuple[str, ...]
    figures: dict[str, float | int]
    """The main ones."""
    when: str


class Event(StrictModel):
    """Something that happened to a version."""

    what: Literal["registered", "promoted", "rolled back"]
    version: int
    before: int | None = None
    """Version that was in use until then, where this one took its place."""
    when: str
    why: str = ""


class Registry(StrictModel):
    """The content of `registry.json`. Values are never changed or removed, only added; methods return a new one."""

    format: Literal[1] = 1
    champion: int | None = None
    """Number of the version in use."""
    challenger: int | None = None
    """Number of the version made last."""
    versions: tuple[Version, ...] = ()
    events: tuple[Event, ...] = ()
    incumbents: dict[str, int | None] = Field(default_factory=dict)
    """Of each training (hash of its config and data): the version that was in use when it was first seen."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Registry:
        if [version.number for version in self.versions] != list(range(1, len(self.versions) + 1)):
            raise ValueError("versions are not numbered 1, 2, 3 and so on")
        taken = [event.version for event in self.events if event.what != "registered"]
        registered = [event.version for event in self.events if event.what == "registered"]
        if registered != [version.number for version in self.versions]:
            raise ValueError("not every version was registered once")
        if self.champion != (taken[-1] if taken else None) or self.challenger != (len(self.versions) or None):
            raise ValueError("champion and challenger are not those of the last events")
        mentioned = {*taken, *self.incumbents.values()} - {None}
        if not mentioned <= set(registered):
            raise ValueError(f"there are no versions {sorted(map(str, mentioned - set(registered)))}")
        return self

    @classmethod
    def read(cls, home: Folder) -> Registry:
        """Read a workdir's registry; an empty one where there is none yet. Raises StorageError where it is damaged."""
        if not home.exists(REGISTRY):
            return cls()
        try:
            return cls.model_validate(home.read_json(REGISTRY))
        except (ValidationError, ValueError, RecursionError) as error:
            raise StorageError(
                f"{home}/{REGISTRY}, which says what versions there are and which is in use, is damaged "
                f"({shown(str(error))}): bring it back from a backup, or move it away to begin anew with the next run; "
                "nothing was changed, and the versions themselves are whole"
            ) from None

    def write(self, home: Folder) -> None:
        """Write it, whole and at once. The caller holds the workdir's lock."""
        home.write(REGISTRY, (json.dumps(self.model_dump(mode="json"), indent=1) + "\n").encode())

    def version(self, number: int) -> Version:
        """Return a version. Raises ConfigError where there is none of this number."""
        if not 1 <= number <= len(self.versions):
            known = f"choose from 1 to {len(self.versions)}" if self.versions else "none was published yet"
            raise ConfigError(f"there is no version {number}: {known}; --versions lists them")
        return self.versions[number - 1]

    def of(self, fingerprint: str) -> Version | None:
        """Return the version whose publishing stage made the artifact of this fingerprint, if it is registered."""
        return next((version for version in self.versions if version.fingerprint == fingerprint), None)

    @property
    def in_use(self) -> Version | None:
        """The champion."""
        return self.version(self.champion) if self.champion is not None else None

    @property
    def before_champion(self) -> int | None:
        """The version that the champion took the place of when it was promoted; None for a first one."""
        came = [event for event in self.events if event.what == "promoted" and event.version == self.champion]
        return came[-1].before if came else None

    def remembering(self, training: str, incumbent: int | None) -> Registry:
        """Remember the incumbent of a training that starts for the first time."""
        return self._with(incumbents={**self.incumbents, training: incumbent})

    def registered(self, version: Version) -> Registry:
        """Add a version, the challenger from now on; its verdict decides whether it is the champion too."""
        assert version.number == len(self.versions) + 1, f"version {version.number} after {len(self.versions)}"
        events = [Event(what="registered", version=version.number, when=version.when)]
        champion = self.champion
        if version.verdict == "champion":
            why = " ".join(version.reasons)
            events.append(Event(what="promoted", version=version.number, before=champion, when=version.when, why=why))
            champion = version.number
        return self._with(
            versions=(*self.versions, version),
            events=(*self.events, *events),
            challenger=version.number,
            champion=champion,
        )

    def rolled_back(self, number: int, why: str) -> Registry:
        """Put a version into use by hand."""
        event = Event(what="rolled back", version=number, before=self.champion, when=now(), why=why)
        return self._with(events=(*self.events, event), champion=number)

    def _with(self, **changes: Any) -> Registry:
        return Registry.model_validate({**dict(self), **changes})


def now() -> str:
    """The time for a version or an event, in ISO 8601 with its zone."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


@dataclass(frozen=True)
class Published:
    """A version with the artifacts that it is made of."""

    number: int
    asked: Mapping[str, str]
    artifacts: Mapping[str, Artifact]
    """By the names of their stages; that of the stage that published it too."""

    @classmethod
    def find(cls, workdir: Workdir, version: Version) -> Published | None:
        """Return a version with its artifacts, None where one is no longer there, or no longer what it was."""
        artifacts = {}
        for name, fingerprint in {**version.artifacts, version.stage: version.fingerprint}.items():
            try:
                found = workdir.made(name, fingerprint)
            except DamagedManifest:
                found = None
            if found is None:
                return None
            artifacts[name] = found
        return cls(version.number, version.asked, artifacts)


def is_there(workdir: Workdir, version: Version) -> bool:
    """Whether everything that a version is made of is still there."""
    made = {**version.artifacts, version.stage: version.fingerprint}
    return all(workdir.folder.exists(f"{name}/{mark[:12]}/{MANIFEST}") for name, mark in made.items())
