"""What a prior can be asked for: classes in turn, captions, or the conditions of held-out pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from stages.models.priors.configs import PriorDescription


def only_classes(prior: PriorDescription) -> bool:
    """Whether a prior is told nothing but classes, or nothing at all."""
    return set(prior.kinds) <= {"class"}


def chosen_classes(prior: PriorDescription, classes: tuple[str, ...] | None) -> tuple[str, ...]:
    """The names of the classes to draw in turn; none where samples are drawn from more than classes."""
    if not (only_classes(prior) and prior.kinds):
        return ()
    return prior.classes if classes is None else classes


def check_choice(
    prior: PriorDescription, *, classes: Sequence[str] | None, captions: Sequence[str] | None, guidance: float
) -> None:
    """Raise ConfigError where the keys of the section `sample` ask for what the prior was not told."""
    told = ", ".join(prior.kinds) or "nothing"
    if classes is not None and not only_classes(prior):
        raise ConfigError(
            f"sample.classes: this prior is told of {told}, and a class alone is not what it knows: leave the key out, "
            "and samples are drawn from the conditions of held-out pictures"
        )
    if captions is not None and "caption" not in prior.kinds:
        raise ConfigError(
            f"sample.captions: this prior is told of {told}, not of captions: train it with condition=caption"
        )
    known = prior.classes if "class" in prior.kinds else ()
    unknown = sorted(set(classes or ()) - set(known))
    if unknown:
        names = ", ".join(known) or "none, it was trained without classes"
        raise ConfigError(f"sample.classes: the prior knows no {', '.join(unknown)}; it knows {names}")
    if guidance != 1 and not (prior.kinds and prior.model.condition_dropout):
        reason = "prior.model.condition_dropout was 0" if prior.kinds else "it has no condition"
        raise ConfigError(
            f"sample.guidance={guidance} needs a prior that also learned to go without a condition, but {reason}: set "
            "sample.guidance=1, or train the prior with a condition and condition_dropout=0.1"
        )
