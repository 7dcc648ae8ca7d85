"""What stages take: a source's listing, and a finished artifact."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.errors import StorageError
from pipeline.manifest import MANIFEST, FileEntry, UnitRecord
from pipeline.storage import Folder, canonical_json, content_hash
from pipeline.units import UnitStore

Metrics = dict[str, float | int | str]


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
        """Read a finished artifact. Raises StorageError where its manifest is damaged."""
        try:
            with _all_to_stay():
                manifest = folder.read_json(MANIFEST)
                return cls(
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
        except (json.JSONDecodeError, KeyError, ValueError) as error:
            raise StorageError(f"{folder}/{MANIFEST} is damaged ({error}): redo the stage with --force") from error

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """All content files: its own and those of its units."""
        return (*self.own_files, *(entry for unit in self.units for entry in unit.files))

    @cached_property
    def _home(self) -> dict[str, Folder]:
        return {entry.path: self.store.folder_of(unit.key) for unit in self.units for entry in unit.files}

    def local(self, path: str) -> Path:
        """Return a local path of one of the files, e.g. `model.safetensors` or `train-000003.tar`."""
        return self._home.get(path, self.folder).local(path)

    def read_json(self, path: str) -> Any:
        """Return the value of one of its JSON files."""
        return json.loads(self.local(path).read_bytes())

    def unit_files(self, suffix: str) -> list[tuple[UnitRecord, FileEntry]]:
        """Return (unit, file) of the unit files whose name ends so, in the order of the units."""
        return [(unit, entry) for unit in self.units for entry in unit.files if entry.path.endswith(suffix)]

    def damaged(self) -> list[str]:
        """Re-hash all files; return a line for each that is missing or differs."""
        complaints = []
        for entry in self.files:
            home = self._home.get(entry.path, self.folder)
            if home.size(entry.path) is None:
                complaints.append(f"{home}/{entry.path} is missing")
            elif content_hash(home.local(entry.path)) != entry.sha256:
                complaints.append(f"{home}/{entry.path} differs from what was written")
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
