"""Training of the tokenizer: a gang of ranks learns to bring pictures back through a grid of codes.

Legend: B batch of this rank, C channels, H height, W width, K codes.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.artifacts import Artifact
from pipeline.config import ClusterConfig
from pipeline.runtime import Rank, Reporter
from pipeline.storage import Folder
from stages.data.shards import open_split
from stages.models.losses.perceptual import build_perceptual
from stages.models.quantizers.ema import Statistics, codes_used, perplexity
from stages.models.tokenizer import TokenizerOutput
from stages.training.adversarial import discriminator_objective, generator_objective, gradients_finite
from stages.training.checkpoints import Checkpoints, reseed
from stages.training.fabric import Fabric, all_reduce_sum, autocast, open_fabric
from stages.training.handover import hand_over
from stages.training.movement import MovementWatch
from stages.training.reconstruction import HeldOut, reconstruction_grid, validate
from stages.training.schedules import warmup_constant, warmup_cosine
from stages.training.session import Pace, Session
from stages.training.tokenizer_config import TokenizerConfig
from stages.training.tokenizer_data import check_ranks, training_stream
from stages.training.tokenizer_results import write_result
from stages.training.tokenizer_state import begin

Terms = dict[str, Tensor]


@dataclass(frozen=True)
class TokenizerJob:
    """What every rank needs to know. Picklable."""

    config: TokenizerConfig
    shards: Artifact
    folder: Folder
    """Where checkpoints and the result go."""
    cluster: ClusterConfig


def train_tokenizer_loop(job: TokenizerJob, rank: Rank, reporter: Reporter) -> dict[str, Any]:
    """One rank's training, from the last checkpoint to `job.config.steps`. Rank 0 returns the result."""
    check_ranks(job.config, rank)
    with open_fabric(rank) as fabric:
        session = Session(
            fabric=fabric,
            rank=rank,
            reporter=reporter,
            checkpoints=Checkpoints(job.folder, rank.attempt),
            steps=job.config.steps,
            checkpoint_every=job.cluster.checkpoint_every,
        )
        trainer = TokenizerTrainer(job, fabric, rank, session)
        trainer.resume()
        trainer.run()
        return trainer.finish()


