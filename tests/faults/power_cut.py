"""A model of a disk that keeps nothing but what was synced, independent of the code that relies on it.

A file keeps the bytes it had when it was last synced, a folder the names it had then. What was not synced may be
there, or not, or in part: the model makes the worst of it, or draws by lot.
"""

from __future__ import annotations

import os
import random
import stat
from dataclasses import dataclass, field
from pathlib import Path

Names = dict[str, tuple[int, str]]
"""What a folder holds: name -> (inode, kind); kind is `folder`, `file`, or where a link points to."""


@dataclass
class Disk:
    """What is safe of a folder's contents. Inodes must not be used twice: keep the folder on a tmpfs."""

    root: Path
    _folders: dict[int, Names] = field(default_factory=dict)
    _files: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def holding(cls, root: Path) -> Disk:
        """Return a disk on which all that is there now is safe."""
        disk = cls(root)
        for folder, _, files in os.walk(root):
            for path in (Path(folder), *(Path(folder) / name for name in files)):
                if not path.is_symlink():
                    disk.sync(path)
        return disk

    def sync(self, path: Path) -> None:
        """A file or folder was synced, as it is now."""
        inode = path.stat().st_ino
        if path.is_dir():
            self._folders[inode] = _names(path)
        else:
            self._files[inode] = path.read_bytes()

    def after_power_cut(self, target: Path, luck: random.Random | None = None) -> None:
        """Write what is left into an empty folder: by lot, or without luck nothing but what was synced."""
        current: dict[int, Path] = {}
        for folder, folders, files in os.walk(self.root):
            for path in (Path(folder), *(Path(folder) / name for name in (*folders, *files))):
                if not path.is_symlink():
                    current.setdefault(path.stat().st_ino, path)
        self._write(self.root.stat().st_ino, target, current, luck, {})

    def _write(
        self, inode: int, target: Path, current: dict[int, Path], luck: random.Random | None, written: dict[int, Path]
    ) -> None:
        safe = self._folders.get(inode, {})
        now = _names(current[inode]) if luck and inode in current else safe
        for name in sorted({*safe, *now}):
            given = (now if luck and luck.random() < 0.5 else safe).get(name)
            if given is None:
                continue
            child, kind = given
            path = target / name
            if kind == "folder":
                path.mkdir()
                self._write(child, path, current, luck, written)
            elif kind != "file":
                path.symlink_to(kind)
            elif child in written:
                os.link(written[child], path)
            else:
                path.write_bytes(self._bytes(child, current, luck))
                written[child] = path

    def _bytes(self, inode: int, current: dict[int, Path], luck: random.Random | None) -> bytes:
        safe = self._files.get(inode, b"")
        if luck is None or inode not in current:
            return safe
        now = current[inode].read_bytes()
        return luck.choice([safe, now, now[: luck.randint(0, len(now))]]) if now != safe else safe


def _names(folder: Path) -> Names:
    found = {}
    for entry in os.scandir(folder):
        status = entry.stat(follow_symlinks=False)
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "file"
        kind = os.readlink(entry.path) if entry.is_symlink() else kind
        found[entry.name] = (status.st_ino, kind)
    return found
