"""The reference form of the GPT against a naive transformer, and what training does to it at random."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stages.models.dropout import random_words, sample_keys
from stages.models.priors import cross_entropy
from stages.models.priors.configs import GPTConfig
from stages.models.priors.cross_entropy import token_nats
from stages.models.priors.gpt import GPT
from stages.models.priors.prior import CONDITION_SITE, TOKEN_SITE
from stages.models.vocabulary import Vocabulary

VOCABULARY = Vocabulary.by_class(11, 3)
GRID, NUM_TOKENS = (3, 3), 9


def make_gpt(**settings: float) -> GPT:
    """A float64 model whose logits are far from uniform."""
    torch.manual_seed(0)
    keys = {"dropout": 0.0, "condition_dropout": 0.0, **settings}
    config = GPTConfig(num_layers=2, num_heads=2, width=16, **keys)  # type: ignore[arg-type]
    model = GPT(config, vocabulary=VOCABULARY, grid=GRID).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def some_batch(size: int = 5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    condition_BC = VOCABULARY.condition(torch.randint(-1, 3, (size,)))
    return condition_BC, torch.randint(0, 11, (size, NUM_TOKENS))


def naive_logits(model: GPT, condition: list[int], tokens: list[int]) -> Tensor:
    """Logits of every image token of one sequence, one position and one head at a time."""
    weights = model.state_dict()

    def norm(x: Tensor, name: str) -> Tensor:
        scaled = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    inputs = [*condition, *tokens[:-1]]
    table, positions = weights["token_embedding.weight"], weights["position_embedding_PW"]
    xs = [table[token] + positions[p] for p, token in enumerate(inputs)]
    for block in ("blocks.0", "blocks.1"):
        qkv = [linear(norm(x, f"{block}.attention_norm"), f"{block}.attention.qkv").split(16) for x in xs]
        for p in range(len(xs)):
            heads = []
            for head in (slice(0, 8), slice(8, 16)):
                scores = torch.stack([qkv[p][0][head] @ qkv[q][1][head] / math.sqrt(8) for q in range(p + 1)])
                shares = scores.exp() / scores.exp().sum()
                heads.append(sum(share * qkv[q][2][head] for q, share in enumerate(shares)))
            xs[p] = xs[p] + linear(torch.cat(heads), f"{block}.attention.out")
        for p, x in enumerate(xs):
            hidden = linear(norm(x, f"{block}.mlp_norm"), f"{block}.mlp.0")
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
            xs[p] = x + linear(hidden, f"{block}.mlp.2")
    return torch.stack([weights["head.weight"] @ norm(x, "norm") for x in xs[len(condition) - 1 :]])


def test_forward_equals_a_naive_transformer() -> None:
    model = make_gpt()
    condition_BC, tokens_BT = some_batch()
    logits_BTV = model(condition_BC, tokens_BT)
    assert logits_BTV.shape == (5, NUM_TOKENS, 11)
    for n in range(5):
        expected_TV = naive_logits(model, condition_BC[n].tolist(), tokens_BT[n].tolist())
        torch.testing.assert_close(logits_BTV[n], expected_TV, rtol=0, atol=1e-11)


def test_an_untrained_model_is_nearly_uniform() -> None:
    model = GPT(GPTConfig(num_layers=2, num_heads=2, width=16), vocabulary=VOCABULARY, grid=GRID).eval()
    loss, _ = model.loss(*some_batch(50))
    assert loss.item() == pytest.approx(math.log(11), abs=0.02)


def test_dropout_equals_a_naive_network_with_the_same_masks() -> None:
    """Each site has a mask of its own, on the embedding and on what the branches add."""
    model, keys_B = make_gpt(dropout=0.3), sample_keys(5, torch.arange(5))
    condition_BC, tokens_BT = some_batch()
    dropouts = [model.dropout] + [d for b in model.blocks for d in (b.attention_dropout, b.mlp_dropout)]
    assert len({dropout.site for dropout in dropouts} | {CONDITION_SITE, TOKEN_SITE}) == 7
    factors = [dropout.mask(keys_B, torch.Size((NUM_TOKENS, 16))) / (179 / 256) for dropout in dropouts]

    inputs_BS = torch.cat([condition_BC, tokens_BT[:, :-1]], dim=1)
    x_BSW = (model.token_embedding(inputs_BS) + model.position_embedding_PW) * factors[0]
    for number, block in enumerate(model.blocks):
        x_BSW = x_BSW + block.attention(block.attention_norm(x_BSW)) * factors[1 + 2 * number]
        x_BSW = x_BSW + block.mlp(block.mlp_norm(x_BSW)) * factors[2 + 2 * number]
    expected_BTV = model.head(model.norm(x_BSW))

    torch.testing.assert_close(model(condition_BC, tokens_BT, keys_B), expected_BTV, rtol=0, atol=1e-11)


def test_replaced_tokens_change_what_is_read_but_not_what_is_asked_for() -> None:
    """With pkeep 0 every input token is noise: the loss of the true tokens, read from random ones."""
    model, keys_B = make_gpt(pkeep=0.0), sample_keys(5, torch.arange(40))
    condition_BC, tokens_BT = some_batch(40)
    _, nats_BT = model.loss(condition_BC, tokens_BT, keys_B)
    words_BT = random_words(keys_B, TOKEN_SITE, NUM_TOKENS).numpy().view(np.uint64)
    noise_BT = torch.from_numpy(((words_BT >> np.uint64(32)) * np.uint64(11) >> np.uint64(32)).astype(np.int64))
    assert set(noise_BT.flatten().tolist()) == set(range(11))
    expected_BT = token_nats(model(condition_BC, noise_BT), tokens_BT)
    torch.testing.assert_close(nats_BT, expected_BT, rtol=0, atol=1e-12)


def test_dropped_conditions_are_the_null_class() -> None:
    model, keys_B = make_gpt(condition_dropout=0.4), sample_keys(5, torch.arange(200))
    condition_BC, tokens_BT = torch.full((200, 1), 12), some_batch(200)[1]
    given_BTV, noisy_BTV = model(condition_BC, tokens_BT), model(condition_BC, tokens_BT, keys_B)
    null_BTV = model(VOCABULARY.null_condition(condition_BC), tokens_BT)
    is_given_B, is_null_B = ((noisy_BTV == other_BTV).flatten(1).all(dim=1) for other_BTV in (given_BTV, null_BTV))
    assert torch.equal(is_given_B, ~is_null_B)
    assert is_null_B.double().mean().item() == pytest.approx(0.4, abs=0.12)


def test_sliced_logits_give_the_same_loss_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients() -> list[Tensor]:
        model = make_gpt(dropout=0.2)
        loss, nats_BT = model.loss(*some_batch(), sample_keys(0, torch.arange(5)))
        loss.backward()
        return [loss.detach(), nats_BT.detach(), *(parameter.grad for parameter in model.parameters())]

    whole = gradients()
    monkeypatch.setattr(cross_entropy, "WHOLE_LOGITS", 0)
    monkeypatch.setattr(cross_entropy, "SLICE_LOGITS", 7 * 11)
    torch.testing.assert_close(gradients(), whole, rtol=1e-12, atol=1e-13)


def test_only_weights_of_matrix_products_decay() -> None:
    model = make_gpt()
    decayed, others = model.optimizer_groups(0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    linear = ("attention.qkv", "attention.out", "mlp.0", "mlp.2")
    expected = {f"blocks.{n}.{layer}.weight" for n in range(2) for layer in linear} | {"head.weight"}
    assert {names[id(parameter)] for parameter in decayed["params"]} == expected
    assert {names[id(parameter)] for parameter in others["params"]} == set(names.values()) - expected


def test_a_width_that_heads_cannot_share_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(ValidationError, match="width 100 is not a multiple of num_heads 8: use 96 or 104"):
        GPTConfig(width=100, num_heads=8)
