"""Draws that belong to a sample: their generator, their statistics, and that nothing but the sample decides them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.models.dropout import SampleDropout, drop_segments, happens, random_words, replace_tokens, sample_keys

MASK_64 = 2**64 - 1


def splitmix64(start: int, count: int) -> list[int]:
    """The generator of Steele, Lea & Flood (2014) as its authors write it, in Python's unbounded integers."""
    words = []
    for _ in range(count):
        start = (start + 0x9E3779B97F4A7C15) & MASK_64
        z = ((start ^ (start >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK_64
        words.append(z ^ (z >> 31))
    return words


def keys(count: int, seed: int = 7, first: int = 0) -> Tensor:
    return sample_keys(seed, torch.arange(first, first + count))


def kept(rate: float, keys_B: Tensor, site: int, shape: tuple[int, ...]) -> np.ndarray:
    return SampleDropout(rate, site).mask(keys_B, torch.Size(shape)).numpy()


def test_words_are_the_reference_generators() -> None:
    # The generator's published test vector: the stream that starts at 1234567.
    assert splitmix64(1234567, 2) == [6457827717110365317, 3203168211198807973]
    with_seed, site = 2**63 + 11, 5
    key_stream = splitmix64(_finalised(with_seed), 1000)
    words_BN = random_words(sample_keys(with_seed, torch.tensor([0, 3, 999])), site, 6).numpy().view(np.uint64)
    for row, position in enumerate((0, 3, 999)):
        site_key = splitmix64(key_stream[position], site + 1)[site]
        assert words_BN[row].tolist() == splitmix64(site_key, 6)


def _finalised(value: int) -> int:
    return splitmix64((value - 0x9E3779B97F4A7C15) & MASK_64, 1)[0]


def test_a_sample_draws_the_same_alone_and_in_any_batch() -> None:
    all_keys_B = keys(12, first=100)
    whole = kept(0.1, all_keys_B, 4, (5, 7, 3))
    assert whole.shape == (12, 5, 7, 3)
    for start, size in ((0, 1), (3, 4), (7, 5)):
        part = kept(0.1, keys(size, first=100 + start), 4, (5, 7, 3))
        assert np.array_equal(part, whole[start : start + size])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_what_a_cpu_draws() -> None:
    positions_B = torch.arange(50, 58)
    on_gpu = SampleDropout(0.1, 2).mask(sample_keys(3, positions_B.cuda()), torch.Size((33, 20))).cpu()
    assert torch.equal(on_gpu, SampleDropout(0.1, 2).mask(sample_keys(3, positions_B), torch.Size((33, 20))))


@pytest.mark.parametrize(("rate", "dropped"), [(0.1, 26 / 256), (0.5, 0.5), (0.001, 1 / 256), (0.999, 255 / 256)])
def test_the_share_that_is_dropped_is_the_rate_to_a_256th(rate: float, dropped: float) -> None:
    mask = kept(rate, keys(64), 1, (64, 256))
    deviation = np.sqrt(dropped * (1 - dropped) / mask.size)
    assert 1 - mask.mean() == pytest.approx(dropped, abs=4 * deviation)
    by_sample, by_element = mask.mean(axis=(1, 2)), mask.mean(axis=0)
    # Each mean of n independent draws strays by sqrt(p (1 - p) / n).
    assert by_sample.std() == pytest.approx(deviation * 8, rel=0.4)
    assert by_element.std() == pytest.approx(deviation * 128, rel=0.05)


def test_samples_sites_seeds_and_neighbours_are_independent() -> None:
    masks = {
        (seed, site): kept(0.5, keys(32, seed=seed), site, (64, 128)).reshape(32, -1)
        for seed, site in itertools.product((0, 1), (0, 1, 2))
    }
    draws = {name: mask * 2.0 - 1.0 for name, mask in masks.items()}
    bound = 4.5 / np.sqrt(32 * 64 * 128)  # a correlation of n independent pairs strays by 1 / sqrt(n)
    for one, other in itertools.combinations(draws.values(), 2):
        assert abs((one * other).mean()) < bound
        assert abs((one[1:] * other[:-1]).mean()) < 1.02 * bound
    for draw in draws.values():
        assert abs((draw[1:] * draw[:-1]).mean()) < 1.02 * bound
        for lag in (1, 2, 7, 8, 9, 64, 128, 1024):
            assert abs((draw[:, lag:] * draw[:, :-lag]).mean()) < 1.1 * bound


def test_every_byte_value_is_as_frequent_as_the_others() -> None:
    bytes_N = random_words(keys(16), 3, 2**14).view(torch.uint8).flatten().numpy()
    counts = np.bincount(bytes_N, minlength=256)
    chi_squared = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert 170 < chi_squared < 350  # 255 degrees of freedom: 255 +- 4 * 22.6


def test_what_stays_is_scaled_so_that_the_mean_stays() -> None:
    dropout, keys_B = SampleDropout(0.1, 1), keys(3)
    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    mask = kept(0.1, keys_B, 1, (4, 5))
    expected = np.where(mask, x.detach().numpy() / (230 / 256), 0.0)

    y = dropout(x, keys_B)
    y.backward(torch.full_like(x, 2.0))

    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-15)
    np.testing.assert_allclose(x.grad, np.where(mask, 2 * 256 / 230, 0.0), rtol=1e-15)
    assert 0 < mask.sum() < mask.size


def test_without_keys_or_rate_nothing_happens() -> None:
    x = torch.randn(3, 4)
    assert SampleDropout(0.5, 1)(x, None) is x
    assert SampleDropout(0.0, 1)(x, keys(3)) is x


def test_events_have_their_share_and_are_the_samples_own() -> None:
    def dropped(seed: int, first: int, count: int) -> np.ndarray:
        return happens(random_words(keys(count, seed, first), 0, 1)[:, 0], 0.1).numpy()

    events = dropped(7, 0, 200_000)
    assert events.mean() == pytest.approx(0.1, abs=0.003)
    assert np.array_equal(dropped(7, 5, 4), events[5:9])
    assert (events & dropped(8, 0, 200_000)).mean() == pytest.approx(0.01, abs=0.001)
    assert (events[1:] & events[:-1]).mean() == pytest.approx(0.01, abs=0.001)
    everything, nothing = (happens(random_words(keys(1000), 0, 1), share) for share in (1.0, 0.0))
    assert everything.all()
    assert not nothing.any()


def test_replaced_tokens_are_uniform_and_the_rest_is_kept() -> None:
    tokens_BT = torch.full((500, 400), 3)
    replaced_BT = replace_tokens(tokens_BT, keys(500), 1, share=0.25, num_codes=10)
    counts = np.bincount(replaced_BT.flatten(), minlength=10)
    # A quarter is drawn anew, a tenth of that is the old code again.
    assert counts[3] / 200_000 == pytest.approx(0.75 + 0.025, abs=0.004)
    others = np.delete(counts, 3) / 200_000
    np.testing.assert_allclose(others, 0.025, atol=0.0015)
    alone_BT = replace_tokens(tokens_BT[:3], keys(3, first=40), 1, share=0.25, num_codes=10)
    assert torch.equal(alone_BT, replaced_BT[40:43])
    moved_BT = (replaced_BT != 3).double()
    neighbours = (moved_BT[:, 1:] * moved_BT[:, :-1]).mean().item()
    assert neighbours == pytest.approx(0.225**2, abs=0.003)


@pytest.mark.slow
def test_a_compiler_can_trace_it_whole() -> None:
    dropout, keys_B, x = SampleDropout(0.3, 1), keys(4), torch.randn(4, 6, 10)
    traced = torch.compile(dropout, backend="aot_eager", fullgraph=True)
    assert torch.equal(traced(x, keys_B), dropout(x, keys_B))


def test_a_single_condition_is_dropped_as_often_as_asked() -> None:
    keys_B = sample_keys(0, torch.arange(20_000))
    dropped_B1 = drop_segments(keys_B, 0, 1, 0.1)
    assert dropped_B1.shape == (20_000, 1)
    assert dropped_B1.double().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(dropped_B1[:, 0], happens(random_words(keys_B, 0, 1)[:, 0], 0.1))


def test_several_conditions_are_dropped_together_and_one_by_one() -> None:
    dropped_B2 = drop_segments(sample_keys(0, torch.arange(20_000)), 0, 2, 0.3)
    shares = {
        pattern: (dropped_B2 == torch.tensor(pattern)).all(1).double().mean().item()
        for pattern in ((True, True), (True, False), (False, True))
    }
    assert shares[True, True] == pytest.approx(0.3 + 0.7 * 0.09, abs=0.015)
    assert shares[True, False] == pytest.approx(0.7 * 0.3 * 0.7, abs=0.015)
    assert shares[False, True] == pytest.approx(0.7 * 0.3 * 0.7, abs=0.015)
