"""The unit store: pieces of work, addressed by their recipe, each committed by itself and never made twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.manifest import FORMAT_VERSION, FileEntry, UnitRecord, digest_of
from pipeline.storage import Folder, StoredFile, canonical_json

RECORD = "unit.json"
ASKED_AT_ONCE = 16
"""Records that are read at the same time from behind a URL, where each takes a round trip."""

Worker = Callable[["Unit", Path], dict[str, Any]]
"""Makes one unit: writes plain files into the given scratch folder, returns JSON counts."""
MakeWorker = Callable[[str], Worker]
"""Builds a worker once per process, for a device (`cpu`, `cuda:0`); loads models there. Picklable."""


@dataclass(frozen=True)
class Unit:
    """A piece of work whose bytes depend on nothing but its recipe."""

    name: str
    """Also the stem of its files, e.g. `train-000003`."""
    recipe: Mapping[str, Any]
    """JSON: the part of the config that touches it and the digests of its inputs."""
    payload: Any = None
    """What the worker needs beyond that without changing the bytes, such as paths. Picklable."""


@dataclass(frozen=True)
class UnitStore:
    """The units of one stage at one version."""

    folder: Folder
    stage: str
    version: int

    def key(self, unit: Unit) -> str:
        """Return the unit's address: the hash of its recipe."""
        recipe = {
            "format": FORMAT_VERSION,
            "stage": self.stage,
            "version": self.version,
            "unit": unit.name,
            "recipe": unit.recipe,
        }
        return hashlib.sha256(canonical_json(recipe).encode()).hexdigest()

    def folder_of(self, key: str) -> Folder:
        """Return the folder of a unit's files."""
        return self.folder / key[:32]

    def find(self, unit: Unit) -> UnitRecord | None:
        """Return the finished unit; None where it is missing, its record damaged or, on a disk, a file cut."""
        key = self.key(unit)
        home = self.folder_of(key)
        try:
            record = UnitRecord.model_validate_json(home.read(RECORD))
        except FileNotFoundError:
            return None
        except ValidationError:
            return None
        # Behind a URL files appear whole, the record last: asking for each would take minutes of a large data set.
        whole = not home.is_local or all(home.size(entry.path) == entry.bytes for entry in record.files)
        return record if whole and record.key == key and record.digest == digest_of(record.files) else None

    def find_all(self, units: Sequence[Unit]) -> dict[str, UnitRecord]:
        """Return those units that are finished, by name."""
        if self.folder.is_local:
            found = [self.find(unit) for unit in units]
        else:
            with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
                found = list(pool.map(self.find, units))
        return {unit.name: record for unit, record in zip(units, found, strict=True) if record is not None}

    def files(self, record: UnitRecord) -> dict[str, StoredFile]:
        """Return a unit's files by their names."""
        home = self.folder_of(record.key)
        remedy = f"remove {home} and run the same command again, which makes what is missing"
        return {entry.path: StoredFile(home, entry.path, entry, remedy) for entry in record.files}

    def make(self, unit: Unit, worker: Worker) -> UnitRecord:
        """Run the worker in a scratch folder and commit what it wrote, its record last."""
        with self.folder.scratch(unit.name) as scratch:
            counts = worker(unit, scratch)
            names = sorted(path.relative_to(scratch).as_posix() for path in scratch.rglob("*") if path.is_file())
            files = tuple(FileEntry.of(scratch / name, name) for name in names)
            key = self.key(unit)
            record = UnitRecord(name=unit.name, key=key, digest=digest_of(files), counts=counts, files=files)
            (scratch / RECORD).write_text(canonical_json(record.model_dump()))
            self.folder.adopt(scratch, key[:32], last=RECORD)
        return record
