"""Where everything lies below the workdir, and the lock that keeps a second run out."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact, DamagedManifest
from pipeline.errors import WorkdirBusy
from pipeline.manifest import MANIFEST
from pipeline.stage import Stage
from pipeline.storage import Folder, explaining, make_folder
from pipeline.storage.lease import leased
from pipeline.units import UnitStore

LATEST = "latest.json"
ATTEMPT = "attempt.json"


@dataclass(frozen=True)
class Workdir:
    """A folder of artifacts (`STAGE/FINGERPRINT`), units, checkpoints, logs and the tracker's files."""

    folder: Folder

    def store(self, stage: Stage) -> UnitStore:
        """Return the store of a stage's units."""
        return UnitStore(self.folder / "units" / stage.home, stage.home, stage.version)

    def artifact_folder(self, stage: Stage, fingerprint: str) -> Folder:
        """Return where the artifact of this fingerprint lies or will lie."""
        return self.folder / stage.home / fingerprint[:12]

    def find(self, stage: Stage, fingerprint: str) -> Artifact | None:
        """Return the finished artifact of this fingerprint, if there is one. Raises DamagedManifest."""
        folder = self.artifact_folder(stage, fingerprint)
        return Artifact.load(folder, self.store(stage)) if folder.exists(MANIFEST) else None

    def latest(self, stage: Stage) -> Artifact | None:
        """Return the artifact that the stage finished last or was last asked for; None where that is damaged."""
        mark = None if stage.beside else _latest_mark(self.folder / stage.name)
        try:
            return self.find(stage, mark) if mark else None
        except DamagedManifest:
            return None

    def made_last(self, name: str) -> Artifact | None:
        """Return what the stage of this name made last, to be read: for commands that know no graph."""
        folder = self.folder / name
        mark = _latest_mark(folder) if folder.exists(LATEST) else None
        return self.made(name, mark) if mark is not None else None

    def made(self, name: str, fingerprint: str) -> Artifact | None:
        """Return a finished artifact of the stage of this name, to be read. Raises DamagedManifest."""
        home = self.folder / name / fingerprint[:12]
        # Finished units are found by their keys; the version only decides keys of new ones.
        store = UnitStore(self.folder / "units" / name, name, 0)
        return Artifact.load(home, store) if home.exists(MANIFEST) else None

    def point_latest(self, stage: Stage, fingerprint: str) -> None:
        """Remember which artifact is the current one; on a disk `STAGE/latest` leads people there.

        Of a place that two stages share, only the stage that gave it its name says what is current.
        """
        if stage.beside:
            return
        home = self.folder / stage.name
        led = not home.is_local or _leads(home.path / "latest", fingerprint[:12])
        if led and _latest_mark(home) == fingerprint:
            return
        home.write_json(LATEST, {"fingerprint": fingerprint})
        if home.is_local:
            with contextlib.suppress(OSError), home.scratch() as scratch:
                (scratch / "latest").symlink_to(fingerprint[:12])
                os.replace(scratch / "latest", home.path / "latest")

    def read_attempt(self, stage: Stage, fingerprint: str) -> dict[str, Any]:
        """Return what is known of earlier attempts at an artifact: their number and the tracker's run."""
        known = _read_note(self.artifact_folder(stage, fingerprint), ATTEMPT)
        none: dict[str, Any] = {"number": 0, "run_id": None}
        return {**none, **known} if isinstance(known.get("number"), int) else none

    def write_attempt(self, stage: Stage, fingerprint: str, attempt: Mapping[str, Any]) -> None:
        """Record an attempt before it starts."""
        self.artifact_folder(stage, fingerprint).write_json(ATTEMPT, attempt)

    @contextlib.contextmanager
    def locked(self, announce: Callable[[str], None] = lambda message: None) -> Iterator[None]:
        """Hold the workdir alone. Raises WorkdirBusy naming host, pid and since when.

        The kernel lets go of the lock when the process ends, however it ends. A workdir behind a URL is held by a
        lease, which ends a minute after its holder did; `announce` tells what a newcomer waits for.
        """
        if not self.folder.is_local:
            with leased(self.folder.url, announce):
                yield
            return
        with explaining(str(self.folder)):
            make_folder(self.folder.path)
            descriptor = os.open(self.folder.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise WorkdirBusy(self._holder(descriptor)) from None
            holder = {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            }
            with explaining(str(self.folder)):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(holder).encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def _holder(self, descriptor: int) -> str:
        try:
            holder = json.loads(os.pread(descriptor, 4096, 0))
            who = f"by process {holder['pid']} on {holder['host']} since {holder['since']}"
        except (ValueError, KeyError):
            who = "by another run"
        return f"workdir {self.folder} is in use {who}: wait for it, stop it, or choose another --workdir"


def _latest_mark(home: Folder) -> str | None:
    """The fingerprint of what a stage made last; None where its note is damaged, which costs nothing but comfort."""
    mark = _read_note(home, LATEST).get("fingerprint")
    return mark if isinstance(mark, str) and mark.isalnum() else None


def _read_note(folder: Folder, name: str) -> dict[str, Any]:
    """A small file of the workdir's own; nothing where there is none, or a damaged one."""
    try:
        note = folder.read_json(name)
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def _leads(link: Path, target: str) -> bool:
    return link.is_symlink() and str(link.readlink()) == target
