"""Checkpoints of taming-transformers with random weights, made by the package itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from stages.models.interop.vqgan import dd_config
from stages.models.tokenizer_config import ReferenceBackboneConfig, TokenizerModelConfig
from tests import peers

SIZE, CLASSES = 16, 5

MODEL = TokenizerModelConfig.model_validate(
    {
        "backbone": ReferenceBackboneConfig(
            base_channels=32, multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(8,), z_channels=16
        ),
        "quantizer": {"kind": "gradient", "num_codes": 40, "dim": 8},
    }
)
JUDGE = {"disc_start": 0, "disc_ndf": 8, "disc_num_layers": 2}
DUMMY = {"target": "taming.modules.losses.vqperceptual.DummyLoss"}


def pictures(count: int = 3) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).to(torch.get_default_dtype())


def shake(network: nn.Module) -> None:
    """Biases and norms begin at 0 and 1, where mistakes would not show."""
    torch.manual_seed(7)
    for parameter in network.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))


def their_vqgan() -> Any:
    """Their VQModel with discriminator and LPIPS, whose codes pictures use."""
    torch.manual_seed(0)
    model = peers.taming_vqgan(MODEL, image_size=SIZE, **JUDGE)
    shake(model)
    peers.spread_their_codes(model, MODEL, 2 * pictures() - 1)
    return model.eval()


def vqgan_params() -> dict[str, Any]:
    """What builds `their_vqgan` without its loss."""
    assert isinstance(MODEL.backbone, ReferenceBackboneConfig)
    sizes = dd_config(MODEL.backbone, image_size=SIZE, channels=3)
    return {"ddconfig": sizes, "lossconfig": DUMMY, "n_embed": 40, "embed_dim": 8, "sane_index_shape": True}


def their_gumbel_vqgan() -> tuple[Any, dict[str, Any]]:
    """Their GumbelVQ without a trained loss, and the parameters that build it."""
    temperature = {"warm_up_steps": 0, "max_decay_steps": 1000, "lr_start": 0.9, "lr_max": 0.9, "lr_min": 1e-6}
    schedule = {"target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler", "params": temperature}
    params = {**vqgan_params(), "embed_dim": 16, "kl_weight": 2e-8, "temperature_scheduler_config": schedule}
    del params["sane_index_shape"]
    torch.manual_seed(0)
    model = peers.quietly(peers.taming("models.vqgan").GumbelVQ, **params).eval()
    shake(model)
    model.quantize.proj.weight.data.mul_(10)
    return model, params


def net2net_params(condition: Any, *, vocab_size: int = 40, block_size: int = 64, **more: Any) -> dict[str, Any]:
    """What builds a Net2NetTransformer over `their_vqgan`: 3 layers, 4 heads, 32 wide."""
    settings = {"vocab_size": vocab_size, "block_size": block_size, "n_layer": 3, "n_head": 4, "n_embd": 32}
    return {
        "first_stage_config": {"target": "taming.models.vqgan.VQModel", "params": vqgan_params()},
        "cond_stage_config": condition,
        "transformer_config": {"target": "taming.modules.transformer.mingpt.GPT", "params": settings},
        **more,
    }


LABELLED = {"target": "taming.modules.util.Labelator", "params": {"n_classes": CLASSES}}


def their_net2net(**params: Any) -> Any:
    """Their transformer with its VQGAN inside."""
    torch.manual_seed(0)
    peers.taming("models.vqgan")
    model = peers.quietly(peers.taming("models.cond_transformer").Net2NetTransformer, **params).eval()
    shake(model)
    peers.spread_their_codes(model.first_stage_model, MODEL, 2 * pictures() - 1)
    return model


def save(model: Any, path: Path, params: dict[str, Any] | None = None) -> Path:
    """Their checkpoint file, with the bystanders that Lightning puts into it; the YAML file if `params` are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 3, "global_step": 40, "state_dict": model.state_dict(), "optimizer_states": []}, path)
    if params is not None:
        path.with_suffix(".yaml").write_text(yaml.safe_dump({"model": {"target": "x", "params": params}}))
    return path
