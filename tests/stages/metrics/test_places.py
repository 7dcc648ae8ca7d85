"""Windows: looked at where they lie, and found again in what they show."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipeline.units import Unit
from stages.data.images import decode_image, to_model_range, to_uint8
from stages.data.shards import ShardReader, open_split
from stages.data.windows import variant_window
from stages.metrics.measure import Measurer
from stages.metrics.obedience import coordinate_obedience
from stages.metrics.places import DRAWN_WINDOW, Windows, thumbnails, window_place
from stages.metrics.told import Told
from stages.models.tokenizer import Tokenizer
from tests.stages.tiny import tiny_shards, tiny_tokenizer

SEEING = {"image_size": 8, "channels": 3, "batch_size": 4}


def told(**changes: Any) -> Told:
    rows = {f"k{n}": {"key": f"k{n}", "height": 64, "width": 64} for n in range(40)}
    targets = {"sample-000000": [(f"k{n // 2}", 2 * (n % 2)) for n in range(80)]}
    known: dict[str, Any] = {"kinds": ("coordinates",), "captions": {"sample": [""] * 80}, "targets": targets}
    return Told(**{**known, "maps": None, "window_seed": 3, "has_windows": True, "rows": rows, **changes})


def seen(places_N2: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Features that show a place, and noise."""
    hidden = np.concatenate([places_N2, rng.normal(0, 0.01, (len(places_N2), 6))], axis=1)
    return (hidden @ np.random.default_rng(9).normal(0, 1, (8, 12))).astype(np.float32)


def test_the_middle_of_a_window_is_told_in_shares_of_the_side() -> None:
    row = {"key": "k", "height": 64, "width": 128}
    assert window_place(row, 0, size=32, seed=0) == (0.5, 0.5)
    window = variant_window("k", 4, stored=(64, 128), size=32, seed=7)
    assert window_place(row, 4, size=32, seed=7) == ((window.left + 16) / 128, (window.top + 16) / 64)


def test_a_unit_looks_at_one_window_of_each_picture(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path, image_size=8)
    measurer = Measurer(tokenizer.local("model.safetensors").parent, tmp_path, "cpu")
    (shard,) = open_split(tiny_shards(tmp_path), "val")
    plain, rebuilt = (
        measurer.windows(
            Unit("windows-val", {**SEEING, "seed": 1, "rebuilt": it, "variant": DRAWN_WINDOW}, {"shard": shard})
        )
        for it in (False, True)
    )
    reader = ShardReader(shard)
    windows = [variant_window(row["key"], DRAWN_WINDOW, stored=(16, 16), size=8, seed=1) for row in reader.table]
    pictures = [it.cut(decode_image(reader.read_image(n), 3), 8) for n, it in enumerate(windows)]
    assert np.array_equal(plain["thumbnails"], thumbnails(np.stack(pictures)))
    assert plain["places"].tolist() == [[(it.left + 4) / 16, (it.top + 4) / 16] for it in windows]
    assert np.array_equal(plain["places"], rebuilt["places"])
    again = to_uint8(Tokenizer.load(measurer.tokenizer_folder).reconstruct(to_model_range(np.stack(pictures))))
    np.testing.assert_allclose(rebuilt["thumbnails"], thumbnails(again), atol=0.01)


def test_thumbnails_are_small_copies_and_their_squares() -> None:
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[:2, 2:4, 1] = 255
    (found_D,) = thumbnails(picture[None])
    expected_HWC = np.full((8, 8, 3), -1.0)
    expected_HWC[0, 1, 1] = 1
    assert found_D.tolist() == [*expected_HWC.ravel(), *np.ones(192)]
    assert thumbnails(picture[None, :, :, :1]).shape == (1, 128)
    assert thumbnails(picture[None, :0, :0][:0]).shape == (0, 384)


def figures(told: Told, *, obedient: bool) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    units = []
    for split, count in (("train", 300), ("val", 40)):
        places_N2 = rng.uniform(0.25, 0.75, (count, 2))
        units.append((f"windows-{split}-000000", {"thumbnails": seen(places_N2, rng), "places": places_N2}))
    targets = told.targets["sample-000000"]
    drawn_N2 = np.array([window_place(told.rows[key], it, size=32, seed=3) for key, it in targets])
    if not obedient:
        drawn_N2 = rng.permutation(drawn_N2)
    groups = {"train_groups_N": np.arange(300), "held_out_groups_N": np.arange(40)}
    units.append(("windows-sample-000000", {"thumbnails": seen(drawn_N2, rng), "places": np.zeros((80, 2))}))
    measured: Any = SimpleNamespace(**groups)
    return told._coordinates(measured, units, 32, 0)


def test_samples_that_show_their_place_obey_and_others_do_not() -> None:
    found = figures(told(), obedient=True)
    assert found["obedience_coordinates"]["value"] < 0.02
    assert found["obedience_coordinates_possible"]["value"] < 0.02
    assert found["obedience_coordinates_shuffled"]["value"] > 0.1
    assert (found["obedience_coordinates"]["samples"], found["obedience_coordinates"]["better"]) == (80, "lower")
    assert figures(told(), obedient=False)["obedience_coordinates"]["value"] > 0.1


def test_windows_are_looked_at_only_where_samples_were_drawn_for_places(tmp_path: Path) -> None:
    shards = tiny_shards(tmp_path)
    splits = {"train": open_split(shards, "train"), "val": open_split(shards, "val"), "sample": []}
    units = told().window_units(splits, SEEING, "digest")
    assert [unit.name for unit in units] == ["windows-train-000000", "windows-train-000001", "windows-val-000000"]
    assert [unit.recipe.get("tokenizer") for unit in units] == [None, None, "digest"]
    for without in ({"kinds": ("class",)}, {"has_windows": False}, {"targets": {}}):
        assert told(**without).window_units(splits, SEEING, "digest") == []


def test_windows_of_one_place_alone_tell_nothing() -> None:
    same = Windows(np.zeros((9, 4), np.float32), np.full((9, 2), 0.5), np.arange(9))
    assert coordinate_obedience(same, same, same, same.places_N2, seed=0) == {}
