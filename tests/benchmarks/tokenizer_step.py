"""One adversarial training step of the reference architecture on the CPU: ours against taming-transformers'.

    python tests/benchmarks/tokenizer_step.py [--rounds 7] [--steps 2]

Pictures of 64x64, `ch` 64, `ch_mult` 1,2,2, two residual blocks, attention at 16, 1,024 codes of 256, batch 4, LPIPS
over VGG16 and PatchGAN with taming's defaults; both in fp32 with the same weights. Theirs does what its trainer does in
a step: for each of the two optimizers the gradient is switched off for the other's parameters, then `training_step`,
backward, Adam; without logging, and without the dropout that its `train()` switches on in LPIPS by mistake.
Ours is `TokenizerTrainer.update`: its codebook follows by moving averages, theirs by gradient.
Rounds are interleaved, medians count. Where the processor has no bf16, ours in bf16 is timed for a single step.
First the two are compared: loss terms, adaptive weight, and the generator's gradient of one step at equal weights.
The last line is a JSON object; `ratio_fp32` and `ratio_bf16` are our steps a second over theirs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.config import ClusterConfig
from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime, available_cores
from pipeline.stage import Stage
from pipeline.storage import Folder
from stages.models.losses.configs import DiscriminatorConfig, LossConfig, PerceptualConfig
from stages.models.tokenizer_config import EMAQuantizerConfig, ReferenceBackboneConfig, TokenizerModelConfig
from stages.training.checkpoints import Checkpoints
from stages.training.fabric import open_fabric
from stages.training.session import Session
from stages.training.tokenizer import TokenizerJob, TokenizerTrainer
from stages.training.tokenizer_config import TokenizerConfig, TokenizerOptimizerConfig
from tests import peers
from tests.stages import made_up
from tests.stages.training.gangs import RecordingReporter, rank_of

SIZE, BATCH = 64, 4
LEARNING_RATE, BETAS = 1e-4, (0.5, 0.9)
MODEL = TokenizerModelConfig(
    backbone=ReferenceBackboneConfig(base_channels=64, multipliers=(1, 2, 2), num_res_blocks=2, z_channels=256),
    # taming's loss for the encoder is the mean squared distance itself; its beta is on the codebook's side
    quantizer=EMAQuantizerConfig(num_codes=1024, dim=256, commitment=1.0),
)
ADVERSARY = DiscriminatorConfig(
    base_channels=64,
    num_layers=3,
    norm="batch",
    weight=0.8,
    start=0,
    warmup_steps=0,
    ramp_steps=0,
    adaptive_delta=1e-4,
    learning_rate=LEARNING_RATE,
)
LOSSES = LossConfig(
    l1_weight=1.0,
    l2_weight=0.0,
    perceptual_weight=1.0,
    perceptual=PerceptualConfig(kind="vgg"),
    discriminator=ADVERSARY,
)
NATIVE_BF16 = ("avx512_bf16", "amx_bf16", " bf16")


def main() -> None:
    """Compare, measure, and print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="steps of each in a round")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, our_trainer(Path(folder), "fp32") as trainer:
        x_BCHW = pictures()
        theirs = Peer(trainer, x_BCHW)
        agreement = compare(trainer, theirs, x_BCHW)
        contestants: dict[str, Callable[[], object]] = {
            "taming fp32": lambda: theirs.step(x_BCHW),
            "ours fp32": lambda: trainer.update(x_BCHW),
        }
        times = interleaved(contestants, rounds=arguments.rounds, steps=arguments.steps)
        native = any(flag in Path("/proc/cpuinfo").read_text() for flag in NATIVE_BF16)
        in_bf16 = trainer.config.model_copy(update={"precision": "bf16"})
        trainer.step.gradients = replace(trainer.step.gradients, config=in_bf16)
        bf16_rounds = {"rounds": arguments.rounds, "steps": arguments.steps, "warm_up": native} if native else {}
        times |= interleaved({"ours bf16": lambda: trainer.update(x_BCHW)}, **{"warm_up": False} | bf16_rounds)
    report(times, agreement, native)


def pictures() -> Tensor:
    """Noise: its vectors are far from one another, so that rounding changes no token. [B, C, H, W] in [-1, 1]."""
    draw = torch.Generator().manual_seed(3)
    x_BCHW = torch.rand(BATCH, 3, SIZE, SIZE, generator=draw) * 2 - 1
    return x_BCHW.contiguous(memory_format=torch.channels_last)


@contextlib.contextmanager
def our_trainer(folder: Path, precision: Any) -> Iterator[TokenizerTrainer]:
    """The training loop's object on all cores, over made-up shards that only validation would read."""
    world = made_up.World(size=SIZE, train=(BATCH,), val=(BATCH,))
    shards = run_stage(Stage("shard", made_up.shard, world, {}), {}, str(folder), LocalRuntime())
    config = TokenizerConfig(
        model=MODEL,
        losses=LOSSES,
        optimizer=TokenizerOptimizerConfig(
            learning_rate=LEARNING_RATE, betas=BETAS, warmup_steps=0, schedule_steps=None
        ),
        batch_size=BATCH,
        precision=precision,
    )
    place = Folder.at(str(folder / "training"))
    rank, reporter = rank_of(threads=available_cores()), RecordingReporter()
    with open_fabric(rank) as fabric, peers.random_vgg_weights():
        checkpoints = Checkpoints(place, rank.attempt)
        session = Session(fabric, rank, reporter, checkpoints, steps=config.steps, checkpoint_every=config.steps)
        yield TokenizerTrainer(TokenizerJob(config, shards, place, ClusterConfig()), fabric, rank, session)


