"""Checkpoints of taming-transformers become ours, compute the same, and become theirs again, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from pipeline.errors import ConfigError, DataError
from stages.models.interop.__main__ import app
from stages.models.interop.folders import export_folder, import_checkpoint
from stages.models.interop.perceptual import lpips_weights
from stages.models.losses.discriminator import PatchDiscriminator, described_by
from stages.models.priors.load import load_prior
from stages.models.quantizers.configs import GumbelQuantizerConfig
from stages.models.tokenizer import Tokenizer
from stages.models.tokenizer_config import TokenizerModelConfig
from tests import peers
from tests.stages.models.interop import foreign

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def state_of(path: Path) -> dict[str, Tensor]:
    content: dict[str, dict[str, Tensor]] = torch.load(path, weights_only=True)
    return content["state_dict"]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same names in the same order, the same types, the same bytes."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert found[name].contiguous().numpy().tobytes() == tensor.contiguous().numpy().tobytes(), name


@pytest.fixture(scope="module")
def vqgan() -> Any:
    return foreign.their_vqgan()


@pytest.fixture(scope="module")
def imported(vqgan: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("vqgan")
    foreign.save(vqgan, place / "theirs.ckpt")
    report = import_checkpoint(place / "theirs.ckpt", place / "ours", image_size=foreign.SIZE)
    assert "0.7 M parameters, pictures of 16x16, 8x8 tokens of 40 codes (gradient)" in report[1]
    assert report[2] == "  discriminator: 8 channels, 2 layers"
    assert report[3].startswith("  kept aside: 33 tensors of loss.perceptual_loss")
    return place


def test_an_imported_vqgan_computes_what_theirs_does(vqgan: Any, imported: Path) -> None:
    ours, x_BCHW = Tokenizer.load(imported / "ours"), 2 * foreign.pictures() - 1
    with torch.no_grad():
        quantized_BCHW, _, (_, _, indices_BHW) = vqgan.encode(x_BCHW)
        torch.testing.assert_close(ours.encode_latents(x_BCHW), vqgan.quant_conv(vqgan.encoder(x_BCHW)), **CLOSE)
        torch.testing.assert_close(ours.decode(indices_BHW), vqgan.decode(quantized_BCHW).clamp(-1, 1), **CLOSE)
    assert torch.equal(ours.encode(x_BCHW), indices_BHW)
    assert len(indices_BHW.unique()) > 8

    weights = load_file(imported / "ours" / "tokenizer" / "discriminator.safetensors")
    config = described_by(weights)
    assert config is not None and (config.base_channels, config.num_layers, config.norm) == (8, 2, "batch")
    judge = PatchDiscriminator(config, channels=3)
    judge.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(judge.eval()(x_BCHW), vqgan.loss.discriminator(x_BCHW), **CLOSE)


def test_an_exported_vqgan_is_what_was_imported_and_its_yaml_file_builds_it(imported: Path) -> None:
    export_folder(imported / "ours", imported / "again.ckpt")
    assert_same(state_of(imported / "again.ckpt"), state_of(imported / "theirs.ckpt"))
    rebuilt = peers.built(imported / "again.yaml")
    rebuilt.load_state_dict(state_of(imported / "again.ckpt"))

    import_checkpoint(imported / "again.ckpt", imported / "second")  # the size of its pictures is in the YAML file
    for name in ("config.json", "model.safetensors", "discriminator.safetensors", "taming.safetensors"):
        paths = [imported / folder / "tokenizer" / name for folder in ("ours", "second")]
        assert paths[0].read_bytes() == paths[1].read_bytes(), name


def test_a_gumbel_vqgan_is_imported_with_its_schedule_and_exported_again(tmp_path: Path) -> None:
    theirs, params = foreign.their_gumbel_vqgan()
    foreign.save(theirs, tmp_path / "last.ckpt", params)
    import_checkpoint(tmp_path / "last.ckpt", tmp_path / "ours")
    ours, x_BCHW = Tokenizer.load(tmp_path / "ours"), 2 * foreign.pictures() - 1

    quantizer = ours.config.quantizer
    assert isinstance(quantizer, GumbelQuantizerConfig)
    assert (quantizer.kl_weight, quantizer.temperature_end, quantizer.temperature_steps) == (2e-8, 1e-6, 1000)
    with torch.no_grad():  # its own forward pass draws noise even in evaluation
        indices_BHW = theirs.quantize.proj(theirs.encode_to_prequant(x_BCHW)).argmax(dim=1)
        codes_BCHW = theirs.quantize.embed(indices_BHW).permute(0, 3, 1, 2)
        expected_BCHW = theirs.decode(codes_BCHW).clamp(-1, 1)
    assert torch.equal(ours.encode(x_BCHW), indices_BHW)
    assert len(indices_BHW.unique()) > 8
    torch.testing.assert_close(ours.decode(indices_BHW), expected_BCHW, **CLOSE)

    export_folder(tmp_path / "ours", tmp_path / "again.ckpt")
    assert_same(state_of(tmp_path / "again.ckpt"), state_of(tmp_path / "last.ckpt"))
    rebuilt = peers.built(tmp_path / "again.yaml")
    rebuilt.load_state_dict(state_of(tmp_path / "again.ckpt"))
    assert rebuilt.quantize.kl_weight == 2e-8


CONDITIONS = {
    "class": {"cond_stage_config": foreign.LABELLED},
    "unconditional": {"cond_stage_config": "__is_unconditional__", "sos_token": 2},
    "more rows than codes": {"cond_stage_config": foreign.LABELLED, "vocab_size": 50, "block_size": 70},
}


@pytest.fixture(params=CONDITIONS)
def net2net(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Path]]:
    settings = dict(CONDITIONS[request.param])
    params = foreign.net2net_params(settings.pop("cond_stage_config"), **settings)
    model = foreign.their_net2net(**params)
    foreign.save(model, tmp_path / "last.ckpt", params)
    import_checkpoint(tmp_path / "last.ckpt", tmp_path / "ours")
    yield model, tmp_path


def test_an_imported_transformer_has_their_logits_and_exports_to_their_bytes(net2net: tuple[Any, Path]) -> None:
    theirs, place = net2net
    ours = load_prior(place / "ours" / "prior")
    tokens_BT = torch.randint(0, 40, (3, 64), generator=torch.Generator().manual_seed(0))
    labels_B = torch.tensor([0, 4, 2])
    start_BC = labels_B[:, None] if ours.vocabulary.segments[0].size else torch.full((3, 1), 2)
    with torch.no_grad():
        expected_BTV = theirs.transformer(torch.cat([start_BC, tokens_BT], dim=1)[:, :-1])[0]
        found_BTV = ours(ours.vocabulary.condition(labels_B), tokens_BT)
    torch.testing.assert_close(found_BTV, expected_BTV[..., :40], **CLOSE)
    assert found_BTV.std() > 0.1

    export_folder(place / "ours", place / "again.ckpt")
    assert_same(state_of(place / "again.ckpt"), state_of(place / "last.ckpt"))
    rebuilt = peers.built(place / "again.yaml")
    rebuilt.load_state_dict(state_of(place / "again.ckpt"))


def test_a_prior_that_went_on_training_is_exported_with_rows_of_its_own(tmp_path: Path) -> None:
    params = foreign.net2net_params(foreign.LABELLED)
    foreign.save(foreign.their_net2net(**params), tmp_path / "last.ckpt", params)
    import_checkpoint(tmp_path / "last.ckpt", tmp_path / "ours")
    home = tmp_path / "ours" / "prior"
    weights = load_file(home / "model.safetensors")
    weights = {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in weights.items()}
    save_file(weights, home / "model.safetensors")

    report = export_folder(tmp_path / "ours", tmp_path / "again.ckpt")
    assert "class c is token 40 + c" in "\n".join(report)
    theirs, ours = peers.built(tmp_path / "again.yaml"), load_prior(home)
    theirs.load_state_dict(state_of(tmp_path / "again.ckpt"))
    tokens_BT, labels_B = torch.randint(0, 40, (2, 64)), torch.tensor([4, 1])
    with torch.no_grad():
        expected_BTV = theirs.transformer(torch.cat([40 + labels_B[:, None], tokens_BT], dim=1)[:, :-1])[0]
        found_BTV = ours(ours.vocabulary.condition(labels_B), tokens_BT)
    torch.testing.assert_close(found_BTV, expected_BTV[..., :40], **CLOSE)


class Boom:
    def __reduce__(self) -> Any:
        return print, ("executed",)


def test_a_file_that_holds_more_than_tensors_is_refused_unread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "callbacks": Boom()}, tmp_path / "bad.ckpt")
    with pytest.raises(DataError, match=r"bad.ckpt holds more than tensors \(\S*print\).*save its weights alone"):
        import_checkpoint(tmp_path / "bad.ckpt", tmp_path / "ours")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no checkpoint", "is no checkpoint of torch"),
        ({"state_dict": {"a": 3}}, "holds no state_dict"),
        ({"state_dict": {"a": torch.zeros(1)}}, "has no encoder.conv_in.weight: it is no VQGAN"),
        (None, "there is no checkpoint"),
    ],
)
def test_other_files_are_named_with_what_they_are(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "some.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(DataError, match=f"{message}"):
        import_checkpoint(path, tmp_path / "ours")


def test_what_no_tensor_tells_is_asked_for(tmp_path: Path) -> None:
    model = foreign.their_net2net(**foreign.net2net_params(foreign.LABELLED))
    path = foreign.save(model, tmp_path / "last.ckpt")
    known: dict[str, Any] = {"image_size": foreign.SIZE}
    with pytest.raises(DataError, match="number of classes: give --classes"):
        import_checkpoint(path, tmp_path / "ours", **known)
    with pytest.raises(DataError, match="number of heads: give --heads"):
        import_checkpoint(path, tmp_path / "ours", classes=foreign.CLASSES, **known)
    with pytest.raises(DataError, match="40 tokens and 64 positions are too few for 40 codes, 5 classes and 16384"):
        import_checkpoint(path, tmp_path / "ours", classes=foreign.CLASSES, heads=4)
    report = import_checkpoint(path, tmp_path / "ours", classes=foreign.CLASSES, heads=4, **known)
    assert "3 layers of 4 heads, 32 wide, 5 classes" in "\n".join(report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer.blocks.1.attn.mask": torch.ones(1, 1, 64, 64)}, "not causal"),
        ({"permuter.forward_shuffle_idx": torch.arange(64).flip(0)}, "an order of its own"),
        ({"cond_stage_model.encoder.conv_in.weight": torch.ones(1)}, "conditioned on maps"),
        ({"first_stage_model.quantize.used": torch.arange(3)}, "renumbers its codes"),
        ({"first_stage_model.encoder.more": torch.ones(1)}, "has beyond ours encoder.more"),
    ],
)
def test_models_that_ours_cannot_be_are_refused(tmp_path: Path, change: dict[str, Tensor], message: str) -> None:
    params = foreign.net2net_params("__is_unconditional__")
    weights = {**foreign.their_net2net(**params).state_dict(), **change}
    if "conditioned" in message:
        params = {key: value for key, value in params.items() if key != "cond_stage_config"}
    torch.save({"state_dict": weights}, tmp_path / "last.ckpt")
    (tmp_path / "model.yaml").write_text(json.dumps({"model": {"params": params}}))
    with pytest.raises(DataError, match=message):
        import_checkpoint(tmp_path / "last.ckpt", tmp_path / "ours")


def test_a_tokenizer_that_theirs_cannot_be_is_refused(tmp_path: Path) -> None:
    Tokenizer(TokenizerModelConfig(), image_size=16, channels=3).save(tmp_path)
    with pytest.raises(ConfigError, match=r"no backbone light.*backbone.kind=reference"):
        export_folder(tmp_path, tmp_path / "ours.ckpt")
    with pytest.raises(DataError, match="holds no tokenizer"):
        export_folder(tmp_path / "elsewhere", tmp_path / "ours.ckpt")


def test_lpips_made_anew_is_what_theirs_saves() -> None:
    with peers.random_vgg_weights():
        found = lpips_weights()
    expected = peers.taming_lpips().state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_command_line_reports_and_fails_with_an_exit_code(imported: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    done = run(app, ["import", str(imported / "again.ckpt"), "--out", str(tmp_path / "ours")])
    assert (done.exit_code, done.output.splitlines()[0]) == (0, f"{imported / 'again.ckpt'}: 204 tensors")
    done = run(app, ["export", str(tmp_path / "ours"), "--out", str(tmp_path / "back.ckpt")])
    assert (done.exit_code, (tmp_path / "back.yaml").exists()) == (0, True)
    failed = run(app, ["import", str(tmp_path / "none.ckpt"), "--out", str(tmp_path / "ours")])
    assert (failed.exit_code, failed.stderr.startswith("error: there is no checkpoint")) == (3, True)
