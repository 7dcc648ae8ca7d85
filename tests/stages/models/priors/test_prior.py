"""What every prior promises, whatever its kind, form and order: caches, causality, files, noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.config import StrictModel, validate
from pipeline.errors import ConfigError, DataError
from stages.models.dropout import sample_keys
from stages.models.priors.configs import GPTConfig, PixelCNNConfig, PriorDescription, PriorModelConfig
from stages.models.priors.fixed_step import FixedStep
from stages.models.priors.gpt import GPT
from stages.models.priors.load import build_prior, load_prior
from stages.models.priors.prior import Prior, Stretch
from stages.models.vocabulary import TokenSpace
from stages.training.activations import checkpoint_activations

CODES, GRID, NUM_TOKENS, CLASSES = 11, (3, 5), 15, ("a", "b", "c")
SPACE = TokenSpace(tokenizer="d" * 64, codebook_size=CODES, grid=GRID, classes=CLASSES, image_size=40, channels=3)
SMALL_GPT: dict[str, Any] = {"num_layers": 2, "num_heads": 2, "width": 16}
CONFIGS = {
    "gpt": GPTConfig(**SMALL_GPT),
    "gpt, Z-curve": GPTConfig(**SMALL_GPT, order="z_curve"),
    "modern gpt": GPTConfig(**SMALL_GPT, form="modern"),
    "modern gpt, Z-curve": GPTConfig(**SMALL_GPT, form="modern", order="z_curve"),
    "pixelcnn": PixelCNNConfig(num_blocks=5, width=12, head_width=10),
    "pixelcnn of 5x5 windows": PixelCNNConfig(num_blocks=2, width=12, head_width=10, kernel_size=5),
}


@pytest.fixture(params=list(CONFIGS))
def config(request: pytest.FixtureRequest) -> PriorModelConfig:
    return CONFIGS[request.param]


def make_prior(config: PriorModelConfig, **settings: float) -> Prior:
    """A float64 model whose logits are far from uniform; without noise but for `settings`."""
    torch.manual_seed(0)
    quiet = config.model_copy(update={"dropout": 0.0, "condition_dropout": 0.0, **settings})
    model = build_prior(PriorDescription.of(quiet, SPACE)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def some_batch(size: int = 4) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    condition_BC = SPACE.vocabulary.condition(torch.randint(-1, 3, (size,)))
    return condition_BC, torch.randint(0, CODES, (size, NUM_TOKENS))


def cached_logits(model: Prior, condition_BC: Tensor, tokens_BT: Tensor, cache: Any) -> Tensor:
    """Logits [B, T, V] in raster order, from one step after the other."""
    logits = [model.prefill(condition_BC, cache)]
    logits += [model.step(tokens_BT[:, place], t, cache) for t, place in enumerate(model.order[:-1])]
    places_T = torch.tensor(model.order).argsort()
    return torch.stack(logits, dim=1)[:, places_T]


@torch.inference_mode()
def test_cached_steps_equal_the_whole_pass(config: PriorModelConfig) -> None:
    model, (condition_BC, tokens_BT) = make_prior(config), some_batch()
    logits_BTV = model(condition_BC, tokens_BT)
    assert logits_BTV.shape == (4, NUM_TOKENS, CODES)
    assert logits_BTV.std() > 0.1
    found_BTV = cached_logits(model, condition_BC, tokens_BT, model.new_cache(4))
    torch.testing.assert_close(found_BTV, logits_BTV, rtol=0, atol=1e-11)


@torch.inference_mode()
def test_a_reused_cache_forgets_the_pictures_before(config: PriorModelConfig) -> None:
    model, (condition_BC, tokens_BT) = make_prior(config), some_batch()
    cache = model.new_cache(4)
    first_BTV = cached_logits(model, condition_BC, tokens_BT, cache)
    cached_logits(model, condition_BC.flip(0), tokens_BT.flip(0), cache)
    assert torch.equal(cached_logits(model, condition_BC, tokens_BT, cache), first_BTV)


@torch.inference_mode()
def test_tokens_fed_in_runs_give_the_logits_of_single_steps(config: PriorModelConfig) -> None:
    model, (condition_BC, tokens_BT) = make_prior(config), some_batch()
    ordered_BT = tokens_BT[:, list(model.order)]
    logits_BTV = model(condition_BC, tokens_BT)[:, list(model.order)]
    cache = model.new_cache(4)
    found = {0: model.prefill(condition_BC, cache)}
    for begin, end in ((0, 4), (4, 5), (5, 11), (11, 14)):
        found[end] = model.feed(ordered_BT[:, begin:end], begin, cache)
    for position, found_BV in found.items():
        torch.testing.assert_close(found_BV, logits_BTV[:, position], rtol=0, atol=1e-11)
    with pytest.raises(AssertionError, match="no token follows 14"):
        model.feed(ordered_BT[:, 14:], 14, cache)


@torch.inference_mode()
def test_stretches_of_any_length_are_read_at_once(config: PriorModelConfig) -> None:
    model, (condition_BC, tokens_BT) = make_prior(config), some_batch()
    sequence_BS = torch.cat([condition_BC, tokens_BT[:, list(model.order)]], dim=1)
    logits_BTV = model(condition_BC, tokens_BT)[:, list(model.order)]
    logits_LV = model.read([Stretch(sequence_BS[:, :9]), Stretch(sequence_BS[1:3, :1]), Stretch(sequence_BS[:1, :15])])
    expected_LV = torch.cat([logits_BTV[:, 8], logits_BTV[1:3, 0], logits_BTV[:1, 14]])
    torch.testing.assert_close(logits_LV, expected_LV, rtol=0, atol=1e-11)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["gpt", "gpt, Z-curve", "modern gpt", "modern gpt, Z-curve"])
def test_a_gpt_reads_on_where_each_stretch_stopped(name: str) -> None:
    model, (condition_BC, tokens_BT) = make_prior(CONFIGS[name]), some_batch()
    sequence_BS = torch.cat([condition_BC, tokens_BT[:, list(model.order)]], dim=1)
    logits_BTV = model(condition_BC, tokens_BT)[:, list(model.order)]
    long, short = model.new_cache(4, length=14), model.new_cache(2, length=3)
    model.read([Stretch(sequence_BS[:, :6], 0, long), Stretch(sequence_BS[2:, :2], 0, short)])
    logits_LV = model.read(
        [
            Stretch(sequence_BS[:, 6:14], 6, long),
            Stretch(sequence_BS[2:, 2:3], 2, short),
            Stretch(sequence_BS[:1, :10]),
        ]
    )
    expected_LV = torch.cat([logits_BTV[:, 13], logits_BTV[2:, 2], logits_BTV[:1, 9]])
    torch.testing.assert_close(logits_LV, expected_LV, rtol=0, atol=1e-11)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["gpt", "gpt, Z-curve", "modern gpt", "modern gpt, Z-curve"])
def test_steps_of_fixed_shape_equal_the_ordinary_ones(name: str) -> None:
    model, (condition_BC, tokens_BT) = make_prior(CONFIGS[name]), some_batch()
    assert isinstance(model, GPT)
    ordered_BT = tokens_BT[:, list(model.order)]
    expected_BTV = model(condition_BC, tokens_BT)[:, list(model.order)]
    cache = model.new_cache(4)
    for layer in cache:
        layer.keys_BHPD.fill_(torch.nan)  # as memory that was never written may be
    model.prefill(condition_BC, cache)
    step = FixedStep(model, cache)
    for begin, end in [(0, 1), (1, 2), (2, 6), *((place, place + 1) for place in range(6, NUM_TOKENS - 1))]:
        logits_BV = step(ordered_BT[:, begin:end], begin)
        torch.testing.assert_close(logits_BV, expected_BTV[:, end], rtol=0, atol=1e-11)


@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-4), (torch.float16, 0.02), (torch.bfloat16, 0.4)])
def test_weights_laid_out_for_drawing_give_the_same_logits(
    config: PriorModelConfig, dtype: torch.dtype | None, tolerance: float
) -> None:
    model, (condition_BC, tokens_BT) = make_prior(config).float(), some_batch()
    expected_BTV = cached_logits(model, condition_BC, tokens_BT, model.new_cache(4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawing = model.for_drawing(dtype)
    cache = drawing.new_cache(4)
    found_BTV = cached_logits(drawing, condition_BC, tokens_BT, cache)
    assert found_BTV.dtype == torch.float32
    assert (found_BTV - expected_BTV).abs().max() < tolerance * expected_BTV.std()
    for name, value in drawing.state_dict().items():
        assert torch.equal(value.float(), before[name].to(value.dtype).float())
    if isinstance(model.config, GPTConfig) and dtype == torch.float16:
        assert (found_BTV - expected_BTV).abs().max() > 1e-6
        assert cache[0].keys_BHPD.dtype == torch.float32
    if isinstance(model.config, GPTConfig) and dtype == torch.bfloat16:
        assert cache[0].keys_BHPD.dtype == torch.bfloat16
        assert model.cache_bytes == 2 * 2 * 16 * 2  # keys and values, layers, width, bytes


@torch.inference_mode()
def test_a_token_changes_all_logits_after_it_and_no_other(config: PriorModelConfig) -> None:
    model, (condition_BC, tokens_BT) = make_prior(config), some_batch()
    logits_BTV = model(condition_BC, tokens_BT)
    for t, place in enumerate(model.order):
        changed_BT = tokens_BT.clone()
        changed_BT[:, place] = (changed_BT[:, place] + 1) % CODES
        moved_T = (model(condition_BC, changed_BT) != logits_BTV).any(dim=-1).any(dim=0)
        assert {p for p in range(NUM_TOKENS) if moved_T[p]} == set(model.order[t + 1 :])


@torch.inference_mode()
def test_the_condition_reaches_every_place(config: PriorModelConfig) -> None:
    model, (_, tokens_BT) = make_prior(config), some_batch()
    one, other = (model(SPACE.vocabulary.condition(torch.full((4,), label)), tokens_BT) for label in (0, 2))
    assert ((one - other).abs().amax(dim=-1) > 1e-6).all()


def test_every_parameter_learns(config: PriorModelConfig) -> None:
    model = make_prior(config)
    model.loss(*some_batch(40))[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_nats_are_those_of_the_logits(config: PriorModelConfig) -> None:
    model, (condition_BC, tokens_BT) = make_prior(config), some_batch()
    mean, nats_BT = model.loss(condition_BC, tokens_BT)
    probabilities_BTV = model(condition_BC, tokens_BT).softmax(-1)
    expected_BT = -probabilities_BTV.gather(-1, tokens_BT[..., None])[..., 0].log()
    torch.testing.assert_close(nats_BT, expected_BT, rtol=0, atol=1e-12)
    assert mean.item() == pytest.approx(expected_BT.mean().item())


def test_keys_alone_switch_on_what_training_adds(config: PriorModelConfig) -> None:
    noisy, quiet = make_prior(config, dropout=0.3, pkeep=0.7, condition_dropout=0.5).train(), make_prior(config)
    batch, keys_B = some_batch(), sample_keys(0, torch.arange(4))
    assert torch.equal(noisy(*batch), quiet(*batch))
    assert torch.equal(quiet(*batch, keys_B), quiet(*batch))
    assert torch.equal(noisy(*batch, keys_B), noisy.eval()(*batch, keys_B))
    for noise in ({"dropout": 0.3}, {"pkeep": 0.5}, {"condition_dropout": 0.8}):
        assert not torch.allclose(make_prior(config, **noise)(*batch, keys_B), quiet(*batch), atol=1e-3)


def test_noise_belongs_to_the_sample(config: PriorModelConfig) -> None:
    model = make_prior(config, dropout=0.3, pkeep=0.7, condition_dropout=0.5)
    (condition_BC, tokens_BT), keys_B = some_batch(), sample_keys(0, torch.arange(4))
    whole_BT = model.loss(condition_BC, tokens_BT, keys_B)[1]
    parts = [model.loss(condition_BC[part], tokens_BT[part], keys_B[part])[1] for part in ([3], [0, 1, 2])]
    torch.testing.assert_close(torch.cat([parts[1], parts[0]]), whole_BT, rtol=0, atol=1e-12)


def test_checkpointed_activations_give_the_same_gradient(config: PriorModelConfig) -> None:
    batch, keys_B = some_batch(), sample_keys(0, torch.arange(4))

    def gradients(checkpointed: bool) -> list[Tensor | None]:
        model = make_prior(config, dropout=0.3)
        if checkpointed:
            assert checkpoint_activations(model) == len(list(model.blocks))  # type: ignore[arg-type]
        model.loss(*batch, keys_B)[0].backward()
        return [parameter.grad for parameter in model.parameters()]

    torch.testing.assert_close(gradients(True), gradients(False), rtol=1e-12, atol=1e-15)


@pytest.mark.filterwarnings("error")
def test_under_autocast_it_is_the_same_model(config: PriorModelConfig) -> None:
    model, batch = make_prior(config).float(), some_batch()
    with torch.no_grad():
        expected = model.loss(*batch)[0].item()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model.loss(*batch)[0].item() == pytest.approx(expected, rel=0.03)


def test_only_weights_of_matrix_products_and_convolutions_decay(config: PriorModelConfig) -> None:
    model = make_prior(config)
    decayed, others = ({id(p) for p in group["params"]} for group in model.optimizer_groups(0.05))
    for name, parameter in model.named_parameters():
        looked_up = "embedding" in name
        assert (id(parameter) in decayed) == (parameter.ndim > 1 and not looked_up), name
        assert (id(parameter) in others) != (id(parameter) in decayed), name


def test_weights_and_description_survive_files(config: PriorModelConfig, tmp_path: Path) -> None:
    model = make_prior(config).float()
    description = PriorDescription.of(config, SPACE)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        model.save(tmp_path / name, description)
    loaded = load_prior(tmp_path / "one")
    assert not loaded.training and loaded.config == config
    assert torch.equal(loaded(*some_batch()), model(*some_batch()))
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_description_from_before_there_were_kinds_is_a_gpts(tmp_path: Path) -> None:
    model = make_prior(CONFIGS["gpt"]).float()
    model.save(tmp_path, PriorDescription.of(CONFIGS["gpt"], SPACE))
    text = json.loads((tmp_path / "config.json").read_text())
    for new in ("kind", "form", "order"):
        del text["model"][new]
    (tmp_path / "config.json").write_text(json.dumps(text))
    assert torch.equal(load_prior(tmp_path)(*some_batch()), model(*some_batch()))


def test_folders_that_hold_no_prior_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no config.json in .*: run --stages prior"):
        load_prior(tmp_path)
    make_prior(CONFIGS["gpt"]).save(tmp_path, PriorDescription.of(CONFIGS["pixelcnn"], SPACE))
    with pytest.raises(DataError, match=r"model.safetensors does not fit .*config.json"):
        load_prior(tmp_path)


class Holder(StrictModel):
    """A section with a prior in it."""

    model: PriorModelConfig = GPTConfig()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "pixelcnn", "order": "z_curve"}, "model: order z_curve: a PixelCNN sees .* set kind to gpt"),
        ({"kind": "pixelcnn", "kernel_size": 4}, "kernel_size 4 has no middle: use 5"),
        ({"kind": "pixelcnn", "num_layers": 4}, "model.num_layers: unknown key; "),
        ({"width": 36, "num_heads": 6, "form": "modern"}, "gives each of 6 heads 6 channels, .* use 48"),
        ({"order": "spiral"}, "model.order: Input should be 'raster' or 'z_curve'"),
        ({"widht": 36}, "model.widht: unknown key; did you mean width?"),
        ({"kind": "vae"}, "model: Input tag 'vae' found using 'kind' does not match"),
    ],
)
def test_contradictions_in_the_config_name_the_remedy(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(Holder, {"model": keys}, "test")


def test_a_model_without_kind_is_a_gpt() -> None:
    assert validate(Holder, {"model": {"width": 64}}, "test").model == GPTConfig(width=64)
    assert Holder.model_validate_json('{"model": {"kind": "pixelcnn"}}').model == PixelCNNConfig()
    with pytest.raises(ValidationError):
        Holder.model_validate({"model": 3})
