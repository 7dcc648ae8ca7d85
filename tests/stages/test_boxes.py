"""Boxes of a list: from its column through shards and tokens to the pictures beside samples."""

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
from stages.data.box_codes import BoxCodes
from stages.data.boxes import draw_boxes
from stages.data.pictures import Box
from stages.data.shards import ShardReader, open_split
from stages.data.sources import ListSource, list_source
from stages.data.tables import read_table, read_tokens
from stages.encode import EncodeWork, encode
from stages.metrics.report.pictures import picture_uri
from stages.metrics.report.told_and_drawn import told_and_drawn
from stages.models.vocabulary import TokenCorpus
from stages.sample import SampleConfig, sample
from stages.shard import ShardConfig, shard
from tests.stages.tiny import tiny_prior, tiny_tokenizer


def world(folder: Path, rows: int = 12) -> ListSource:
    """Pictures of 32x16: of number n a dot right of the middle at height n, a moon at the left that the cut removes."""
    listed: list[dict[str, Any]] = []
    for n in range(rows):
        Image.fromarray(np.full((16, 32, 3), 20 * n, np.uint8)).save(folder / f"{n}.png")
        boxes = [["dot", 16, n, 24, n + 4], ["moon", 0, 0, 6, 6], *([["sun", 8, 0, 24, 16]] if n == 3 else [])]
        listed.append({"path": f"{n}.png", "boxes": None if n == 5 else [] if n == 6 else boxes})
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    return ListSource(path=str(folder / "list.jsonl"))


def run(name: str, work: Any, config: Any, workdir: Path, **inputs: Any) -> Artifact:
    return run_stage(Stage(name, work, config, inputs), inputs, str(workdir), LocalRuntime())


