"""How close our networks come to taming-transformers' own with the same weights, in float32 and in float64.

    python -m tests.taming_parity [--published]

Its package makes a VQGAN, with discriminator and LPIPS, and a class-conditional transformer over it, with random
weights; both are saved, imported, and compared on the same pictures and tokens: the largest difference of any number,
and, in brackets, the largest number there is. Exported again, every tensor must have the bytes that it had.
`--published` takes the sizes of the published f16 VQGAN, on one picture of 256x256, and four layers of its prior.
Exits with 1 where a difference exceeds 1e-4 (float32) or 1e-9 (float64) of the largest number.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.models.interop.folders import export_folder, import_checkpoint
from stages.models.losses.configs import DiscriminatorConfig, LossConfig
from stages.models.losses.discriminator import PatchDiscriminator, described_by
from stages.models.losses.perceptual import LPIPSDistance
from stages.models.pretrained_weights import load_pretrained_tokenizer
from stages.models.priors.load import load_prior
from stages.models.tokenizer import Tokenizer
from stages.models.tokenizer_config import TokenizerModelConfig
from stages.training.adversarial import (
    adaptive_weight,
    discriminator_objective,
    picture_gradient,
    through_last_layer,
)
from tests import peers

LIMITS = {torch.float32: 1e-4, torch.float64: 1e-9}
CLASSES = 10

# Shapes: B batch, C channels, H height, W width, T tokens, V codes.


@dataclass(frozen=True)
class Sizes:
    """Of what is compared."""

    image_size: int
    batch: int
    base_channels: int
    multipliers: tuple[int, ...]
    attention: int
    codes: int
    judge: tuple[int, int]
    gpt: tuple[int, int, int]
    """Layers, heads, width."""

    @property
    def model(self) -> TokenizerModelConfig:
        """The tokenizer."""
        backbone = {
            "kind": "reference",
            "base_channels": self.base_channels,
            "multipliers": self.multipliers,
            "attention_resolutions": (self.attention,),
            "z_channels": 256,
        }
        quantizer = {"kind": "gradient", "num_codes": self.codes, "dim": 256}
        return TokenizerModelConfig.model_validate({"backbone": backbone, "quantizer": quantizer})


SMALL = Sizes(64, 4, 64, (1, 2, 2), 16, 512, (16, 2), (6, 8, 256))
PUBLISHED = Sizes(256, 1, 128, (1, 1, 2, 2, 4), 16, 1024, (64, 3), (4, 16, 1024))
Row = tuple[str, Tensor, Tensor]
"""What is compared, ours and theirs."""


def main() -> None:
    """Print the table; exit with 1 where a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", action="store_true")
    sizes = PUBLISHED if parser.parse_args().published else SMALL
    torch.manual_seed(0)
    theirs = make_theirs(sizes)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        torch.save({"state_dict": theirs.state_dict()}, place / "theirs.ckpt")
        settings: dict[str, Any] = {"image_size": sizes.image_size, "heads": sizes.gpt[1], "classes": CLASSES}
        print("\n".join(import_checkpoint(place / "theirs.ckpt", place / "ours", **settings)))
        found = {dtype: dict(measure(sizes, theirs, place / "ours", dtype)) for dtype in LIMITS}
        export_folder(place / "ours", place / "again.ckpt")
        same = equal_bytes(place / "theirs.ckpt", place / "again.ckpt")
    print(f"\n{'largest difference':30}{'float32':>26}{'float64':>26}")
    for name in found[torch.float32]:
        cells = (f"{found[dtype][name][0]:.1e} ({found[dtype][name][1]:.2g})" for dtype in LIMITS)
        print(f"{name:30}" + "".join(f"{cell:>26}" for cell in cells))
    print(f"{'export after import':30}{'the same names and bytes' if same else 'DIFFERS':>26}")
    within = all(gap <= LIMITS[dtype] * max(1.0, size) for dtype in LIMITS for gap, size in found[dtype].values())
    sys.exit(0 if same and within else 1)


