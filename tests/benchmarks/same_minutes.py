"""What a tokenizer learns in the same minutes on the same cores: the demo's, and taming-transformers'.

    python tests/benchmarks/same_minutes.py [--minutes 10]

Both see the emoji of configs/emoji.yaml at 64 px through 8x8 tokens of 512 codes, in the same order, one after the
other on all cores, and are judged on the same held-out pictures by our metrics.
Ours is the demo's config and training loop. Two short runs first measure the seconds of a step and of what a run does
once; the number of steps that fill the minutes follows, and what the config counts in steps (learning-rate schedule,
the discriminator's start, its warm-up and ramp, validations) is scaled with it. Start-up, checkpoints and validations
are within its time.
taming is its VQModel with its loss, discriminator and optimizers, in the order of its trainer, for the seconds that
ours took; nothing but training takes any of them. What its users choose is chosen in its favour: see `TAMING`.
The last line is a JSON object with `psnr_ours`, `psnr_taming` (dB, higher is better), `kid_ours` and `kid_taming`
(of reconstructions against their originals, lower is better).
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.artifacts import Artifact
from pipeline.config import ClusterConfig, load_config
from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime, Rank, available_cores
from pipeline.storage import Folder
from run_pipeline import Config, build
from stages.data.images import to_model_range
from stages.data.loader import load_all
from stages.data.shards import open_split
from stages.metrics.kernel_distance import kid
from stages.metrics.picture_set import PictureSet
from stages.models.efficientnet_lite0 import load_efficientnet_lite0
from stages.models.fidelity import picture_psnr
from stages.models.losses.configs import LossConfig
from stages.models.losses.perceptual import build_perceptual
from stages.models.tokenizer import Tokenizer
from stages.models.tokenizer_config import EMAQuantizerConfig, ReferenceBackboneConfig, TokenizerModelConfig
from stages.training.tokenizer import TokenizerJob, train_tokenizer_loop
from stages.training.tokenizer_config import TokenizerConfig
from stages.training.tokenizer_data import training_stream
from tests.peers import taming_vqgan

CONFIG = Path(__file__).resolve().parents[2] / "configs/emoji.yaml"
TAMING = TokenizerModelConfig(
    backbone=ReferenceBackboneConfig(
        base_channels=32, multipliers=(1, 2, 2, 4), num_res_blocks=1, attention_resolutions=(), z_channels=128
    ),
    quantizer=EMAQuantizerConfig(num_codes=512, dim=128),  # only the sizes are taken: the codebook is taming's own
)
"""Its published networks made small: a quarter of their channels, one block a level in place of two, no attention but
the one in the middle. With half their channels it sees a third of the pictures, and is worse after 100 s."""
DISCRIMINATOR = {"disc_start": 10_000, "disc_weight": 0.8, "disc_ndf": 16, "disc_num_layers": 2}
"""When it starts and its weight as in taming's config for pictures of one's own; its size as in ours, for speed."""
BATCH = 8
LEARNING_RATE = 5e-4
"""The best after 100 s of this, 2e-4 and the published 4.5e-6 a picture; 16 pictures at once were no better."""
CALIBRATION_STEPS = (120, 600)


def main() -> None:
    """Train both, judge both, print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--taming-learning-rate", type=float, default=LEARNING_RATE)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="smalti-minutes-") as name:
        place = Path(name)
        config = load_config(Config, CONFIG)
        stage = build(config)[0]
        shards = run_stage(stage, stage.inputs, str(place / "runs"), LocalRuntime())
        held_out_NHWC = load_all(open_split(shards, "val"), shards.read_json("dataset.json")["channels"])[0]
        ours, seconds, pictures = train_ours(config.tokenizer, shards, place, 60 * arguments.minutes)
        rows = {"ours": {"seconds": seconds, "pictures": pictures, **judge(ours.reconstruct, held_out_NHWC)}}
        theirs, seconds, pictures = train_taming(
            config.tokenizer, shards, seconds, learning_rate=arguments.taming_learning_rate
        )
        rows["taming"] = {
            "seconds": seconds,
            "pictures": pictures,
            **judge(lambda x_BCHW: theirs(x_BCHW)[0], held_out_NHWC),
        }
    print(f"\n{'':8}{'seconds':>9}{'pictures':>10}{'PSNR, dB':>10}{'KID':>9}   on {len(held_out_NHWC)} held out")
    for who, row in rows.items():
        print(f"{who:8}{row['seconds']:9.0f}{row['pictures']:10.0f}{row['psnr']:10.2f}{row['kid']:9.4f}")
    figures: dict[str, Any] = {
        "benchmark": "same_minutes",
        "minutes": arguments.minutes,
        "taming_learning_rate": arguments.taming_learning_rate,
    }
    for key, digits in (("psnr", 2), ("kid", 4), ("seconds", 1), ("pictures", 0)):
        figures |= {f"{key}_{who}": round(row[key], digits) for who, row in rows.items()}
    print(json.dumps(figures))


