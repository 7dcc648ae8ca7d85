"""The EMA codebook: pure forward, the update's formula, restarts, and that ranks do not matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.runtime import Rank
from stages.models.quantizers.codebook import vectors
from stages.models.quantizers.configs import EMAQuantizerConfig
from stages.models.quantizers.ema import EMAQuantizer, draw_positions
from stages.models.quantizers.quantizer import Place, codes_used, perplexity
from stages.training.fabric import all_reduce_sum, open_fabric
from tests.stages.training.gangs import run_gang


def make_quantizer(**settings: Any) -> EMAQuantizer:
    torch.manual_seed(0)
    return EMAQuantizer(EMAQuantizerConfig(**{"num_codes": 16, "dim": 4, **settings}))


def make_vectors(batch: int = 6) -> Tensor:
    return torch.randn(batch, 4, 3, 3, generator=torch.Generator().manual_seed(1))


def step(quantizer: EMAQuantizer, z_BCHW: Tensor, number: int = 0) -> int:
    output = quantizer(z_BCHW)
    place = Place(first=0, num_vectors=z_BCHW[:, 0].numel(), seed=3, step=number)
    return quantizer.update(quantizer.statistics(z_BCHW, output.indices_BHW, place))


def test_it_chooses_the_nearest_code() -> None:
    quantizer, z_BCHW = make_quantizer(), make_vectors()
    distances = torch.cdist(vectors(z_BCHW).double(), quantizer.embedding.weight.double())
    assert quantizer.nearest(z_BCHW).flatten().tolist() == distances.argmin(dim=1).tolist()


def test_forward_changes_nothing_and_passes_gradients_straight_through() -> None:
    quantizer, z_BCHW = make_quantizer(), make_vectors().requires_grad_()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    output = quantizer(z_BCHW)

    (straight,) = torch.autograd.grad((output.z_q_BCHW * 3).sum(), z_BCHW, retain_graph=True)
    (pull,) = torch.autograd.grad(output.codebook_loss_B.sum(), z_BCHW)

    assert torch.equal(straight, torch.full_like(z_BCHW, 3))
    torch.testing.assert_close(pull, 0.25 * 2 * (z_BCHW - output.z_q_BCHW).detach() / z_BCHW[0].numel())
    torch.testing.assert_close(output.z_q_BCHW, quantizer.embed(output.indices_BHW))
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name])
    assert not [name for name, parameter in quantizer.named_parameters() if parameter.requires_grad]


def test_the_update_is_the_running_mean_of_what_each_code_was_chosen_for() -> None:
    quantizer = make_quantizer(decay=0.9, restart_threshold=0.0)
    counts, sums = torch.zeros(16, dtype=torch.float64), torch.zeros(16, 4, dtype=torch.float64)
    for number in range(3):
        z_BCHW = make_vectors() + number
        indices = quantizer.nearest(z_BCHW).flatten().tolist()
        counts, sums = counts * 0.9, sums * 0.9
        for vector, code in zip(vectors(z_BCHW).double(), indices, strict=True):
            counts[code] += 0.1
            sums[code] += 0.1 * vector
        step(quantizer, z_BCHW, number)

    chosen = counts > 0
    expected = sums[chosen] / counts[chosen, None]
    torch.testing.assert_close(quantizer.embedding.weight[chosen].double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(quantizer.embedding.weight[~chosen], make_quantizer().embedding.weight[~chosen])


def test_the_first_update_draws_the_codebook_from_its_batch() -> None:
    quantizer, z_BCHW = make_quantizer(decay=0.0), make_vectors()
    with torch.no_grad():
        quantizer.embedding.weight.add_(100)  # far from every vector: one code takes all

    restarted = step(quantizer, z_BCHW)

    assert restarted == 15
    gaps_KN = (quantizer.embedding.weight[:, None] - vectors(z_BCHW)[None]).abs().amax(dim=2)
    assert int((gaps_KN.min(dim=1).values < 1e-5).sum()) == 15  # the one code in use is the mean of all vectors
    assert codes_used(torch.bincount(quantizer.nearest(z_BCHW).flatten(), minlength=16)) >= 15


def test_a_code_that_nobody_chooses_is_restarted_and_a_busy_one_is_not() -> None:
    quantizer, z_BCHW = make_quantizer(decay=0.5, restart_threshold=0.2), make_vectors()
    for number in range(8):
        step(quantizer, z_BCHW, number)
    with torch.no_grad():
        quantizer.embedding.weight[5] = 1000.0
        quantizer.sums[5] = 1000.0 * quantizer.counts[5]
    busy = int(quantizer.counts.argmax())
    before = quantizer.embedding.weight[busy].clone()
    for number in range(8, 14):
        step(quantizer, z_BCHW, number)

    assert quantizer.embedding.weight[5].abs().max() < 10
    assert (quantizer.embedding.weight[busy] - before).norm() < 1


def test_restart_positions_depend_on_seed_and_step_alone() -> None:
    def draw(num_vectors: int, seed: int, step: int) -> Tensor:
        return draw_positions(16, Place(first=0, num_vectors=num_vectors, seed=seed, step=step))

    drawn = draw(54, seed=1, step=2)
    assert torch.equal(drawn, draw(54, seed=1, step=2))
    assert not torch.equal(drawn, draw(54, seed=1, step=3))
    assert not torch.equal(drawn, draw(54, seed=2, step=2))
    assert len(set(drawn.tolist())) == 16
    assert draw(5, seed=1, step=2).shape == (16,)


@pytest.mark.slow
def test_two_ranks_learn_the_codebook_of_one_rank_restarts_included() -> None:
    one = run_gang(1, _learn)[0]
    two = run_gang(2, _learn)

    assert two[0]["restarted"] == two[1]["restarted"] == one["restarted"]
    assert one["restarted"][0] > 0 and sum(one["restarted"][1:]) > 0
    assert torch.equal(torch.tensor(two[0]["codes"]), torch.tensor(two[1]["codes"]))
    torch.testing.assert_close(torch.tensor(two[0]["codes"]), torch.tensor(one["codes"]), rtol=1e-5, atol=1e-5)


def _learn(rank: Rank) -> dict[str, Any]:
    """Ten updates on a drifting batch of 7 pictures: slices of 3 and 4 on two ranks."""
    quantizer = make_quantizer(decay=0.6, restart_threshold=0.3)
    restarted = []
    with open_fabric(rank) as fabric:
        for number in range(10):
            z_BCHW = make_vectors(7) * (1 + number / 5)
            first, end = 7 * rank.rank // rank.world, 7 * (rank.rank + 1) // rank.world
            mine = z_BCHW[first:end]
            place = Place(first=first * 9, num_vectors=7 * 9, seed=3, step=number)
            own = quantizer.statistics(mine, quantizer.nearest(mine), place)
            restarted.append(quantizer.update(own.like(all_reduce_sum(fabric, own.flat()))))
    return {"restarted": restarted, "codes": quantizer.embedding.weight.tolist()}


def test_perplexity_counts_equally_used_codes() -> None:
    assert perplexity(torch.tensor([5.0, 5.0, 5.0, 5.0, 0.0])) == pytest.approx(4.0)
    assert perplexity(torch.tensor([9.0, 0.0, 0.0])) == pytest.approx(1.0)
    assert codes_used(torch.tensor([9.0, 0.0, 1.0])) == 2
