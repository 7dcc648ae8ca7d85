"""Shards: WebDataset tars with an index and a table beside them, byte for byte reproducible, read by position.

A shard NAME is three files. `NAME.tar` holds KEY.cls (label), KEY.json, KEY.png|webp|jpg and KEY.txt (caption) for
every sample, and its spatial maps if it has any; plain `webdataset` reads it. `NAME.idx` is the index DALI's wds2idx
would make: the line `v1.2 NUM_SAMPLES`, then for each sample a line of `EXTENSION OFFSET SIZE MEMBER` for each member.
`NAME.json` is the table of samples: what is needed to choose among them without opening the tar.
The tar is written with the standard library (importing webdataset takes seconds, since it imports torch).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from pipeline.errors import DataError, shown
from pipeline.manifest import FileEntry
from pipeline.storage import Folder, StoredFile, canonical_json
from stages.data.images import brief, image_dimensions, image_extension
from stages.data.pictures import Box

if TYPE_CHECKING:
    from pipeline.artifacts import Artifact

MAP_EXTENSIONS = {"segmentation": "seg.png", "depth": "depth.png", "pose": "pose.png", "alpha": "alpha.png"}
"""Of the members that are maps, by kind."""
IMAGE_EXTENSIONS = ("png", "webp", "jpg")
INDEX_VERSION = "v1.2"
TOMBSTONES = "tombstones.json"
"""Artifact file: unit name -> keys of samples whose pictures were removed from the source. Readers skip them."""


@dataclass(frozen=True)
class Sample:
    """One picture with what is known about it."""

    key: str
    """Unique in its dataset; letters, digits, `-` and `_` only: WebDataset splits names at dots."""
    label: int
    caption: str
    group: str
    """Samples of one group never straddle the split between training and validation."""
    image: bytes
    """Encoded picture: PNG, WebP or JPEG."""
    source: str = ""
    """Path in the source it came from; empty for a picture that was generated."""
    maps: Mapping[str, bytes] = field(default_factory=dict)
    """Spatial maps of the picture by kind, as PNG: members KEY.seg.png, KEY.depth.png, KEY.pose.png, KEY.alpha.png."""
    boxes: tuple[Box, ...] | None = None
    """What is where, in shares of the side; None where nobody said. In KEY.json."""


@dataclass(frozen=True)
class Shard(os.PathLike[str]):
    """A shard of a finished artifact, as readers take it. Usable wherever a path of its tar is."""

    name: str
    path: Path | StoredFile
    """Of its tar; table and index lie beside it."""
    digest: str
    """Changes when the bytes or the tombstones change: address what is derived from a shard by this."""
    tombstones: frozenset[str] = frozenset()
    files: tuple[FileEntry, ...] = ()
    """What was written, by which the reader knows damage; without them it knows cuts, and damaged pictures."""
    num_samples: int | None = None
    """What its table holds, those with a tombstone too; None where nobody counted. Saves opening it to count."""

    def __fspath__(self) -> str:
        return str(self.path)


def open_split(artifact: Artifact, split: Literal["train", "val", "sample"]) -> list[Shard]:
    """Return the shards of a split, in order, with the tombstones that apply to them."""
    removed: Mapping[str, list[str]] = {}
    if any(entry.path == TOMBSTONES for entry in artifact.own_files):
        removed = artifact.read_json(TOMBSTONES)
    shards = []
    for unit, entry in artifact.unit_files(".tar"):
        # A unit may hold more pictures beside its shard, under other names.
        if unit.name.startswith(f"{split}-") and entry.path == f"{unit.name}.tar":
            keys = frozenset(removed.get(unit.name, ()))
            marked = hashlib.sha256(canonical_json([unit.digest, sorted(keys)]).encode()).hexdigest()
            tar, digest = artifact.file(entry.path), marked if keys else unit.digest
            counted = unit.counts.get("samples") if split != "sample" else None  # there it may count other pictures
            shards.append(Shard(unit.name, tar, digest, keys, unit.files, counted))
    return shards


def sample_key(path: str) -> str:
    """Return the key for a source path: readable, without dots and slashes, and unique through a hash of the path."""
    digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    stem = path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    slug = re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-")[:40].lower()
    return f"{slug}-{digest}" if slug else digest


def boxes_of(row: Mapping[str, Any]) -> tuple[Box, ...] | None:
    """The boxes of a row of a shard's table; None where nobody said what there is."""
    return tuple(Box(*box) for box in row["boxes"]) if "boxes" in row else None


