"""How close maps come to each other: edges forgive a pixel, other maps are measured in dB."""

from pathlib import Path

import numpy as np
import pytest

from stages.data.condition_config import LowResolutionCondition
from stages.data.conditions import make_map
from stages.data.loader import load_all
from stages.data.map_shelf import MapShelf
from stages.data.shards import open_split
from stages.metrics.map_fidelity import area_iou, edge_f1, fidelities, map_psnr, opaque_area
from tests.stages.tiny import tiny_shards


def line(column: int, rows: int = 16) -> np.ndarray:
    drawn = np.zeros((16, 16, 1), np.uint8)
    drawn[:rows, column] = 255
    return drawn


def test_edges_a_pixel_apart_agree_and_two_pixels_apart_do_not() -> None:
    assert edge_f1(line(5), line(5)) == edge_f1(line(6), line(5)) == 1.0
    assert edge_f1(line(7), line(5)) == 0.0


def test_half_of_the_edges_is_full_precision_and_half_recall() -> None:
    precision, recall = 1.0, 9 / 16  # the ninth row's edge lies beside the eighth's
    assert edge_f1(line(5, rows=8), line(5)) == pytest.approx(2 * precision * recall / (precision + recall))


def test_pictures_without_edges_agree_with_each_other_alone() -> None:
    empty = np.zeros((16, 16, 1), np.uint8)
    assert (edge_f1(empty, empty), edge_f1(empty, line(5)), edge_f1(line(5), empty)) == (1.0, 0.0, 0.0)


def test_psnr_is_that_of_the_squared_error() -> None:
    grey = np.full((4, 4, 3), 100, np.uint8)
    assert map_psnr(grey, grey) == 100.0
    assert map_psnr(grey, grey + 51) == pytest.approx(-20 * np.log10(0.2))


def test_maps_are_found_by_key_and_window(tmp_path: Path) -> None:
    shards = open_split(tiny_shards(tmp_path), "val")
    pictures, _, keys = load_all(shards, 3)
    shelf = MapShelf(shards, channels=3, size=8, seed=0)
    assert np.array_equal(shelf.read((keys[1], 0)), pictures[1, 4:12, 4:12])
    assert np.array_equal(shelf.read((keys[1], 1)), pictures[1, 4:12, 4:12][:, ::-1])


def test_a_picture_that_has_its_map_is_perfectly_faithful(tmp_path: Path) -> None:
    condition = LowResolutionCondition(factor=4)
    shards = open_split(tiny_shards(tmp_path), "val")
    pictures, _, keys = load_all(shards, 3)
    shelf = MapShelf(shards, channels=3, size=16, seed=0)
    targets = [(key, 0) for key in keys]
    found = fidelities(condition, pictures, targets, shelf, None)
    expected = [map_psnr(make_map(condition, picture), picture) for picture in pictures]
    assert found.tolist() == expected
    assert fidelities(condition, pictures, targets[::-1], shelf, None).max() < min(expected)


def test_what_is_opaque_is_all_but_the_white_around() -> None:
    picture = np.full((16, 16, 3), 240, np.uint8)  # nearly white: what a tokenizer leaves of transparency
    picture[3:12, 0:9] = 60
    picture[5:8, 3:6] = 255  # an eye
    found_HW = opaque_area(picture)[:, :, 0] == 255
    expected_HW = np.zeros((16, 16), bool)
    expected_HW[3:12, 0:9] = True
    assert np.array_equal(found_HW, expected_HW)
    assert not opaque_area(np.full((8, 8, 1), 255, np.uint8)).any()
    assert opaque_area(np.zeros((8, 8, 3), np.uint8)).all()


def test_areas_agree_by_intersection_over_union() -> None:
    left, right = np.zeros((8, 8, 1), np.uint8), np.zeros((8, 8, 1), np.uint8)
    left[:, :5], right[:, 3:] = 255, 128
    assert area_iou(left, right) == 2 / 8
    assert area_iou(left, left) == area_iou(left * 0, left * 0) == 1.0
    assert area_iou(left, left * 0) == 0.0
