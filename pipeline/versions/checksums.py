"""A folder that travels vouches for its files: SHA256SUMS, which `sha256sum --check SHA256SUMS` checks without us."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from pipeline.errors import DataError
from pipeline.manifest import FileEntry
from pipeline.storage import Folder, content_hash

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def sums_text(hashes: Mapping[str, str]) -> str:
    """Return the content of SHA256SUMS for `name -> sha256`, in the form of GNU coreutils."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))


def read_sums(folder: Folder) -> dict[str, str]:
    """Return `name -> sha256` of the files that a folder lists. Raises DataError where it lists none or nonsense."""
    try:
        text = folder.read(SUMS).decode()
    except FileNotFoundError:
        raise DataError(f"{folder} holds no {SUMS}: name the folder that the stage publish made") from None
    except UnicodeDecodeError:
        text = "\0"
    found = {}
    for line in text.splitlines():
        parts = _LINE.fullmatch(line)
        try:
            entry = FileEntry(path=parts[2], bytes=0, sha256=parts[1]) if parts else None
        except ValidationError:
            entry = None
        if entry is None:
            raise DataError(f"{folder}/{SUMS} is damaged at {line[:100]!r}: publish again")
        found[entry.path] = entry.sha256
    if not found:
        raise DataError(f"{folder}/{SUMS} lists no file: publish again")
    return found


def copy_checked(folder: Folder, target: Path) -> None:
    """Copy the listed files and the list itself, nothing else. Raises DataError where one is missing or differs."""
    for name, digest in read_sums(folder).items():
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with folder.held(name) as path:
                shutil.copyfile(path, place)
        except FileNotFoundError:
            raise DataError(f"{folder}/{name} is missing, though {SUMS} lists it: publish again") from None
        _compare(f"{folder}/{name}", place, digest)
    (target / SUMS).write_bytes(folder.read(SUMS))


def check(folder: Path) -> None:
    """Hash all listed files. Raises DataError naming the first that is missing or differs."""
    for name, digest in read_sums(Folder.at(folder)).items():
        if not (folder / name).is_file():
            raise DataError(f"{folder / name} is missing, though {SUMS} lists it: take the whole folder")
        _compare(str(folder / name), folder / name, digest)


def _compare(shown: str, path: Path, digest: str) -> None:
    found = content_hash(path)
    if found != digest:
        raise DataError(f"{shown} has sha256 {found[:12]}, {SUMS} says {digest[:12]}: take it from its source again")