def write_shard(folder: Path, name: str, samples: Iterable[Sample]) -> dict[str, int]:
    """Write NAME.tar, NAME.idx and NAME.json; return the counts {"samples", "bytes"}.

    Equal samples in equal order give equal bytes. Raises ValueError for a key that would not survive a tar.
    """
    table: list[dict[str, Any]] = []
    path = folder / f"{name}.tar"
    with path.open("wb") as file:
        for sample in samples:
            table.append(_write_sample(file, sample))
        end = file.tell() + 2 * tarfile.BLOCKSIZE
        file.write(bytes(-end % tarfile.RECORDSIZE + 2 * tarfile.BLOCKSIZE))
    keys = [row["key"] for row in table]
    if len(set(keys)) != len(keys):
        raise ValueError(f"shard {name}: keys repeat: {sorted({key for key in keys if keys.count(key) > 1})[:3]}")
    lines = [f"{INDEX_VERSION} {len(table)}"]
    for row in table:
        lines.append(" ".join(f"{ext} {at} {size} {row['key']}.{ext}" for ext, (at, size) in row["members"].items()))
    (folder / f"{name}.idx").write_text("\n".join(lines) + "\n", encoding="ascii")
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in table)
    (folder / f"{name}.json").write_text(f"[\n{rows}\n]\n" if table else "[]\n", encoding="utf-8")
    return {"samples": len(table), "bytes": path.stat().st_size}


