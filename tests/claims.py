"""The claims of "Taming Transformers" (Esser et al. 2021) in miniature, on the packaged emoji.

    python -m tests.claims losses|codes|factors|speed|all [--steps 1600] [--seeds 1] [--workdir DIR] [--threads N]

losses   A tokenizer with perceptual and adversarial losses makes better pictures than the same with squared errors
         alone: KID of reconstructions, where PSNR prefers the squared error.
codes    More codes, better reconstructions: KID and PSNR with 32 to 1,024.
factors  At the same number of tokens, and so at the same cost of the prior, larger tokens give a larger picture: 8x8
         tokens of 4, 8 and 16 pixels, tokenizer and prior of so many steps each; all judged at 128x128, where small
         pictures are blurred ones.
speed    Drawing tokens is faster than drawing pixels: the same GPT with random weights draws a picture of 64x64 as
         8x8 tokens and decodes it, or as 4,096 pixels of a palette with as many colours as there are codes.

Training of `--steps` counts all schedules in proportion. KID is of EfficientNet features, lower is better; PSNR in dB.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.config import load_config
from run_pipeline import Config
from stages.metrics.kernel_distance import kid
from stages.models.priors.configs import GPTConfig
from stages.models.priors.gpt import GPT
from stages.models.tokenizer import Tokenizer
from stages.models.tokenizer_config import LightBackboneConfig, TokenizerModelConfig
from stages.models.vocabulary import Vocabulary
from stages.sampling.noise import GumbelNoise, draws_of
from stages.sampling.tokens import draw_tokens
from tests.benchmarks.same_minutes import scaled
from tests.digits import reconstruct
from tests.smoke import CONFIGS
from tests.stages_of import features_of, pictures_of, print_table, run_stages

PLAIN = {"l1_weight": 0.0, "l2_weight": 1.0, "perceptual_weight": 0.0}
CODES = (32, 128, 512, 1024)
CHANNELS = {4: (32, 128), 8: (32, 64, 128), 16: (32, 64, 64, 128)}
"""Of the light backbone, for tokens of so many pixels a side."""
TOKENS_A_SIDE = 8
Table = dict[str, dict[str, str]]


def main() -> None:
    """Measure the claims that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claim", choices=[*CLAIMS, "all"])
    parser.add_argument("--steps", type=int, default=1600, help="of each tokenizer, and of each prior")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each kind, with seeds 0, 1, ...")
    parser.add_argument("--workdir", type=Path, help="default: one that is removed")
    parser.add_argument("--threads", type=int, help="default: the machine's cores")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    overrides = [f"cluster.threads={arguments.threads}"] if arguments.threads else []
    config = load_config(Config, CONFIGS["emoji"], overrides)
    with tempfile.TemporaryDirectory(prefix="smalti-claims-") as name:
        for claim in CLAIMS if arguments.claim == "all" else [arguments.claim]:
            print(f"\n{claim}", flush=True)
            CLAIMS[claim](config, arguments, arguments.workdir or Path(name))


def losses(config: Config, arguments: argparse.Namespace, place: Path) -> None:
    """All losses on, against squared error alone."""
    rows: Table = {}
    for seed in range(arguments.seeds):
        for name, changes in {"all losses": {}, "squared error": PLAIN}.items():
            experiment = trained_for(config, arguments.steps, seed, losses=changes)
            if changes:
                experiment = without_adversary(experiment)
            rows[f"{name}, seed {seed}"] = judge_reconstructions(experiment, place)
    print_table(rows)


def codes(config: Config, arguments: argparse.Namespace, place: Path) -> None:
    """The same tokenizer with more and more codes."""
    rows: Table = {}
    for seed in range(arguments.seeds):
        for number in CODES:
            quantizer = config.tokenizer.model.quantizer.model_copy(update={"num_codes": number})
            experiment = trained_for(config, arguments.steps, seed, model={"quantizer": quantizer})
            rows[f"{number} codes, seed {seed}"] = judge_reconstructions(experiment, place)
    print_table(rows)


def factors(config: Config, arguments: argparse.Namespace, place: Path) -> None:
    """The same number of tokens, of ever more pixels."""
    rows: Table = {}
    largest = TOKENS_A_SIDE * max(CHANNELS)
    real = run_stages(sized(config, largest), "shard", place)["shard"]
    reference = features_of(pictures_of(real, "val")[0])
    for seed in range(arguments.seeds):
        for factor, channels in CHANNELS.items():
            backbone = LightBackboneConfig(channels=channels, residual_blocks=(0, *[1] * (len(channels) - 1)))
            experiment = trained_for(config, arguments.steps, seed, model={"backbone": backbone})
            side = TOKENS_A_SIDE * factor
            done = run_stages(sized(experiment, side), "sample", place)
            rebuilt_NHWC = reconstruct(done["tokenizer"], pictures_of(done["shard"], "val")[0])
            rebuilt = kid(features_of(enlarged(rebuilt_NHWC, largest)), reference, paired=True)
            drawn = kid(features_of(enlarged(pictures_of(done["sample"], "sample")[0], largest)), reference)
            rows[f"{factor}x{factor} pixels a token, seed {seed}"] = {
                "picture": f"{side}x{side}",
                "KID rebuilt": f"{rebuilt.value:.3f}",
                "KID samples": f"{drawn.value:.3f}",
                "seconds of prior": f"{done['prior'].notes['seconds']:.0f}",
            }
    print_table(rows)


