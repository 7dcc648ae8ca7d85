"""The maps stage: for each picture its map, under its key, and only what is missing."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts import Artifact
from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime
from pipeline.stage import Stage
from stages.data.condition_config import EdgesCondition, LowResolutionCondition
from stages.data.conditions import make_map
from stages.data.images import decode_image
from stages.data.shards import ShardReader, open_split
from stages.maps import make_maps
from tests.stages.tiny import tiny_shards


def run(shards: Artifact, workdir: Path, condition: Any) -> Artifact:
    inputs = {"shards": shards}
    return run_stage(Stage("maps", make_maps, condition, inputs), inputs, str(workdir), LocalRuntime())  # type: ignore[arg-type]


def test_every_map_is_that_of_the_picture_with_its_key(tmp_path: Path) -> None:
    shards, condition = tiny_shards(tmp_path), LowResolutionCondition(factor=4)
    maps = run(shards, tmp_path, condition)
    assert maps.metrics == {"maps": 10, "kind": "low_resolution"}
    for split in ("train", "val"):
        for pictures, mapped in zip(open_split(shards, split), open_split(maps, split), strict=True):
            picture_reader, map_reader = ShardReader(pictures), ShardReader(mapped)
            assert [row["key"] for row in map_reader.table] == [row["key"] for row in picture_reader.table]
            for place in range(len(map_reader)):
                expected = make_map(condition, decode_image(picture_reader.read_image(place), 3))
                assert np.array_equal(decode_image(map_reader.read_image(place), 3), expected)


def test_the_data_set_of_maps_is_that_of_the_pictures_with_other_channels(tmp_path: Path) -> None:
    shards = tiny_shards(tmp_path)
    dataset = run(shards, tmp_path, EdgesCondition()).read_json("dataset.json")
    assert dataset == {**shards.read_json("dataset.json"), "channels": 1}


def test_a_grown_data_set_maps_only_its_new_shards(tmp_path: Path) -> None:
    before = run(tiny_shards(tmp_path), tmp_path, EdgesCondition())
    after = run(tiny_shards(tmp_path, pictures=(5, 3, 4)), tmp_path, EdgesCondition())
    assert (before.notes["units_reused"], after.notes["units_reused"]) == (0, 3)
    assert run(tiny_shards(tmp_path), tmp_path, EdgesCondition(sigma=1.0)).notes["units_reused"] == 0
