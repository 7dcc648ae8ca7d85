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
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from pipeline.errors import DataError
from pipeline.storage import canonical_json
from stages.data.images import image_dimensions, image_extension
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
    path: Path
    digest: str
    """Changes when the bytes or the tombstones change: address what is derived from a shard by this."""
    tombstones: frozenset[str] = frozenset()
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
            if not artifact.store.folder.is_local:
                for companion in unit.files:  # all three must be fetched before the reader looks for them
                    artifact.local(companion.path)
            keys = frozenset(removed.get(unit.name, ()))
            marked = hashlib.sha256(canonical_json([unit.digest, sorted(keys)]).encode()).hexdigest()
            counted = unit.counts.get("samples") if split != "sample" else None  # there it may count other pictures
            shards.append(Shard(unit.name, artifact.local(entry.path), marked if keys else unit.digest, keys, counted))
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
    Raises DataError where the tar, the index and the table do not agree: a shard cut at a member boundary still
    parses as a tar, so its size and count are checked when it is opened, and a picture's hash whenever it is read.
    """

    def __init__(self, shard: Shard | Path) -> None:
        self.path = Path(shard)
        self.tombstones = shard.tombstones if isinstance(shard, Shard) else frozenset()
        self.num_samples = shard.num_samples if isinstance(shard, Shard) else None

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
        image = os.pread(self._descriptor, size, offset)  # has no position that forked processes would share
        if hashlib.sha256(image).hexdigest() != row["sha256"]:
            raise DataError(f"{self.path}: the picture of {row['key']} is damaged: {_REMEDY}")
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
        data = os.pread(self._descriptor, size, offset)
        if hashlib.sha256(data).hexdigest() != row["maps"][kind]:
            raise DataError(f"{self.path}: the {kind} map of {row['key']} is damaged: {_REMEDY}")
        return data

    def close(self) -> None:
        """Let go of the open file and the table; the next use opens them again."""
        self.__dict__.pop("table", None)
        if self.__dict__.pop("_descriptor", None) is not None:
            self._closing()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "tombstones": self.tombstones, "num_samples": self.num_samples}

    @cached_property
    def _descriptor(self) -> int:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        self._closing = weakref.finalize(self, os.close, descriptor)
        return descriptor

    def _read_table(self) -> list[dict[str, Any]]:
        try:
            rows: list[dict[str, Any]] = json.loads(self.path.with_suffix(".json").read_bytes())
            index = self.path.with_suffix(".idx").read_text(encoding="ascii").splitlines()
            size = self.path.stat().st_size
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: the shard cannot be read ({error}): {_REMEDY}") from None
        if index[:1] != [f"{INDEX_VERSION} {len(rows)}"] or len(index) != len(rows) + 1:
            raise DataError(f"{self.path}: its index does not list the {len(rows)} samples of its table: {_REMEDY}")
        if self.num_samples not in (None, len(rows)):
            raise DataError(f"{self.path}: {len(rows)} samples, {self.num_samples} were written: {_REMEDY}")
        ends = [at + length for row in rows for at, length in row["members"].values()]
        if size < max(ends, default=0) + 2 * tarfile.BLOCKSIZE or size % tarfile.RECORDSIZE:
            raise DataError(f"{self.path}: {size} bytes, cut short: {_REMEDY}")
        return rows


_REMEDY = "run with --verify to see what else is damaged, and redo the stage with --force"


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
