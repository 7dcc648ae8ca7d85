"""The token loop: exact frequencies, guidance, likelihood, independence of the batch."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from pipeline.errors import StageError
from stages.models.priors.configs import GPTConfig, PixelCNNConfig, PriorDescription, PriorModelConfig
from stages.models.priors.load import build_prior
from stages.models.priors.prior import Prior
from stages.models.priors.token_order import places_in_order
from stages.models.vocabulary import TokenSpace
from stages.sampling.filters import LogitFilter
from stages.sampling.guidance import Guidance
from stages.sampling.noise import GumbelNoise, draws_of
from stages.sampling.tokens import draw_tokens

GPT = GPTConfig(num_layers=2, num_heads=2, width=32, condition_dropout=0.1)


def make_prior(
    config: PriorModelConfig = GPT,
    *,
    num_codes: int = 40,
    grid: tuple[int, int] = (3, 4),
    std: float = 0.3,
    dtype: torch.dtype = torch.float64,
) -> Prior:
    torch.manual_seed(0)
    space = TokenSpace.model_validate(
        {
            "tokenizer": "",
            "codebook_size": num_codes,
            "grid": grid,
            "classes": ("a", "b", "c"),
            "image_size": 8,
            "channels": 3,
        }
    )
    model = build_prior(PriorDescription.of(config, space)).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model.eval()


def draw(model: Prior, ids: list[int], **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    labels_B = torch.tensor([sample % 3 for sample in ids])
    condition_BC = model.vocabulary.condition(labels_B)
    return draw_tokens(model, condition_BC, GumbelNoise(draws_of(5, ids)), **options)  # type: ignore[arg-type]


def test_frequencies_are_the_exact_probabilities() -> None:
    model = make_prior(num_codes=3, grid=(1, 3))
    condition_BC = model.vocabulary.condition(torch.zeros(1, dtype=torch.long))
    sequences_ST = torch.tensor(list(itertools.product(range(3), repeat=3)))
    with torch.no_grad():
        _, nats_ST = model.loss(condition_BC.expand(27, 1), sequences_ST)
    probabilities_S = (-nats_ST.sum(1)).exp().numpy()
    assert probabilities_S.sum() == pytest.approx(1)
    drawn_BT, _ = draw_tokens(model, condition_BC.expand(20000, 1), GumbelNoise(draws_of(0, range(20000))))
    counts = np.bincount((drawn_BT * torch.tensor([9, 3, 1])).sum(1).numpy(), minlength=27)
    large = probabilities_S * 20000 >= 5
    observed = [*counts[large], counts[~large].sum()]
    expected = [*probabilities_S[large] * 20000, probabilities_S[~large].sum() * 20000]
    if expected[-1] < 5:
        observed, expected = [*observed[:-2], sum(observed[-2:])], [*expected[:-2], sum(expected[-2:])]
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    assert probabilities_S.max() > 0.05  # far from uniform, so the test can fail


@pytest.mark.parametrize(
    "config",
    [
        GPT,
        GPT.model_copy(update={"order": "z_curve"}),
        GPT.model_copy(update={"form": "modern", "order": "z_curve"}),
        PixelCNNConfig(num_blocks=3, width=16, head_width=16),
    ],
    ids=["gpt", "gpt, Z-curve", "modern gpt, Z-curve", "pixelcnn"],
)
@pytest.mark.parametrize("share", [0, 0.5, 1], ids=["none known", "half known", "all known"])
@pytest.mark.parametrize("guidance", [Guidance(2.0), Guidance(3.0, "cosine"), Guidance(0.0, "interval")], ids=str)
def test_tokens_are_those_of_a_loop_without_cache(config: PriorModelConfig, share: float, guidance: Guidance) -> None:
    model, ids = make_prior(config), list(range(10))
    logit_filter = LogitFilter(0.8, 20, 0.95)
    known_BT = torch.randint(0, 40, (10, 12), generator=torch.Generator().manual_seed(0))
    known_BT[:, np.random.default_rng(1).random(12) >= share] = -1
    known_BT[3, 5] = 7 if share else -1  # one picture alone
    tokens_BT, _ = draw(model, ids, logit_filter=logit_filter, guidance=guidance, known_BT=known_BT)
    condition_BC = model.vocabulary.condition(torch.tensor([sample % 3 for sample in ids]))
    expected_BT = torch.zeros(10, 12, dtype=torch.long)
    for position, place in enumerate(places_in_order(config.order, (3, 4))):
        scale = guidance.at(position, 12)
        with torch.no_grad():
            conditional_BV = model(condition_BC, expected_BT)[:, place]
            unconditional_BV = model(model.vocabulary.null_condition(condition_BC), expected_BT)[:, place]
        guided_BV = (1 - scale) * unconditional_BV + scale * conditional_BV
        noise_BV = torch.from_numpy(GumbelNoise(draws_of(5, ids)).at(place, 40))
        drawn_B = (logit_filter(guided_BV) + noise_BV).argmax(-1)
        expected_BT[:, place] = torch.where(known_BT[:, place] < 0, drawn_B, known_BT[:, place])
    assert torch.equal(tokens_BT, expected_BT)


def test_known_tokens_are_kept_and_the_others_follow_from_them() -> None:
    model, ids = make_prior(num_codes=3, grid=(1, 3)), list(range(20000))
    known_BT = torch.tensor([[2, -1, 1]]).expand(20000, 3)
    tokens_BT, likelihood_B = draw(model, ids, known_BT=known_BT)
    assert (tokens_BT[:, [0, 2]] == known_BT[:, [0, 2]]).all()
    labels_B = torch.tensor([sample % 3 for sample in ids])
    with torch.no_grad():
        _, nats_BT = model.loss(model.vocabulary.condition(labels_B), tokens_BT)
    torch.testing.assert_close(likelihood_B, -nats_BT[:, 1])
    probabilities_BV = model(model.vocabulary.condition(labels_B[:3]), tokens_BT[:3])[:, 1].softmax(-1).detach()
    observed = np.bincount(tokens_BT[labels_B == 1][:, 1], minlength=3)
    assert stats.chisquare(observed, probabilities_BV[1].numpy() * observed.sum()).pvalue > 1e-3


def test_batches_of_1_7_and_64_draw_the_same_tokens_in_float64() -> None:
    model = make_prior()
    whole_BT, likelihood_B = draw(model, list(range(64)), guidance=1.5)
    for size, number in ((1, 16), (7, 64)):
        for start in range(0, number, size):
            ids = list(range(start, min(start + size, number)))
            tokens_BT, part_B = draw(model, ids, guidance=1.5)
            assert torch.equal(tokens_BT, whole_BT[ids])
            torch.testing.assert_close(part_B, likelihood_B[ids], rtol=0, atol=1e-10)


def test_a_row_has_the_same_bits_at_its_place_in_any_company_of_the_same_size() -> None:
    model = make_prior(dtype=torch.float32)
    one = draw(model, [3, 9, 21, 6])
    other = draw(model, [3, 0, 7, 6])
    for row in (0, 3):
        assert torch.equal(one[0][row], other[0][row])
        assert torch.equal(one[1][row], other[1][row])


def test_guidance_1_equals_none_bit_for_bit() -> None:
    model, ids = make_prior(dtype=torch.float32), list(range(8))
    plain, guided = draw(model, ids), draw(model, ids, guidance=1.0)
    assert all(torch.equal(one, other) for one, other in zip(plain, guided, strict=True))


def test_guidance_0_equals_the_unconditional_prior() -> None:
    model, ids = make_prior(), list(range(30))
    null_BC = model.vocabulary.condition(torch.full((30,), -1))
    unconditional_BT, likelihood_B = draw_tokens(model, null_BC, GumbelNoise(draws_of(5, ids)))
    conditional_BT, _ = draw(model, ids)
    guided_BT, guided_likelihood_B = draw(model, ids, guidance=0.0)
    assert torch.equal(guided_BT, unconditional_BT)
    assert torch.equal(guided_likelihood_B, likelihood_B)
    assert not torch.equal(guided_BT, conditional_BT)


def test_one_branch_takes_one_row_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    model = make_prior()
    new_cache = model.new_cache
    monkeypatch.setattr(model, "new_cache", lambda batch: rows.append(batch) or new_cache(batch))
    for guidance in (1.0, 0.0, 2.0, Guidance(0.0, "linear")):
        draw(model, [0, 1, 2], guidance=guidance)
    assert rows == [3, 3, 6, 6]


def test_a_known_beginning_is_read_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, counts = make_prior(), []
    feed = model.feed
    monkeypatch.setattr(
        model,
        "feed",
        lambda tokens_BS, *rest, **cache: counts.append(tokens_BS.shape[1]) or feed(tokens_BS, *rest, **cache),
    )
    known_BT = torch.tensor([[5] * 6 + [-1] * 2 + [5] * 2 + [-1] * 2]).expand(3, 12)
    draw(model, [0, 1, 2], known_BT=known_BT)
    assert counts == [6, 1, 3, 1]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_likelihood_is_that_of_the_conditional_prior_without_filters(guidance: float) -> None:
    model, ids = make_prior(), list(range(8))
    tokens_BT, log_likelihood_B = draw(model, ids, guidance=guidance, logit_filter=LogitFilter(0.7, 5))
    condition_BC = model.vocabulary.condition(torch.tensor([sample % 3 for sample in ids]))
    with torch.no_grad():
        _, nats_BT = model.loss(condition_BC, tokens_BT)
    assert log_likelihood_B.dtype == torch.float64
    torch.testing.assert_close(log_likelihood_B, -nats_BT.sum(1), rtol=0, atol=1e-10)


def test_top_k_1_is_greedy_whatever_the_noise() -> None:
    model, ids = make_prior(), [0, 3, 6]
    tokens_BT, _ = draw(model, ids, logit_filter=LogitFilter(top_k=1))
    assert torch.equal(tokens_BT[0], tokens_BT[1]) and torch.equal(tokens_BT[0], tokens_BT[2])


def test_a_diverged_prior_is_refused() -> None:
    model = make_prior()
    model.head.weight.data[0, 0] = math.nan
    with pytest.raises(StageError, match="not finite"):
        draw(model, [0])
