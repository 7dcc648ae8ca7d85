"""The shard stage: the hostile folder, growth, removal, rejects, reproducibility, and what it writes."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.artifacts import Artifact, Source
from pipeline.errors import DataError, StageError
from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime
from pipeline.stage import Stage
from pipeline.units import Unit
from stages.data.digits import read_digit
from stages.data.images import decode_image
from stages.data.packing import Packer
from stages.data.shards import ShardReader, open_split, sample_key
from stages.data.sources import EmojiSource, FolderSource, ListSource, MnistSource, list_source
from stages.shard import VERSION, ShardConfig, shard
from tests.pictures import draw_picture, draw_pictures
from tests.stages.data.hostile import KEPT, REJECTED, write_hostile_folder


def run(place: Path, *, fresh: bool = False, workdir: str = "runs", **options: Any) -> Artifact:
    """Shard the folder place/pictures (or `source`) into place/workdir."""
    settings: dict[str, Any] = {"source": FolderSource(path=str(place / "pictures")), "image_size": 32, **options}
    config = ShardConfig(**settings)
    source = Source("pictures", partial(list_source, config.source))
    stage = Stage("shard", shard, config, {"source": source}, VERSION)
    return run_stage(stage, {"source": source}, str(place / workdir), LocalRuntime(), fresh=fresh)


def tars(artifact: Artifact) -> dict[str, bytes]:
    return {unit.name: artifact.local(entry.path).read_bytes() for unit, entry in artifact.unit_files(".tar")}


def sources(artifact: Artifact) -> list[str]:
    """The source paths of all samples that readers see."""
    splits = [*open_split(artifact, "train"), *open_split(artifact, "val")]
    return sorted(row["source"] for part in splits for row in ShardReader(part).table)


def test_the_hostile_folder_keeps_and_rejects_exactly(tmp_path: Path) -> None:
    write_hostile_folder(tmp_path / "pictures")
    options: dict[str, Any] = {"image_size": 64, "max_pixels": 1_000_000, "validation_fraction": 0.0}
    artifact = run(tmp_path, max_reject_fraction=0.5, **options)
    rejects = [json.loads(line) for line in artifact.local("rejects.jsonl").read_text().splitlines()]
    assert {row["path"]: row["code"] for row in rejects} == REJECTED
    assert rejects == sorted(rejects, key=lambda row: row["path"])
    assert all(row["reason"] for row in rejects)
    assert sources(artifact) == sorted(KEPT)
    assert artifact.metrics["pictures"] == len(KEPT) and artifact.metrics["rejects"] == len(REJECTED)

    with pytest.raises(DataError) as error:
        run(tmp_path, max_reject_fraction=0.4, **options)
    message = str(error.value)
    assert error.value.exit_code == 3
    assert message.startswith("7 of 15 pictures (46.7%) are unusable, more than shard.max_reject_fraction=0.4 allows")
    assert "2 broken" in message and "bomb.png: " in message and message.endswith("shard.max_reject_fraction=0.467")
    listed = Path(message.partition("All are listed in ")[2].partition(":")[0])
    assert len(listed.read_text().splitlines()) == 7


def test_what_the_artifact_says_about_the_data(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 60)
    artifact = run(tmp_path, samples_per_shard=16, validation_fraction=0.2)
    dataset = artifact.read_json("dataset.json")
    counts = {split: sum(len(ShardReader(part)) for part in open_split(artifact, split)) for split in ("train", "val")}
    assert counts["train"] + counts["val"] == 60 and counts["val"] > 0
    assert dataset == {
        "image_size": 32,
        "channels": 3,
        "classes": ["disc", "square"],
        "attribution": None,
        "num_train": counts["train"],
        "num_val": counts["val"],
        "class_counts": {"disc": 30, "square": 30},
        "rejects": 0,
    }
    assert [unit.name for unit in artifact.units] == [
        *(f"train-{n:06d}" for n in range(-(-counts["train"] // 16))),
        *(f"val-{n:06d}" for n in range(-(-counts["val"] // 16))),
    ]
    size = sum(entry.bytes for unit in artifact.units for entry in unit.files)
    assert artifact.metrics == {
        "pictures": 60,
        "train": counts["train"],
        "val": counts["val"],
        "classes": 2,
        "shards": len(artifact.units),
        "rejects": 0,
        "bytes": size,
    }


def test_samples_are_the_pictures(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 12)
    artifact = run(tmp_path)
    for part in open_split(artifact, "train"):
        for sample in map(ShardReader(part).__getitem__, range(len(ShardReader(part)))):
            with Image.open(tmp_path / "pictures" / sample.source) as original:
                np.testing.assert_array_equal(decode_image(sample.image, 3), np.asarray(original))
            assert (sample.caption, sample.label) == (sample.source.split("/")[0], int(sample.source[0] == "s"))
            assert sample.key == sample_key(sample.source)


def test_two_runs_in_different_places_give_the_same_bytes(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 30)
    first = run(tmp_path, samples_per_shard=8)
    second = run(tmp_path, samples_per_shard=8, workdir="again")
    assert first.digest == second.digest
    shutil.copytree(tmp_path / "pictures", tmp_path / "moved" / "pictures")  # copytree keeps modification times
    moved = run(tmp_path / "moved", samples_per_shard=8)
    assert [unit.key for unit in moved.units] == [unit.key for unit in first.units]
    assert tars(moved) == tars(first)


def test_a_grown_folder_makes_only_new_shards(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 40)
    before = run(tmp_path, samples_per_shard=8)
    for number in range(40, 53):
        draw_picture(tmp_path / "pictures", number)
    draw_picture(tmp_path / "pictures" / "ant", 99)  # a class that sorts before the others
    after = run(tmp_path, samples_per_shard=8)
    assert after.notes["units_reused"] == len(before.units)
    assert {name: tars(after)[name] for name in tars(before)} == tars(before)
    assert len(sources(after)) == 54 and after.metrics["pictures"] == 54
    assert after.read_json("dataset.json")["classes"] == ["disc", "square", "ant"]
    assert run(tmp_path, samples_per_shard=8).digest == after.digest


def test_removed_and_changed_pictures_become_tombstones_until_a_forced_run(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 40)
    before = run(tmp_path, samples_per_shard=8, validation_fraction=0.0)
    (tmp_path / "pictures/disc/000000.png").unlink()
    Image.new("RGB", (32, 32), "green").save(tmp_path / "pictures/square/000001.png")
    os.utime(tmp_path / "pictures/square/000001.png", ns=(5, 5))

    after = run(tmp_path, samples_per_shard=8, validation_fraction=0.0)
    assert {name: tars(after)[name] for name in tars(before)} == tars(before)
    assert len(after.units) == len(before.units) + 1
    gone = sorted(key for keys in after.read_json("tombstones.json").values() for key in keys)
    assert gone == sorted([sample_key("disc/000000.png"), sample_key("square/000001.png")])
    assert len(sources(after)) == after.metrics["pictures"] == 39 and "disc/000000.png" not in sources(after)
    (changed,) = ShardReader(open_split(after, "train")[-1]).table
    assert changed["source"] == "square/000001.png"
    marked = {a.name for a, b in zip(open_split(after, "train"), before.units, strict=False) if a.digest != b.digest}
    assert marked == set(after.read_json("tombstones.json")), "what is derived from a marked shard has a new address"
    assert "--force shard" in after.notes["warnings"][0]

    compacted = run(tmp_path, samples_per_shard=8, validation_fraction=0.0, fresh=True)
    assert len(compacted.units) == 5 and sources(compacted) == sources(after)
    assert not [entry for entry in compacted.files if entry.path == "tombstones.json"]


def test_removing_the_rejects_is_enough_to_go_on(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 20)
    (tmp_path / "pictures" / "disc" / "bad.jpg").write_text("no picture")
    with pytest.raises(DataError, match=r"1 of 21 pictures \(4.8%\) are unusable"):
        run(tmp_path, samples_per_shard=8)
    (tmp_path / "pictures" / "disc" / "bad.jpg").unlink()
    artifact = run(tmp_path, samples_per_shard=8)
    assert (artifact.metrics["pictures"], artifact.metrics["rejects"]) == (20, 0)
    assert artifact.notes["units_reused"] == len(artifact.units)
    assert not [entry for entry in artifact.files if entry.path == "tombstones.json"], "a reject was never a sample"


def test_an_interrupted_run_is_found_again_even_when_pictures_came_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_pictures(tmp_path / "pictures", 40)
    make, calls = Packer.__call__, itertools.count()

    def dying(self: Packer, unit: Unit, folder: Path) -> dict[str, Any]:
        if next(calls) == 3:
            raise StageError("killed")
        return make(self, unit, folder)

    monkeypatch.setattr(Packer, "__call__", dying)
    with pytest.raises(StageError, match="killed"):
        run(tmp_path, samples_per_shard=8)
    for number in range(40, 50):
        draw_picture(tmp_path / "pictures", number)
    artifact = run(tmp_path, samples_per_shard=8)
    assert artifact.notes["units_reused"] == 3
    assert len(sources(artifact)) == 50


def test_a_picture_lost_with_its_shard_names_the_remedy(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 20)
    run(tmp_path)
    shutil.rmtree(tmp_path / "runs" / "units")
    (tmp_path / "pictures/disc/000000.png").unlink()
    with pytest.raises(DataError, match=r"000000\.png is gone: .* redo it with --force shard"):
        run(tmp_path)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 8)
    config = ShardConfig(source=FolderSource(path=str(tmp_path / "pictures")))
    source = Source("pictures", partial(list_source, config.source))
    assert len(source.listing) == 8
    draw_picture(tmp_path / "other", 3, size=40).replace(tmp_path / "pictures/square/000003.png")
    stage = Stage("shard", shard, config, {"source": source}, VERSION)
    with pytest.raises(DataError, match=r"000003.png changed while the run was reading it"):
        run_stage(stage, {"source": source}, str(tmp_path / "runs"), LocalRuntime())


def test_files_that_are_no_pictures_are_mentioned(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 8)
    (tmp_path / "pictures" / "disc" / "photo.HEIC").touch()
    assert run(tmp_path).notes["warnings"] == ["1 files in the source are no pictures by their extension: 1 .heic"]


def test_a_list_shards_with_its_labels_and_groups(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 20)
    paths = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "pictures").rglob("*.png"))
    rows = [f"{path},{n % 3},number {n},group {n // 4}" for n, path in enumerate(paths)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,caption,group", *rows]) + "\n")
    artifact = run(tmp_path, source=ListSource(path=str(tmp_path / "list.csv")), validation_fraction=0.3)
    assert artifact.read_json("dataset.json")["class_counts"] == {"0": 7, "1": 7, "2": 6}
    groups = {
        split: {row["group"] for part in open_split(artifact, split) for row in ShardReader(part).table}
        for split in ("train", "val")
    }
    assert groups["train"] | groups["val"] == {f"group {n}" for n in range(5)}
    assert not groups["train"] & groups["val"] and groups["val"]


def test_emoji_variants_stay_on_their_side_and_the_art_is_attributed(tmp_path: Path) -> None:
    artifact = run(tmp_path, source=EmojiSource(), image_size=16)
    assert artifact.metrics["pictures"] == 3773 and artifact.metrics["classes"] == 9
    dataset = artifact.read_json("dataset.json")
    assert dataset["attribution"] == "Emoji art: Twemoji, (c) Twitter/jdecked contributors, CC-BY-4.0"
    groups = {
        split: {row["group"] for part in open_split(artifact, split) for row in ShardReader(part).table}
        for split in ("train", "val")
    }
    assert not groups["train"] & groups["val"]
    share = len(groups["val"]) / len(groups["train"] | groups["val"])
    assert 0.03 < share < 0.07


def test_grey_pictures_have_one_channel(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 8)
    reader = ShardReader(open_split(run(tmp_path, channels=1), "train")[0])
    with Image.open(io.BytesIO(reader[0].image)) as stored:
        assert stored.mode == "L"


def test_the_contact_sheet_has_a_row_for_each_class(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 30)
    with Image.open(run(tmp_path).local("contact_sheet.png")) as sheet:
        cell = 96
        assert sheet.mode == "RGB" and sheet.width > 12 * cell and 2 * cell < sheet.height < 5 * cell
        assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 24, "pictures of many colours are on it"


def test_a_config_loads_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "PIL", "pyarrow", "webdataset")
    code = f"import sys, stages.shard; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_packing_files_loads_no_more_than_pillow(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from stages.data.sources import FolderSource\n"
        "from stages.shard import ShardConfig, make_packer\n"
        "make_packer(ShardConfig(source=FolderSource(path='.')), Path('.'), 'cpu')\n"
        "print([name for name in ('PIL', 'torch', 'scipy', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['PIL']"


def test_digits_become_grey_shards(tmp_path: Path) -> None:
    config = ShardConfig(source=MnistSource(), image_size=28, channels=1, samples_per_shard=2500)
    source = Source("pictures", partial(list_source, config.source))
    artifact = run_stage(
        Stage("shard", shard, config, {"source": source}), {"source": source}, str(tmp_path), LocalRuntime()
    )
    assert (artifact.metrics["pictures"], artifact.metrics["rejects"]) == (5000, 0)
    dataset = artifact.read_json("dataset.json")
    assert dataset["classes"] == list("0123456789")
    assert "MNIST" in dataset["attribution"]
    sample = ShardReader(open_split(artifact, "val")[0])[3]
    np.testing.assert_array_equal(decode_image(sample.image, 1), decode_image(read_digit(sample.source, 0, ""), 1))
