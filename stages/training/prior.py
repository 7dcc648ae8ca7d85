"""Training of the prior: a gang of ranks learns to predict a picture's tokens from its class and the tokens before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.artifacts import Artifact
from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError
from pipeline.runtime import Rank, Reporter
from pipeline.storage import Folder
from stages.data.order import Order
from stages.models.priors.configs import PriorDescription
from stages.models.priors.load import build_prior
from stages.models.vocabulary import TokenCorpus
from stages.training.activations import checkpoint_activations
from stages.training.averages import WeightAverage
from stages.training.checkpoints import Checkpoint, Checkpoints, reseed
from stages.training.fabric import (
    Fabric,
    all_reduce_sum,
    autocast,
    chosen_precision,
    compiles,
    open_fabric,
)
from stages.training.handover import hand_over
from stages.training.micro_batch import decide_micro_batch
from stages.training.prior_config import PriorConfig
from stages.training.prior_results import write_result
from stages.training.prior_state import PriorState, out_of_patience
from stages.training.prior_step import PriorStep, TokenNats
from stages.training.session import Pace, Session
from stages.training.start import load_prior_start
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
        model = build_prior(self.description)
        if job.config.from_checkpoint is not None:
            model.load_state_dict(load_prior_start(job.config, job.corpus)[0])
        model.to(fabric.device)
        average = WeightAverage(model, job.config.ema_decay) if job.config.ema_decay is not None else None
        if job.cluster.activation_checkpointing:
            checkpoint_activations(model)
        module: Any = TokenNats(model)
        module = fabric.setup_module(torch.compile(module) if compiles(fabric, job.cluster.compile) else module)
        groups = model.optimizer_groups(job.config.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=job.config.learning_rate, betas=(0.9, 0.95), fused=True)
        self.state = PriorState(model, optimizer, average)
        self.state.recent = self.state.recent.to(fabric.device)
        whole_slice = -(-job.config.batch_size // rank.world)
        self.step = PriorStep(job.config, fabric, rank, self.state, module, micro_batch=whole_slice)

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
        self.fit_memory()
        while not self.ended():
            with self.pace.waiting_for_data():
                batch = self.batch(self.rank.rank)
            gradient_norm = self.step.take(batch)
            state.step += 1
            self.pace.count(self.config.batch_size * state.model.num_tokens)
            if state.step % self.config.record_every == 0:
                self.record(gradient_norm)
            if state.step % self.config.validate_every == 0 and len(self.val):
                self.take_validation(float(self.validate().mean()))
            self.session.after_step(state.step, self.dump, finished=self.ended())

    def batch(self, rank: int) -> Batch:
        """A rank's slice of the next global batch."""
        return self.train.batch(self.order, self.state.step, self.config.batch_size, rank, self.rank.world)

    def fit_memory(self) -> None:
        """Decide how many pictures go through the network at once. Collective."""
        largest = self.batch(self.rank.world - 1)  # the last rank's slice is never smaller than another's
        self.step.micro_batch = decide_micro_batch(
            self.cluster.micro_batch,
            partial(self.step.try_out, largest),
            slice_size=len(largest),
            fabric=self.fabric,
            announce=self.session.reporter.warn if self.rank.rank == 0 else lambda message: None,
        )

    def dump(self) -> dict[str, Any]:
        """The state to save. Raises StageError rather than let a broken one be."""
        self.state.check_finite(self.session.last_good)
        return self.state.dump()

    def ended(self) -> bool:
        """Whether the steps are done or the patience is at its end."""
        return self.state.step >= self.config.steps or out_of_patience(self.state.validations, self.config.patience)

    def record(self, gradient_norm: Tensor) -> None:
        """Add a row to the history and show the numbers."""
        state = self.state
        state.check_finite(self.session.last_good)
        nats, tokens = state.recent.tolist()
        row = {
            "train/bits_per_token": nats / tokens / math.log(2),
            "train/learning_rate": self.step.learning_rate(state.step - 1),
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
        model = self.state.result
        nats_T = torch.zeros(model.num_tokens, dtype=torch.float64, device=self.fabric.device)
        with torch.no_grad(), autocast(self.fabric, self.config.precision):
            for batch in self.val.sweep(VALIDATION_BATCH, self.rank.rank, self.rank.world):
                condition_BC, tokens_BT, _ = self.step.inputs(batch)
                nats_T += model.loss(condition_BC, tokens_BT)[1].double().sum(dim=0)
        return all_reduce_sum(self.fabric, nats_T) / len(self.val) / math.log(2)

    def take_validation(self, bits: float) -> None:
        """Remember a validation, and the weights if it is the best one."""
        state = self.state
        best = state.best
        if best is None or bits < best[1]:
            state.best_weights = {name: value.detach().clone() for name, value in state.result.state_dict().items()}
        state.validations.append((state.step, bits))
        self.session.record(state.step, {"validation/bits_per_token": bits})

    def finish(self) -> dict[str, Any]:
        """Choose the best weights, measure them, hand the files over. Collective.

        The validation at the very end is not part of the checkpoint: training with more steps would not make it.
        """
        state = self.state
        training = {**self.dump(), "validations": list(state.validations), "best_weights": state.best_weights}
        training["model"] = _copied(training["model"])
        if state.average:
            training["average"]["network"] = _copied(training["average"]["network"])
        if len(self.val) and (not state.validations or state.validations[-1][0] != state.step):
            self.take_validation(float(self.validate().mean()))
            self.session.publish()
        if state.best_weights:
            state.result.load_state_dict(state.best_weights)
        bits_T = self.validate().tolist() if len(self.val) else None
        if self.rank.rank:
            return {}
        with self.folder.scratch("result") as scratch:
            metrics = write_result(
                Path(scratch),
                model=state.result,
                description=self.description,
                training=training,
                history=self.session.history,
                bits_T=bits_T,
                num_pictures=len(self.val),
            )
            name = hand_over(self.folder, Path(scratch))
        metrics.update(steps=state.step, best_step=state.best[0] if state.best else state.step)
        notes = {
            **self.pace.overall("tokens"),
            "micro_batch": self.step.micro_batch,
            "precision": chosen_precision(self.fabric, self.config.precision),
            "compiled": compiles(self.fabric, self.cluster.compile),
        }
        return {"result": name, "metrics": metrics, "notes": notes}


def _copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in weights.items()}