@torch.inference_mode()
def speed(config: Config, arguments: argparse.Namespace, place: Path) -> None:
    """Seconds to draw pictures as tokens and as pixels."""
    model, batch, side = TokenizerModelConfig(), 4, 64
    tokenizer = Tokenizer(model, image_size=side, channels=3).eval()
    colours, grid = model.quantizer.num_codes, tokenizer.grid
    seconds = {}
    for name, places in {"tokens": tuple(grid), "pixels": (side, side)}.items():
        prior = network(places, colours)
        started = time.perf_counter()
        tokens_BT, _ = draw_tokens(
            prior, prior.vocabulary.condition(torch.arange(batch)), GumbelNoise(draws_of(0, range(batch)))
        )
        if name == "tokens":
            tokenizer.decode(tokens_BT.view(batch, *grid))
        seconds[name] = (time.perf_counter() - started) / batch
    ratio = seconds["pixels"] / seconds["tokens"]
    print_table(
        {
            name: {"seconds a picture": f"{spent:.3f}", "times as long": f"{spent / seconds['tokens']:.0f}"}
            for name, spent in seconds.items()
        }
    )
    print(f"tokens are {ratio:.0f} times as fast")


CLAIMS: Mapping[str, Any] = {"losses": losses, "codes": codes, "factors": factors, "speed": speed}


def network(grid: tuple[int, int], codes: int) -> GPT:
    """The demo's GPT with random weights, over a grid of tokens or of pixels."""
    torch.manual_seed(0)
    model = GPTConfig(num_layers=4, num_heads=6, width=192)
    return GPT(model, vocabulary=Vocabulary.by_class(codes, 9), grid=grid).eval()


def trained_for(config: Config, steps: int, seed: int, **sections: Mapping[str, Any]) -> Config:
    """The experiment in another number of steps, with some keys of `tokenizer.losses` or `.model` changed."""
    tokenizer = scaled(config.tokenizer, steps)
    for section, changes in sections.items():
        part = getattr(tokenizer, section).model_copy(update=dict(changes))
        tokenizer = tokenizer.model_copy(update={section: part})
    warmup = min(config.prior.warmup_steps, steps // 2)
    prior = config.prior.model_copy(
        update={"steps": steps, "schedule_steps": steps, "warmup_steps": warmup, "seed": seed}
    )
    return config.model_copy(update={"tokenizer": tokenizer.model_copy(update={"seed": seed}), "prior": prior})


def without_adversary(config: Config) -> Config:
    """The same without a discriminator."""
    terms = config.tokenizer.losses
    silent = terms.model_copy(update={"discriminator": terms.discriminator.model_copy(update={"weight": 0.0})})
    return config.model_copy(update={"tokenizer": config.tokenizer.model_copy(update={"losses": silent})})


def sized(config: Config, side: int) -> Config:
    """The same on pictures of another size."""
    return config.model_copy(update={"shard": config.shard.model_copy(update={"image_size": side})})


def judge_reconstructions(config: Config, place: Path) -> dict[str, str]:
    """Train a tokenizer; a row of figures on held-out pictures."""
    done = run_stages(config, "tokenizer", place)
    held_out_NHWC, _ = pictures_of(done["shard"], "val")
    rebuilt_NHWC = reconstruct(done["tokenizer"], held_out_NHWC)
    return {
        "KID": f"{kid(features_of(rebuilt_NHWC), features_of(held_out_NHWC), paired=True).value:.3f}",
        "PSNR": f"{mean_psnr(rebuilt_NHWC, held_out_NHWC):.2f}",
        "steps": f"{config.tokenizer.steps}",
        "seconds": f"{done['tokenizer'].notes['seconds']:.0f}",
    }


def mean_psnr(a_NHWC: np.ndarray, b_NHWC: np.ndarray) -> float:
    """Of each pair of uint8 pictures, averaged."""
    mse_N = ((a_NHWC.astype(np.float64) - b_NHWC) ** 2).mean(axis=(1, 2, 3)) / 255**2
    return float(-10 * np.log10(mse_N.clip(min=1e-10)).mean())


def enlarged(pictures_NHWC: np.ndarray, side: int) -> np.ndarray:
    """Pictures resized to a larger square, bicubic."""
    size = (side, side)
    return np.stack([np.asarray(Image.fromarray(it).resize(size, Image.Resampling.BICUBIC)) for it in pictures_NHWC])


if __name__ == "__main__":
    main()
