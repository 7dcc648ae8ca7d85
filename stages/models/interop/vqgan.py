"""VQModel and GumbelVQ of taming-transformers in our terms: sizes from the tensors, weights name by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.errors import ConfigError, DataError
from stages.models.interop.checkpoint import Checkpoint, Weights
from stages.models.losses.configs import DiscriminatorConfig
from stages.models.losses.discriminator import described_by
from stages.models.quantizers.configs import GumbelQuantizerConfig
from stages.models.tokenizer import Tokenizer
from stages.models.tokenizer_config import ReferenceBackboneConfig, TokenizerModelConfig

DISCRIMINATOR = "loss.discriminator."
OWN_STATE = frozenset({"quantize.counts", "quantize.sums"})
"""What a codebook of running means has beside its codes; taming-transformers has no place for it."""
DEFAULT_SIZE = 256
PUBLISHED_TEMPERATURE = {
    "warm_up_steps": 0,
    "max_decay_steps": 1_000_001,
    "lr_start": 0.9,
    "lr_max": 0.9,
    "lr_min": 1e-6,
}
"""How the temperature of the published GumbelVQ falls."""


@dataclass(frozen=True)
class VQGAN:
    """A tokenizer, its discriminator, and what else the checkpoint holds."""

    model: TokenizerModelConfig
    image_size: int
    channels: int
    weights: dict[str, Tensor]
    """Of `Tokenizer`."""
    judge: DiscriminatorConfig | None
    judge_weights: dict[str, Tensor]
    rest: dict[str, Tensor]
    """What neither of the two has a place for: the perceptual network, buffers of losses."""
    names: tuple[str, ...]
    """All names of the checkpoint, in its order."""
    remarks: tuple[str, ...]
    """For people: what had to be assumed, what was left aside."""

    def tokenizer(self) -> Tokenizer:
        """The tokenizer with these weights, in evaluation mode."""
        tokenizer = Tokenizer(self.model, image_size=self.image_size, channels=self.channels)
        tokenizer.load_state_dict(self.weights)
        return tokenizer.eval().requires_grad_(False)


def read_vqgan(checkpoint: Checkpoint, image_size: int | None = None) -> VQGAN:
    """Take a VQModel or GumbelVQ apart. The side of its pictures is no size of any tensor: it comes from
    `image_size`, the configuration, or is assumed to be 256.

    Raises DataError where the checkpoint is neither, or has parts that ours cannot have.
    """
    weights, remarks = checkpoint.weights, []
    for name in ("encoder.conv_in.weight", "decoder.conv_out.weight", "quant_conv.weight"):
        if name not in weights:
            raise DataError(f"{checkpoint.path} has no {name}: it is no VQGAN of taming-transformers")
    size = image_size or checkpoint.params.get("ddconfig", {}).get("resolution")
    if size is None:
        size = DEFAULT_SIZE
        remarks.append(f"the side of its pictures is not in the weights: {size} is assumed, --image-size sets another")
    model, channels = _sizes(checkpoint, size)
    with torch.device("meta"):
        places = Tokenizer(model, image_size=size, channels=channels).state_dict()
    own = {name: weights[name].float() for name in places if name in weights}
    _check_fit(checkpoint, own, places)
    judge_weights = {n.removeprefix(DISCRIMINATOR): t for n, t in weights.items() if n.startswith(DISCRIMINATOR)}
    judge = described_by(judge_weights) if judge_weights else None
    if judge_weights and judge is None:
        remarks.append("its discriminator is of another kind than ours (ActNorm?): it is kept aside")
        judge_weights = {}
    taken = {*own, *(DISCRIMINATOR + name for name in judge_weights)}
    rest = {name: tensor for name, tensor in weights.items() if name not in taken}
    return VQGAN(model, size, channels, own, judge, judge_weights, rest, tuple(weights), tuple(remarks))


def vqgan_weights(
    tokenizer: Tokenizer,
    judge_weights: Weights,
    *,
    rest: Weights | None = None,
    names: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """The tokenizer and its discriminator under taming-transformers' names; undoes `read_vqgan`.

    `names` gives the order; without it ours come first. Raises ConfigError for what it has no architecture for.
    """
    if not isinstance(tokenizer.config.backbone, ReferenceBackboneConfig):
        raise ConfigError(
            f"taming-transformers has no backbone {tokenizer.config.backbone.kind}: only a tokenizer with "
            "tokenizer.model.backbone.kind=reference can be exported"
        )
    kind = tokenizer.config.quantizer.kind
    if kind not in ("ema", "gradient", "gumbel"):
        raise ConfigError(f"taming-transformers has no quantizer {kind}: only ema, gradient and gumbel can be exported")
    found = {name: tensor for name, tensor in tokenizer.state_dict().items() if name not in OWN_STATE}
    found |= {DISCRIMINATOR + name: tensor for name, tensor in judge_weights.items()}
    found = {**(rest or {}), **found}
    return {name: found[name] for name in (*names, *(name for name in found if name not in names)) if name in found}


def vqgan_config(tokenizer: Tokenizer, judge_weights: Weights, *, trained_loss: bool) -> tuple[str, dict[str, Any]]:
    """The class, and `model.params`, of a configuration that builds the model again.

    With `trained_loss` its loss is the published one, with a discriminator of these weights; without, a stand-in.
    """
    judge = described_by(judge_weights) or DiscriminatorConfig(base_channels=64, num_layers=3)
    backbone, quantizer = tokenizer.config.backbone, tokenizer.config.quantizer
    assert isinstance(backbone, ReferenceBackboneConfig), "vqgan_weights saw to it"
    loss: dict[str, Any] = {"target": "taming.modules.losses.vqperceptual.DummyLoss"}
    if trained_loss:
        loss["target"] = "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"
        loss["params"] = {
            "disc_start": 0,
            "disc_in_channels": tokenizer.channels,
            "disc_ndf": judge.base_channels,
            "disc_num_layers": judge.num_layers,
        }
    params = {
        "embed_dim": quantizer.dim,
        "n_embed": quantizer.num_codes,
        "ddconfig": dd_config(backbone, image_size=tokenizer.image_size, channels=tokenizer.channels),
        "lossconfig": loss,
    }
    if not isinstance(quantizer, GumbelQuantizerConfig):
        return "taming.models.vqgan.VQModel", params
    temperature = {
        **PUBLISHED_TEMPERATURE,
        "lr_start": quantizer.temperature_start,
        "lr_max": quantizer.temperature_start,
        "lr_min": quantizer.temperature_end,
        "max_decay_steps": quantizer.temperature_steps,
    }
    schedule = {"target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler", "params": temperature}
    gumbel = {"kl_weight": quantizer.kl_weight, "temperature_scheduler_config": schedule}
    return "taming.models.vqgan.GumbelVQ", {**params, **gumbel}


def dd_config(backbone: ReferenceBackboneConfig, *, image_size: int, channels: int) -> dict[str, Any]:
    """The sizes of encoder and decoder by taming-transformers' names."""
    return {
        "double_z": False,
        "z_channels": backbone.z_channels,
        "resolution": image_size,
        "in_channels": channels,
        "out_ch": channels,
        "ch": backbone.base_channels,
        "ch_mult": list(backbone.multipliers),
        "num_res_blocks": backbone.num_res_blocks,
        "attn_resolutions": list(backbone.attention_resolutions),
        "dropout": backbone.dropout,
    }


