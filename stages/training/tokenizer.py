"""Training of the tokenizer: a gang of ranks learns to bring pictures back through a grid of codes.

Legend: B batch of this rank, C channels, H height, W width, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from stages.models.quantizers.quantizer import codes_used, perplexity
from stages.training.checkpoints import Checkpoints, reseed
from stages.training.fabric import Fabric, all_reduce_sum, chosen_precision, compiles, open_fabric
from stages.training.handover import hand_over
from stages.training.micro_batch import decide_micro_batch
from stages.training.movement import MovementWatch
from stages.training.reconstruction import HeldOut, reconstruction_grid, validate
from stages.training.session import Pace, Session
from stages.training.start import load_tokenizer_start
from stages.training.tokenizer_config import TokenizerConfig
from stages.training.tokenizer_data import check_ranks, picture_size, training_stream
from stages.training.tokenizer_gradients import StepGradients, StepNumbers
from stages.training.tokenizer_results import write_result
from stages.training.tokenizer_state import begin
from stages.training.tokenizer_step import TokenizerStep

ALARMING_DROP = 3.0
"""dB of held-out PSNR lost since the best; a discriminator felt too strongly does that, and nothing brings it back."""


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
    with open_fabric(rank, precision="64-true" if job.config.precision == "fp64" else "32-true") as fabric:
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
        self.pace = Pace()
        self.shown: dict[str, float] = {}
        self.alarmed = False
        dataset = job.shards.read_json("dataset.json")
        size, channels = picture_size(self.config, dataset), dataset["channels"]
        self.held_out = HeldOut.load(
            open_split(job.shards, "val"),
            image_size=size,
            channels=channels,
            limit=self.config.validation_pictures,
            rank=rank.rank,
            world=rank.world,
        )
        self.perceptual = build_perceptual(self.losses.perceptual).to(fabric.device)
        start = load_tokenizer_start(self.config, dataset)[0] if self.config.from_checkpoint else None
        self.state, self.networks = begin(
            self.config,
            fabric,
            start,
            image_size=size,
            channels=channels,
            activation_checkpointing=job.cluster.activation_checkpointing,
        )
        if compiles(fabric, job.cluster.compile):
            self.state.tokenizer.compile_trunks()
        self.watches = [MovementWatch(self.state.tokenizer, first_update=0)]
        if self.losses.discriminator.weight > 0:
            self.watches.append(MovementWatch(self.state.discriminator, self.losses.discriminator.start))
        whole = -(-self.config.batch_size // rank.world)
        gradients = StepGradients(
            self.config, fabric, rank, self.state, self.networks, self.perceptual, micro_batch=whole
        )
        self.step = TokenizerStep(gradients, warn=self.warn, last_good=self.last_good)

    def resume(self) -> None:
        """Go on from the newest checkpoint."""
        if checkpoint := self.session.resume():
            self.state.load(checkpoint.state)

    def run(self) -> None:
        """Train to the end, checkpointing on the way."""
        state, config = self.state, self.config
        self.fit_memory()
        batches = iter(training_stream(config, self.job.shards, self.job.cluster, self.rank, start_step=state.step))
        while state.step < config.steps:
            reseed(config.seed, state.step, self.rank.rank)
            self.warn_of_unmoved()
            with self.pace.waiting_for_data():
                x_BCHW = self.to_device(next(batches))
            numbers = self.update(x_BCHW)
            state.step += 1
            state.samples_seen += config.batch_size
            self.pace.count(config.batch_size)
            if state.step % config.record_every == 0:
                self.record(numbers)
            if state.step % config.validate_every == 0:
                self.take_validation()
            self.session.after_step(state.step, state.dump, finished=state.step == config.steps)

    def fit_memory(self) -> None:
        """Decide how many pictures go through the networks at once. Collective."""
        gradients = self.step.gradients
        size = decide_micro_batch(
            self.job.cluster.micro_batch,
            gradients.try_out,
            slice_size=gradients.largest_slice,
            fabric=self.fabric,
            announce=self.warn,
        )
        self.step.gradients = replace(gradients, micro_batch=size)

    def to_device(self, x_BCHW: Tensor) -> Tensor:
        """Pictures where and as the networks take them."""
        dtype = self.state.tokenizer.last_layer_weight.dtype
        return x_BCHW.to(self.fabric.device, dtype, memory_format=torch.channels_last, non_blocking=True)

    def update(self, x_BCHW: Tensor) -> StepNumbers:
        """One step on this rank's slice. Collective."""
        return self.step.take(x_BCHW)

    def record(self, step: StepNumbers) -> None:
        """Add a row to the history and show the numbers. Collective."""
        sums = all_reduce_sum(self.fabric, torch.stack(list(step.shares.values()))).tolist()
        numbers = dict(zip(step.shares, sums, strict=True))
        numbers |= {name: float(value) for name, value in step.whole.items()}
        numbers["adversarial_weight"] = self.losses.discriminator.weight_at(self.state.step - 1)
        numbers["codes_used"] = codes_used(step.statistics.counts_K)
        numbers["perplexity"] = perplexity(step.statistics.counts_K)
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
        elif numbers["validation/psnr"] < state.best_psnr - ALARMING_DROP and not self.alarmed:
            self.alarmed = True
            self.warn(
                f"held-out PSNR fell from {state.best_psnr:.1f} dB at step {state.best_step} to "
                f"{numbers['validation/psnr']:.1f} dB at step {state.step}: lower losses.discriminator.weight "
                f"({self.losses.discriminator.weight}), its learning_rate, or the optimizer's"
            )
        if self.rank.rank == 0:
            self.session.reporter.picture("reconstructions", self.grid(), state.step)

    def validate(self) -> dict[str, float]:
        """How well held-out pictures come back, over all ranks. Collective."""
        self.state.tokenizer.eval()
        pictures = min(self.config.batch_size, self.step.gradients.micro_batch * self.rank.world)
        numbers = validate(self.state.result, self.held_out, self.fabric, batch_size=pictures)
        self.state.tokenizer.train()
        return numbers

    def grid(self) -> bytes:
        """A PNG of held-out pictures above their reconstructions."""
        return reconstruction_grid(self.state.result, self.held_out, self.fabric.device)

    def warn_of_unmoved(self) -> None:
        """Name trainable tensors that have not moved since the first updates."""
        for watch in self.watches:
            names = watch.look(self.state.step)
            if names:
                self.warn(
                    f"after {self.state.step} steps these tensors of the {type(watch.network).__name__} have not moved "
                    f"at all: {', '.join(names)}"
                )

    def warn(self, message: str) -> None:
        """Tell the user, once for the gang."""
        if self.rank.rank == 0:
            self.session.reporter.warn(message)

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
        with self.job.folder.scratch("result") as scratch:
            write_result(
                Path(scratch),
                tokenizer=state.result,
                training=state.dump(),
                history=self.session.history,
                reconstructions=reconstructions,
            )
            name = hand_over(self.job.folder, Path(scratch))
        metrics = {key.removeprefix("validation/"): value for key, value in numbers.items()}
        metrics |= {"steps": state.step, "skipped_steps": state.skipped.total}
        notes = {
            **self.pace.overall("pictures"),
            "micro_batch": self.step.gradients.micro_batch,
            "precision": chosen_precision(self.fabric, self.config.precision),
            "compiled": compiles(self.fabric, self.job.cluster.compile),
        }
        return {"result": name, "metrics": metrics, "notes": notes}
