"""taming-transformers (Esser et al. 2021), the peer of parity tests and benchmarks, without its trainer.

Its package imports pytorch_lightning, transformers, einops, albumentations and its own command line at module level,
in versions as old as itself. What its models need of them is little and is given here; anything else of them raises.
Its weights' names agree with ours by design, so weights are copied name by name.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import lpips
import torch
import torchvision
import yaml
from torch import Tensor, nn

from stages.models.interop.vqgan import dd_config
from stages.models.losses import perceptual
from stages.models.losses.perceptual import LPIPSDistance
from stages.models.tokenizer import Tokenizer
from stages.models.tokenizer_config import ReferenceBackboneConfig, TokenizerModelConfig

VGG_SEED = 5


class LightningModule(nn.Module):
    """What taming's models take from pytorch_lightning outside a trainer: a step counter, and nobody who logs."""

    global_step = 0

    def log(self, *arguments: Any, **settings: Any) -> None:
        pass

    def log_dict(self, *arguments: Any, **settings: Any) -> None:
        pass


def rearrange(x: Tensor, pattern: str) -> Tensor:
    """einops' rearrange for patterns that only permute axes; its other patterns raise."""
    before, after = (side.split() for side in pattern.split("->"))
    assert sorted(before) == sorted(after) and all(axis.isidentifier() for axis in before), pattern
    return x.permute(*(before.index(axis) for axis in after))


def instantiate_from_config(config: Mapping[str, Any]) -> Any:
    """An object of the class of taming's that `target` names, made with `params`."""
    module, _, name = config["target"].removeprefix("taming.").rpartition(".")
    return getattr(taming(module), name)(**config.get("params", {}))


def top_k_top_p_filtering(*arguments: Any, **settings: Any) -> None:
    raise NotImplementedError("taming's own sampling is not used")


STAND_INS: Mapping[str, Mapping[str, Any]] = {
    "pytorch_lightning": {"LightningModule": LightningModule},
    "transformers": {"top_k_top_p_filtering": top_k_top_p_filtering},
    "einops": {"rearrange": rearrange},
    "albumentations": {},  # ImagePaths uses it where pictures must be resized
    "taming.main": {"instantiate_from_config": instantiate_from_config},  # its command line
}


def taming(module: str) -> Any:
    """The module `taming.<module>`; the stand-ins are there only while it is imported."""
    name = f"taming.{module}"
    if name not in sys.modules:
        covered = {stand_in: sys.modules.get(stand_in) for stand_in in STAND_INS}
        for stand_in, names in STAND_INS.items():
            sys.modules[stand_in] = ModuleType(stand_in)
            sys.modules[stand_in].__dict__.update(names)
        try:
            quietly(importlib.import_module, name)
        finally:
            for stand_in, original in covered.items():
                del sys.modules[stand_in]
                if original is not None:
                    sys.modules[stand_in] = original
    return sys.modules[name]


def random_vgg() -> dict[str, Tensor]:
    """Weights for torchvision's VGG16 without its classifier, from a fixed seed, initialised as torchvision does."""
    with torch.device("meta"):
        names = torchvision.models.vgg16(weights=None).features.state_dict(prefix="features.")
    weights = {name: torch.zeros(shape.shape) for name, shape in names.items()}
    draw = torch.Generator().manual_seed(VGG_SEED)
    for weight in weights.values():
        if weight.ndim == 4:
            nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu", generator=draw)
    return weights


@contextlib.contextmanager
def random_vgg_weights() -> Iterator[None]:
    """Inside, our LPIPS and taming's are built over `random_vgg` and the calibrated heads that `lpips` ships."""
    weights = random_vgg()

    def vgg16(pretrained: bool) -> nn.Module:
        with torch.device("meta"):
            network = torchvision.models.vgg16(weights=None)
        network.load_state_dict(weights, strict=False, assign=True)
        return network

    def load_heads(network: nn.Module, name: str = "vgg_lpips") -> None:
        path = Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth"
        missing, unexpected = network.load_state_dict(
            torch.load(path, map_location="cpu", weights_only=True), strict=False
        )
        assert not unexpected and not [key for key in missing if key.startswith("lin")]

    module = taming("modules.losses.lpips")
    with (
        patch.object(module, "models", ModuleType("models")),
        patch.object(module.LPIPS, "load_from_pretrained", load_heads),
        patch.object(perceptual, "load_torchvision_weights", lambda kind: weights),
    ):
        module.models.vgg16 = vgg16
        yield


