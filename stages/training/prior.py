"""Training of the prior: a gang of ranks learns to predict a picture's tokens from its class and the tokens before."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.artifacts import Artifact
from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError
from pipeline.runtime import Rank, Reporter
from pipeline.storage import Folder
from stages.data.order import Order
from stages.models.dropout import sample_keys
from stages.models.priors.configs import PriorDescription
from stages.models.priors.gpt import GPT
from stages.models.vocabulary import TokenCorpus
from stages.training.checkpoints import Checkpoint, Checkpoints, reseed
from stages.training.fabric import Fabric, accumulating, all_reduce_sum, autocast, open_fabric
from stages.training.handover import hand_over
from stages.training.prior_config import PriorConfig
from stages.training.prior_results import write_result
from stages.training.prior_state import PriorState, out_of_patience
from stages.training.schedules import warmup_constant, warmup_cosine
from stages.training.session import Pace, Session
from stages.training.token_data import Batch, TokenData, read_split

# Shapes: B batch, C condition tokens, T image tokens, V codes.

VALIDATION_BATCH = 256
"""Pictures that are validated at once."""


@dataclass(frozen=True)
class PriorJob:
    """What every rank needs to know. Picklable."""

    config: PriorConfig
    corpus: TokenCorpus
    tokens: Artifact
    folder: Folder
    """Where checkpoints and the result go."""
    cluster: ClusterConfig


def train_prior_loop(job: PriorJob, rank: Rank, reporter: Reporter) -> dict[str, Any]:
    """What each rank runs; returns {"result": name for `handover.collect`, "metrics", "notes"} on rank 0."""
    config = job.config
    if config.batch_size < rank.world:
        raise ConfigError(f"prior.batch_size={config.batch_size} is smaller than the gang of {rank.world} ranks")
    with open_fabric(rank) as fabric:
        train, val = (read_split(job.tokens, job.corpus, split) for split in ("train", "val"))
        session = Session(
            fabric=fabric,
            rank=rank,
            reporter=reporter,
            checkpoints=Checkpoints(job.folder, rank.attempt),
            steps=config.steps,
            checkpoint_every=job.cluster.checkpoint_every,
        )
        trainer = PriorTrainer(job, fabric, rank, session, train, val)
        trainer.resume()
        trainer.run()
        return trainer.finish()


class TokenNats(nn.Module):
    """The prior as DDP wraps it: forward ends at the likelihoods [B, T], for the logits never exist all at once."""

    def __init__(self, prior: GPT) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, condition_BC: Tensor, tokens_BT: Tensor, keys_B: Tensor) -> Tensor:
        """Negative log-likelihood in nats, with everything that training adds at random."""
        return self.prior.loss(condition_BC, tokens_BT, keys_B)[1]


class PriorTrainer:
    """The steps of the loop, over one state."""

    def __init__(
        self, job: PriorJob, fabric: Fabric, rank: Rank, session: Session, train: TokenData, val: TokenData
    ) -> None:
        self.config, self.cluster, self.folder = job.config, job.cluster, job.folder
        self.fabric, self.rank, self.session = fabric, rank, session
        self.train, self.val = train, val
        self.description = PriorDescription.of(job.config.model, job.corpus.space)
        self.order = Order(train.counts, seed=job.config.seed)
        self.pace = Pace()
        if not len(val) and rank.rank == 0:
            session.reporter.warn("there are no validation tokens: the last weights are kept, patience has no effect")
        reseed(job.config.seed, 0, 0)  # the same weights on every rank
        model = GPT.build(self.description).to(fabric.device)
        module = TokenNats(model)
        self.module = fabric.setup_module(torch.compile(module) if job.cluster.compile else module)
        groups = model.optimizer_groups(job.config.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=job.config.learning_rate, betas=(0.9, 0.95), fused=True)
        self.state = PriorState(model, optimizer)
        self.state.recent = self.state.recent.to(fabric.device)

    def resume(self) -> None:
        """Go on from the newest checkpoint, unless training would have ended before it."""

        def not_too_far(checkpoint: Checkpoint) -> bool:
            validations = checkpoint.state["validations"]
            return not any(
                out_of_patience(validations[:count], self.config.patience) for count in range(len(validations))
            )

        checkpoint = self.session.resume(not_too_far)
        if checkpoint is not None:
            self.state.load(checkpoint.state)

    def run(self) -> None:
        """Train to the end, checkpointing on the way."""
        state = self.state
        while not self.ended():
            with self.pace.waiting_for_data():
                batch = self.train.batch(
                    self.order, state.step, self.config.batch_size, self.rank.rank, self.rank.world
                )
            gradient_norm = self.update(batch)
            state.step += 1
            if state.step % self.config.record_every == 0:
                self.record(gradient_norm)
            if state.step % self.config.validate_every == 0 and len(self.val):
                self.take_validation(float(self.validate().mean()))
            self.session.after_step(state.step, self.dump, finished=self.ended())

    def dump(self) -> dict[str, Any]:
        """The state to save. Raises StageError rather than let a broken one be."""
        self.state.check_finite(self.session.last_good)
        return self.state.dump()

    def ended(self) -> bool:
        """Whether the steps are done or the patience is at its end."""
        return self.state.step >= self.config.steps or out_of_patience(self.state.validations, self.config.patience)

    def update(self, batch: Batch) -> Tensor:
        """One step of AdamW on this rank's slice of the global batch; returns the gradient's norm before clipping."""
        state, config = self.state, self.config
        # Sums over slices of any size, scaled so that DDP's mean over ranks is the mean over the global batch.
        scale = self.rank.world / (config.batch_size * state.model.num_tokens)
        nats = torch.zeros((), dtype=torch.float64, device=self.fabric.device)
        micro_batch = self.cluster.micro_batch
        parts = batch.split(micro_batch if isinstance(micro_batch, int) else None)
        state.optimizer.zero_grad()
        for number, part in enumerate(parts, start=1):
            inputs = self.inputs(part)
            with accumulating(self.fabric, self.module, number < len(parts)):
                with autocast(self.fabric, config.precision):
                    nats_BT = self.module(*inputs)
                loss = nats_BT.sum()
                self.fabric.backward(loss * scale)
            nats += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_gradient or math.inf)
        for group in state.optimizer.param_groups:
            group["lr"] = self.learning_rate(state.step)
        state.optimizer.step()
        tokens = config.batch_size * state.model.num_tokens
        nats = all_reduce_sum(self.fabric, nats) + 0.0 * norm  # a gradient that is not finite shows in the sum as well
        state.recent += torch.stack([nats, nats.new_tensor(tokens)])
        self.pace.count(tokens)
        return norm

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Condition [B, C], tokens [B, T] and keys [B] on the device."""
        batch = batch.on(self.fabric.device)
        condition_BC = self.state.model.vocabulary.condition(batch.labels_B)
        return condition_BC, batch.tokens_BT, sample_keys(self.config.seed, batch.positions_B)

    def learning_rate(self, step: int) -> float:
        """The learning rate of the update after `step` others."""
        config = self.config
        if config.schedule_steps is None:
            return config.learning_rate * warmup_constant(step, warmup_steps=config.warmup_steps)
        floor = config.min_learning_rate / config.learning_rate
        return config.learning_rate * warmup_cosine(
            step, warmup_steps=config.warmup_steps, horizon=config.schedule_steps, floor=floor
        )

    def record(self, gradient_norm: Tensor) -> None:
        """Add a row to the history and show the numbers."""
        state = self.state
        state.check_finite(self.session.last_good)
        nats, tokens = state.recent.tolist()
        row = {
            "train/bits_per_token": nats / tokens / math.log(2),
            "train/learning_rate": self.learning_rate(state.step - 1),
            "train/gradient_norm": float(gradient_norm),
        }
        state.recent.zero_()
        self.session.record(state.step, row)
        shown = {"bits_per_token": row["train/bits_per_token"], **self.pace.lap("tokens")}
        if state.validations:
            shown["validation_bits"] = state.validations[-1][1]
        self.session.progress(state.step, shown)

    def validate(self) -> Tensor:
        """Mean bits [T] of each token position over all validation rows, given their class; float64, on all ranks."""
        model = self.state.model
        nats_T = torch.zeros(model.num_tokens, dtype=torch.float64, device=self.fabric.device)
        with torch.no_grad(), autocast(self.fabric, self.config.precision):
            for batch in self.val.sweep(VALIDATION_BATCH, self.rank.rank, self.rank.world):
                condition_BC, tokens_BT, _ = self.inputs(batch)
                nats_T += model.loss(condition_BC, tokens_BT)[1].double().sum(dim=0)
        return all_reduce_sum(self.fabric, nats_T) / len(self.val) / math.log(2)

    def take_validation(self, bits: float) -> None:
        """Remember a validation, and the weights if it is the best one."""
        state = self.state
        best = state.best
        if best is None or bits < best[1]:
            state.best_weights = {name: value.detach().clone() for name, value in state.model.state_dict().items()}
        state.validations.append((state.step, bits))
        self.session.record(state.step, {"validation/bits_per_token": bits})

    def finish(self) -> dict[str, Any]:
        """Choose the best weights, measure them, hand the files over. Collective.

        The validation at the very end is not part of the checkpoint: training with more steps would not make it.
        """
        state = self.state
        training = {**self.dump(), "validations": list(state.validations), "best_weights": state.best_weights}
        training["model"] = {name: value.clone() for name, value in state.model.state_dict().items()}
        if len(self.val) and (not state.validations or state.validations[-1][0] != state.step):
            self.take_validation(float(self.validate().mean()))
            self.session.publish()
        if state.best_weights:
            state.model.load_state_dict(state.best_weights)
        bits_T = self.validate().tolist() if len(self.val) else None
        if self.rank.rank:
            return {}
        with tempfile.TemporaryDirectory() as scratch:
            metrics = write_result(
                Path(scratch),
                model=state.model,
                description=self.description,
                training=training,
                history=self.session.history,
                bits_T=bits_T,
                num_pictures=len(self.val),
            )
            name = hand_over(self.folder, Path(scratch))
        metrics.update(steps=state.step, best_step=state.best[0] if state.best else state.step)
        return {"result": name, "metrics": metrics, "notes": self.pace.overall("tokens")}