class Screen:
    """Takes what a training loop says; prints some of it."""

    def progress(self, done: int, total: int, numbers: Mapping[str, float]) -> None:
        if done % 400 == 0:
            shown = ", ".join(f"{key} {value:.3g}" for key, value in numbers.items())
            print(f"ours    step {done} of {total}: {shown}", flush=True)

    def history(self, rows: Sequence[Mapping[str, float]]) -> None:
        pass

    def picture(self, name: str, data: bytes, step: int) -> None:
        pass

    def warn(self, message: str) -> None:
        print(message, flush=True)

    def stopping(self) -> bool:
        return False


def train_ours(config: TokenizerConfig, shards: Artifact, place: Path, budget: float) -> tuple[Tokenizer, float, int]:
    """Train the demo's tokenizer for about `budget` seconds; return it, the seconds it took, the pictures it saw."""
    steps = steps_that_fill(budget, config, shards, place)
    result, seconds = run_ours(scaled(config, steps), shards, place / "training")
    return Tokenizer.load(result), seconds, steps * config.batch_size


def run_ours(config: TokenizerConfig, shards: Artifact, folder: Path, threads: int | None = None) -> tuple[Path, float]:
    """Train from nothing; return the result's folder and the seconds it took."""
    runtime = LocalRuntime(cluster=ClusterConfig(threads=threads))
    job = TokenizerJob(config, shards, Folder.at(folder), runtime.cluster)
    start = time.perf_counter()
    trained = runtime.run_gang(partial(train_tokenizer_loop, job), Screen(), 1)
    return folder / trained["result"], time.perf_counter() - start


def steps_that_fill(
    budget: float,
    config: TokenizerConfig,
    shards: Artifact,
    place: Path,
    short_runs: tuple[int, int] = CALIBRATION_STEPS,
    threads: int | None = None,
) -> int:
    """The number of steps that take about `budget` seconds, by the time of two short runs."""
    fewer, more = (
        run_ours(scaled(config, steps), shards, place / f"calibration-{steps}", threads)[1] for steps in short_runs
    )
    seconds_of_step = (more - fewer) / (short_runs[1] - short_runs[0])
    once = more - short_runs[1] * seconds_of_step
    steps = max(round((budget - once) / seconds_of_step), short_runs[0])
    print(f"ours    {seconds_of_step:.4f} s a step and {once:.1f} s once: {steps} steps", flush=True)
    return steps


def scaled(config: TokenizerConfig, steps: int) -> TokenizerConfig:
    """The same training in another number of steps: everything that happens at a step happens at the same share."""
    tree = config.model_dump()
    share = steps / config.steps
    discriminator = tree["losses"]["discriminator"]
    for section, key in (
        (tree["optimizer"], "schedule_steps"),
        (discriminator, "start"),
        (discriminator, "warmup_steps"),
        (discriminator, "ramp_steps"),
        (tree, "validate_every"),
        (tree["model"]["quantizer"], "temperature_steps"),
    ):
        if section.get(key):
            section[key] = max(1, round(share * section[key]))
    return TokenizerConfig.model_validate({**tree, "steps": steps})


