"""Where the files of a source lie: a path on this machine, or a URL."""

from __future__ import annotations

import posixpath
from pathlib import Path

from pipeline.artifacts import SourceFile
from pipeline.storage import Folder


def folder_at(place: str) -> Folder:
    """Return the folder at a path (made absolute: workers change their working directory) or URL."""
    return Folder.at(Path(place).expanduser() if place.startswith("~") else place)


def split_place(place: str | Path) -> tuple[Folder, str]:
    """Return the folder of a file at a path or URL, and the file's name."""
    whole = folder_at(str(place))
    if whole.is_local:
        return Folder.at(whole.path.parent), whole.path.name
    above, _, name = whole.url.rpartition("/")
    return Folder.at(above), name


def located(root: Folder, name: str) -> tuple[Folder, str]:
    """Return folder and name of an object that a source lists: relative to the source's root, or by its own URL."""
    if "://" in name:
        return split_place(name)
    protocol, _, rest = root.url.partition("://")
    return split_place(f"{protocol}://{posixpath.normpath(f'{rest}/{name}')}")


def list_folder(root: Folder) -> list[SourceFile]:
    """List all objects below a folder behind a URL but those whose names start with a dot."""
    return [
        SourceFile(name, size, stamp)
        for name, size, stamp in root.listing()
        if not any(part.startswith(".") for part in name.split("/"))
    ]


def find_object(root: Folder, name: str) -> SourceFile | None:
    """Look at one object that a source lists; None where there is none."""
    folder, own = located(root, name)
    found = folder.stamp(own)
    return SourceFile(name, *found) if found else None