def lpips_vgg() -> LPIPSDistance:
    """Our LPIPS over the random VGG."""
    with random_vgg_weights():
        return LPIPSDistance("vgg")


def taming_lpips() -> Any:
    """taming's LPIPS over the same weights, in evaluation mode."""
    with random_vgg_weights():
        return quietly(taming("modules.losses.lpips").LPIPS).eval()


def taming_vqgan(config: TokenizerModelConfig, *, image_size: int, channels: int = 3, **loss: Any) -> Any:
    """taming's VQModel of our configuration with its VQLPIPSWithDiscriminator; `loss` holds that one's parameters."""
    assert isinstance(config.backbone, ReferenceBackboneConfig), "taming has only the reference's architecture"
    loss_config = {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator", "params": loss}
    with random_vgg_weights():
        return quietly(
            taming("models.vqgan").VQModel,
            ddconfig=dd_config(config.backbone, image_size=image_size, channels=channels),
            lossconfig=loss_config,
            n_embed=config.quantizer.num_codes,
            embed_dim=config.quantizer.dim,
            sane_index_shape=True,
        )


def built(config: Path) -> Any:
    """The model that a YAML configuration of taming's builds, in evaluation mode."""
    tree = yaml.safe_load(config.read_text())["model"]
    with random_vgg_weights():
        return quietly(instantiate_from_config, tree).eval()


def copy_weights(theirs: nn.Module, ours: Tokenizer) -> None:
    """Our tokenizer's weights into taming's VQModel. Its loss keeps its own; our codebook's running sums stay here."""
    own = ("quantize.counts", "quantize.sums")
    mine = {name: value for name, value in ours.state_dict().items() if name not in own}
    missing, unexpected = theirs.load_state_dict(mine, strict=False)
    assert not unexpected, unexpected
    assert not [name for name in missing if not name.startswith("loss.")], missing


def spread_codes(ours: Tokenizer, x_BCHW: Tensor) -> None:
    """Moves the codebook near vectors of these pictures: a token is a clear choice that rounding does not change."""
    with torch.no_grad():
        z_BCHW = ours.quant_conv(ours.encoder(x_BCHW))
        vectors_ND = z_BCHW.permute(0, 2, 3, 1).reshape(-1, z_BCHW.shape[1])
        draw = torch.Generator().manual_seed(0)
        chosen_K = torch.randperm(len(vectors_ND), generator=draw)[: ours.num_codes]
        assert len(chosen_K) == ours.num_codes, f"{len(vectors_ND)} vectors for {ours.num_codes} codes"
        aside_KD = torch.randn(ours.num_codes, vectors_ND.shape[1], generator=draw, dtype=vectors_ND.dtype)
        ours.quantize.embedding.weight.copy_(vectors_ND[chosen_K] + 0.1 * vectors_ND.std(dim=0) * aside_KD)


def spread_their_codes(theirs: Any, config: TokenizerModelConfig, x_BCHW: Tensor) -> None:
    """`spread_codes` of a VQModel of taming's."""
    ours = Tokenizer(config, image_size=x_BCHW.shape[-1], channels=x_BCHW.shape[1])
    own = ours.state_dict()
    ours.load_state_dict({**own, **{name: value for name, value in theirs.state_dict().items() if name in own}})
    spread_codes(ours, x_BCHW)
    theirs.quantize.embedding.weight.data.copy_(ours.quantize.embedding.weight)


def quietly(make: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """Call without what taming prints while it is built."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*arguments, **settings)