def train_taming(
    config: TokenizerConfig, shards: Artifact, budget: float, *, learning_rate: float
) -> tuple[nn.Module, float, int]:
    """Train taming's VQModel for `budget` seconds; return it, the seconds it took, the pictures it saw.

    Its perceptual network (VGG, a download) is replaced by ours, with our weight for it.
    """
    torch.manual_seed(config.seed)
    torch.set_num_threads(available_cores())
    losses: LossConfig = config.losses
    model = taming_vqgan(TAMING, image_size=64, perceptual_weight=losses.perceptual_weight, **DISCRIMINATOR)
    model.loss.perceptual_loss = PerceptualLoss(losses)
    model.learning_rate = learning_rate
    optimizers = model.train().configure_optimizers()[0]
    batches = training_stream(
        config.model_copy(update={"batch_size": BATCH}), shards, ClusterConfig(), alone(), start_step=0
    )
    start, printed = time.perf_counter(), 0.0
    for step, x_BCHW in enumerate(batches):
        elapsed = time.perf_counter() - start
        if elapsed >= budget:
            break
        loss = update(model, optimizers, x_BCHW)
        if elapsed - printed > 20:
            printed = elapsed
            print(f"taming  step {step} after {elapsed:.0f} s: loss {loss:.3f}", flush=True)
    return model.eval(), elapsed, step * BATCH


def update(model: Any, optimizers: Sequence[torch.optim.Optimizer], x_BCHW: Tensor) -> float:
    """One batch in Lightning 1's order: for each optimizer a forward pass of its own, the other's weights frozen."""
    batch = {"image": x_BCHW.permute(0, 2, 3, 1)}
    for number, optimizer in enumerate(optimizers):
        for other in optimizers:
            for parameter in itertools.chain(*(group["params"] for group in other.param_groups)):
                parameter.requires_grad_(other is optimizer)
        loss = model.training_step(batch, 0, number)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if number == 0:
            reconstruction = loss.item()
    model.global_step += 1
    return reconstruction


class PerceptualLoss(nn.Module):
    """Our perceptual distance in the place and shape of taming's LPIPS: [B, 1, 1, 1]."""

    def __init__(self, losses: LossConfig) -> None:
        super().__init__()
        self.distance = build_perceptual(losses.perceptual)

    def forward(self, x_BCHW: Tensor, x_hat_BCHW: Tensor) -> Tensor:
        return self.distance(x_BCHW, x_hat_BCHW)[:, None, None, None]


def alone() -> Rank:
    """The only rank of a gang on the CPU."""
    found: list[Rank] = []
    LocalRuntime().run_gang(lambda rank, reporter: found.append(rank), Screen(), 1)
    return found[0]


@torch.no_grad()
def judge(reconstruct: Callable[[Tensor], Tensor], held_out_NHWC: np.ndarray) -> dict[str, float]:
    """PSNR in dB (mean over pictures) and KID of reconstructions of uint8 pictures [N, H, W, C]."""
    network = load_efficientnet_lite0()
    psnr, features, original_features = [], [], []

    def features_of(x_BCHW: Tensor) -> np.ndarray:
        enlarged = F.interpolate(x_BCHW, (96, 96), mode="bicubic", antialias=True, align_corners=False)
        return network.pooled(enlarged.clamp(-1, 1)).numpy()

    for start in range(0, len(held_out_NHWC), 32):
        x_BCHW = to_model_range(held_out_NHWC[start : start + 32])
        x_hat_BCHW = reconstruct(x_BCHW).clamp(-1, 1)
        psnr.append(picture_psnr(x_hat_BCHW, x_BCHW))
        features.append(features_of(x_hat_BCHW))
        original_features.append(features_of(x_BCHW))
    distance = kid(PictureSet.plain(np.concatenate(features)), PictureSet.plain(np.concatenate(original_features)))
    return {"psnr": float(torch.cat(psnr).mean()), "kid": distance.value}


if __name__ == "__main__":
    main()
