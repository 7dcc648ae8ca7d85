"""Imports a checkpoint of taming-transformers into folders of ours, and exports such folders.

Beside the files that every model of ours has lie the discriminator's weights and, in `taming.*`, what ours has no
place for, so that an export gives back every tensor of what was imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import DataError
from pipeline.storage import Folder, content_hash
from stages.models.interop.checkpoint import Weights, read_checkpoint, write_checkpoint
from stages.models.interop.config_file import write_config
from stages.models.interop.net2net import (
    FIRST_STAGE,
    Leftover,
    Net2Net,
    gpt_of,
    net2net_params,
    net2net_weights,
    read_net2net,
)
from stages.models.interop.vqgan import VQGAN, read_vqgan, vqgan_config, vqgan_weights
from stages.models.losses.discriminator import described_by
from stages.models.pretrained import CONFIG, JUDGE, WEIGHTS, home_of
from stages.models.pretrained_weights import discriminator_weights
from stages.models.priors.configs import PriorDescription
from stages.models.priors.load import build_prior
from stages.models.tokenizer import Tokenizer
from stages.models.weights import read_weights

REST, LEFTOVER = "taming.safetensors", "taming.json"


def import_checkpoint(
    path: Path,
    out: Path,
    *,
    config: Path | None = None,
    image_size: int | None = None,
    heads: int | None = None,
    classes: int | None = None,
) -> list[str]:
    """Write `out/tokenizer`, and `out/prior` where the checkpoint holds a transformer; return lines for people.

    Raises DataError where the checkpoint is not one that ours can be.
    """
    checkpoint = read_checkpoint(path, config)
    whole = checkpoint.has("transformer.")
    first_params = checkpoint.params.get("first_stage_config", {}).get("params", {})
    first = checkpoint.below(FIRST_STAGE, first_params) if whole else checkpoint
    vqgan = read_vqgan(first, image_size)
    home = out / "tokenizer"
    _save_vqgan(vqgan, home)
    lines = [f"{path}: {len(checkpoint.weights)} tensors", *_told_of_vqgan(vqgan, home)]
    if whole:
        digest = content_hash(home / WEIGHTS)
        prior = read_net2net(checkpoint, vqgan, tokenizer=digest, heads=heads, classes=classes)
        _save_net2net(prior, out / "prior")
        lines += _told_of_net2net(prior, out / "prior")
    return lines


def export_folder(folder: Path, out: Path, *, perceptual: Weights | None = None) -> list[str]:
    """Write a VQModel or GumbelVQ, or a Net2NetTransformer where the folder holds a prior too, and its YAML file.

    `perceptual` are weights of `loss.perceptual_loss.` for a tokenizer that was not imported with its own.
    Raises DataError where there is no tokenizer, ConfigError where taming-transformers has no such model.
    """
    home = home_of(folder, "tokenizer")
    if home is None:
        raise DataError(f"{folder} holds no tokenizer ({CONFIG} and {WEIGHTS}): name a run's or an import's folder")
    tokenizer = Tokenizer.load(home.path)
    judge_weights = discriminator_weights(home)
    rest, stored = _read_rest(home)
    lines = [f"tokenizer {home}"]
    if judge_weights and (judge := described_by(judge_weights)) and judge.norm != "batch":
        lines.append(f"  its discriminator (norm {judge.norm}) is left out: taming-transformers has norm batch alone")
        judge_weights = {}
    perceptual = {f"loss.perceptual_loss.{name}": tensor for name, tensor in (perceptual or {}).items()}
    names = tuple(stored.get("names", ()))
    weights = vqgan_weights(tokenizer, judge_weights, rest={**perceptual, **rest}, names=names)
    target, params = vqgan_config(tokenizer, judge_weights, trained_loss=bool(judge_weights or perceptual or rest))
    prior_home = home_of(folder, "prior")
    if prior_home is not None:
        prior = _load_net2net(prior_home)
        params = net2net_params(prior, {"target": target, "params": params})
        target = "taming.models.cond_transformer.Net2NetTransformer"
        weights, remarks = net2net_weights(prior, weights)
        lines += [f"prior {prior_home}", *(f"  {remark}" for remark in remarks)]
    write_checkpoint(out, weights)
    write_config(out.with_suffix(".yaml"), target, params)
    return [*lines, f"{out}: {target}, {len(weights)} tensors; {out.with_suffix('.yaml')} builds it"]


def _save_vqgan(vqgan: VQGAN, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    vqgan.tokenizer().save(folder)
    if vqgan.judge_weights:
        save_file({name: tensor.contiguous() for name, tensor in vqgan.judge_weights.items()}, folder / JUDGE)
    _save_rest(folder, vqgan.rest, {"names": list(vqgan.names)})


def _save_net2net(prior: Net2Net, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model = build_prior(prior.description)
    model.load_state_dict(prior.weights)
    model.save(folder, prior.description)
    leftover = prior.leftover
    numbers = {"start": leftover.start, "vocab_size": leftover.vocab_size, "block_size": leftover.block_size}
    _save_rest(folder, leftover.tensors, {**numbers, "names": list(leftover.names)})


def _load_net2net(home: Folder) -> Net2Net:
    description = PriorDescription.model_validate(home.read_json(CONFIG))
    tensors, stored = _read_rest(home)
    leftover = Leftover(**{**stored, "names": tuple(stored["names"]), "tensors": tensors}) if stored else Leftover()
    return Net2Net(description, read_weights(home.local(WEIGHTS)), leftover)


def _save_rest(folder: Path, tensors: Weights, stored: Mapping[str, Any]) -> None:
    save_file({name: tensor.contiguous().clone() for name, tensor in sorted(tensors.items())}, folder / REST)
    (folder / LEFTOVER).write_text(json.dumps(stored, indent=1) + "\n")


def _read_rest(home: Folder) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not home.exists(LEFTOVER):
        return {}, {}
    return read_weights(home.local(REST)), home.read_json(LEFTOVER)


def _told_of_vqgan(vqgan: VQGAN, folder: Path) -> list[str]:
    quantizer, tokenizer = vqgan.model.quantizer, vqgan.tokenizer()
    side = vqgan.image_size // vqgan.model.factor
    parameters = sum(parameter.numel() for parameter in tokenizer.parameters())
    lines = [
        f"tokenizer {folder}: {parameters / 1e6:.1f} M parameters, pictures of {vqgan.image_size}x{vqgan.image_size}, "
        f"{side}x{side} tokens of {quantizer.num_codes} codes ({quantizer.kind})"
    ]
    if vqgan.judge:
        lines.append(f"  discriminator: {vqgan.judge.base_channels} channels, {vqgan.judge.num_layers} layers")
    groups = sorted({".".join(name.split(".")[:2]) for name in vqgan.rest})
    if groups:
        lines.append(f"  kept aside: {len(vqgan.rest)} tensors of {', '.join(groups)}")
    return [*lines, *(f"  {remark}" for remark in vqgan.remarks)]


def _told_of_net2net(prior: Net2Net, folder: Path) -> list[str]:
    model, classes = gpt_of(prior.description), len(prior.description.classes)
    parameters = sum(tensor.numel() for tensor in prior.weights.values())
    return [
        f"prior {folder}: {parameters / 1e6:.1f} M parameters, {model.num_layers} layers of {model.num_heads} heads, "
        f"{model.width} wide, {f'{classes} classes' if classes else 'unconditional'}",
        *(f"  {remark}" for remark in prior.remarks),
    ]