def make_theirs(sizes: Sizes) -> Any:
    """Their Net2NetTransformer with biases and norms that are not 0 and 1, and codes that pictures use."""
    judge = {"disc_start": 0, "disc_ndf": sizes.judge[0], "disc_num_layers": sizes.judge[1]}
    vqgan = peers.taming_vqgan(sizes.model, image_size=sizes.image_size, **judge)
    for parameter in vqgan.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.02 * torch.randn_like(parameter))
    num_tokens = (sizes.image_size // sizes.model.factor) ** 2
    peers.spread_their_codes(vqgan, sizes.model, pictures(sizes, max(sizes.batch, sizes.codes // num_tokens)))
    layers, heads, width = sizes.gpt
    settings = {"n_layer": layers, "n_head": heads, "n_embd": width}
    transformer = peers.taming("modules.transformer.mingpt").GPT(sizes.codes, num_tokens, **settings)
    for parameter in transformer.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return torch.nn.ModuleDict({"first_stage_model": vqgan, "transformer": transformer}).eval()


def measure(sizes: Sizes, theirs: Any, folder: Path, dtype: torch.dtype) -> Iterator[tuple[str, tuple[float, float]]]:
    """(what, (largest difference, largest number)) of all that is compared, in one type."""
    theirs, distance = theirs.to(dtype), peers.lpips_vgg().to(dtype)
    torch.set_default_dtype(dtype)
    try:
        rows = (
            *compare_vqgan(sizes, theirs.first_stage_model, folder),
            *compare_losses(sizes, theirs.first_stage_model, folder, distance),
            *compare_gpt(sizes, theirs, folder),
        )
        for name, ours, expected in rows:
            yield name, (float((ours - expected).detach().abs().max()), float(expected.detach().abs().max()))
    finally:
        torch.set_default_dtype(torch.float32)


def compare_vqgan(sizes: Sizes, theirs: Any, folder: Path) -> Iterator[Row]:
    """Encoder, tokens, decoder, and every term of the losses."""
    x_BCHW = pictures(sizes, sizes.batch).to(torch.get_default_dtype())
    ours = Tokenizer.load(folder).to(x_BCHW.dtype)
    with torch.no_grad():
        z_BCHW = theirs.quant_conv(theirs.encoder(x_BCHW))
        quantized_BCHW, _, (_, _, indices_BHW) = theirs.quantize(z_BCHW)
        yield "latents", ours.encode_latents(x_BCHW), z_BCHW
        yield "tokens (1 where they differ)", (ours.encode(x_BCHW) != indices_BHW).double(), torch.zeros(1).double()
        x_hat_BCHW = ours.decoder(ours.post_quant_conv(ours.quantize.embed(indices_BHW)))
        yield "reconstructions", x_hat_BCHW, theirs.decode(quantized_BCHW)


def compare_losses(sizes: Sizes, theirs: Any, folder: Path, distance: LPIPSDistance) -> Iterator[Row]:
    """What their loss module logs, beside our terms."""
    x_BCHW = pictures(sizes, sizes.batch).to(torch.get_default_dtype())
    ours = Tokenizer.load(folder).to(x_BCHW.dtype).requires_grad_()
    weights = load_pretrained_tokenizer(str(folder)).judge_weights
    config = described_by(weights)
    assert config is not None
    judge = PatchDiscriminator(config, channels=3).eval()
    judge.load_state_dict(weights)
    judge.to(x_BCHW.dtype)
    output = ours(x_BCHW)
    losses = LossConfig(l2_weight=0.0, perceptual_weight=1.0, discriminator=DiscriminatorConfig(adaptive_delta=1e-4))
    wanted = picture_gradient(
        x_BCHW,
        output.x_hat_BCHW,
        losses=losses,
        perceptual=distance,
        discriminator=judge,
        batch_size=len(x_BCHW),
    )
    pushed = through_last_layer(output.x_hat_BCHW, wanted, ours.last_layer_weight)
    _, terms = discriminator_objective(judge, x_BCHW, output.x_hat_BCHW, batch_size=len(x_BCHW))
    x_hat_BCHW, quantizer_loss = theirs(x_BCHW)
    last = theirs.decoder.conv_out.weight
    _, log = theirs.loss(quantizer_loss, x_BCHW, x_hat_BCHW, 0, 1, last_layer=last)
    _, judge_log = theirs.loss(quantizer_loss, x_BCHW, x_hat_BCHW, 1, 1, last_layer=last)
    yield "loss: L1 and LPIPS", wanted.terms["reconstruction"] + wanted.terms["perceptual"], log["train/nll_loss"]
    yield "loss: LPIPS", wanted.terms["perceptual"], log["train/p_loss"]
    assert wanted.adversarial_BCHW is not None
    yield "loss: codebook", output.codebook_loss_B.mean(), quantizer_loss
    yield "loss: adversarial", wanted.terms["adversarial"], log["train/g_loss"]
    yield "adaptive weight", adaptive_weight(pushed, delta=1e-4, cap=1e4), log["train/d_weight"]
    yield "loss: discriminator", terms["discriminator"], judge_log["train/disc_loss"]


def compare_gpt(sizes: Sizes, theirs: Any, folder: Path) -> Iterator[Row]:
    """Logits of every image token, and the loss."""
    ours = load_prior(folder / "prior").to(torch.get_default_dtype())
    draw = torch.Generator().manual_seed(1)
    tokens_BT = torch.randint(0, sizes.codes, (sizes.batch, ours.num_tokens), generator=draw)
    labels_B = torch.randint(0, CLASSES, (sizes.batch,), generator=draw)
    with torch.no_grad():
        expected_BTV = theirs.transformer(torch.cat([labels_B[:, None], tokens_BT], dim=1)[:, :-1])[0]
        condition_BC = ours.vocabulary.condition(labels_B)
        yield "GPT: logits", ours(condition_BC, tokens_BT), expected_BTV
        expected = torch.nn.functional.cross_entropy(expected_BTV.flatten(0, 1), tokens_BT.flatten())
        yield "GPT: loss", ours.loss(condition_BC, tokens_BT)[0], expected


def pictures(sizes: Sizes, count: int) -> Tensor:
    """Coloured blocks of 4x4 pixels in [-1, 1]."""
    side = sizes.image_size // 4
    draw = torch.Generator().manual_seed(2)
    coarse_BCHW = torch.rand(count, 3, side, side, generator=draw, dtype=torch.float32)
    return 2 * coarse_BCHW.repeat_interleave(4, 2).repeat_interleave(4, 3) - 1


def equal_bytes(first: Path, second: Path) -> bool:
    """Whether two checkpoints have the same names in the same order, and the same bytes."""
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (first, second))
    return list(before) == list(after) and all(
        tensor.dtype == after[name].dtype and tensor.numpy().tobytes() == after[name].numpy().tobytes()
        for name, tensor in before.items()
    )


if __name__ == "__main__":
    main()
