"""Stage shard: pictures from a source become square, checked, equally encoded samples in WebDataset tars."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.artifacts import Metrics, Source
from pipeline.config import StrictModel
from pipeline.errors import DataError
from pipeline.manifest import UnitRecord
from pipeline.output import Output
from pipeline.units import Unit
from stages.data.sources import EmojiSource, SourceConfig, list_source

if TYPE_CHECKING:
    from pipeline.runtime import BoundRuntime
    from pipeline.storage import Folder
    from pipeline.units import Worker
    from stages.data.assignment import Assignment, PlannedShard
    from stages.data.packing import ReadPicture
    from stages.data.pictures import Picture

__all__ = ["VERSION", "ShardConfig", "list_source", "shard"]

VERSION = 2
"""Bump when equal configs and pictures no longer give equal bytes."""

REJECTS = "rejects.jsonl"
ASSIGNMENT = "assignment.json"


class ShardConfig(StrictModel):
    """What becomes of the source's pictures."""

    source: SourceConfig = EmojiSource()
    """Where pictures come from."""
    image_size: int = Field(64, ge=8, le=2048)
    """Side of the stored pictures in pixels."""
    channels: Literal[1, 3] = 3
    """3: colour. 1: grey."""
    crop: Literal["center", "pad"] = "center"
    """center: resize the shortest side and keep the middle. pad: keep the whole picture on a white square."""
    image_format: Literal["png", "webp", "jpg"] = "png"
    """png loses nothing; for photographs jpg (quality 95) and webp (92) are several times smaller."""
    samples_per_shard: int = Field(512, ge=1)
    """Pictures in a shard: the unit of work, of reuse and of shuffling."""
    validation_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of the groups kept out of training; by a hash of the group, so a group is never on both sides."""
    max_reject_fraction: float = Field(0.01, ge=0, le=1)
    """Share of unusable pictures above which the stage fails, listing them."""
    min_size: int = Field(16, ge=1)
    """Shortest side in pixels below which a picture is rejected."""
    max_pixels: int = Field(64 * 2**20, ge=1, le=178_956_970)
    """Width times height above which a picture is rejected undecoded (a bomb, or a mistake). Limit: Pillow's own."""
    frames: Literal["first", "reject"] = "first"
    """Of animations: keep the first frame, or reject them."""
    alpha: bool = False
    """Keep the opacity of pictures as a map beside them; `condition: alpha` does so by itself."""
    seed: int = 0
    """Decides the validation split and the mixing of pictures over shards."""


def shard(config: ShardConfig, *, source: Source, output: Output, runtime: BoundRuntime) -> Metrics:
    """Cut the source into shards, make the missing ones, and describe the data set.

    Raises DataError where nothing can be read or more than `max_reject_fraction` of the pictures are unusable.
    """
    from stages.data.sources import PACKAGED, other_files, read_pictures, source_root

    pictures = read_pictures(config.source, source.listing)
    live = set(pictures)
    left_out = other_files(config.source)
    if left_out:
        kinds = ", ".join(f"{count} {extension}" for extension, count in left_out.most_common(5))
        output.warn(f"{left_out.total()} files in the source are no pictures by their extension: {kinds}")
    forgotten = {"max_reject_fraction"} | (set() if config.alpha else {"alpha"})
    memory = output.memory({"version": VERSION, **config.model_dump(mode="json", exclude=forgotten)})
    plan = _plan(config, pictures, memory, fresh=output.fresh)
    _remember(memory, plan, finished=False)
    units = [_unit(config, planned, plan.classes) for planned in plan.shards]
    # A packaged source lies elsewhere on another machine; workers change their folder, so other places are absolute.
    root = None if config.source.kind in PACKAGED else source_root(config.source)
    records = output.map_units(partial(make_packer, config, root), units, runtime, label="shards", gpu=False)
    _remember(memory, plan, finished=True)

    made = _Made(config, plan, records, live)
    rejects = made.rejects()
    lines = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rejects)
    memory.write(REJECTS, lines.encode())
    if len(rejects) > config.max_reject_fraction * len(pictures):
        raise DataError(_too_many_rejects(config, rejects, len(pictures), memory))
    output.write(REJECTS, lines.encode())
    return made.describe(output, rejects)


