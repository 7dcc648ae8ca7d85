"""Classes of pixels: learnt from colours around each, not from places."""

from pathlib import Path

import numpy as np
import pytest

from stages.data.condition_config import SegmentationCondition
from stages.data.images import encode_image
from stages.data.map_shelf import MapShelf
from stages.data.shards import Sample, Shard, write_shard
from stages.metrics.map_fidelity import fidelities
from stages.metrics.pixel_classes import PixelClasses

SIZE = 32


def world(folder: Path, name: str, count: int) -> tuple[Shard, Shard, np.ndarray]:
    """Pictures of three things, each of its colour and with noise, at random places; their maps; the pictures."""
    rng = np.random.default_rng(len(name))
    colours = np.array([[230, 230, 230], [200, 40, 40], [40, 60, 200]])
    pictures, maps, drawn = [], [], []
    for n in range(count):
        map_HW = np.zeros((SIZE, SIZE), np.uint8)
        for number in (1, 2):
            top, left = rng.integers(0, 20, 2)
            map_HW[top : top + 12, left : left + 12] = number
        picture = (colours[map_HW] + rng.normal(0, 12, (SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)
        drawn.append(picture)
        for kind, image in ((pictures, picture), (maps, map_HW[:, :, None])):
            kind.append(Sample(f"k{n}", 0, "", f"k{n}", encode_image(image, "png")))
    shards = []
    for what, samples in (("pictures", pictures), ("maps", maps)):
        (folder / what).mkdir(exist_ok=True)
        write_shard(folder / what, name, samples)
        shards.append(Shard(name, folder / what / f"{name}.tar", name))
    return shards[0], shards[1], np.stack(drawn)


def test_pixels_of_unseen_pictures_are_told_apart_and_those_of_other_pictures_are_not(tmp_path: Path) -> None:
    pictures, maps, _ = world(tmp_path, "train", 30)
    guess = PixelClasses.learn([pictures], [maps], size=SIZE, channels=3, num_classes=3, seed=0)
    _, wanted, drawn_NHWC = world(tmp_path, "val", 12)
    shelf = MapShelf([wanted], 1, SIZE, seed=0)
    targets = [(f"k{n}", 0) for n in range(12)]
    condition = SegmentationCondition(num_classes=3)
    own_N, others_N = (
        fidelities(condition, drawn_NHWC, told, shelf, guess) for told in (targets, targets[1:] + targets[:1])
    )
    assert own_N.min() > 0.9
    assert others_N.mean() < 0.8
    expected = np.mean(guess(drawn_NHWC[3])[:, :, 0] == shelf.read(targets[3])[:, :, 0])
    assert own_N[3] == pytest.approx(expected)


def test_the_same_pictures_and_seed_learn_the_same(tmp_path: Path) -> None:
    pictures, maps, drawn_NHWC = world(tmp_path, "train", 6)
    first, second = (
        PixelClasses.learn([pictures], [maps], size=SIZE, channels=3, num_classes=3, seed=4) for _ in range(2)
    )
    assert np.array_equal(first.ridge.weight_DK, second.ridge.weight_DK)
    assert first(drawn_NHWC[0]).shape == (SIZE, SIZE, 1)
