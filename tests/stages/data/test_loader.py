"""Batches of pictures: the same for any ranks, processes and resumes; augmentation by position; whole splits."""

from __future__ import annotations

import gc
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import DataError
from stages.data import loader
from stages.data.images import encode_image, to_uint8
from stages.data.loader import ImageStream, load_all
from stages.data.order import Order
from stages.data.shards import Sample, Shard, write_shard

SIZE = 8


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three shards of 5, 4 and 6 pictures; picture n is n in its red channel, with a mark in its left half."""
    folder = tmp_path_factory.mktemp("shards")
    numbers = itertools.count()
    for shard, count in enumerate((5, 4, 6)):
        samples = []
        for n in itertools.islice(numbers, count):
            picture = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
            picture[..., 0], picture[..., 2] = n, np.arange(SIZE)[:, None] * 10 + np.arange(SIZE)
            picture[:, : SIZE // 2, 1] = 255
            samples.append(Sample(f"k{n}", n % 2, "", "", encode_image(picture, "png")))
        write_shard(folder, f"train-{shard:06d}", samples)
    return sorted(folder.glob("*.tar"))


def stream(shards: list[Path], **options: object) -> ImageStream:
    settings: dict[str, object] = {"seed": 1, "image_size": SIZE, "channels": 3, "global_batch": 4, **options}
    return ImageStream(shards, Order([5, 4, 6], seed=1), **settings)  # type: ignore[arg-type]


def batches(shards: list[Path], count: int, **options: object) -> list[torch.Tensor]:
    return list(itertools.islice(stream(shards, **options), count))


def names(x_BCHW: torch.Tensor) -> list[int]:
    return [int(n) for n in to_uint8(x_BCHW)[:, 0, 0, 0]]


def test_an_epoch_holds_every_picture_once(shards: list[Path]) -> None:
    seen = [name for x_BCHW in batches(shards, 15, global_batch=3) for name in names(x_BCHW)]
    for epoch in range(3):
        assert sorted(seen[epoch * 15 : epoch * 15 + 15]) == list(range(15))


def test_two_ranks_see_together_what_one_sees(shards: list[Path]) -> None:
    options: dict[str, object] = {"horizontal_flip": True, "global_batch": 5}
    alone = batches(shards, 7, **options)
    ranks = [batches(shards, 7, **options, rank=rank, world=2) for rank in range(2)]
    for step, x_BCHW in enumerate(alone):
        assert torch.equal(x_BCHW, torch.cat([ranks[0][step], ranks[1][step]]))


def test_resuming_at_a_step_goes_on_as_if_never_stopped(shards: list[Path]) -> None:
    whole = batches(shards, 9, horizontal_flip=True)
    assert all(map(torch.equal, batches(shards, 4, horizontal_flip=True, start_step=5), whole[5:]))


def test_processes_and_memory_do_not_change_the_batches(shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    cached = batches(shards, 6, horizontal_flip=True)
    assert all(map(torch.equal, batches(shards, 6, horizontal_flip=True, num_workers=2), cached))
    monkeypatch.setattr(loader, "CACHE_BYTES", 15 * SIZE * SIZE * 3 - 1)
    uncached = stream(shards, horizontal_flip=True)
    assert all(map(torch.equal, itertools.islice(uncached, 6), cached))
    assert uncached._cache is None


def test_about_half_of_the_pictures_are_mirrored_and_none_without_asking(shards: list[Path]) -> None:
    def mirrored(x_BCHW: torch.Tensor) -> list[bool]:
        return [bool(mark) for mark in to_uint8(x_BCHW)[:, 0, -1, 1] == 255]

    assert not any(itertools.chain(*map(mirrored, batches(shards, 20))))
    flips = list(itertools.chain(*map(mirrored, batches(shards, 100, horizontal_flip=True))))
    assert 160 < sum(flips) < 240
    assert flips[: len(flips) // 2] != flips[len(flips) // 2 :]


def test_crops_come_from_everywhere_or_from_the_middle(shards: list[Path]) -> None:
    def corners(**options: object) -> set[tuple[int, int]]:
        drawn = batches(shards, 60, image_size=6, **options)
        assert drawn[0].shape == (4, 3, 6, 6)
        return {divmod(int(value), 10) for x in drawn for value in to_uint8(x)[:, 0, 0, 2]}

    assert corners() == {(1, 1)}
    assert corners(random_crop=True) == {(y, x) for y in range(3) for x in range(3)}
    assert len(corners(random_crop=True, horizontal_flip=True)) > 9, "mirrored windows start at their right edge"


@pytest.mark.parametrize("image_format", ["png", "jpg"])
def test_windows_and_mirror_images_have_the_pixels_of_what_is_stored(tmp_path: Path, image_format: str) -> None:
    draw = np.random.default_rng(0)
    coarse_NHWC = draw.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    stored = [encode_image(coarse_HWC.repeat(3, 0).repeat(3, 1), image_format) for coarse_HWC in coarse_NHWC]  # type: ignore[arg-type]
    write_shard(tmp_path, "train-000000", [Sample(f"k{n}", 0, "", "", image) for n, image in enumerate(stored)])
    pictures = [np.asarray(Image.open(io.BytesIO(image))) for image in stored]  # 12x12
    windows = {
        side[y : y + SIZE, x : x + SIZE].tobytes(): (n, mirrored)
        for n, picture in enumerate(pictures)
        for mirrored, side in ((False, picture), (True, picture[:, ::-1]))
        for y in range(5)
        for x in range(5)
    }
    seen = ImageStream(
        [tmp_path / "train-000000.tar"], Order([6], seed=0), seed=0, image_size=SIZE, channels=3, global_batch=6,
        horizontal_flip=True, random_crop=True,
    )  # fmt: skip
    found = [windows[row.tobytes()] for x_BCHW in itertools.islice(seen, 8) for row in to_uint8(x_BCHW)]
    assert set(found) == set(itertools.product(range(6), (False, True)))


def test_few_of_many_shards_are_open_at_once(shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {path.resolve() for path in shards}  # tests before this one may have left others open

    def open_files() -> int:
        return sum(link.exists() and link.resolve() in ours for link in Path("/proc/self/fd").iterdir())

    expected = batches(shards, 12)
    gc.collect()
    assert open_files() == 0, "pictures in memory need no file"
    monkeypatch.setattr(loader, "CACHE_BYTES", 0)
    monkeypatch.setattr(loader, "OPEN_SHARDS", 2)
    endless = stream(shards)
    for x_BCHW, same_BCHW in zip(expected, endless, strict=False):
        assert torch.equal(x_BCHW, same_BCHW)
        assert open_files() <= 2
        assert sum("table" in reader.__dict__ for reader in endless.readers) <= 2
    assert open_files() == 2


@pytest.mark.parametrize("num_workers", [0, 1])
def test_channels_come_last_in_memory(shards: list[Path], num_workers: int) -> None:
    for x_BCHW in batches(shards, 3, num_workers=num_workers):
        assert x_BCHW.shape == (4, 3, SIZE, SIZE) and x_BCHW.dtype == torch.float32
        assert x_BCHW.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pictures_smaller_than_asked_are_refused(shards: list[Path], num_workers: int) -> None:
    with pytest.raises(DataError, match=r"^stored pictures are 8x8, image_size is 9$"):
        batches(shards, 1, image_size=9, num_workers=num_workers)


def test_a_whole_split_comes_in_order_with_labels_and_keys(shards: list[Path]) -> None:
    pictures, labels, keys = load_all(shards, 3)
    assert pictures.shape == (15, SIZE, SIZE, 3) and pictures.dtype == np.uint8 and labels.dtype == np.int64
    assert pictures[:, 0, 0, 0].tolist() == list(range(15))
    assert labels.tolist() == [n % 2 for n in range(15)]
    assert keys == [f"k{n}" for n in range(15)]
    assert load_all(shards, 1)[0].shape == (15, SIZE, SIZE, 1)


def test_tombstones_are_neither_loaded_nor_streamed(shards: list[Path]) -> None:
    marked = [Shard(path.stem, path, "d", frozenset({"k1", "k6"})) for path in shards]
    assert "k6" not in load_all(marked, 3)[2]
    endless = ImageStream(
        marked, Order([4, 3, 6], seed=0), seed=0, image_size=SIZE, channels=3, global_batch=13, start_step=2
    )
    assert sorted(names(next(iter(endless)))) == sorted(set(range(15)) - {1, 6})


def test_loading_nothing_says_so() -> None:
    with pytest.raises(DataError, match="0 shards hold 0 pictures"):
        load_all([], 3)
