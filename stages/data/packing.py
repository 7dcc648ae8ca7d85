"""The worker that makes one shard: reads its source files, checks, resizes and encodes them, lists the rejects."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.storage import Folder
from pipeline.units import Unit
from stages.data.boxes import prepare_boxes
from stages.data.images import ImageFormat, Preparation, Rejected, encode_image, open_image, prepare, upright_size
from stages.data.map_files import prepare_alpha, prepare_map
from stages.data.pictures import Box
from stages.data.places import located
from stages.data.shards import Sample, sample_key, write_shard

LARGEST_PIXEL = 8
"""Bytes of a pixel that is not compressed, in 16 bit with transparency."""
LARGEST_OVERHEAD = 64 * 2**20
"""Bytes of a file beside its first picture: other frames, profiles, previews."""

ReadPicture = Callable[[str, int, str], bytes]
"""The bytes of the listed picture of a path, size and stamp."""


@dataclass(frozen=True)
class FileReader:
    """Reads listed files below a folder."""

    root: Path

    def __call__(self, path: str, size: int, stamp: str) -> bytes:
        """Return a file's bytes. Raises DataError where it is not the listed one, or cannot be read now: neither is a
        property of the picture, and a shard without it would be taken for finished for ever."""
        if "://" in path:  # a list on a disk may name what is not
            return ObjectReader(Folder.at(self.root))(path, size, stamp)
        place = self.root / path
        try:
            with place.open("rb") as file:
                data = file.read(size + 1)
                modified = str(os.fstat(file.fileno()).st_mtime_ns)
        except FileNotFoundError:
            raise DataError(_gone(place)) from None
        except OSError as error:
            raise DataError(
                f"{place} cannot be read ({error.strerror}): make it readable, or remove it, and run the same command "
                "again; finished shards are kept"
            ) from None
        if len(data) != size or (stamp.isdecimal() and stamp != modified):
            raise DataError(_changed(place))
        return data


@dataclass(frozen=True)
class ObjectReader:
    """Reads listed objects below a folder behind a URL."""

    root: Folder

    def __call__(self, path: str, size: int, stamp: str) -> bytes:
        """Return an object's bytes. Raises DataError where it is not the listed one, StorageError if it is refused."""
        folder, name = located(self.root, path)
        try:
            data = folder.read(name)
        except FileNotFoundError:
            raise DataError(_gone(f"{folder}/{name}")) from None
        # The entity tag of most objects is the MD5 of their bytes; where it is another, the store is asked again.
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != stamp and folder.stamp(name) != (size, stamp):
            raise DataError(_changed(f"{folder}/{name}"))
        if len(data) != size:
            raise DataError(_changed(f"{folder}/{name}"))
        return data


def reader_of(root: Path | Folder) -> ReadPicture:
    """What reads the files below a root."""
    return ObjectReader(root) if isinstance(root, Folder) else FileReader(root)


def _gone(place: object) -> str:
    return (
        f"{place} is gone: if it vanished during this run, run the same command again; if it was removed "
        "after its shard was made and that shard is lost, redo it with --force shard"
    )


def _changed(place: object) -> str:
    return f"{place} changed while the run was reading it: run the same command again"


@dataclass(frozen=True)
class Packer:
    """Turns a unit whose recipe lists `pictures` (path, bytes, stamp, label, caption, group, more ...) into a shard.

    More is any of (kind of map, path, bytes, stamp) and ("boxes", boxes).
    """

    read: ReadPicture
    preparation: Preparation
    image_format: ImageFormat
    alpha: bool = False
    """Whether to keep the pictures' opacity as a map."""

    def __call__(self, unit: Unit, folder: Path) -> dict[str, Any]:
        """Write the shard; return {"samples", "bytes", "rejects": [[path, code, reason], ...]}.

        Raises DataError for a file that changed after it was listed: the shard would not be what its recipe says.
        """
        rejects: list[list[str]] = []
        counts = write_shard(folder, unit.name, self._samples(unit, rejects))
        return {**counts, "rejects": rejects}

    def _samples(self, unit: Unit, rejects: list[list[str]]) -> Iterator[Sample]:
        for path, size, stamp, label, caption, group, *more in unit.recipe["pictures"]:
            maps = [it for it in more if it[0] != "boxes"]
            listed = next((tuple(Box(*box) for box in it[1]) for it in more if it[0] == "boxes"), None)
            try:
                data = self._read(path, size, stamp)
                image = encode_image(prepare(data, self.preparation), self.image_format)
                mapped = self._maps(data, maps)
                boxes = None if listed is None else prepare_boxes(data, listed, self.preparation)
            except Rejected as rejected:
                rejects.append([printable(path), rejected.code, rejected.reason])
                continue
            yield Sample(sample_key(path), label, caption, printable(group), image, printable(path), mapped, boxes)

    def _read(self, path: str, size: int, stamp: str) -> bytes:
        largest = LARGEST_OVERHEAD + LARGEST_PIXEL * self.preparation.max_pixels
        if size > largest:
            raise Rejected("too_many_bytes", f"{size:,} bytes are more than {largest:,}, what max_pixels could fill")
        return self.read(path, size, stamp)

    def _maps(self, picture: bytes, maps: Sequence[Sequence[Any]]) -> dict[str, bytes]:
        """The encoded maps of a picture, cut as it was."""
        found = {}
        if maps:
            shape = upright_size(open_image(picture))
            for kind, path, size, stamp in maps:
                data = self._read(path, size, stamp)
                found[kind] = encode_image(prepare_map(data, kind, shape, self.preparation), "png")
        if self.alpha:
            found["alpha"] = encode_image(prepare_alpha(picture, self.preparation), "png")
        return found


def printable(path: str) -> str:
    """Return a path as valid text: file names need not be UTF-8."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
