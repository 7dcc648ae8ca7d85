"""Configuration of selection: how many candidates are drawn for a sample, and by what the best are chosen. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from pipeline.artifacts import Source
from pipeline.config import StrictModel
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from stages.models.priors.configs import PriorDescription
    from stages.models.scorers.description import ClassifierDescription, TwoTowerDescription


class SharedSelectionConfig(StrictModel):
    """How many are drawn, and how many stay."""

    candidates: int = Field(default=16, ge=1, le=4096)
    """Pictures drawn of each condition in turn, from which the best are kept: sampling takes so many times longer,
    over `keep`. Candidate 0 is the picture that would be drawn without selection."""
    keep: int = Field(default=1, ge=1)
    """Of the candidates; the best first. They get ids in a row."""
    min_score: float | None = None
    """Score from which a candidate counts as accepted. Where fewer than `keep` are, the best of the others fill up, and
    the samples' table says so: there are always as many samples as were asked for. Default: none counts."""

    @model_validator(mode="after")
    def _some_are_left_over(self) -> SharedSelectionConfig:
        if self.keep > self.candidates:
            raise ValueError(f"keep {self.keep} of {self.candidates} candidates: raise candidates, or lower keep")
        return self


class LikelihoodSelection(SharedSelectionConfig):
    """By the prior's own log-likelihood (nats a token) given the condition, without guidance and filters.

    It prefers what is plain and typical: fewer broken pictures, less variety.
    """

    kind: Literal["likelihood"] = "likelihood"


class ClassifierSelection(SharedSelectionConfig):
    """By the probability that a classifier gives the class asked for (as in VQ-VAE-2, Razavi et al. 2019)."""

    kind: Literal["classifier"] = "classifier"
    path: str
    """Folder of the classifier: `python -m stages.scorer classifier` makes one."""


class TwoTowerSelection(SharedSelectionConfig):
    """By the cosine between picture and caption (as in DALL-E, Ramesh et al. 2021); without captions, class names."""

    kind: Literal["two_tower"] = "two_tower"
    path: str
    """Folder of the scorer: `python -m stages.scorer two_tower` makes one."""


SelectionConfig = Annotated[LikelihoodSelection | ClassifierSelection | TwoTowerSelection, Field(discriminator="kind")]


def scorer_inputs(selection: SelectionConfig | None) -> dict[str, Source]:
    """The input `scorer` of a stage that selects by one; none without."""
    from stages.models.scorers.description import scorer_source

    return {} if selection is None or selection.kind == "likelihood" else {"scorer": scorer_source(selection.path)}


def check_selection(
    selection: ClassifierSelection | TwoTowerSelection,
    prior: PriorDescription,
    scorer: ClassifierDescription | TwoTowerDescription,
    classes: Sequence[str],
    *,
    names_classes: bool,
    names_captions: bool,
) -> None:
    """Raise ConfigError where a scorer cannot score what is drawn.

    `classes` are those that are drawn; `names_classes` says whether every sample has one, `names_captions` whether
    every sample has a caption.
    """
    if scorer.kind != selection.kind:
        raise ConfigError(
            f"sample.select.path: {selection.path} holds a {scorer.kind}: set sample.select.kind={scorer.kind}, or "
            f"name the folder of a {selection.kind}"
        )
    told = ", ".join(prior.kinds) or "nothing"
    if scorer.kind == "classifier":
        if not names_classes:
            raise ConfigError(
                f"sample.select: a classifier scores the class that was asked for, and these samples have none (the "
                f"prior is told of {told}): select by likelihood, or by two_tower where there are captions"
            )
        unknown = sorted(set(classes) - set(scorer.classes))
        if unknown:
            raise ConfigError(
                f"sample.select.path: the classifier knows no {', '.join(unknown)}; it knows "
                f"{', '.join(scorer.classes)}: train one on this run, or draw only its classes with sample.classes"
            )
    elif not (names_classes or names_captions):
        raise ConfigError(
            f"sample.select: two_tower scores captions, and these samples have neither caption nor class (the prior is "
            f"told of {told}): select by likelihood"
        )