def cut(source: ListSource, workdir: Path) -> Artifact:
    config = ShardConfig(source=source, image_size=16, validation_fraction=0.2, samples_per_shard=6)
    return run("shard", shard, config, workdir, source=Source("pictures", partial(list_source, source)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    workdir = tmp_path_factory.mktemp("boxes")
    inputs = {"shards": cut(world(workdir), workdir), "tokenizer": tiny_tokenizer(workdir)}
    config = EncodeWork.model_validate(
        {"condition": {"kind": "boxes", "max_boxes": 2, "resolution": 16}, "flips": True}
    )
    return {**inputs, "tokens": run("encode", encode, config, workdir, **inputs)}


def test_boxes_lie_in_the_json_of_their_picture_after_the_cut(made: dict[str, Artifact]) -> None:
    assert made["shards"].read_json("dataset.json")["box_classes"] == ["dot", "moon", "sun"]
    found = {}
    for split in ("train", "val"):
        for part in open_split(made["shards"], split):
            for row in webdataset.WebDataset(str(part.path), shardshuffle=False, empty_check=False).decode():
                found[int(row["json"]["source"].split(".")[0])] = row["json"].get("boxes")
    assert found[4] == [["dot", 0.5, 0.25, 1, 0.5]]
    assert found[3] == [["dot", 0.5, 0.1875, 1, 0.4375], ["sun", 0, 0, 1, 1]]
    assert (found[5], found[6]) == (None, [])


def test_boxes_become_tokens_of_their_picture_and_of_its_mirror_image(made: dict[str, Artifact]) -> None:
    corpus = TokenCorpus.model_validate(made["tokens"].read_json("tokens.json"))
    codes = BoxCodes.of(made["tokens"])
    assert codes is not None
    assert [(it.kind, it.length, it.size) for it in corpus.condition] == [("boxes", 6, 3 + 256 + 1)]
    seen = set()
    for unit, entry in made["tokens"].unit_files(".parquet"):
        table = read_tokens(made["tokens"].local(entry.path))
        for key, variant, condition_C in zip(table.keys, table.variants, table.condition_NC, strict=True):
            number = int(key.split("-")[0])
            values_L = condition_C - corpus.codebook_size
            if number == 5:
                assert set(values_L.tolist()) == {codes.size}  # the null
                continue
            (boxes,) = codes.boxes(values_L[None])
            sun = [Box("sun", 0, 0, 1, 1)] if number == 3 else []
            place = round(number / 16 * 15) / 15, round(min(number + 4, 16) / 16 * 15) / 15
            left, right = (0.0, round(0.5 * 15) / 15) if variant else (round(0.5 * 15) / 15, 1.0)
            dot = [] if number == 6 else [Box("dot", left, place[0], right, place[1])]
            assert boxes == [*sun, *dot]
            seen.add((unit.name.split("-")[0], int(variant)))
    assert seen == {("train", 0), ("train", 1), ("val", 0)}


def test_samples_are_drawn_from_boxes_of_held_out_pictures_which_the_grid_shows(
    made: dict[str, Artifact], tmp_path: Path
) -> None:
    segments = TokenCorpus.model_validate(made["tokens"].read_json("tokens.json")).condition
    prior = tiny_prior(tmp_path, made["tokenizer"], condition=segments, classes=("pictures",))
    inputs = {"tokenizer": made["tokenizer"], "prior": prior, "tokens": made["tokens"]}
    artifact = run("sample", sample, SampleConfig(num_samples=4, samples_per_condition=2), tmp_path, **inputs)
    (_, entry), *_ = artifact.unit_files(".parquet")
    columns = read_table(artifact.local(entry.path))
    held_out = read_tokens(made["tokens"].local("val-000000.parquet"))
    assert columns["condition_key"] == [held_out.keys[0]] * 2 + [held_out.keys[1 % len(held_out)]] * 2
    codes = BoxCodes.of(made["tokens"])
    assert codes is not None
    with Image.open(artifact.local("grid.png")) as opened:
        start = opened.width - 16 - 3 * 64 - 2 * 6  # boxes and two samples of 64 pixels
        drawn = np.asarray(opened)[16:80, start : start + 64]
    (boxes,) = codes.boxes(held_out.condition_NC[:1] - 20)
    assert boxes
    assert np.array_equal(drawn, draw_boxes(boxes, codes.classes, 64))
    shown = told_and_drawn(artifact, open_split(artifact, "sample"), made["tokens"], None, ["pictures"])
    assert [(len(row.told), len(row.drawn)) for row in shown] == [(1, 2)] * min(2, len(held_out))
    assert shown[0].told == [picture_uri(draw_boxes(boxes, codes.classes, 160))]


def test_boxes_that_fit_no_picture_reject_it_and_pictures_without_any_say_what_to_do(tmp_path: Path) -> None:
    source = world(tmp_path)
    path = Path(source.path)
    path.write_text(path.read_text().replace('["dot", 16, 4, 24, 8]', '["dot", 160, 4, 240, 8]'))
    with pytest.raises(DataError, match=r"its box dot \(160, 4, 240, 8\) is not in its 32x16 pixels \[box_outside\]"):
        cut(source, tmp_path / "runs")
    path.write_text("".join(json.dumps({"path": f"{n}.png"}) + "\n" for n in range(12)))
    inputs = {"shards": cut(source, tmp_path / "runs"), "tokenizer": tiny_tokenizer(tmp_path)}
    config = EncodeWork.model_validate({"condition": "boxes"})
    with pytest.raises(DataError, match="none of the pictures has boxes: give the list file a column `boxes`"):
        run("encode", encode, config, tmp_path, **inputs)


def test_a_mistake_in_a_list_is_named_with_its_line(tmp_path: Path) -> None:
    source = world(tmp_path)
    Path(source.path).write_text('{"path": "0.png"}\n{"path": "1.png", "boxes": [["dot", 5, 5, 4, 9]]}\n')
    with pytest.raises(DataError, match=r"list.jsonl, line 2: box \['dot', 5, 5, 4, 9\] is empty"):
        list(list_source(source))


def test_changed_boxes_make_their_shard_anew_and_the_cut_is_remembered(tmp_path: Path) -> None:
    source = world(tmp_path)
    before = {unit.name: unit.digest for unit in cut(source, tmp_path / "runs").units}
    again = cut(source, tmp_path / "runs")
    assert {unit.name: unit.digest for unit in again.units} == before
    path = Path(source.path)
    path.write_text(path.read_text() + json.dumps({"path": str(tmp_path / "0.png"), "boxes": [["new", 1, 1, 9, 9]]}))
    grown = cut(source, tmp_path / "runs")
    assert before.items() < {unit.name: unit.digest for unit in grown.units}.items()
    assert "new" in grown.read_json("dataset.json")["box_classes"]


def test_more_boxes_than_tokens_are_announced(made: dict[str, Artifact], tmp_path: Path) -> None:
    config = EncodeWork.model_validate({"condition": {"kind": "boxes", "max_boxes": 1}})
    inputs = {"shards": made["shards"], "tokenizer": made["tokenizer"]}
    artifact = run("encode", encode, config, tmp_path, **inputs)
    rows = [row for part in open_split(made["shards"], "train") for row in ShardReader(part).table]
    share = sum(len(row.get("boxes", ())) > 1 for row in rows) / len(rows)
    assert share > 0
    assert artifact.notes["warnings"] == [
        f"{share:.1%} of pictures have more than 1 boxes and lose the smallest: raise max_boxes"
    ]