def make_packer(config: ShardConfig, root: Path | Folder | None, device: str) -> Worker:
    """Build the worker that makes shards; it runs on CPUs whatever the device."""
    from stages.data.images import Preparation
    from stages.data.packing import Packer

    keys = ("image_size", "channels", "crop", "min_size", "max_pixels", "frames")
    preparation = Preparation(**{key: getattr(config, key) for key in keys})
    return Packer(_picture_reader(config.source, root), preparation, config.image_format, config.alpha)


def _picture_reader(source: SourceConfig, root: Path | Folder | None) -> ReadPicture:
    """What reads the listed pictures: of files, or of a packaged table whose pictures are no files of their own."""
    if source.kind == "mnist":
        from stages.data.digits import read_digit

        return read_digit
    if source.kind == "photographs":
        from stages.data.photographs import read_photograph

        return read_photograph
    from stages.data.packing import reader_of
    from stages.data.sources import source_root

    return reader_of(root or source_root(source))


def _plan(config: ShardConfig, pictures: Sequence[Picture], memory: Folder, *, fresh: bool) -> Assignment:
    from stages.data.assignment import assign

    remembered = not fresh and memory.exists(ASSIGNMENT)
    return assign(
        pictures,
        _recall(memory) if remembered else None,
        seed=config.seed,
        validation_fraction=config.validation_fraction,
        samples_per_shard=config.samples_per_shard,
    )


def _recall(memory: Folder) -> Assignment:
    from stages.data.assignment import Assignment

    try:
        return Assignment.from_json(memory.read_json(ASSIGNMENT))
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{memory}/{ASSIGNMENT}, which remembers how pictures were cut into shards, is damaged: bring it back from "
            "a backup, or cut all shards anew with --force shard"
        ) from None


def _remember(memory: Folder, plan: Assignment, *, finished: bool) -> None:
    """Keep the assignment for later runs: before the work, so that a killed run's shards are found again, and after."""
    text = json.dumps(plan.to_json(finished=finished), separators=(",", ":"))  # a line a field would be many megabytes
    memory.write(ASSIGNMENT, text.encode())


def _unit(config: ShardConfig, planned: PlannedShard, classes: Sequence[str]) -> Unit:
    """Name all that decides the bytes of a shard; the source's place does not, so a moved folder keeps its shards."""
    touching = {"image_size", "channels", "crop", "image_format", "min_size", "max_pixels", "frames"}
    numbers = {label: number for number, label in enumerate(classes)}
    touching |= {"alpha"} if config.alpha else set()  # shards without maps are what they were before there were any
    rows = [
        [p.path, p.bytes, p.stamp, numbers[p.label], p.caption, p.group, *map(list, p.maps), *_listed_boxes(p)]
        for p in planned.pictures
    ]
    return Unit(planned.name, {**config.model_dump(mode="json", include=touching), "pictures": rows})


def _listed_boxes(picture: Picture) -> list[list[Any]]:
    return [] if picture.boxes is None else [["boxes", [list(box) for box in picture.boxes]]]


