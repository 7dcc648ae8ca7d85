"""What stages take and make: a source's listing, a finished artifact, and the output that is being made."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import StrictModel
from pipeline.errors import StageError, StorageError
from pipeline.storage import Folder, canonical_json, content_hash

if TYPE_CHECKING:
    from pipeline.runtime import BoundRuntime
    from pipeline.units import MakeWorker, Unit, UnitStore

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
"""Version of the layout on disk; part of every fingerprint."""

Metrics = dict[str, float | int | str]


class FileEntry(StrictModel):
    """A committed file: its name within the artifact or unit, size and hash."""

    path: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path, name: str) -> FileEntry:
        """Hash a local file."""
        return cls(path=name, bytes=path.stat().st_size, sha256=content_hash(path))


class UnitRecord(StrictModel):
    """A finished unit: its address (`key`), the digest of its bytes, what it counted, its files."""

    name: str
    key: str
    digest: str
    counts: dict[str, Any]
    files: tuple[FileEntry, ...]


def digest_of(files: Iterable[FileEntry]) -> str:
    """Return the content digest of some files: the hash of their sorted (path, size, sha256)."""
    rows = sorted((entry.path, entry.bytes, entry.sha256) for entry in files)
    return hashlib.sha256(canonical_json(rows).encode()).hexdigest()


@dataclass(frozen=True, order=True)
class SourceFile:
    """One picture file outside, as its listing shows it: `stamp` is what changes when it does (mtime, etag)."""

    path: str
    bytes: int
    stamp: str


@dataclass(frozen=True)
class Source:
    """Pictures from outside as an input: its digest is a snapshot of the listing, so new pictures are noticed."""

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


@dataclass
class Output:
    """The artifact being made: where a stage's work puts its results."""

    folder: Folder
    store: UnitStore
    workdir: Folder
    stage: str
    fingerprint: str
    recipe: Mapping[str, Any]
    warner: Callable[[str], None]
    fresh: bool = False
    """Whether finished units and checkpoints must not be used (`--force`)."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Provenance for the manifest, never part of the digest: seconds, rates."""
    warnings: list[str] = field(default_factory=list)
    units_reused: int = 0
    _content: dict[str, FileEntry] = field(default_factory=dict)
    _notes_files: dict[str, FileEntry] = field(default_factory=dict)
    _units: list[UnitRecord] = field(default_factory=list)

    @contextlib.contextmanager
    def writing(self, name: str, *, content: bool = True) -> Iterator[Path]:
        """Yield a temporary path that becomes the artifact's file `name`.

        `content=False` keeps it out of the digest: for what differs between equal runs, such as timings.
        """
        with self.folder.writing(name) as path:
            yield path
            entry = FileEntry.of(path, name)
        (self._content if content else self._notes_files)[name] = entry

    def write(self, name: str, data: bytes, *, content: bool = True) -> None:
        """Write the artifact's file `name`."""
        with self.writing(name, content=content) as path:
            path.write_bytes(data)

    def write_json(self, name: str, value: Any, *, content: bool = True) -> None:
        """Write the artifact's JSON file `name`."""
        self.write(
            name, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode(), content=content
        )

    def map_units(
        self, make_worker: MakeWorker, units: Sequence[Unit], runtime: BoundRuntime, *, label: str, gpu: bool = True
    ) -> list[UnitRecord]:
        """Make the missing units with `runtime`, reuse the finished ones, add all to the artifact, in their order.

        `gpu=False` is for work that never uses one and should spread over the CPU cores of a GPU cluster.
        """
        from pipeline.units import map_units

        records, reused = map_units(self.store, make_worker, units, runtime, label=label, gpu=gpu, fresh=self.fresh)
        self.units_reused += reused
        self._units += records
        for record in records:
            for entry in record.files:
                if self.folder.is_local:
                    self.folder.link(entry.path, self.store.folder_of(record.key).local(entry.path))
        return records

    def checkpoints(self, *, stop_keys: Collection[str]) -> Folder:
        """Return where training state is kept: the same place whatever the stop conditions (`stop_keys`) are."""
        config = {key: value for key, value in self.recipe["config"].items() if key not in stop_keys}
        key = hashlib.sha256(canonical_json({**self.recipe, "config": config}).encode()).hexdigest()
        return self.workdir / "checkpoints" / self.stage / key[:16]

    def memory(self, keys: Mapping[str, Any]) -> Folder:
        """Return a place that outlives the artifact, the same for equal `keys`: how earlier runs cut the data."""
        key = hashlib.sha256(canonical_json(keys).encode()).hexdigest()
        return self.workdir / "memory" / self.stage / key[:16]

    def warn(self, message: str) -> None:
        """Announce a fallback or oddity, record it in the manifest and show it in the report."""
        if message not in self.warnings:
            self.warnings.append(message)
            self.warner(message)

    def commit(self, metrics: Metrics, provenance: Mapping[str, Any]) -> Artifact:
        """Verify that every file is there as recorded, write the manifest last, and return the finished artifact."""
        for entry in (*self._content.values(), *self._notes_files.values()):
            if self.folder.size(entry.path) != entry.bytes:
                raise StageError(f"{self.folder}/{entry.path} changed while the stage ran: run the same command again")
        unit_files = [entry for unit in self._units for entry in unit.files]
        own = sorted(self._content.values(), key=lambda entry: entry.path)
        manifest = {
            "stage": self.stage,
            "fingerprint": self.fingerprint,
            "recipe": self.recipe,
            "digest": digest_of([*own, *unit_files]),
            "metrics": metrics,
            "notes": {**self.notes, **provenance, "warnings": self.warnings, "units_reused": self.units_reused},
            "files": [entry.model_dump() for entry in own],
            "note_files": [entry.model_dump() for entry in self._notes_files.values()],
            "units": [unit.model_dump() for unit in self._units],
        }
        self.folder.write_json(MANIFEST, manifest)
        return Artifact.load(self.folder, self.store)
