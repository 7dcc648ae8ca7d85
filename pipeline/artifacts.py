"""What stages take: a source's listing, and a finished artifact."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.errors import StageError
from pipeline.manifest import MANIFEST, FileEntry, UnitRecord, digest_of
from pipeline.storage import Folder, StoredFile, canonical_json
from pipeline.units import UnitStore

Metrics = dict[str, float | int | str]


class DamagedManifest(StageError):
    """An artifact's manifest is not what was written."""


@dataclass(frozen=True, order=True)
class SourceFile:
    """One file outside, as its listing shows it: `stamp` is what changes when it does (mtime, etag, hash)."""

    path: str
    bytes: int
    stamp: str


@dataclass(frozen=True)
class Source:
    """Files from outside as an input: its digest is a snapshot of the listing, so new pictures are noticed."""

    name: str
    lister: Callable[[], Iterable[SourceFile]]

    @cached_property
    def listing(self) -> tuple[SourceFile, ...]:
        """The files, sorted by path; taken once, before the run. Raises DataError where there is nothing to read."""
        return tuple(sorted(self.lister()))

    def take_listing(self, other: Source) -> None:
        """Use what another object of the same source listed: one run sees it as it was at one moment."""
        if "listing" in vars(other):
            vars(self)["listing"] = other.listing

    @cached_property
    def digest(self) -> str:
        """The hash of the listing."""
        rows = [(file.path, file.bytes, file.stamp) for file in self.listing]
        return hashlib.sha256(canonical_json(rows).encode()).hexdigest()


@dataclass(frozen=True)
class Artifact:
    """A finished stage: a manifest over its own files and over units."""

    folder: Folder
    store: UnitStore
    stage: str
    fingerprint: str
    recipe: Mapping[str, Any]
    digest: str
    metrics: Metrics
    notes: Mapping[str, Any]
    own_files: tuple[FileEntry, ...]
    units: tuple[UnitRecord, ...]

    @classmethod
    def load(cls, folder: Folder, store: UnitStore) -> Artifact:
        """Read a finished artifact. Raises DamagedManifest where its manifest is not what was written."""
        try:
            with _all_to_stay():
                manifest = folder.read_json(MANIFEST)
                artifact = cls(
                    folder=folder,
                    store=store,
                    stage=manifest["stage"],
                    fingerprint=manifest["fingerprint"],
                    recipe=manifest["recipe"],
                    digest=manifest["digest"],
                    metrics=manifest["metrics"],
                    notes=manifest["notes"],
                    own_files=tuple(FileEntry.model_validate(row) for row in manifest["files"]),
                    units=tuple(UnitRecord.model_validate(row) for row in manifest["units"]),
                )
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            raise DamagedManifest(f"{folder}/{MANIFEST} is damaged ({type(error).__name__}: {error})") from error
        recipe = hashlib.sha256(canonical_json(artifact.recipe).encode()).hexdigest()
        if artifact.digest != digest_of(artifact.files) or artifact.fingerprint != recipe:
            raise DamagedManifest(f"{folder}/{MANIFEST} is damaged: it contradicts itself")
        return artifact

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """All content files: its own and those of its units."""
        return (*self.own_files, *(entry for unit in self.units for entry in unit.files))

    @cached_property
    def _stored(self) -> dict[str, StoredFile]:
        of_units = [(self.store.folder_of(unit.key), entry) for unit in self.units for entry in unit.files]
        own = [(self.folder, entry) for entry in self.own_files]
        return {
            entry.path: StoredFile(home, entry.path, entry, self._remedy(home)) for home, entry in [*of_units, *own]
        }

    def file(self, path: str) -> StoredFile:
        """Return a reference to one of the files, e.g. `train-000003.tar`, for units and readers on any machine."""
        return self._stored.get(path) or StoredFile(self.folder, path)

    def local(self, path: str) -> Path:
        """Return a local path of one of the files, e.g. `model.safetensors`, there as long as this process lives.

        It is hashed when a process first asks for it. Raises DataError where its content is not what was written.
        """
        return self.file(path).local()

    def held(self, path: str) -> AbstractContextManager[Path]:
        """Within the block, a local path of one of the files: for going through many of them."""
        return self.file(path).held()

    def _remedy(self, home: Folder) -> str:
        """How to make the files of a folder again, and no more than these."""
        unit = "" if home == self.folder else f" and {home}"
        return f"remove {self.folder}/{MANIFEST}{unit} and run --stages {self.stage}, which makes what is missing"

    def read_json(self, path: str) -> Any:
        """Return the value of one of its JSON files. Raises DataError where it is not what was written."""
        with self.held(path) as place:
            return json.loads(place.read_bytes())

    def unit_files(self, suffix: str) -> list[tuple[UnitRecord, FileEntry]]:
        """Return (unit, file) of the unit files whose name ends so, in the order of the units."""
        return [(unit, entry) for unit in self.units for entry in unit.files if entry.path.endswith(suffix)]

    def incomplete(self) -> str:
        """Name the first file that is missing or has another size than recorded, if one does; on a disk only."""
        if self.folder.is_local:
            for entry in self.files:
                stored = self.file(entry.path)
                if (size := stored.folder.size(entry.path)) != entry.bytes:
                    found = "is missing" if size is None else f"has {size} bytes, {entry.bytes} were written"
                    return f"{stored} {found}"
        return ""

    def damaged(self) -> list[str]:
        """Re-hash all files; return a line for each that is missing or differs."""
        complaints = []
        for entry in self.files:
            stored = self.file(entry.path)
            if stored.folder.size(entry.path) is None:
                complaints.append(f"{stored} is missing")
            elif stored.folder.hash_of(entry.path) != entry.sha256:
                complaints.append(f"{stored} differs from what was written")
        return complaints


@contextlib.contextmanager
def _all_to_stay() -> Iterator[None]:
    """Collect no garbage meanwhile: searching 100,000 records again and again for some took longer than making them."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
