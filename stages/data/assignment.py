"""Which picture goes into which shard, remembered so that a grown source leaves its finished shards alone.

The rule: a known picture stays in its shard; new pictures, mixed by a hash, are cut into new shards; a removed
picture stays in its finished shard, behind a tombstone. A changed file is a removed and a new picture. So the cut
depends on the order in which pictures arrived: a source that grew is cut otherwise than the same source taken at once
(and small additions make small shards). The bytes of each shard still depend on nothing but its own list of pictures.
Forgetting the memory (`--force shard`) cuts everything anew, without tombstones: that is the compaction.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import DataError
from stages.data.pictures import Picture

Split = Literal["train", "val"]


@dataclass(frozen=True)
class PlannedShard:
    """A shard and its pictures in their order. `finished`: it was made, so its list must not change any more."""

    name: str
    pictures: tuple[Picture, ...]
    finished: bool = False

    @property
    def split(self) -> Split:
        """Which side of the validation split it is on."""
        return "train" if self.name.startswith("train-") else "val"


@dataclass(frozen=True)
class Assignment:
    """All shards of a data set, and its classes: a class keeps its number for as long as the memory lasts."""

    classes: tuple[str, ...]
    shards: tuple[PlannedShard, ...]

    def to_json(self, *, finished: bool) -> dict[str, Any]:
        """Return what to remember; `finished` says that all shards have been made."""
        shards = [
            {
                "name": shard.name,
                "finished": finished or shard.finished,
                "pictures": [list(vars(p).values()) for p in shard.pictures],
            }
            for shard in self.shards
        ]
        return {"classes": list(self.classes), "shards": shards}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Assignment:
        """Undo `to_json`."""
        shards = (
            PlannedShard(row["name"], tuple(map(Picture.from_row, row["pictures"])), row["finished"])
            for row in value["shards"]
        )
        return cls(tuple(value["classes"]), tuple(shards))


def assign(
    pictures: Sequence[Picture],
    previous: Assignment | None,
    *,
    seed: int,
    validation_fraction: float,
    samples_per_shard: int,
) -> Assignment:
    """Assign every picture to a shard, keeping what `previous` decided. Pure: equal arguments, equal assignment.

    Raises DataError where all pictures fall on one side of the validation split.
    """
    live = set(pictures)
    kept = [shard for shard in (previous.shards if previous else ()) if _stays(shard, live)]
    known = {picture for shard in kept for picture in shard.pictures}
    splits: dict[str, Split] = {picture.group: shard.split for shard in kept for picture in shard.pictures}
    new = sorted(live - known, key=lambda picture: (_fraction(f"mix/{seed}/{picture.path}"), picture.path))
    _decide_splits(splits, new, seed, validation_fraction)

    shards = list(kept)
    for split in ("train", "val"):
        arriving = [picture for picture in new if splits[picture.group] == split]
        names = _free_names(split, {shard.name for shard in kept})
        for start in range(0, len(arriving), samples_per_shard):
            shards.append(PlannedShard(next(names), tuple(arriving[start : start + samples_per_shard])))
    old_classes = previous.classes if previous else ()
    new_classes = sorted({picture.label for picture in live} - set(old_classes), key=_natural)
    return Assignment((*old_classes, *new_classes), tuple(sorted(shards, key=lambda shard: shard.name)))


def _free_names(split: Split, taken: set[str]) -> Iterator[str]:
    return (name for name in (f"{split}-{number:06d}" for number in itertools.count()) if name not in taken)


def _stays(shard: PlannedShard, live: set[Picture]) -> bool:
    """Whether a remembered shard stays: one that was never made is cut anew when a picture of it is gone."""
    if shard.finished:
        return any(picture in live for picture in shard.pictures)
    return all(picture in live for picture in shard.pictures)


def _decide_splits(splits: dict[str, Split], new: Iterable[Picture], seed: int, validation_fraction: float) -> None:
    """Decide for the groups that are new; of a small source at least one group is for validation."""
    draws = {p.group: _fraction(f"split/{seed}/{p.group}") for p in new if p.group not in splits}
    splits.update({group: "val" if draw < validation_fraction else "train" for group, draw in draws.items()})
    if validation_fraction > 0 and draws and "val" not in splits.values() and len(splits) > 1:
        splits[min(draws, key=lambda group: (draws[group], group))] = "val"
    if "train" not in splits.values():
        raise DataError(
            f"all {len(splits)} groups of pictures fell into the validation split: add pictures, or lower "
            f"shard.validation_fraction={validation_fraction}"
        )


def _fraction(name: str) -> float:
    """Return a number in [0, 1) that only depends on the name."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _natural(label: str) -> tuple[bool, int, str]:
    """Sort numbers as numbers, before names."""
    return (not label.isdecimal(), int(label) if label.isdecimal() else 0, label)


def removed(shard: PlannedShard, live: set[Picture]) -> Iterator[Picture]:
    """Yield the pictures of a shard that are no longer in the source."""
    return (picture for picture in shard.pictures if picture not in live)
