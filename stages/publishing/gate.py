"""The gate: a challenger becomes the champion if it is better in every figure that the config requires."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pipeline.config import StrictModel
from pipeline.errors import ConfigError

Figures = Mapping[str, Mapping[str, Any]]
"""`figures` of an evaluation's report.json."""


class Requirement(StrictModel):
    """A figure in which a challenger must be better than the champion."""

    metric: str
    """A name below `figures` in the evaluation's report.json, such as kid_samples."""
    direction: Literal["lower", "higher"]
    """Which values are better."""
    margin: float = 0.0
    """By how much it must be better, in the figure's own unit: it passes if it is better by more than this. 0: any
    improvement passes, a tie does not. Below 0: it may be worse, by less than this. Figures of few pictures scatter
    (see their intervals): a margin as large as half an interval keeps luck from being published."""


class Value(StrictModel):
    """A figure with its interval, where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


class Rule(StrictModel):
    """What became of a requirement."""

    metric: str
    direction: Literal["lower", "higher"]
    margin: float
    challenger: Value | None
    """None where it was not measured."""
    champion: Value | None
    """None where there is none, or it was not measured."""
    passed: bool
    reason: str


class Incumbent(StrictModel):
    """The version that a challenger was judged against."""

    version: int
    tokenizer: str
    """Digest."""
    prior: str
    """Digest."""


class Decision(StrictModel):
    """The content of decision.json."""

    verdict: Literal["champion", "challenger"]
    reasons: tuple[str, ...]
    incumbent: Incumbent | None
    rules: tuple[Rule, ...]


def decide(
    require: Sequence[Requirement],
    challenger: Figures,
    champion: Figures | None,
    incumbent: Incumbent | None,
    incomparable: str = "",
) -> Decision:
    """Judge a challenger's figures against the champion's, both measured on the same pictures.

    `champion` is None where there is no version in use (`incumbent` is None too: the challenger takes its place), or
    where that one cannot be judged on these pictures, for the reason `incomparable` (it keeps its place).
    Raises ConfigError for a figure that is not there, or is better the other way.
    """
    for requirement in require:
        _check(requirement, challenger)
    if incumbent is None or champion is None:
        first = incumbent is None
        reason = (
            "It is the first version: there is none in use to be compared with."
            if incumbent is None
            else f"Version {incumbent.version}, which is in use, cannot be compared with it: {incomparable}. "
            "--rollback VERSION puts a version into use by hand."
        )
        rules = tuple(_alone(requirement, challenger, passed=first) for requirement in require)
        return Decision(
            verdict="champion" if first else "challenger", reasons=(reason,), incumbent=incumbent, rules=rules
        )
    rules = tuple(_judge(requirement, challenger, champion) for requirement in require)
    failed = tuple(rule.reason for rule in rules if not rule.passed)
    reasons = (
        failed or tuple(rule.reason for rule in rules) or ("Nothing is required of it: publish.require is empty.",)
    )
    verdict: Literal["champion", "challenger"] = "challenger" if failed else "champion"
    return Decision(verdict=verdict, reasons=reasons, incumbent=incumbent, rules=rules)


def _check(requirement: Requirement, figures: Figures) -> None:
    name = requirement.metric
    if name not in figures:
        known = ", ".join(sorted(figures))
        raise ConfigError(f"publish.require names {name!r}, which the evaluation does not measure; it measures {known}")
    better = figures[name].get("better", requirement.direction)
    if better != requirement.direction:
        raise ConfigError(
            f"publish.require wants {name} to be {requirement.direction}, but {better} is better: "
            f"set its direction to {better}"
        )


def _judge(requirement: Requirement, challenger: Figures, champion: Figures) -> Rule:
    ours, theirs = _value(challenger, requirement.metric), _value(champion, requirement.metric)
    given = {**dict(requirement), "challenger": ours, "champion": theirs}
    name = requirement.metric
    if ours is None or theirs is None:
        who = "the challenger" if ours is None else "the champion"
        return Rule(**given, passed=False, reason=f"{name} could not be measured for {who}.")
    gain = (theirs.value - ours.value) * (1 if requirement.direction == "lower" else -1)
    passed = gain > requirement.margin
    compared = f"{name} is {ours.value:.4g}, the champion's {theirs.value:.4g}"
    how = f"better by {gain:.3g}" if gain > 0 else (f"worse by {-gain:.3g}" if gain < 0 else "no better")
    needed = f", more than {requirement.margin:g} was required" if requirement.margin and not passed else ""
    unsure = "; their intervals overlap" if _overlap(ours, theirs) else ""
    return Rule(**given, passed=passed, reason=f"{compared}: {how}{needed}{unsure}.")


def _alone(requirement: Requirement, challenger: Figures, *, passed: bool) -> Rule:
    reason = "There is no champion to compare with." if passed else "It was not compared."
    value = _value(challenger, requirement.metric)
    return Rule(**dict(requirement), challenger=value, champion=None, passed=passed, reason=reason)


def _value(figures: Figures, name: str) -> Value | None:
    """A figure; None where it is not there or no number."""
    figure = figures.get(name, {})
    value = figure.get("value")
    if value is None or not math.isfinite(value):
        return None
    low, high = figure.get("interval") or (None, None)
    return Value(value=value, low=low, high=high)


def _overlap(one: Value, other: Value) -> bool:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low <= other.high and other.low <= one.high
