"""The shard stage with source and workdir behind URLs: the same bytes as on a disk, and only what is needed fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import Artifact
from pipeline.errors import DataError, StorageError
from pipeline.runner import run_stage, verify
from pipeline.runtime import LocalRuntime
from pipeline.stage import Stage
from pipeline.storage import Folder
from run_pipeline import Config, build
from stages.data.shards import ShardReader, open_split
from stages.data.sources import FolderSource, ListSource, list_source, other_files
from tests.faulty_store import faulty  # noqa: F401
from tests.pictures import draw_pictures

PICTURES = Folder("faulty://bucket/pictures")
RUNS = "faulty://bucket/runs"


@pytest.fixture
def pictures(faulty: Any, tmp_path: Path) -> Path:  # noqa: F811
    """The same pictures on the disk and in the store."""
    draw_pictures(tmp_path / "pictures", 40)
    for path in (tmp_path / "pictures").rglob("*.png"):
        PICTURES.write(path.relative_to(tmp_path / "pictures").as_posix(), path.read_bytes())
    return tmp_path / "pictures"


def run(source: dict[str, Any], workdir: str) -> Artifact:
    settings = {"source": source, "image_size": 32, "samples_per_shard": 16, "validation_fraction": 0.2}
    stage: Stage = build(Config.model_validate({"shard": settings}))[0]
    return run_stage(stage, dict(stage.inputs), workdir, LocalRuntime())  # type: ignore[arg-type]


def test_a_folder_behind_a_url_gives_the_same_shards_as_on_a_disk(pictures: Path, tmp_path: Path) -> None:
    PICTURES.write(".hidden/x.png", b"left out")
    PICTURES.write("notes.txt", b"no picture")
    (pictures / "notes.txt").touch()
    here = run({"kind": "folder", "path": str(pictures)}, str(tmp_path / "runs"))
    there = run({"kind": "folder", "path": PICTURES.url}, RUNS)
    assert there.digest == here.digest
    assert there.fingerprint != here.fingerprint, "the listings' stamps differ: times there, entity tags here"
    assert run({"kind": "folder", "path": PICTURES.url}, RUNS) == there
    verify([there])
    assert other_files(FolderSource(path=PICTURES.url)) == {".txt": 1}


def test_a_list_behind_a_url_gives_the_same_shards_as_on_a_disk(pictures: Path, tmp_path: Path) -> None:
    names = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png"))
    lines = [json.dumps({"path": f"../pictures/{name}", "label": name.split("/")[0]}) for name in names]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "all.jsonl").write_text("\n".join(lines))
    Folder.at("faulty://bucket/lists").write("all.jsonl", "\n".join(lines).encode())
    here = run({"kind": "list", "path": str(tmp_path / "lists" / "all.jsonl")}, str(tmp_path / "runs"))
    there = run({"kind": "list", "path": "faulty://bucket/lists/all.jsonl"}, RUNS)
    assert there.digest == here.digest


def test_a_list_on_a_disk_may_name_pictures_behind_urls(pictures: Path, tmp_path: Path) -> None:
    names = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png"))
    (tmp_path / "all.jsonl").write_text("\n".join(json.dumps({"path": f"{PICTURES}/{name}"}) for name in names))
    artifact = run({"kind": "list", "path": str(tmp_path / "all.jsonl")}, str(tmp_path / "runs"))
    assert artifact.metrics["pictures"] == 40


def test_mistakes_in_lists_behind_urls_name_the_url(faulty: Any) -> None:  # noqa: F811
    lists = Folder.at("faulty://bucket/lists")
    with pytest.raises(DataError, match=r"source list faulty://bucket/lists/a\.csv does not exist: set"):
        list(list_source(ListSource(path="faulty://bucket/lists/a.csv")))
    lists.write("a.csv", b"path,label\nabsent.png,cat\n")
    with pytest.raises(
        DataError, match=r"lists/a\.csv, line 2: picture 'absent\.png' cannot be read at faulty://.*png"
    ):
        list(list_source(ListSource(path="faulty://bucket/lists/a.csv")))
    lists.write("b.csv", b"path,label\nabsent.png\n")
    with pytest.raises(DataError, match=r"^faulty://bucket/lists/b\.csv, line 2: 1 cells for the 2 columns"):
        list(list_source(ListSource(path="faulty://bucket/lists/b.csv")))
    with pytest.raises(DataError, match=r"source folder faulty://bucket/none holds no pictures \(it is empty\)"):
        list(list_source(FolderSource(path="faulty://bucket/none")))


def test_pictures_that_change_or_vanish_during_a_run_are_noticed(pictures: Path, faulty: Any) -> None:  # noqa: F811
    from stages.data.packing import ObjectReader

    name, size, stamp = next(row for row in PICTURES.listing() if row[0].startswith("disc/"))
    read = ObjectReader(PICTURES)
    assert read(name, size, stamp) == (pictures / name).read_bytes()
    PICTURES.write(name, bytes(size))
    with pytest.raises(DataError, match=f"faulty://bucket/pictures/{name} changed while the run was reading it"):
        read(name, size, stamp)
    PICTURES.remove(name)
    with pytest.raises(DataError, match=f"faulty://bucket/pictures/{name} is gone"):
        read(name, size, stamp)
    faulty.faults += [("cat", PermissionError("Access Denied."))]
    with pytest.raises(StorageError, match="permission was denied"):
        read("square/000001.png", 1, "")


def test_a_reader_of_few_samples_fetches_their_bytes_alone(pictures: Path, faulty: Any) -> None:  # noqa: F811
    artifact = run({"kind": "folder", "path": PICTURES.url}, RUNS)
    part = open_split(artifact, "train")[0]
    faulty.calls.clear()
    few = ShardReader(part, few=True)
    images = [few.read_image(2), few.read_image(0)]
    assert faulty.count("range", ".tar") == 2
    assert faulty.count("get", ".tar") == 0
    whole = ShardReader(part)
    assert [whole.read_image(2), whole.read_image(0)] == images
    assert [whole[place].key for place in range(len(whole))] == [row["key"] for row in few.table]
    assert faulty.count("get", ".tar") == 1
    assert faulty.count("range", ".tar") == 2


def test_a_truncated_or_altered_shard_in_the_store_is_found(pictures: Path) -> None:
    artifact = run({"kind": "folder", "path": PICTURES.url}, RUNS)
    part = open_split(artifact, "train")[0]
    home, name = part.path.folder, part.path.name  # type: ignore[union-attr]
    whole = home.read(name)
    home.write(name, whole[:-512])
    with pytest.raises(StorageError, match="differs from what was written"):
        ShardReader(part).read_image(0)
    offset, size = ShardReader(part).table[0]["members"]["png"]
    home.write(name, whole[:offset] + bytes(size) + whole[offset + size :])
    with pytest.raises(DataError, match="is damaged"):
        ShardReader(part, few=True).read_image(0)
    assert artifact.damaged() == [f"{home}/{name} differs from what was written"]
