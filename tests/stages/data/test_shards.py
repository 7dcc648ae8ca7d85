"""Shards: bytes, index, table, random access, and readers that are not ours."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError
from stages.data.images import encode_image
from stages.data.shards import Sample, Shard, ShardReader, sample_key, write_shard


def samples(count: int = 5) -> list[Sample]:
    luck = np.random.default_rng(0)
    formats = ("png", "jpg", "webp")
    return [
        Sample(
            key=sample_key(f"class/ünï cödé {n}.v{n}.png"),
            label=n % 3,
            caption=f'a picture, n° {n} — "quoted"',
            group=f"g{n // 2}",
            image=encode_image(luck.integers(0, 256, (16, 16, 3), dtype=np.uint8), formats[n % 3]),  # type: ignore[arg-type]
            source=f"class/ünï cödé {n}.v{n}.png",
        )
        for n in range(count)
    ]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    assert write_shard(tmp_path, "train-000000", samples()) == {"samples": 5, "bytes": 30720}
    return tmp_path / "train-000000.tar"


def test_equal_samples_give_equal_bytes(shard: Path, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    write_shard(tmp_path / "again", "train-000000", iter(samples()))
    for suffix in (".tar", ".idx", ".json"):
        assert (tmp_path / "again" / f"train-000000{suffix}").read_bytes() == shard.with_suffix(suffix).read_bytes()


def test_samples_are_read_by_position_and_survive_pickling(shard: Path) -> None:
    reader = ShardReader(shard)
    assert len(reader) == 5
    assert [reader[n] for n in (4, 0, 2)] == [samples()[n] for n in (4, 0, 2)]
    assert pickle.loads(pickle.dumps(reader))[3] == samples()[3]


def test_plain_webdataset_reads_every_member(shard: Path) -> None:
    import webdataset

    read = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert [row["__key__"] for row in read] == [sample.key for sample in samples()]
    for row, sample in zip(read, samples(), strict=True):
        image = next(row[kind] for kind in ("png", "jpg", "webp") if kind in row)
        assert (row["cls"], row["txt"].decode(), image) == (str(sample.label).encode(), sample.caption, sample.image)
        assert json.loads(row["json"])["group"] == sample.group


def test_the_tar_is_what_webdatasets_own_writer_writes(shard: Path) -> None:
    from webdataset import TarWriter

    buffer = io.BytesIO()
    with TarWriter(buffer, user="", group="", mtime=0, encoder=False) as writer:
        with tarfile.open(shard) as tar:
            rows: dict[str, dict[str, bytes | str]] = {}
            for member in tar:
                key, _, extension = member.name.partition(".")
                data = tar.extractfile(member)
                assert data is not None
                rows.setdefault(key, {"__key__": key})[extension] = data.read()
        for row in rows.values():
            writer.write(row)
    assert buffer.getvalue() == shard.read_bytes()


def test_the_index_is_what_wds2idx_derives_from_the_tar(shard: Path) -> None:
    """NVIDIA DALI, tools/wds2idx.py: name split at the first dot, members of equal base names on one line."""
    bundles: dict[str, list[str]] = {}
    with tarfile.open(shard) as tar:
        for member in tar:
            dot = member.name.find(".", member.name.rfind("/") + 1)
            entry = f"{member.name[dot + 1 :]} {member.offset_data} {member.size} {member.name}"
            bundles.setdefault(member.name[:dot], []).append(entry)
    expected = "\n".join(["v1.2 5", *(" ".join(entries) for entries in bundles.values())]) + "\n"
    assert shard.with_suffix(".idx").read_text() == expected


def test_tombstones_hide_samples(shard: Path) -> None:
    gone = samples()[1].key
    reader = ShardReader(Shard("train-000000", shard, "digest", frozenset({gone})))
    assert [row["key"] for row in reader.table] == [samples()[n].key for n in (0, 2, 3, 4)]
    assert reader[1] == samples()[2]


def test_a_tar_cut_at_a_member_boundary_is_refused(shard: Path) -> None:
    with tarfile.open(shard) as tar:
        last = tar.getmembers()[-4]
    shard.write_bytes(shard.read_bytes()[: last.offset] + bytes(1024))
    with tarfile.open(shard) as tar:
        assert len(tar.getnames()) == 16, "it still parses"
    with pytest.raises(DataError, match=r"train-000000\.tar: \d+ bytes, cut short: .*--force"):
        len(ShardReader(shard))


def test_a_changed_picture_is_refused(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    offset = ShardReader(shard).table[0]["members"]["png"][0]
    data[offset + 40] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=f"the picture of {samples()[0].key} is damaged"):
        ShardReader(shard)[0]
    assert ShardReader(shard)[1] == samples()[1]


def test_an_index_of_another_count_is_refused(shard: Path) -> None:
    index = shard.with_suffix(".idx")
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match="index does not list the 5 samples"):
        len(ShardReader(shard))


def test_an_empty_shard_is_a_shard(tmp_path: Path) -> None:
    write_shard(tmp_path, "val-000000", [])
    assert len(ShardReader(tmp_path / "val-000000.tar")) == 0
    assert (tmp_path / "val-000000.idx").read_text() == "v1.2 0\n"


def test_keys_are_readable_unique_and_free_of_dots_and_slashes() -> None:
    paths = ["a/b.c.png", "a/b-c.png", "a b.c.png", "絵.png", "a/B.c.png", "x" * 300 + ".png", "a\udcff.png"]
    keys = [sample_key(path) for path in paths]
    assert len(set(keys)) == len(paths)
    assert all(key.isascii() and not set(key) & set("./ ") and len(key) <= 80 for key in keys)
    assert keys[0].startswith("b-c-")


@pytest.mark.parametrize("key", ["a.b", "a/b", "", "é", "x" * 81, "a b"])
def test_keys_that_would_not_survive_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="survive"):
        write_shard(tmp_path, "s", [Sample(key, 0, "", "", samples(1)[0].image)])


def test_repeated_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keys repeat"):
        write_shard(tmp_path, "s", [*samples(1), *samples(1)])


def test_a_closed_reader_lets_go_of_its_file_and_can_be_used_again(shard: Path) -> None:
    reader = ShardReader(shard)
    reader.close()  # nothing was open
    expected = reader[1]
    descriptor = reader._descriptor
    reader.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    assert reader[1] == expected
