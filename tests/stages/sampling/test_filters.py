"""Temperature, top-k and top-p against plain loops."""

import math

import pytest
import torch

from stages.sampling.filters import LogitFilter, keep_top_k, keep_top_p


def kept(logits_BV: torch.Tensor) -> list[list[int]]:
    return [torch.nonzero(row > -torch.inf).flatten().tolist() for row in logits_BV]


def plain_top_k(logits: list[float], k: int) -> list[int]:
    threshold = sorted(logits, reverse=True)[min(k, len(logits)) - 1]
    return [code for code, logit in enumerate(logits) if logit >= threshold]


def plain_top_p(logits: list[float], p: float) -> list[int]:
    total = sum(math.exp(logit) for logit in logits)
    order = sorted(range(len(logits)), key=lambda code: -logits[code])
    chosen, mass = [], 0.0
    for code in order:
        chosen.append(code)
        mass += math.exp(logits[code]) / total
        if mass > p:
            break
    return sorted(chosen)


@pytest.mark.parametrize("k", [1, 3, 20, 50])
def test_top_k_keeps_what_a_plain_loop_keeps(k: int) -> None:
    torch.manual_seed(k)
    logits_BV = torch.randint(-5, 5, (30, 20)).double()  # many ties
    assert kept(keep_top_k(logits_BV, k)) == [plain_top_k(row.tolist(), k) for row in logits_BV]


def test_top_k_keeps_all_that_tie_with_the_last() -> None:
    assert kept(keep_top_k(torch.tensor([[2.0, 1.0, 1.0, 0.0]]), 2)) == [[0, 1, 2]]


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.92, 1.0])
def test_top_p_keeps_what_a_plain_loop_keeps(p: float) -> None:
    torch.manual_seed(0)
    logits_BV = 2 * torch.randn(30, 20, dtype=torch.float64)
    assert kept(keep_top_p(logits_BV, p)) == [plain_top_p(row.tolist(), p) for row in logits_BV]


def test_top_p_keeps_the_first_code_over_the_threshold() -> None:
    logits_BV = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert kept(keep_top_p(logits_BV, 0.6)) == [[0, 1]]
    assert kept(keep_top_p(logits_BV, 0.4)) == [[0]]


def test_top_p_prefers_the_lower_code_among_equals() -> None:
    assert kept(keep_top_p(torch.zeros(1, 8), 0.45)) == [[0, 1, 2, 3]]


def test_kept_logits_are_unchanged() -> None:
    torch.manual_seed(0)
    logits_BV = torch.randn(4, 20)
    for filtered_BV in (keep_top_k(logits_BV, 5), keep_top_p(logits_BV, 0.5)):
        inside_BV = filtered_BV > -torch.inf
        assert torch.equal(filtered_BV[inside_BV], logits_BV[inside_BV])


def test_the_order_is_temperature_then_top_k_then_top_p() -> None:
    logits = [3.0, 2.0, 1.0, 0.0, -1.0]

    def codes(p: float) -> list[int]:
        return kept(LogitFilter(temperature=2.0, top_k=3, top_p=p)(torch.tensor([logits], dtype=torch.float64)))[0]

    # Temperature 2, then top-k 3: the shares are 0.506, 0.307, 0.186.
    assert codes(0.6) == [0, 1]
    assert codes(0.75) == [0, 1]
    assert plain_top_p(logits[:3], 0.6) == [0]  # temperature after top-p: 0.665 passes alone
    assert plain_top_p([logit / 2 for logit in logits], 0.75) == [0, 1, 2]  # top-k after top-p: 0.429, 0.260, 0.158


def test_defaults_change_nothing() -> None:
    logits_BV = torch.randn(4, 20)
    assert LogitFilter()(logits_BV) is logits_BV