class ShardReader:
    """Reads samples of one shard by position, through the index, without those that have a tombstone.

    Table and tar are opened when first needed and let go of by `close`, after which a reader can be used again; it can
    be pickled, and shared with forked processes.
    Raises DataError where one of the three files is not what was written (each is hashed when a process first opens
    it), where they do not agree (a shard cut at a member boundary still parses as a tar), and where a picture is not
    what the table says, whenever it is read.
    """

    def __init__(self, shard: Shard | StoredFile | Path, *, few: bool = False) -> None:
        """`few`: only some samples will be read; of a shard behind a URL no more than these is fetched."""
        tar = shard.path if isinstance(shard, Shard) else shard
        if not isinstance(tar, StoredFile):
            tar = StoredFile(Folder.at(Path(tar).parent), Path(tar).name)
        self.tombstones = shard.tombstones if isinstance(shard, Shard) else frozenset()
        self.num_samples = shard.num_samples if isinstance(shard, Shard) else None
        self.few = few
        written = {it.path: it for it in shard.files} if isinstance(shard, Shard) else {}
        beside = {suffix: tar.beside(suffix) for suffix in (".tar", ".json", ".idx")}
        self._files = {
            suffix: replace(file, known=written.get(file.name), remedy=tar.remedy or _REMEDY)
            for suffix, file in beside.items()
        }

    @property
    def path(self) -> StoredFile:
        """The tar."""
        return self._files[".tar"]

    def __len__(self) -> int:
        return len(self.table) if self.num_samples is None else self.num_samples - len(self.tombstones)

    @cached_property
    def table(self) -> list[dict[str, Any]]:
        """The rows of the table: key, label, caption, group, source, width, height, sha256, members.

        Where there are any: maps (their hashes) and boxes.
        """
        rows = self._read_table()
        return [row for row in rows if row["key"] not in self.tombstones]

    def __getitem__(self, i: int) -> Sample:
        row = self.table[i]
        image = self.read_image(i)
        boxes = boxes_of(row)
        return Sample(row["key"], row["label"], row["caption"], row["group"], image, row["source"], boxes=boxes)

    def read_image(self, i: int) -> bytes:
        """Return the encoded picture at position `i`, its hash checked."""
        row = self.table[i]
        extension = next(ext for ext in IMAGE_EXTENSIONS if ext in row["members"])
        offset, size = row["members"][extension]
        image = self._read(offset, size)
        if hashlib.sha256(image).hexdigest() != row["sha256"]:
            raise DataError(f"{self.path}: the picture of {row['key']} is damaged: {self.path.remedy}")
        return image

    def read_map(self, i: int, kind: str) -> bytes:
        """Return the encoded map of the picture at position `i`, its hash checked. Raises DataError without one."""
        row = self.table[i]
        member = row["members"].get(MAP_EXTENSIONS[kind])
        if member is None:
            raise DataError(
                f"{self.path}: the picture of {row['key']} has no {kind} map: give every picture one, or choose "
                "another condition"
            )
        offset, size = member
        data = self._read(offset, size)
        if hashlib.sha256(data).hexdigest() != row.get("maps", {}).get(kind):
            raise DataError(f"{self.path}: the {kind} map of {row['key']} is damaged: {self.path.remedy}")
        return data

    def close(self) -> None:
        """Let go of the open file and the table; the next use opens them again."""
        self.__dict__.pop("table", None)
        if self.__dict__.pop("_descriptor", None) is not None:
            self._closing()

    def __getstate__(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in ("tombstones", "num_samples", "few", "_files")}

    def _read(self, offset: int, size: int) -> bytes:
        if self.few and not self.path.is_local:
            return self.path.read_range(offset, size)
        return os.pread(self._descriptor, size, offset)  # has no position that forked processes would share

    @cached_property
    def _descriptor(self) -> int:
        try:
            descriptor = self.path.open()
        except OSError as error:
            raise DataError(f"{self.path} cannot be read ({error.strerror}): {self.path.remedy}") from None
        self._closing = weakref.finalize(self, os.close, descriptor)
        return descriptor

    def _read_table(self) -> list[dict[str, Any]]:
        try:
            with self._files[".json"].held() as table, self._files[".idx"].held() as lines:
                rows: list[dict[str, Any]] = json.loads(table.read_bytes())
                index = lines.read_text(encoding="ascii").splitlines()
            size = self.path.size
            if self.path.known is None:
                for row in rows:
                    _check_row(row)
        except (OSError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise DataError(f"{self.path}: the shard cannot be read ({brief(error)}): {self.path.remedy}") from None
        if index[:1] != [f"{INDEX_VERSION} {len(rows)}"] or len(index) != len(rows) + 1:
            raise DataError(
                f"{self.path}: its index does not list the {len(rows)} samples of its table: {self.path.remedy}"
            )
        if self.num_samples not in (None, len(rows)):
            raise DataError(f"{self.path}: {len(rows)} samples, {self.num_samples} were written: {self.path.remedy}")
        ends = [at + length for row in rows for at, length in row["members"].values()]
        if size < max(ends, default=0) + 2 * tarfile.BLOCKSIZE or size % tarfile.RECORDSIZE:
            raise DataError(f"{self.path}: {size} bytes, cut short: {self.path.remedy}")
        return rows


_REMEDY = "run with --verify to see what else is damaged, and redo the stage with --force"


def _check_row(row: Mapping[str, Any]) -> None:
    """Raise ValueError, or LookupError, for a row of a table that no writer of ours wrote."""
    texts = (row["key"], row["caption"], row["group"], row["source"], row["sha256"])
    numbers = (row["label"], row["width"], row["height"])
    if not (all(type(it) is str for it in texts) and all(type(it) is int for it in numbers)):
        raise ValueError(f"the row of {shown(row['key'])} holds a value of another kind")
    members = row["members"]
    places = [number for place in members.values() for number in place]
    if len(places) != 2 * len(members) or not all(type(it) is int and 0 <= it < 2**40 for it in places):
        raise ValueError(f"the row of {row['key']} places its members where no tar has any")
    if not any(kind in members for kind in IMAGE_EXTENSIONS):
        raise ValueError(f"the row of {row['key']} has no picture")
    boxes_of(row)


def _write_sample(file: BinaryIO, sample: Sample) -> dict[str, Any]:
    """Append a sample's members in alphabetical order; return its row of the table."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", sample.key):
        raise ValueError(f"key {sample.key!r}: only letters, digits, - and _ (at most 80) survive a WebDataset")
    about = {"caption": sample.caption, "group": sample.group, "key": sample.key, "label": sample.label}
    boxes = {} if sample.boxes is None else {"boxes": sample.boxes}
    width, height = image_dimensions(sample.image)
    parts = {
        "cls": str(sample.label).encode(),
        "json": json.dumps({**about, **boxes, "source": sample.source}, ensure_ascii=False, sort_keys=True).encode(),
        image_extension(sample.image): sample.image,
        "txt": sample.caption.encode(),
        **{MAP_EXTENSIONS[kind]: data for kind, data in sample.maps.items()},
    }
    members = {ext: _write_member(file, f"{sample.key}.{ext}", data) for ext, data in sorted(parts.items())}
    return {
        "key": sample.key,
        "label": sample.label,
        "caption": sample.caption,
        "group": sample.group,
        "source": sample.source,
        "width": width,
        "height": height,
        "sha256": hashlib.sha256(sample.image).hexdigest(),
        "members": members,
        **(
            {"maps": {kind: hashlib.sha256(data).hexdigest() for kind, data in sorted(sample.maps.items())}}
            if sample.maps
            else {}
        ),
        **boxes,
    }


def _write_member(file: BinaryIO, name: str, data: bytes) -> tuple[int, int]:
    """Append one member with fixed owner, mode and time; return (offset of its bytes, size)."""
    header = bytearray(_HEADER)
    header[: len(name)] = name.encode("ascii")
    header[124:135] = b"%011o" % len(data)
    header[148:156] = b"%06o\0 " % sum(header)
    offset = file.tell() + tarfile.BLOCKSIZE
    file.write(b"".join((header, data, bytes(-len(data) % tarfile.BLOCKSIZE))))
    return offset, len(data)


def _blank_header() -> bytes:
    """Return a USTAR header without name, size and checksum: making each with tarfile takes 10 times as long."""
    member = tarfile.TarInfo()
    member.mode, member.mtime = 0o444, 0
    header = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
    header[148:156] = b" " * 8  # the checksum is taken with blanks in its place
    return bytes(header)


_HEADER = _blank_header()
