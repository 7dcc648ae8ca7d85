"""The unit store: pieces of work, addressed by their recipe, each committed by itself and never made twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.manifest import FORMAT_VERSION, FileEntry, UnitRecord, digest_of
from pipeline.storage import Folder, canonical_json

RECORD = "unit.json"

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
        """Return the finished unit, None where it is missing, its record is damaged or a file's size is another."""
        key = self.key(unit)
        home = self.folder_of(key)
        if not home.exists(RECORD):
            return None
        try:
            record = UnitRecord.model_validate_json(home.read(RECORD))
        except ValidationError:
            return None
        intact = record.key == key and record.digest == digest_of(record.files)
        intact = intact and all(home.size(entry.path) == entry.bytes for entry in record.files)
        return record if intact else None

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
