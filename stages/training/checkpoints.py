"""Checkpoints: folders committed whole, named by an atomic LATEST, fenced against orphaned writers, hash-verified."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from pipeline.errors import StageError, shown
from pipeline.manifest import MANIFEST, FileEntry
from pipeline.storage import Folder, content_hash
from stages.training.handover import LATEST
from stages.training.states import State, load_state, save_state

__all__ = ["Checkpoint", "Checkpoints", "load_state", "reseed", "save_state"]

_NO_STATE = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError)
_NAME = re.compile(r"step-\d{8,}-[0-9a-f]+")
OWNER = "OWNER"
"""Names the newest attempt; an older one finds another name here and may not write any more."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    name: str
    """Folder name within the `Checkpoints`' folder."""
    step: int
    """Updates made."""
    state: dict[str, Any]
    """What was saved; tensors on CPU."""
    history: list[dict[str, float]]
    """All rows recorded up to `step`."""
    warnings: tuple[str, ...] = ()
    """What went wrong on the way to this one, e.g. a newer checkpoint that was damaged: for the user to see."""


class Checkpoints:
    """The checkpoints of one training, in a folder of their own.

    A checkpoint's folder has a name that is never used twice and appears by one rename (behind a URL: its manifest
    last). Fencing is a check before each commit, not a lock: it stops an orphaned worker that wakes up later.
    """

    def __init__(self, folder: Folder, attempt: str, keep: int = 2) -> None:
        """`attempt` names a start of the gang, for messages."""
        assert keep >= 1
        self._folder = folder
        # Attempts are counted for each fingerprint, and raising the steps makes a new one: their names may repeat.
        self._owner = f"{attempt} {secrets.token_hex(8)}"
        self._keep = keep

    def claim(self) -> None:
        """Make this attempt the one that may save, whatever its name. On rank 0, once, before `latest`."""
        self._folder.write(OWNER, self._owner.encode())

    def save(self, step: int, state: State, history: Sequence[dict[str, float]]) -> str:
        """Commit a checkpoint, then drop all but the newest `keep`; return its name. On rank 0, after `claim`.

        Raises:
            StageError: a newer attempt has taken over.
        """
        self._check_fence()
        name = f"step-{step:08d}-{secrets.token_hex(4)}"
        with self._folder.scratch(name) as scratch:
            names = save_state(scratch, "state", state)
            (scratch / "history.jsonl").write_text("".join(f"{json.dumps(row, sort_keys=True)}\n" for row in history))
            entries = [FileEntry.of(scratch / file, file) for file in sorted([*names, "history.jsonl"])]
            manifest = {
                "step": step,
                "files": [entry.model_dump() for entry in entries],
            }
            (scratch / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
            self._check_fence()
            self._folder.adopt(scratch, name, last=MANIFEST)
        committed = [
            name,
            *(older for older in self._committed() if _step_of(older) < step),
        ][: self._keep]
        self._check_fence()
        self._folder.write_json(LATEST, committed)
        self._prune(committed)
        return name

    def place(self, name: str) -> str:
        """Where a checkpoint lies, for messages."""
        return f"{self._folder}/{name}"

    def latest(self, accept: Callable[[Checkpoint], bool] = lambda checkpoint: True) -> Checkpoint | None:
        """The newest intact checkpoint that `accept` takes; None where there is none (start from the beginning).

        A damaged one (a bit flipped, a file lost) is passed over and named in the result's `warnings`.

        Raises:
            StageError: there are checkpoints, all of them damaged.
        """
        complaints: list[str] = []
        refused = False
        for name in self._committed():
            checkpoint, complaint = self._load(name)
            if checkpoint is None:
                complaints.append(f"checkpoint {self._folder}/{name} is damaged ({complaint}) and is not used")
            elif accept(checkpoint):
                return Checkpoint(
                    name,
                    checkpoint.step,
                    checkpoint.state,
                    checkpoint.history,
                    tuple(complaints),
                )
            else:
                refused = True
        if complaints and not refused:
            raise StageError(
                "\n".join(
                    [
                        *complaints,
                        f"no other one is left: remove {self._folder} to start over",
                    ]
                )
            )
        return None

    def open(self, name: str) -> Checkpoint:
        """The checkpoint of this name, verified: how the other ranks read the one that rank 0 chose."""
        checkpoint, complaint = self._load(name)
        if checkpoint is None:
            raise StageError(f"checkpoint {self._folder}/{name} is damaged on this machine ({complaint})")
        return checkpoint

    def _committed(self) -> list[str]:
        if not self._folder.exists(LATEST):
            return []
        try:
            names = self._folder.read_json(LATEST)
        except (ValueError, RecursionError):
            names = None
        if isinstance(names, list) and all(isinstance(it, str) and _NAME.fullmatch(it) for it in names):
            return names
        # A damaged list costs nothing: checkpoints appear whole, and each is verified before it is used.
        present = {name.partition("/")[0] for name in self._folder.names()}
        return sorted((name for name in present if _NAME.fullmatch(name)), key=_step_of, reverse=True)

    def _load(self, name: str) -> tuple[Checkpoint | None, str]:
        """The checkpoint if each of its files is what was written, otherwise None and the complaint."""
        home = self._folder / name
        try:
            manifest = home.read_json(MANIFEST)
            step = int(manifest["step"])
            entries = [FileEntry.model_validate(entry) for entry in manifest["files"]]
            paths = [home.local(entry.path) for entry in entries]
            hashes = [content_hash(path) for path in paths]
        except FileNotFoundError as error:
            return None, f"{error.filename or error} is missing"
        except (ValueError, LookupError, TypeError, RecursionError):
            return None, f"{MANIFEST} is unreadable"
        for entry, found in zip(entries, hashes, strict=True):
            if found != entry.sha256:
                return (
                    None,
                    f"{entry.path} has sha256 {found[:12]}, {entry.sha256[:12]} was written",
                )
        local = {entry.path: path for entry, path in zip(entries, paths, strict=True)}
        try:
            history = [json.loads(line) for line in local["history.jsonl"].read_text().splitlines()]
            return Checkpoint(name, step, load_state(local["state.json"].parent, "state"), history), ""
        except _NO_STATE as error:
            return None, f"its files are what {MANIFEST} says, and hold no training state: {shown(str(error))}"

    def _check_fence(self) -> None:
        owner = self._folder.read(OWNER).decode()
        if owner != self._owner:
            raise StageError(self._superseded(owner.split()[0]))

    def _superseded(self, newest: str) -> str:
        attempt = self._owner.split()[0]
        return f"attempt {attempt} is superseded by attempt {newest} and may not save to {self._folder} any more"

    def _prune(self, committed: Sequence[str]) -> None:
        folders = {name.partition("/")[0] for name in self._folder.names()}
        for folder in sorted(folders):
            # While training goes on no result is on its way: one that lies here belonged to a driver that died.
            if folder.startswith(("step-", "result-")) and folder not in committed:
                self._folder.remove(folder)


def reseed(seed: int, step: int, rank: int) -> None:
    """Seed torch and numpy for one step of one rank, so that resuming needs no stored generator state.

    The three numbers are hashed: neighbouring steps and ranks get unrelated streams.
    """
    torch_seed, numpy_seed = np.random.SeedSequence([seed, step, rank]).generate_state(2)
    torch.manual_seed(int(torch_seed))
    np.random.seed(int(numpy_seed))


def _step_of(name: str) -> int:
    return int(name.split("-")[1])
