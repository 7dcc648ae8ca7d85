"""What a config asks for: samples by number, of classes or conditions in turn, or those of a file of requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Source
from pipeline.errors import ConfigError, DataError
from pipeline.units import Unit
from stages.data.captions import Captions
from stages.sampling.choice import check_choice, chosen_classes, only_classes
from stages.sampling.given import Given
from stages.sampling.overview import Row, class_rows, condition_rows, request_rows
from stages.sampling.plan import plan_ids, plan_requests
from stages.sampling.requests import Asked, check_requests, list_requests, read_requests
from stages.sampling.sample_config import SampleConfig
from stages.sampling.wanted import requested_slots

if TYPE_CHECKING:
    from pipeline.artifacts import Artifact
    from stages.models.priors.configs import PriorDescription


@dataclass(frozen=True)
class Numbered:
    """`num_samples` samples, their classes or conditions in turn."""

    config: SampleConfig
    prior: PriorDescription
    classes: tuple[str, ...]
    given: Given | None

    @property
    def num_samples(self) -> int:
        """Pictures to keep."""
        return self.config.num_samples

    @property
    def counts(self) -> dict[str, int]:
        """How many samples of each class."""
        keep, names = self.config.keep, self.classes
        return dict(Counter(names[it // keep % len(names)] for it in range(self.num_samples))) if names else {}

    @property
    def names_classes(self) -> bool:
        """Whether every sample has a class."""
        return _all_have_classes(self.given, self.prior) if self.given else bool(self.classes)

    @property
    def names_captions(self) -> bool:
        """Whether every sample has a caption."""
        return self.given is not None and all(self.given.captions)

    def units(self, drawing: Mapping[str, Any]) -> list[Unit]:
        """Cut the ids into aligned blocks."""
        return plan_ids(
            drawing,
            self.num_samples,
            self.config.samples_per_unit,
            seed=self.config.seed,
            keep=self.config.keep,
            classes=self.classes,
            labels=[self.prior.classes.index(name) for name in self.classes],
            given=self.given,
            samples_per_condition=self.config.samples_per_condition,
        )

    def rows(self) -> list[Row]:
        """The rows of the overview."""
        if self.given is None:
            return class_rows(self.classes, self.num_samples, self.config.keep)
        return condition_rows(self.given.captions, self.num_samples, self.config.samples_per_condition)


@dataclass(frozen=True)
class Requested:
    """What the rows of a file ask for."""

    config: SampleConfig
    prior: PriorDescription
    asked: list[Asked]
    given: Given | None
    """The condition of each request, where the prior knows more than classes."""

    @property
    def num_samples(self) -> int:
        """Pictures to keep."""
        return sum(request.count for _, request in self.asked)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that are asked for."""
        return tuple(self.counts)

    @property
    def counts(self) -> dict[str, int]:
        """How many samples of each class."""
        counts: Counter[str] = Counter()
        for _, request in self.asked:
            if request.label:
                counts[request.label] += request.count
        return dict(counts)

    @property
    def names_classes(self) -> bool:
        """Whether every sample has a class."""
        if self.given is not None:
            return _all_have_classes(self.given, self.prior)
        return all(request.label for _, request in self.asked)

    @property
    def names_captions(self) -> bool:
        """Whether every sample has a caption."""
        return self.given is not None and all(self.given.captions)

    @property
    def _places(self) -> list[int]:
        """Of each sample the number of its request."""
        return [place for place, (_, request) in enumerate(self.asked) for _ in range(request.count)]

    def units(self, drawing: Mapping[str, Any]) -> list[Unit]:
        """Cut the requested samples into blocks, those of each size by themselves."""
        places, own = self._places, (self.prior.image_size, self.prior.image_size)
        labels = [self.prior.classes.index(request.label) if request.label else -1 for _, request in self.asked]
        sizes = [None if request.size == own else request.size for _, request in self.asked]
        return plan_requests(
            drawing,
            requested_slots(self.asked, self.config.seed, self.config.keep),
            self.config.samples_per_unit,
            labels=[labels[place] for place in places],
            given=self.given.of_rows(places) if self.given else None,
            sizes=[sizes[place] for place in places],
        )

    def rows(self) -> list[Row]:
        """The rows of the overview."""
        names = {it.id: it.caption or it.label or it.condition_key or it.id for _, it in self.asked}
        numbers = {it.id: place for place, (_, it) in enumerate(self.asked)}
        rows = request_rows(requested_slots(self.asked, self.config.seed, self.config.keep), names)
        return [row._replace(condition=numbers[request]) for request, row in zip(numbers, rows, strict=False)]


Orders = Numbered | Requested


def take_orders(
    config: SampleConfig, prior: PriorDescription, tokens: Artifact | None, requests: Source | None
) -> Orders:
    """Check what is asked for and look its conditions up in `tokens`, where it is more than classes.

    Raises ConfigError for keys, DataError for requests that this prior cannot answer.
    """
    check_choice(prior, classes=config.classes, captions=config.captions, guidance=config.guidance)
    if requests is not None:
        return _requested(config, prior, tokens, requests)
    given = None if only_classes(prior) else _given(config, prior, tokens)
    if given is not None and config.samples_per_condition % config.keep:
        raise ConfigError(
            f"sample.samples_per_condition={config.samples_per_condition} is not a multiple of sample.select.keep="
            f"{config.keep}, and samples that are chosen from the same candidates share their condition: set "
            f"sample.samples_per_condition={config.samples_per_condition + -config.samples_per_condition % config.keep}"
        )
    return Numbered(config, prior, chosen_classes(prior, config.classes), given)


def _all_have_classes(given: Given, prior: PriorDescription) -> bool:
    labels_NL = given.values(prior.vocabulary, "class")
    return labels_NL is not None and int(labels_NL.min()) >= 0


def _given(config: SampleConfig, prior: PriorDescription, tokens: Artifact | None) -> Given:
    """The conditions to draw from, in turn."""
    assert tokens is not None, "the graph gives the tokens of a prior that knows more than classes"
    if config.captions is None:
        return Given.held_out(tokens)
    captions = Captions(tokens.local("captions.json").read_text())
    return Given.of_captions(config.captions, prior.vocabulary, captions)


def _requested(config: SampleConfig, prior: PriorDescription, tokens: Artifact | None, source: Source) -> Requested:
    assert config.requests is not None, "the graph gives requests where the config names them"
    asked = read_requests(config.requests)
    if tuple(list_requests(config.requests)) != source.listing:
        raise DataError(f"{config.requests} changed while the run was reading it: run the same command again")
    requests: Sequence[Any] = [request for _, request in asked]
    wants_keys = any(request.condition_key for request in requests)
    held_out = Given.held_out(tokens) if tokens is not None and wants_keys else None
    check_requests(asked, prior, held_out.keys if held_out else [])
    if only_classes(prior):
        return Requested(config, prior, asked, None)
    captions = None
    if "caption" in prior.kinds:
        assert tokens is not None, "the graph gives the tokens of a prior that knows more than classes"
        captions = Captions(tokens.local("captions.json").read_text())
    return Requested(config, prior, asked, Given.of_requests(requests, prior, held_out, captions))
