"""The artifact that is being made: where a stage's work puts its results, and how they are committed."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact, Metrics
from pipeline.errors import StageError
from pipeline.manifest import MANIFEST, FileEntry, UnitRecord, digest_of
from pipeline.redaction import redacted
from pipeline.runtime import BoundRuntime
from pipeline.storage import Folder, canonical_json, explaining
from pipeline.units import MakeWorker, Unit, UnitStore

USED_BY = "USED_BY.json"
"""In a folder that outlives its artifact: the fingerprints of the artifacts it served."""


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
        self,
        make_worker: MakeWorker,
        units: Sequence[Unit],
        runtime: BoundRuntime,
        *,
        label: str,
        gpu: bool = True,
        rate_of: str | None = None,
    ) -> list[UnitRecord]:
        """Make the missing units with `runtime`, reuse the finished ones, add all to the artifact, in their order.

        `rate_of` names a count of the units whose rate the progress shows.
        `gpu=False` is for work that never uses one and should spread over the CPU cores of a GPU cluster.
        """
        assert len({unit.name for unit in units}) == len(units), "unit names must differ"
        finished = {} if self.fresh else self.store.find_all(units)
        self.units_reused += len(finished)
        missing = [unit for unit in units if unit.name not in finished]
        made = runtime.map_units(
            self.store, make_worker, missing, label=label, finished=len(finished), gpu=gpu, rate_of=rate_of
        )
        finished |= {record.name: record for record in made}
        records = [finished[unit.name] for unit in units]
        self._units += records
        for record in records:
            for entry in record.files:
                if self.folder.is_local:
                    with explaining(f"{self.folder}/{entry.path}"):
                        self.folder.link(entry.path, self.store.folder_of(record.key).local(entry.path))
        return records

    def checkpoints(self, *, stop_keys: Collection[str]) -> Folder:
        """Return where training state is kept: the same place whatever the stop conditions (`stop_keys`) are."""
        config = {key: value for key, value in self.recipe["config"].items() if key not in stop_keys}
        key = hashlib.sha256(canonical_json({**self.recipe, "config": config}).encode()).hexdigest()
        return self._outliving(self.workdir / "checkpoints" / self.stage / key[:16])

    def memory(self, keys: Mapping[str, Any]) -> Folder:
        """Return a place that outlives the artifact, the same for equal `keys`: how earlier runs cut the data."""
        key = hashlib.sha256(canonical_json(keys).encode()).hexdigest()
        return self._outliving(self.workdir / "memory" / self.stage / key[:16])

    def _outliving(self, folder: Folder) -> Folder:
        served = folder.read_json(USED_BY) if folder.exists(USED_BY) else []
        if self.fingerprint not in served:
            folder.write_json(USED_BY, [*served, self.fingerprint])
        return folder

    def warn(self, message: str) -> None:
        """Announce a fallback or oddity, record it in the manifest and show it in the report."""
        message = redacted(message)
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