@dataclass(frozen=True)
class _Made:
    """The finished shards, and what they amount to."""

    config: ShardConfig
    plan: Assignment
    records: Sequence[UnitRecord]
    live: set[Picture]

    def rejects(self) -> list[dict[str, str]]:
        """Return the unusable pictures that are still in the source, sorted by path."""
        present = {_shown(picture.path) for picture in self.live}
        rows = [row for record in self.records for row in record.counts["rejects"] if row[0] in present]
        return [{"path": path, "code": code, "reason": reason} for path, code, reason in sorted(rows)]

    def tombstones(self) -> dict[str, list[str]]:
        """Return unit name -> keys of its samples whose pictures left the source."""
        from stages.data.assignment import removed
        from stages.data.shards import sample_key

        found = {}
        for planned, record in zip(self.plan.shards, self.records, strict=True):
            rejected = {row[0] for row in record.counts["rejects"]}
            gone = (picture.path for picture in removed(planned, self.live))
            keys = sorted(sample_key(path) for path in gone if _shown(path) not in rejected)
            if keys:
                found[planned.name] = keys
        return found

    def describe(self, output: Output, rejects: Sequence[Mapping[str, str]]) -> Metrics:
        """Write dataset.json, tombstones.json and the contact sheet; return the metrics."""
        from stages.data.shards import TOMBSTONES
        from stages.data.sources import attribution

        rejected = {row["path"] for row in rejects}
        usable = [(p, s.split) for s in self.plan.shards for p in s.pictures if p in self.live]
        usable = [(picture, split) for picture, split in usable if _shown(picture.path) not in rejected]
        splits = Counter(split for _, split in usable)
        labels = Counter(picture.label for picture, _ in usable)
        if not splits["train"]:
            raise DataError(f"of {len(self.live)} pictures none is left to train on: add pictures or lower min_size")
        if self.config.validation_fraction > 0 and not splits["val"]:
            output.warn("no picture is left for validation: add pictures, or raise shard.validation_fraction")
        tombstones = self.tombstones()
        if tombstones:
            output.write_json(TOMBSTONES, tombstones)
            num_gone = sum(map(len, tombstones.values()))
            output.warn(
                f"{num_gone} removed or changed pictures stay in {len(tombstones)} finished shards behind tombstones "
                "(readers skip them): --force shard cuts all shards anew without them"
            )
        dataset = {
            "image_size": self.config.image_size,
            "channels": self.config.channels,
            "classes": list(self.plan.classes),
            "attribution": attribution(self.config.source),
            "num_train": splits["train"],
            "num_val": splits["val"],
            "class_counts": {label: labels[label] for label in self.plan.classes},
            "rejects": len(rejects),
        }
        box_classes = sorted({box.label for picture, _ in usable for box in picture.boxes or ()})
        if box_classes:
            dataset["box_classes"] = box_classes
        output.write_json("dataset.json", dataset)
        output.write("contact_sheet.png", self._contact_sheet(output, dataset, tombstones))
        return {
            "pictures": splits.total(),
            "classes": len(self.plan.classes),
            "shards": len(self.plan.shards),
            "rejects": len(rejects),
            "train": splits["train"],
            "val": splits["val"],
            "bytes": sum(entry.bytes for record in self.records for entry in record.files),
        }

    def _contact_sheet(
        self, output: Output, dataset: Mapping[str, Any], tombstones: Mapping[str, Sequence[str]]
    ) -> bytes:
        from stages.data.contact_sheet import choose_pictures, draw_contact_sheet
        from stages.data.shards import Shard

        shards = []
        for record in self.records:
            if record.name.startswith("train-"):
                tar = output.store.files(record)[f"{record.name}.tar"]
                gone = frozenset(tombstones.get(record.name, ()))
                shards.append(Shard(record.name, tar, record.digest, gone, record.files))
        size, classes = self.config.image_size, self.plan.classes
        shown = classes[:: -(-len(classes) // 24)] if len(classes) > 24 else classes
        chosen = choose_pictures(shards, len(classes), each=12)
        rows = {label: chosen[classes.index(label)] for label in shown}
        some = f" ({len(shown)} shown)" if len(shown) < len(classes) else ""
        total = dataset["num_train"] + dataset["num_val"]
        return draw_contact_sheet(
            rows,
            title=f"{total:,} pictures of {size}x{size}, as the model sees them",
            subtitle=f"{len(classes)} classes{some}; {dataset['num_train']:,} to train on, "
            f"{dataset['num_val']:,} to validate, {dataset['rejects']:,} rejected",
            footer=dataset["attribution"],
        )


def _shown(path: str) -> str:
    from stages.data.packing import printable

    return printable(path)


def _too_many_rejects(config: ShardConfig, rejects: Sequence[Mapping[str, str]], total: int, memory: Folder) -> str:
    codes = Counter(row["code"] for row in rejects).most_common()
    fraction = len(rejects) / total
    examples = "\n".join(f"  {row['path']}: {row['reason']} [{row['code']}]" for row in rejects[:5])
    return (
        f"{len(rejects)} of {total} pictures ({fraction:.1%}) are unusable, more than "
        f"shard.max_reject_fraction={config.max_reject_fraction} allows ("
        f"{', '.join(f'{count} {code}' for code, count in codes)}):\n{examples}\n"
        f"All are listed in {memory}/{REJECTS}: repair or remove them, or set "
        f"shard.max_reject_fraction={min(1.0, -(-fraction * 1000 // 1) / 1000):g}"
    )
