"""What samples were drawn from, as far as it can be found in them again: units to measure, and the figures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from pipeline.storage import canonical_json
from pipeline.units import Unit
from stages.data.condition_config import MapCondition
from stages.data.map_shelf import MapShelf, Target
from stages.data.shards import Shard, ShardReader, open_split
from stages.data.tables import read_table
from stages.metrics.map_fidelity import Findable
from stages.metrics.obedience import (
    Pictures,
    caption_obedience,
    class_obedience,
    coordinate_obedience,
    map_obedience,
)
from stages.metrics.pixel_classes import PixelClasses
from stages.metrics.places import DRAWN_WINDOW, Windows, window_place

if TYPE_CHECKING:
    from pipeline.artifacts import Artifact
    from stages.metrics.figures import Figure
    from stages.metrics.measured import Measured

Arrays = tuple[str, Mapping[str, NDArray[Any]]]
"""What a unit of a name measured."""
Splits = Mapping[str, Sequence[Shard]]
CONDITION: TypeAdapter[Any] = TypeAdapter(MapCondition)


@dataclass(frozen=True)
class Told:
    """What is known of the conditions of samples."""

    kinds: tuple[str, ...]
    """Conditions that the prior is told, of those that say something."""
    captions: Mapping[str, list[str]]
    """By split, in the order of its pictures."""
    targets: Mapping[str, list[Target]]
    """By shard of samples: the held-out pictures that they were drawn from; none where they were not."""
    maps: Artifact | None
    window_seed: int
    has_windows: bool
    """Whether pictures were cut into more windows than the middle one."""
    rows: Mapping[str, Mapping[str, Any]]
    """By key: the rows of the tables of held-out pictures."""

    @classmethod
    def read(
        cls, splits: Splits, tokens: Artifact | None, samples: Artifact, maps: Artifact | None, kinds: tuple[str, ...]
    ) -> Told:
        """Read what the tables of shards and samples say; `kinds` are the conditions that say something.

        Maps and windows are found only where `tokens` say how pictures were cut, and where the held-out pictures that
        samples were drawn from are held out still.
        """
        captions = {
            split: [row["caption"] for shard in shards for row in ShardReader(shard).table]
            for split, shards in splits.items()
        }
        targets = {}
        for unit, entry in samples.unit_files(".parquet"):
            with samples.held(entry.path) as path:
                columns = read_table(path)
            if "condition_key" in columns:
                targets[unit.name] = list(
                    zip(columns["condition_key"], map(int, columns["condition_variant"]), strict=True)
                )
        rows = {row["key"]: row for shard in splits["val"] for row in ShardReader(shard).table}
        drawn_from = [key for found in targets.values() for key, _ in found]
        cutting = tokens.recipe["config"] if tokens is not None else {}
        seed, has_windows = int(cutting.get("seed", 0)), int(cutting.get("crops", 1)) > 1
        comparable = tokens is not None and all(key in rows for key in drawn_from)
        kinds = tuple(kind for kind in kinds if comparable or kind in ("class", "caption"))
        return cls(kinds, captions, targets, maps if comparable else None, seed, has_windows, rows)

    def units(self, splits: Splits, seeing: Mapping[str, Any], seed: int) -> list[Unit]:
        """Units that compare the maps of samples and of reconstructions with those they come from."""
        drawn_from = [target for targets in self.targets.values() for target in targets]
        if self.maps is None or not drawn_from or not all(key for key, _ in drawn_from):
            return []
        condition = CONDITION.validate_python(self.maps.recipe["config"])
        if not isinstance(condition, Findable):
            return []
        channels = self.maps.read_json("dataset.json")["channels"]
        maps = open_split(self.maps, "val")
        shelf = MapShelf(maps, channels, seeing["image_size"], self.window_seed)
        other = _others(drawn_from, seed)
        digests = [shard.digest for shard in maps]
        told: dict[str, Any] = {"condition": condition.model_dump(mode="json")}
        guess = None
        if condition.kind == "segmentation":
            looking = {"size": seeing["image_size"], "channels": seeing["channels"]}
            learning = (splits["train"], open_split(self.maps, "train"))
            guess = PixelClasses.learn(*learning, num_classes=condition.num_classes, seed=seed, **looking)
            told["learnt"] = [*(shard.digest for shards in learning for shard in shards), seed]

        def unit(name: str, shard: Shard, targets: Mapping[str, list[Target]]) -> Unit:
            wanted = hashlib.sha256(canonical_json(targets).encode()).hexdigest()
            recipe = {"measure": name, "shard": shard.digest, "maps": digests, "targets": wanted, **told, **seeing}
            payload = {"shard": shard, "condition": condition, "shelf": shelf, "guess": guess, **targets}
            return Unit(f"{name}-{shard.name}", recipe, payload)

        found = []
        for shard in splits["sample"]:
            own = self.targets[shard.name]
            found.append(unit("obedience", shard, {"own": own, "shuffled": [other[target] for target in own]}))
        for shard in splits["val"]:
            found.append(unit("possible", shard, {"own": [(row["key"], 0) for row in ShardReader(shard).table]}))
        return found

    def window_units(self, splits: Splits, seeing: Mapping[str, Any], tokenizer: str) -> list[Unit]:
        """Units that look at a window of each real picture, and at samples, where these were drawn for places."""
        drawn_from = [target for targets in self.targets.values() for target in targets]
        known = bool(drawn_from) and all(key for key, _ in drawn_from)
        if "coordinates" not in self.kinds or not self.has_windows or not known:
            return []
        looks: dict[str, dict[str, Any]] = {
            "train": {"variant": DRAWN_WINDOW, "rebuilt": False},
            "val": {"variant": DRAWN_WINDOW, "rebuilt": True, "tokenizer": tokenizer},
            "sample": {"variant": 0, "rebuilt": False},
        }
        units = []
        for split, look in looks.items():
            for shard in splits[split]:
                recipe = {"measure": "windows", "shard": shard.digest, "seed": self.window_seed, **look, **seeing}
                units.append(Unit(f"windows-{shard.name}", recipe, {"shard": shard}))
        return units

    def _coordinates(self, measured: Measured, units: Sequence[Arrays], size: int, seed: int) -> dict[str, Figure]:
        def windows(split: str, groups_N: NDArray[np.int64]) -> Windows:
            found = [arrays for unit, arrays in units if unit.startswith(f"windows-{split}")]
            features_ND, places_N2 = (
                np.concatenate([arrays[name] for arrays in found]) for name in ("thumbnails", "places")
            )
            return Windows(features_ND, places_N2, groups_N)

        def places(targets: Sequence[Target]) -> NDArray[np.float64]:
            found = [window_place(self.rows[key], it, size=size, seed=self.window_seed) for key, it in targets]
            return np.array(found, np.float64)

        if not any(unit.startswith("windows") for unit, _ in units):
            return {}
        drawn_from = [target for targets in self.targets.values() for target in targets]
        other = _others(drawn_from, seed)
        looks = windows("sample", self._sample_groups(len(drawn_from)))
        samples = replace(looks, places_N2=places(drawn_from))
        train, held_out = windows("train", measured.train_groups_N), windows("val", measured.held_out_groups_N)
        return coordinate_obedience(train, held_out, samples, places([other[target] for target in drawn_from]), seed)

    def figures(self, measured: Measured, units: Sequence[Arrays], size: int, seed: int) -> dict[str, Figure]:
        """One figure for each condition that can be found in a picture, beside its like for shuffled conditions."""
        groups_N = self._sample_groups(len(measured.sample_labels_N))
        train = Pictures(measured.train_ND, measured.train_labels_N, self.captions["train"], measured.train_groups_N)
        held_out = (measured.held_out_labels_N, self.captions["val"], measured.held_out_groups_N)
        rebuilt = Pictures(measured.reconstructions_ND, *held_out)
        samples = Pictures(measured.samples_ND, measured.sample_labels_N, self.captions["sample"], groups_N)
        figures: dict[str, Figure] = {}
        if "class" in self.kinds:
            figures |= class_obedience(train, rebuilt, samples, seed)
        if "caption" in self.kinds:
            figures |= caption_obedience(train, rebuilt, samples, seed)
        figures |= self._coordinates(measured, units, size, seed)
        own, shuffled, possible = (
            [arrays[name] for unit, arrays in units if unit.startswith(kind)]
            for kind, name in (("obedience", "own"), ("obedience", "shuffled"), ("possible", "own"))
        )
        if own and self.maps:
            groups = {"samples": groups_N, "rebuilt": measured.held_out_groups_N}
            samples_N, shuffled_N, rebuilt_N = map(np.concatenate, (own, shuffled, possible))
            kind = self.maps.recipe["config"]["kind"]
            figures |= map_obedience(kind, samples_N, shuffled_N, rebuilt_N, groups, seed)
        return figures

    def _sample_groups(self, count: int) -> NDArray[np.int64]:
        """Samples of one condition belong together; those of classes are each by itself."""
        drawn_from = [target for targets in self.targets.values() for target in targets]
        if not drawn_from:
            return np.arange(count)
        names = [
            f"{key}/{variant}/{caption}"
            for (key, variant), caption in zip(drawn_from, self.captions["sample"], strict=True)
        ]
        return np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)


def _others(targets: Sequence[Target], seed: int) -> dict[Target, Target]:
    """For each of some targets another one (itself where it is the only one)."""
    distinct = sorted(set(targets))
    mixed = [distinct[place] for place in np.random.default_rng(seed).permutation(len(distinct))]
    return dict(zip(mixed, [*mixed[1:], mixed[0]], strict=True))