class Peer:
    """taming's VQModel with our trainer's weights, trained as its trainer trains it."""

    def __init__(self, trainer: TokenizerTrainer, x_BCHW: Tensor) -> None:
        tokenizer = trainer.state.tokenizer
        peers.spread_codes(tokenizer, x_BCHW)
        parameters = {"disc_start": 0, "disc_weight": ADVERSARY.weight}
        self.model = peers.taming_vqgan(MODEL, image_size=SIZE, **parameters).train()
        self.model.loss.perceptual_loss.eval()
        peers.copy_weights(self.model, tokenizer)
        self.model.loss.discriminator.load_state_dict(trainer.state.discriminator.state_dict())
        self.model.learning_rate = LEARNING_RATE
        self.optimizers, _ = self.model.configure_optimizers()

    def losses(self, x_BCHW: Tensor, optimizer_idx: int) -> tuple[Tensor, dict[str, Tensor]]:
        """What `training_step` returns, and what it would log."""
        for parameter in self.model.parameters():
            parameter.requires_grad = False
        for group in self.optimizers[optimizer_idx].param_groups:
            for parameter in group["params"]:
                parameter.requires_grad = True
        logged: dict[str, Tensor] = {}
        self.model.log_dict = lambda terms, **settings: logged.update(terms)
        batch = {"image": x_BCHW.permute(0, 2, 3, 1)}
        return self.model.training_step(batch, 0, optimizer_idx), logged

    def step(self, x_BCHW: Tensor) -> None:
        """Both optimizers, as the trainer of its time goes through them."""
        for number, optimizer in enumerate(self.optimizers):
            loss, _ = self.losses(x_BCHW, number)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def compare(trainer: TokenizerTrainer, theirs: Peer, x_BCHW: Tensor) -> dict[str, float]:
    """Relative differences of the loss terms and of the generator's gradient at equal weights; asserts they are small.

    Both take their first step along the way (theirs without moving), so the timed steps go on from there.
    """
    _, judged = theirs.losses(x_BCHW, 1)
    loss, logged = theirs.losses(x_BCHW, 0)
    loss.backward()
    numbers = trainer.update(x_BCHW)
    terms = numbers.shares | numbers.whole
    expected = {name.removeprefix("train/"): float(value) for name, value in {**logged, **judged}.items()}
    pairs = {
        "reconstruction": (terms["l1"] + terms["perceptual"], expected["nll_loss"]),
        "perceptual": (terms["perceptual"], expected["p_loss"]),
        "adversarial": (terms["adversarial"], expected["g_loss"]),
        "adaptive_weight": (terms["adaptive_weight"] * ADVERSARY.weight, expected["d_weight"]),
        "codebook": (terms["codebook"] * 1.25, expected["quant_loss"]),
        "discriminator": (terms["discriminator"], expected["disc_loss"]),
    }
    differences = {name: abs(float(mine) - yours) / abs(yours) for name, (mine, yours) in pairs.items()}
    ours = {name: p.grad for name, p in trainer.state.tokenizer.named_parameters() if p.grad is not None}
    gradients = {name: p.grad for name, p in theirs.model.named_parameters() if name in ours}
    error = torch.stack([(ours[name] - gradients[name]).norm() for name in gradients]).norm()
    scale = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    differences["gradient"] = float(error / scale)
    for name, difference in differences.items():
        print(f"agreement  {name:16} relative difference {difference:.1e}")
        assert difference < 2e-3, f"the two differ in {name}: not the same step"
    return differences


def interleaved(
    contestants: dict[str, Callable[[], object]], *, rounds: int = 1, steps: int = 1, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of a step of each contestant, in every round."""
    if warm_up:
        for run in contestants.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            started = time.perf_counter()
            for _ in range(steps):
                run()
            times[name].append((time.perf_counter() - started) / steps)
            print(f"{name:12} {times[name][-1]:8.3f} s/step", flush=True)
    return times


def report(times: dict[str, list[float]], agreement: dict[str, float], native: bool) -> None:
    """Print the table and the JSON line."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"\n{'':14}{'s/step':>10}{'fastest':>10}{'slowest':>10}{'images/s':>10}")
    for name, values in times.items():
        print(f"{name:14}{medians[name]:10.3f}{min(values):10.3f}{max(values):10.3f}{BATCH / medians[name]:10.2f}")
    figures = {
        "benchmark": "tokenizer_step",
        "ratio_fp32": round(medians["taming fp32"] / medians["ours fp32"], 2),
        "ratio_bf16": round(medians["taming fp32"] / medians["ours bf16"], 3),
        "bf16_native": native,
        "images_per_second": {name: round(BATCH / median, 2) for name, median in medians.items()},
        "largest_difference": max(agreement.values()),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
