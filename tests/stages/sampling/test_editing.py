"""Edits keep what is to be kept and redraw the rest; candidates make a hole suit what comes after it."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from pipeline.errors import ConfigError, DataError
from stages.data.images import to_uint8
from stages.sampling import editing
from stages.sampling.asking import Ask
from stages.sampling.generator import Generator
from stages.sampling.noise import draws_of
from tests.stages.sampling.bundles import blocks, class_bundle


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """4x4 tokens of 8x8 pixels."""
    return Generator.load(class_bundle(tmp_path_factory.mktemp("editing") / "b"), precision="fp64")


@pytest.fixture
def tokens_of(monkeypatch: pytest.MonkeyPatch, generator: Generator) -> list[np.ndarray]:
    """The tokens [N, R, K] of every batch that the generator decodes."""
    seen: list[np.ndarray] = []
    decode = generator.tokenizer.decode

    def watched(tokens_BRK: torch.Tensor) -> torch.Tensor:
        seen.append(tokens_BRK.numpy())
        return decode(tokens_BRK)

    monkeypatch.setattr(generator.tokenizer, "decode", watched)
    return seen


def given(generator: Generator) -> tuple[np.ndarray, np.ndarray]:
    picture_HWC = blocks(32)
    return picture_HWC, generator.encode(picture_HWC[None])[0]


def mask_of(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    mask_HW = np.zeros((32, 32), bool)
    for top, left, bottom, right in boxes:
        mask_HW[top:bottom, left:right] = True
    return mask_HW


@pytest.mark.parametrize(("keep", "rows"), [(0, 0), (0.5, 2), (0.3, 1), (0.99, 3)])
def test_completion_keeps_the_upper_rows(
    generator: Generator, tokens_of: list[np.ndarray], keep: float, rows: int
) -> None:
    picture_HWC, tokens_RK = given(generator)
    pictures = generator.complete(picture_HWC, keep=keep, label="owls", count=5, seed=1)
    (drawn_NRK,) = tokens_of
    assert (drawn_NRK[:, :rows] == tokens_RK[:rows]).all()
    assert len(np.unique(drawn_NRK[:, rows:].reshape(5, -1), axis=0)) == 5
    feather = 4
    above = max(0, 8 * rows - feather)
    assert all(np.array_equal(np.asarray(it)[:above], picture_HWC[:above]) for it in pictures)
    assert pictures[0].info["edit"] == "complete"
    assert pictures[3].info["id"] == 3


def test_a_token_is_redrawn_where_any_of_its_pixels_is_masked(
    generator: Generator, tokens_of: list[np.ndarray]
) -> None:
    picture_HWC, tokens_RK = given(generator)
    generator.inpaint(picture_HWC, mask_of((15, 8, 17, 9)), count=40, seed=1)
    changed_RK = (tokens_of[0] != tokens_RK).any(axis=0)
    assert np.argwhere(changed_RK).tolist() == [[1, 1], [2, 1]]


def test_dilation_widens_the_mask(generator: Generator, tokens_of: list[np.ndarray]) -> None:
    picture_HWC, tokens_RK = given(generator)
    generator.inpaint(picture_HWC, mask_of((10, 10, 14, 14)), count=40, dilate=2)
    assert np.argwhere((tokens_of[-1] != tokens_RK).any(axis=0)).tolist() == [[1, 1]]
    generator.inpaint(picture_HWC, mask_of((10, 10, 14, 14)), count=40, dilate=3)
    assert np.argwhere((tokens_of[-1] != tokens_RK).any(axis=0)).tolist() == [
        [row, column] for row in range(3) for column in range(3)
    ]


def test_outside_the_mask_and_its_border_pixels_are_the_pictures_own(generator: Generator) -> None:
    picture_HWC, _ = given(generator)
    mask_HW = mask_of((12, 12, 20, 20))
    drawn = np.asarray(generator.inpaint(picture_HWC, mask_HW, seed=2, feather=2)[0])
    plain = np.asarray(generator.inpaint(picture_HWC, mask_HW, seed=2, paste=False)[0])
    assert np.array_equal(drawn[12:20, 12:20], plain[12:20, 12:20])
    outside = ~mask_of((9, 9, 23, 23))
    assert np.array_equal(drawn[outside], picture_HWC[outside])
    assert not np.array_equal(plain[outside], picture_HWC[outside])
    # One pixel outside, 2/3 of it is drawn; two, 1/3.
    for row, share in ((11, 2 / 3), (10, 1 / 3)):
        mixed = share * plain[row, 15].astype(float) + (1 - share) * picture_HWC[row, 15]
        assert np.abs(drawn[row, 15] - mixed).max() <= 0.5


def test_without_feather_the_border_is_sharp() -> None:
    drawn, own = np.full((4, 4, 1), 200, np.uint8), np.full((4, 4, 1), 100, np.uint8)
    hole_HW = np.zeros((4, 4), bool)
    hole_HW[1, 2] = True
    assert np.array_equal(editing.paste(drawn, own, hole_HW, 0)[:, :, 0], np.where(hole_HW, 200, 100))


def test_variations_redraw_a_share_of_tokens_and_more_with_more_strength(
    generator: Generator, tokens_of: list[np.ndarray]
) -> None:
    picture_HWC, tokens_RK = given(generator)
    for strength in (0.25, 0.75, 1.0):
        generator.vary(picture_HWC, strength=strength, count=30, seed=4)
    weak, strong, whole = (batch != tokens_RK for batch in tokens_of)
    assert weak.sum(axis=(1, 2)).max() <= 4 < strong.sum(axis=(1, 2)).max() <= 12
    assert weak.any(axis=0).all()  # each picture has places of its own
    assert whole.any(axis=0).all()
    places = [np.argwhere(weak[n]).tolist() for n in range(30)]
    kept = [np.argwhere(~strong[n]).tolist() for n in range(30)]
    assert sum(place in kept[n] for n in range(30) for place in places[n]) < 10  # those drawn alike again
    fresh = generator.draw(generator.conditioner.tokens(Ask()).repeat(30, 0), draws_of(4, range(30)), batch_size=30)
    assert np.array_equal(tokens_of[2].reshape(30, -1), fresh.tokens_NT)


def test_a_variation_without_strength_is_the_reconstruction(generator: Generator) -> None:
    picture_HWC, tokens_RK = given(generator)
    (same,) = generator.vary(picture_HWC, strength=0)
    expected = to_uint8(generator.tokenizer.decode(torch.from_numpy(tokens_RK[None])))[0]
    assert np.array_equal(np.asarray(same), expected)


def test_pictures_come_as_files_arrays_or_pil(generator: Generator, tmp_path: Path) -> None:
    picture_HWC, _ = given(generator)
    mask_HW = mask_of((0, 0, 9, 9))
    Image.fromarray(picture_HWC).save(tmp_path / "p.png")
    Image.fromarray(mask_HW.astype(np.uint8) * 255).save(tmp_path / "m.png")
    ways = [
        (picture_HWC, mask_HW),
        (Image.fromarray(picture_HWC), Image.fromarray(mask_HW)),
        (str(tmp_path / "p.png"), tmp_path / "m.png"),
    ]
    drawn = [np.asarray(generator.inpaint(picture, mask, seed=5)[0]) for picture, mask in ways]
    assert np.array_equal(drawn[0], drawn[1]) and np.array_equal(drawn[0], drawn[2])


def test_given_pictures_are_cut_as_training_pictures_were(generator: Generator, tokens_of: list[np.ndarray]) -> None:
    picture_HWC, tokens_RK = given(generator)
    wide = np.pad(picture_HWC, ((0, 0), (10, 10), (0, 0)))
    generator.vary(wide, strength=0)
    assert np.array_equal(tokens_of[0][0], tokens_RK)


def test_comes_after_counts_known_tokens_behind_the_first_unknown_one() -> None:
    known_NRK = np.array([[[1, -1], [2, 3]], [[-1, 5], [-1, 6]]])
    assert editing.comes_after(known_NRK, range(4)).tolist() == [[False, False, True, True], [False, True, False, True]]
    assert editing.comes_after(known_NRK, [3, 1, 2, 0]).tolist() == [[True, False, True, False], [False] * 4]


@pytest.mark.slow
def test_candidates_follow_the_exact_distribution_given_what_comes_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 20 codes for one token of 2x2, against all 20 probabilities given the tokens on both of its sides."""
    generator = Generator.load(class_bundle(tmp_path / "b", grid=2, std=0.7), precision="fp64")
    picture_HWC = blocks(16)
    known_RK = generator.encode(picture_HWC[None])[0]
    redrawn_RK = np.array([[False, True], [False, False]])
    monkeypatch.setattr(generator.tokenizer, "decode", lambda tokens_BRK: torch.zeros(len(tokens_BRK), 3, 1, 1))
    sequences_VT = np.array([known_RK.ravel()] * 20)
    sequences_VT[:, 1] = range(20)
    condition_1C = generator.conditioner.tokens(Ask(label=1))
    exact_V = np.exp(-generator.nats(condition_1C.repeat(20, 0), sequences_VT).sum(axis=1))
    exact_V /= exact_V.sum()
    blind_V = np.exp(-generator.nats(condition_1C.repeat(20, 0), sequences_VT)[:, 1])
    counts = {}
    for candidates in (1, 30):
        drawn_NT = [
            editing._draw_candidates(
                generator,
                Ask(label=1, seed=seed, count=150),
                np.where(redrawn_RK, -1, known_RK)[None].repeat(150, 0),
                candidates,
            )[0].tokens_NT
            for seed in range(4)
        ]
        counts[candidates] = np.bincount(np.concatenate(drawn_NT)[:, 1], minlength=20)
    assert 0.5 * np.abs(exact_V - blind_V).sum() > 0.1  # what comes after matters, so the test can fail

    def fits(observed_V: np.ndarray, expected_V: np.ndarray) -> float:
        large = expected_V * 600 >= 5
        rest = expected_V[~large].sum() * 600
        observed = [*observed_V[large], observed_V[~large].sum()]
        return float(stats.chisquare(observed, [*expected_V[large] * 600, rest]).pvalue)

    assert fits(counts[1], blind_V) > 1e-3
    assert fits(counts[30], exact_V) > 1e-3
    assert fits(counts[1], exact_V) < 1e-4


