"""The modern form of the GPT against a naive transformer: complex rotations, one position and one head at a time."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor

from stages.models.priors.configs import GPTConfig
from stages.models.priors.gpt import GPT
from stages.models.priors.token_order import places_in_order
from stages.models.vocabulary import Segment, Vocabulary

GRID, CODES = (3, 4), 11


VOCABULARY = Vocabulary(CODES, (Segment(kind="caption", length=3, size=3),))


def make_gpt(order: str) -> GPT:
    """A float64 model whose logits are far from uniform: 2 heads of 8 channels."""
    torch.manual_seed(0)
    config = GPTConfig(form="modern", order=order, num_layers=2, num_heads=2, width=16, dropout=0)  # type: ignore[arg-type]
    model = GPT(config, vocabulary=VOCABULARY, grid=GRID).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / math.sqrt(sum(value * value for value in x.tolist()) / len(x) + 1e-5) * weight


def turned(x_D: Tensor, place: tuple[int, int]) -> Tensor:
    """Channels d and d + 4 as one complex number: 2 turn with the row, 2 with the column, at speeds 1 and 1/100."""
    numbers = []
    for pair, (axis, speed) in enumerate([(0, 1.0), (0, 0.01), (1, 1.0), (1, 0.01)]):
        numbers.append(complex(x_D[pair], x_D[pair + 4]) * cmath.exp(1j * place[axis] * speed))
    return torch.tensor([n.real for n in numbers] + [n.imag for n in numbers], dtype=torch.float64)


def naive_logits(model: GPT, condition: list[int], tokens: list[int], order: tuple[int, ...]) -> dict[int, Tensor]:
    """Logits of each place of one picture."""
    weights = model.state_dict()
    inputs = [*condition, *(tokens[place] for place in order[:-1])]
    places = [(-3, -3), (-2, -2), (-1, -1), *(divmod(place, GRID[1]) for place in order[:-1])]
    xs = [weights["token_embedding.weight"][token] for token in inputs]
    for name in ("blocks.0.", "blocks.1."):
        block = {key.removeprefix(name): value for key, value in weights.items() if key.startswith(name)}
        heads_of = []
        for x, place in zip(xs, places, strict=True):
            query, key, value = (block["attention.qkv.weight"] @ rms_norm(x, block["attention_norm.weight"])).split(16)
            queries = [turned(rms_norm(q, block["attention.query_norm.weight"]), place) for q in query.split(8)]
            keys = [turned(rms_norm(k, block["attention.key_norm.weight"]), place) for k in key.split(8)]
            heads_of.append((queries, keys, value.split(8)))
        for p in range(len(xs)):
            mixed = []
            for head in range(2):
                scores = torch.stack([heads_of[p][0][head] @ heads_of[q][1][head] / math.sqrt(8) for q in range(p + 1)])
                mixed.append(sum(share * heads_of[q][2][head] for q, share in enumerate(scores.softmax(0))))
            xs[p] = xs[p] + block["attention.out.weight"] @ torch.cat(mixed)
        for p, x in enumerate(xs):
            gate, value = (block["mlp.gate_and_value.weight"] @ rms_norm(x, block["mlp_norm.weight"])).chunk(2)
            xs[p] = x + block["mlp.out.weight"] @ (gate / (1 + (-gate).exp()) * value)
    return {
        place: weights["head.weight"] @ rms_norm(x, weights["norm.weight"])
        for place, x in zip(order, xs[len(condition) - 1 :], strict=True)
    }


@torch.no_grad()
@pytest.mark.parametrize("order", ["raster", "z_curve"])
def test_forward_equals_a_naive_transformer(order: str) -> None:
    model, in_order = make_gpt(order), places_in_order(order, GRID)  # type: ignore[arg-type]
    condition_BC, tokens_BT = torch.randint(CODES, CODES + 4, (2, 3)), torch.randint(0, CODES, (2, 12))
    logits_BTV = model(condition_BC, tokens_BT)
    for n in range(2):
        expected = naive_logits(model, condition_BC[n].tolist(), tokens_BT[n].tolist(), in_order)
        for place, expected_V in expected.items():
            torch.testing.assert_close(logits_BTV[n, place], expected_V, rtol=0, atol=1e-11)


def test_the_mlp_has_as_many_weights_as_the_references() -> None:
    for width in (192, 320, 1024):
        both = [
            GPT(GPTConfig(width=width, num_layers=1, form=form), vocabulary=Vocabulary.by_class(8, 0), grid=GRID)  # type: ignore[arg-type]
            for form in ("reference", "modern")
        ]
        reference, modern = (sum(p.numel() for p in gpt.blocks[0].mlp.parameters()) for gpt in both)
        assert modern == pytest.approx(reference, rel=0.06)
