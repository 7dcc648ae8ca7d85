"""Stage maps: makes a spatial map of every picture, in shards beside those of the pictures."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact, Metrics
from pipeline.errors import DataError
from pipeline.output import Output
from pipeline.runtime import BoundRuntime
from pipeline.units import Unit, Worker
from stages.data.condition_config import MapCondition, StoredMap

if TYPE_CHECKING:
    from stages.data.shards import Shard


def make_maps(config: MapCondition, *, shards: Artifact, output: Output, runtime: BoundRuntime) -> Metrics:
    """Map every shard as a unit of its own; the maps have the names, keys and labels of their pictures."""
    from stages.data.conditions import map_channels
    from stages.data.shards import open_split

    dataset = shards.read_json("dataset.json")
    units = [
        Unit(shard.name, {"shard": shard.digest, "condition": config.model_dump(mode="json")}, {"shard": shard})
        for split in ("train", "val")
        for shard in open_split(shards, split)
    ]
    channels = {"picture": dataset["channels"], "map": map_channels(config, dataset["channels"])}
    make_worker = functools.partial(load_mapper, config, channels)
    records = output.map_units(make_worker, units, runtime, label="maps", gpu=False)
    described = {**dataset, "channels": channels["map"]}
    if config.kind == "segmentation":
        described["labels"] = config.num_classes
    output.write_json("dataset.json", described)
    return {"maps": sum(record.counts["samples"] for record in records), "kind": config.kind}


def load_mapper(config: MapCondition, channels: Mapping[str, int], device: str) -> Worker:
    """Build the worker that maps shards; it runs on CPUs whatever the device."""
    return functools.partial(map_shard, config, channels)


def map_shard(config: MapCondition, channels: Mapping[str, int], unit: Unit, folder: Path) -> dict[str, Any]:
    """Write NAME.tar, NAME.idx and NAME.json: for each picture of a shard its map, under its key."""
    from dataclasses import replace

    from stages.data.conditions import make_map
    from stages.data.images import decode_image, encode_image
    from stages.data.shards import ShardReader, write_shard

    shard: Shard = unit.payload["shard"]
    reader = ShardReader(shard)

    def mapped() -> Any:
        for place in range(len(reader)):
            sample = reader[place]
            if isinstance(config, StoredMap):
                map_HWC = decode_image(reader.read_map(place, config.kind), channels["map"])
                if config.kind == "segmentation" and map_HWC.max() >= config.num_classes:
                    raise DataError(
                        f"the segmentation of picture {sample.key} has class {map_HWC.max()}, the condition knows "
                        f"{config.num_classes}: set num_classes to {map_HWC.max() + 1} at least"
                    )
            else:
                map_HWC = make_map(config, decode_image(sample.image, channels["picture"]))
            yield replace(sample, image=encode_image(map_HWC, "png"), maps={})

    return write_shard(folder, unit.name, mapped())