def _sizes(checkpoint: Checkpoint, image_size: int) -> tuple[TokenizerModelConfig, int]:
    weights = checkpoint.weights
    base, channels = weights["encoder.conv_in.weight"].shape[:2]
    levels = _count(weights, r"encoder\.down\.(\d+)\.")
    z_channels = weights["decoder.conv_in.weight"].shape[1]
    if weights["encoder.conv_out.weight"].shape[0] != z_channels:
        raise DataError(
            f"{checkpoint.path}: the encoder gives {weights['encoder.conv_out.weight'].shape[0]} channels and the "
            f"decoder takes {z_channels} (double_z): it is a model of another kind than VQGAN"
        )
    if weights["decoder.conv_out.weight"].shape[0] != channels:
        raise DataError(f"{checkpoint.path}: its pictures have {channels} channels and its reconstructions others")
    if "quantize.used" in weights:
        raise DataError(f"{checkpoint.path} renumbers its codes (remap): import the checkpoint without remap")
    attended = [level for level in range(levels) if f"encoder.down.{level}.attn.0.q.weight" in weights]
    backbone = {
        "kind": "reference",
        "base_channels": base,
        "multipliers": [weights[f"encoder.down.{n}.block.0.conv1.weight"].shape[0] // base for n in range(levels)],
        "num_res_blocks": _count(weights, r"encoder\.down\.0\.block\.(\d+)\."),
        "attention_resolutions": [image_size // 2**level for level in attended],
        "z_channels": z_channels,
        "dropout": checkpoint.params.get("ddconfig", {}).get("dropout", 0.0),
    }
    try:
        fields = {"backbone": backbone, "quantizer": _quantizer(checkpoint)}
        return TokenizerModelConfig.model_validate(fields), channels
    except ValidationError as error:
        raise DataError(f"{checkpoint.path} has sizes that ours cannot have: {error}") from None


def _quantizer(checkpoint: Checkpoint) -> dict[str, Any]:
    weights = checkpoint.weights
    if "quantize.embed.weight" in weights:
        num_codes, dim = weights["quantize.embed.weight"].shape
        if dim != weights["quantize.proj.weight"].shape[1]:
            raise DataError(
                f"{checkpoint.path}: its codes have {dim} numbers and its vectors others: ours have as many"
            )
        sizes = {"kind": "gumbel", "num_codes": num_codes, "dim": dim}
        return {**sizes, **_temperature(checkpoint), "kl_weight": checkpoint.params.get("kl_weight", 1e-8)}
    if "quantize.embedding.weight" not in weights:
        raise DataError(f"{checkpoint.path} has no codebook quantize.embedding.weight, nor quantize.embed.weight")
    num_codes, dim = weights["quantize.embedding.weight"].shape
    return {"kind": "gradient", "num_codes": num_codes, "dim": dim}


def _temperature(checkpoint: Checkpoint) -> dict[str, Any]:
    """The schedule of the temperature, from where it starts to fall."""
    settings = {**PUBLISHED_TEMPERATURE, **checkpoint.params.get("temperature_scheduler_config", {}).get("params", {})}
    return {
        "temperature_start": settings["lr_max"],
        "temperature_end": settings["lr_min"],
        "temperature_steps": settings["max_decay_steps"],
    }


def _check_fit(checkpoint: Checkpoint, own: Weights, places: Weights) -> None:
    missing = sorted(places.keys() - own.keys())
    differing = [name for name in own if own[name].shape != places[name].shape]
    parts = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
    unknown = [name for name in checkpoint.weights if name.startswith(parts) and name not in places]
    for what, names in (("lacks", missing), ("has another shape of", differing), ("has beyond ours", unknown)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise DataError(f"{checkpoint.path} {what} {', '.join(names[:3])}{more}: its architecture is not VQGAN's")


def _count(weights: Mapping[str, Any], pattern: str) -> int:
    return len({found.group(1) for name in weights if (found := re.match(pattern, name))})