def test_candidates_raise_the_likelihood_of_what_comes_after(generator: Generator) -> None:
    picture_HWC, _ = given(generator)
    mask_HW = mask_of((8, 8, 16, 24))
    many = generator.inpaint(picture_HWC, mask_HW, count=20, candidates=16)
    assert len({it.info["candidate"] for it in many}) > 3
    two = generator.inpaint(picture_HWC, mask_HW, count=20, candidates=2)
    assert np.mean([it.info["kept_log_likelihood"] for it in many]) > np.mean(
        [it.info["kept_log_likelihood"] for it in two]
    )


@pytest.mark.parametrize("sides", list(itertools.islice(itertools.product((0, 8), repeat=4), 1, None, 4)))
def test_outpainting_keeps_the_picture_within_a_larger_one(
    generator: Generator, tokens_of: list[np.ndarray], sides: tuple[int, int, int, int]
) -> None:
    picture_HWC, tokens_RK = given(generator)
    left, top, right, bottom = sides
    names = dict(zip(("left", "top", "right", "bottom"), sides, strict=True))
    (drawn,) = generator.outpaint(picture_HWC, **names, label="cats", feather=0)
    assert drawn.size == (32 + left + right, 32 + top + bottom)
    assert np.array_equal(np.asarray(drawn)[top : top + 32, left : left + 32], picture_HWC)
    y, x = top // 8, left // 8
    assert np.array_equal(tokens_of[0][0, y : y + 4, x : x + 4], tokens_RK)
    assert "window" in drawn.info["sight"]


