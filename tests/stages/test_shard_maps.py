"""Maps of a list source: from its columns through the shards to the maps stage."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipeline.artifacts import Artifact, Source
from pipeline.errors import DataError
from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime
from pipeline.stage import Stage
from stages.data.condition_config import AlphaCondition, DepthCondition, SegmentationCondition
from stages.data.images import decode_image
from stages.data.lists import list_files
from stages.data.shards import ShardReader, open_split
from stages.data.sources import ListSource, list_source
from stages.maps import make_maps
from stages.shard import ShardConfig, shard


def world(folder: Path, *, without: int | None = None) -> ListSource:
    """Twelve pictures of grey, each with a depth map of its own grey."""
    rows = []
    for n in range(12):
        Image.fromarray(np.full((24, 32, 4), (n, n, n, 20 * n), np.uint8)).save(folder / f"{n}.png")
        Image.fromarray(np.full((12, 16), 10 * n, np.uint8)).save(folder / f"{n}-depth.png")
        row = {"path": f"{n}.png", "depth": f"{n}-depth.png"}
        rows.append({"path": row["path"]} if n == without else row)
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ListSource(path=str(folder / "list.jsonl"))


def cut(source: ListSource, workdir: Path, **options: Any) -> Artifact:
    config = ShardConfig(source=source, image_size=16, validation_fraction=0.2, samples_per_shard=6, **options)
    inputs = {"source": Source("pictures", partial(list_source, source))}
    return run_stage(Stage("shard", shard, config, inputs), inputs, str(workdir), LocalRuntime())  # type: ignore[arg-type]


def mapped(shards: Artifact, workdir: Path, condition: Any) -> Artifact:
    inputs = {"shards": shards}
    return run_stage(Stage("maps", make_maps, condition, inputs), inputs, str(workdir), LocalRuntime())  # type: ignore[arg-type]


def test_plain_webdataset_finds_the_map_beside_its_picture(tmp_path: Path) -> None:
    shards = cut(world(tmp_path), tmp_path / "runs")
    seen = 0
    for part in open_split(shards, "train"):
        for sample in webdataset.WebDataset(str(part.path), shardshuffle=False, empty_check=False).decode("pil"):
            number = int(json.loads(json.dumps(sample["json"]))["source"].split(".")[0])
            assert set(np.unique(sample["depth.png"])) == {10 * number}
            seen += 1
    assert seen > 5


def test_maps_reach_the_maps_stage_under_their_keys_and_damage_is_noticed(tmp_path: Path) -> None:
    shards = cut(world(tmp_path), tmp_path / "runs")
    maps = mapped(shards, tmp_path / "runs", DepthCondition())
    for split in ("train", "val"):
        for part in open_split(maps, split):
            reader = ShardReader(part)
            for place, row in enumerate(reader.table):
                number = int(row["source"].split(".")[0])
                assert (decode_image(reader.read_image(place), 1) == 10 * number).all()
    part = open_split(shards, "train")[0]
    opened = ShardReader(part)
    opened.read_map(0, "depth")
    offset, size = opened.table[0]["members"]["depth.png"]
    path = part.path.local()
    data = bytearray(path.read_bytes())
    data[offset + size // 2] ^= 255
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"the depth map of .* is damaged"):
        opened.read_map(0, "depth")
    with pytest.raises(DataError, match=r"\.tar is damaged \(it has sha256 .* was written\)"):
        ShardReader(part).read_map(0, "depth")


def test_a_picture_without_its_map_is_named(tmp_path: Path) -> None:
    shards = cut(world(tmp_path, without=5), tmp_path / "runs")
    with pytest.raises(DataError, match=r"the picture of 5-.* has no depth map: give every picture one"):
        mapped(shards, tmp_path / "runs", DepthCondition())


def test_opacity_is_kept_where_asked_and_shards_without_maps_stay_as_they_are(tmp_path: Path) -> None:
    source = world(tmp_path)
    maps = mapped(cut(source, tmp_path / "runs", alpha=True), tmp_path / "runs", AlphaCondition())
    reader = ShardReader(open_split(maps, "train")[0])
    number = int(reader.table[0]["source"].split(".")[0])
    assert (decode_image(reader.read_image(0), 1) == 20 * number).all()
    assert "alpha.png" not in ShardReader(open_split(cut(source, tmp_path / "runs"), "train")[0]).table[0]["members"]


def test_a_changed_map_makes_its_shard_anew_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    source = world(tmp_path)
    before = {entry.path: entry.stamp for entry in list_files(Path(source.path))}
    Image.fromarray(np.full((12, 16), 255, np.uint8)).save(tmp_path / "3-depth.png")
    after = {entry.path: entry.stamp for entry in list_files(Path(source.path))}
    assert {path for path in after if after[path] != before[path]} == {"3-depth.png"}
    (tmp_path / "4-depth.png").unlink()
    with pytest.raises(DataError, match=r"line 5: depth '4-depth.png' cannot be read"):
        list(list_files(Path(source.path)))


def test_class_numbers_are_described_and_those_beyond_the_condition_refused(tmp_path: Path) -> None:
    world(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "list.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({"path": row["path"], "segmentation": row["depth"]}) + "\n" for row in rows)
    (tmp_path / "list.jsonl").write_text(text)
    shards = cut(ListSource(path=str(tmp_path / "list.jsonl")), tmp_path / "runs")
    maps = mapped(shards, tmp_path / "runs", SegmentationCondition(num_classes=111))
    assert (maps.read_json("dataset.json")["labels"], maps.read_json("dataset.json")["channels"]) == (111, 1)
    with pytest.raises(DataError, match=r"class \d+, the condition knows 2: set num_classes to \d+ at least"):
        mapped(shards, tmp_path / "runs", SegmentationCondition(num_classes=2))
