"""What is judged: finished artifacts, what they say of one another, and what cannot be measured of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pipeline.errors import DataError, StageError, shown
from stages.metrics.class_names import ClassNames
from stages.metrics.likelihood import why_not_measured
from stages.models.priors.configs import PriorDescription
from stages.models.vocabulary import TokenCorpus

if TYPE_CHECKING:
    from pipeline.artifacts import Artifact


@dataclass(frozen=True)
class Subject:
    """A tokenizer, a prior and samples of theirs, beside today's pictures: they may be older than those."""

    shards: Artifact
    tokenizer: Artifact
    tokens: Artifact | None
    prior: Artifact
    samples: Artifact
    maps: Artifact | None
    dataset: dict[str, Any]
    """Of today's pictures."""
    space: PriorDescription
    """What the prior was trained on."""
    corpus: TokenCorpus | None
    """What today's tokens are."""

    @classmethod
    def read(
        cls,
        *,
        shards: Artifact,
        tokenizer: Artifact,
        tokens: Artifact | None,
        prior: Artifact,
        samples: Artifact,
        maps: Artifact | None,
    ) -> Subject:
        """Read what they say. Raises DataError for descriptions of another version."""
        try:
            space = PriorDescription.model_validate(prior.read_json("config.json"))
            corpus = None if tokens is None else TokenCorpus.model_validate(tokens.read_json("tokens.json"))
        except ValidationError as error:
            raise DataError(f"prior and tokens are of another version: {shown(str(error))}") from None
        dataset = shards.read_json("dataset.json")
        return cls(shards, tokenizer, tokens, prior, samples, maps, dataset, space, corpus)

    def check(self) -> None:
        """Raise StageError where artifacts were not made from one another, or pictures have another size."""
        made_by = {
            "tokens": (self.corpus.tokenizer if self.corpus else self.tokenizer.digest, "encode"),
            "prior": (self.space.tokenizer, "encode,prior"),
            "samples": (self.samples.read_json("samples.json")["tokenizer"], "sample"),
        }
        for name, (digest, remedy) in made_by.items():
            if digest != self.tokenizer.digest:
                raise StageError(
                    f"the {name} were made with tokenizer {digest[:12]}, this one is {self.tokenizer.digest[:12]}: "
                    f"run --stages {remedy}"
                )

    @property
    def inputs(self) -> dict[str, Artifact]:
        """The artifacts there are, by the names that the report has for them."""
        named = {
            "shards": self.shards,
            "tokenizer": self.tokenizer,
            "tokens": self.tokens,
            "prior": self.prior,
            "samples": self.samples,
        }
        return {name: artifact for name, artifact in named.items() if artifact is not None}

    @property
    def classes(self) -> ClassNames:
        """The classes of today's data, and those that the prior knows."""
        return ClassNames.of(self.dataset["classes"], self.space.classes)

    @property
    def why_no_likelihood(self) -> str:
        """Why the prior cannot be asked how likely today's tokens are; empty where it can."""
        return why_not_measured(self.tokens, self.prior, self.corpus, self.space)

    def not_measured(self) -> list[dict[str, str]]:
        """What is left out of the figures, and why."""
        left_out = []
        if self.why_no_likelihood:
            left_out.append({"what": "bits per token", "why": self.why_no_likelihood})
        if self.tokens is None:
            why = "today's pictures are not encoded with this tokenizer"
            left_out.append({"what": "codebook use of the corpus", "why": why})
        if self.classes.unknown_to_model:
            names = ", ".join(self.classes.unknown_to_model)
            left_out.append({"what": f"samples of {names}", "why": "the prior was trained before there were any"})
        return left_out