def test_larger_pictures_are_drawn_through_the_window(generator: Generator) -> None:
    first, second = generator.generate(size=(40, 64), label="dogs", count=2)
    assert first.size == (64, 40)
    assert first.info["class"] == "dogs"
    assert first.tobytes() != second.tobytes()
    assert generator.generate(size=(32, 32), seed=3)[0].tobytes() == generator.generate(seed=3)[0].tobytes()


def test_edits_that_make_no_sense_are_refused(generator: Generator, tmp_path: Path) -> None:
    picture_HWC, mask_HW = blocks(32), mask_of((0, 0, 8, 8))
    with pytest.raises(ConfigError, match=r"keep=1\.0 must be at least 0 and below 1"):
        generator.complete(picture_HWC, keep=1.0)
    with pytest.raises(ConfigError, match=r"strength=1\.5 must be from 0 to 1"):
        generator.vary(picture_HWC, strength=1.5)
    with pytest.raises(ConfigError, match="left=0, top=0, right=0, bottom=0: give at least one side"):
        generator.outpaint(picture_HWC)
    with pytest.raises(ConfigError, match="all as multiples of 8"):
        generator.outpaint(picture_HWC, left=12)
    with pytest.raises(ConfigError, match="candidates=0 must be at least 1"):
        generator.inpaint(picture_HWC, mask_HW, candidates=0)
    with pytest.raises(ConfigError, match="dilate=-1 must not be negative"):
        generator.inpaint(picture_HWC, mask_HW, dilate=-1)
    with pytest.raises(DataError, match="the mask marks nothing"):
        generator.inpaint(picture_HWC, ~np.ones((32, 32), bool))
    with pytest.raises(DataError, match="the mask is 64x32, its picture 32x32"):
        generator.inpaint(picture_HWC, np.ones((32, 64), bool))
    with pytest.raises(DataError, match=r"picture .*nowhere\.png cannot be read"):
        generator.vary(tmp_path / "nowhere.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError, match="the picture cannot be used: its content is none of JPEG"):
        generator.vary(tmp_path / "text.png")
    with pytest.raises(DataError, match=r"the picture is an array \[32, 32, 3\] of float64: give uint8"):
        generator.vary(picture_HWC / 255)
    with pytest.raises(
        ConfigError, match="size 40x30: height and width must be multiples of 8 and at least 32: try 40x32"
    ):
        generator.generate(size=(40, 30))