class TokenizerTrainer:
    """The steps of the loop, over one state."""

    def __init__(self, job: TokenizerJob, fabric: Fabric, rank: Rank, session: Session) -> None:
        self.job, self.config, self.losses = job, job.config, job.config.losses
        self.fabric, self.rank, self.session = fabric, rank, session
        self.sum_over_ranks = partial(all_reduce_sum, fabric)
        self.pace = Pace()
        self.shown: dict[str, float] = {}
        dataset = job.shards.read_json("dataset.json")
        size, channels = dataset["image_size"], dataset["channels"]
        self.held_out = HeldOut.load(
            open_split(job.shards, "val"),
            channels=channels,
            limit=self.config.validation_pictures,
            rank=rank.rank,
            world=rank.world,
        )
        self.perceptual = build_perceptual(self.losses.perceptual).to(fabric.device)
        self.state, self.networks = begin(self.config, fabric, image_size=size, channels=channels)
        if job.cluster.compile:
            self.state.tokenizer.compile_trunks()
        self.watches = (
            MovementWatch(self.state.tokenizer, first_update=0),
            MovementWatch(self.state.discriminator, first_update=self.losses.discriminator.start),
        )
        if job.cluster.micro_batch is not None and rank.rank == 0:
            session.reporter.warn("cluster.micro_batch has no effect on the tokenizer: it takes its slice at once")

    def resume(self) -> None:
        """Go on from the newest checkpoint."""
        if checkpoint := self.session.resume():
            self.state.load(checkpoint.state)

    def run(self) -> None:
        """Train to the end, checkpointing on the way."""
        state, config = self.state, self.config
        batches = iter(training_stream(config, self.job.shards, self.job.cluster, self.rank, start_step=state.step))
        while state.step < config.steps:
            reseed(config.seed, state.step, self.rank.rank)
            self.warn_of_unmoved()
            with self.pace.waiting_for_data():
                x_BCHW = next(batches).to(self.fabric.device, memory_format=torch.channels_last, non_blocking=True)
            terms, statistics = self.update(x_BCHW)
            state.step += 1
            state.samples_seen += config.batch_size
            self.pace.count(config.batch_size)
            if state.step % config.record_every == 0:
                self.record(terms, statistics)
            if state.step % config.validate_every == 0:
                self.take_validation()
            self.session.after_step(state.step, state.dump, finished=state.step == config.steps)

    def update(self, x_BCHW: Tensor) -> tuple[Terms, Statistics]:
        """One step of both networks and the codebook on this rank's slice; its share of the loss terms."""
        state, adversary = self.state, self.losses.discriminator
        for optimizer in (state.generator_optimizer, state.discriminator_optimizer):
            optimizer.zero_grad()
        x_hat_BCHW, terms, statistics = self.generator_gradients(x_BCHW)
        trains_discriminator = adversary.weight > 0 and state.step >= adversary.start
        if trains_discriminator:
            terms |= self.discriminator_gradients(x_BCHW, x_hat_BCHW)
        finite = gradients_finite([*state.tokenizer.parameters(), *state.discriminator.parameters()])
        if finite:
            for group in state.generator_optimizer.param_groups:
                group["lr"] = self.learning_rate()
            state.generator_optimizer.step()
            state.tokenizer.quantize.update(statistics)
            if trains_discriminator:
                state.discriminator_optimizer.step()
        state.skipped.count(
            finite=finite, limit=self.losses.max_skipped_steps, step=state.step, last_good=self.last_good
        )
        return terms, statistics

    def generator_gradients(self, x_BCHW: Tensor) -> tuple[Tensor, Terms, Statistics]:
        """Backward through the generator; its pictures, loss terms, and the codebook's statistics over all ranks."""
        config, quantizer = self.config, self.state.tokenizer.quantize
        with autocast(self.fabric, config.precision):
            output: TokenizerOutput = self.networks.generator(x_BCHW)
            objective, terms = generator_objective(
                x_BCHW,
                output.x_hat_BCHW,
                output.commitment_B,
                losses=self.losses,
                perceptual=self.perceptual,
                discriminator=self.state.discriminator,
                last_layer=self.state.tokenizer.last_layer_weight,
                adversarial_weight=self.losses.discriminator.weight_at(self.state.step),
                batch_size=config.batch_size,
                sum_over_ranks=self.sum_over_ranks,
            )
        self.fabric.backward(objective * self.rank.world)  # gradients are averaged over ranks
        places = output.indices_BHW[0].numel()
        statistics = quantizer.statistics(
            output.z_BCHW,
            output.indices_BHW,
            draw_K=quantizer.draw_positions(config.batch_size * places, seed=config.seed, step=self.state.step),
            first=config.batch_size * self.rank.rank // self.rank.world * places,
        )
        return output.x_hat_BCHW.detach(), terms, statistics.like(self.sum_over_ranks(statistics.flat()))

    def discriminator_gradients(self, x_BCHW: Tensor, x_hat_BCHW: Tensor) -> Terms:
        """Backward through the discriminator; its loss terms."""
        with autocast(self.fabric, self.config.precision):
            loss, terms = discriminator_objective(
                self.networks.discriminator, x_BCHW, x_hat_BCHW, batch_size=self.config.batch_size
            )
        self.fabric.backward(loss * self.rank.world)
        return terms

    def learning_rate(self) -> float:
        """The generator's learning rate at this step."""
        optimizer = self.config.optimizer
        step, peak = self.state.step, optimizer.learning_rate
        if optimizer.schedule_steps is None:
            return peak * warmup_constant(step, warmup_steps=optimizer.warmup_steps)
        return peak * warmup_cosine(
            step,
            warmup_steps=optimizer.warmup_steps,
            horizon=optimizer.schedule_steps,
            floor=optimizer.min_learning_rate / peak,
        )

    def record(self, terms: Terms, statistics: Statistics) -> None:
        """Add a row to the history and show the numbers. Collective."""
        adaptive_weight = terms.pop("adaptive_weight", None)  # already that of the global batch
        sums = self.sum_over_ranks(torch.stack(list(terms.values()))).tolist()
        numbers = dict(zip(terms, sums, strict=True))
        if adaptive_weight is not None:
            numbers["adaptive_weight"] = float(adaptive_weight)
        numbers["adversarial_weight"] = self.losses.discriminator.weight_at(self.state.step - 1)
        numbers["codes_used"] = codes_used(statistics.counts_K)
        numbers["perplexity"] = perplexity(statistics.counts_K)
        numbers["skipped_steps"] = self.state.skipped.total
        self.session.record(self.state.step, {f"train/{name}": value for name, value in numbers.items()})
        self.shown |= self.pace.lap("pictures")
        self.shown |= {name: numbers[name] for name in ("reconstruction", "discriminator") if name in numbers}
        self.session.progress(self.state.step, self.shown)

    def take_validation(self) -> None:
        """Measure held-out pictures, record and show them. Collective."""
        state, numbers = self.state, self.validate()
        self.session.record(state.step, numbers)
        self.shown["psnr"] = numbers["validation/psnr"]
        if numbers["validation/psnr"] > state.best_psnr:
            state.best_psnr, state.best_step = numbers["validation/psnr"], state.step
        if self.rank.rank == 0:
            self.session.reporter.picture("reconstructions", self.grid(), state.step)

    def validate(self) -> dict[str, float]:
        """How well held-out pictures come back, over all ranks. Collective."""
        tokenizer = self.state.tokenizer.eval()
        numbers = validate(tokenizer, self.held_out, self.fabric, batch_size=self.config.batch_size)
        tokenizer.train()
        return numbers

    def grid(self) -> bytes:
        """A PNG of held-out pictures above their reconstructions."""
        return reconstruction_grid(self.state.tokenizer, self.held_out, self.fabric.device)

    def warn_of_unmoved(self) -> None:
        """Name trainable tensors that have not moved since the first updates."""
        for watch in self.watches:
            names = watch.look(self.state.step)
            if names and self.rank.rank == 0:
                self.session.reporter.warn(
                    f"after {self.state.step} steps these tensors of the {type(watch.network).__name__} have not moved "
                    f"at all: {', '.join(names)}"
                )

    def last_good(self) -> str:
        """The newest checkpoint, for people."""
        checkpoint = self.session.checkpoints.latest()
        return f"{self.job.folder}/{checkpoint.name} (step {checkpoint.step})" if checkpoint else "none"

    def finish(self) -> dict[str, Any]:
        """Measure the final weights and hand the files over. Collective.

        A validation at the very end is not part of the checkpoint: training with more steps would not make it.
        """
        state = self.state
        numbers = self.validate()
        if self.rank.rank:
            return {}
        reconstructions = self.grid()
        if state.step % self.config.validate_every:
            self.session.record(state.step, numbers)
            self.session.reporter.picture("reconstructions", reconstructions, state.step)
        self.session.publish()
        with tempfile.TemporaryDirectory() as scratch:
            write_result(
                Path(scratch),
                tokenizer=state.tokenizer,
                training=state.dump(),
                history=self.session.history,
                reconstructions=reconstructions,
            )
            name = hand_over(self.job.folder, Path(scratch))
        metrics = {key.removeprefix("validation/"): value for key, value in numbers.items()}
        metrics |= {"steps": state.step, "skipped_steps": state.skipped.total}
        return {"result": name, "metrics": metrics, "notes": self.pace.overall("pictures")}
