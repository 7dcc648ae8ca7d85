"""The page that a publication writes: was it published and why, both versions side by side, then the evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stages.metrics.report.comparison import compare, rebuilt_side_by_side, samples_side_by_side
from stages.metrics.report.lineage import LINEAGE, Difference, difference
from stages.metrics.report.numbers import number, percent
from stages.metrics.report.rendering import evaluation_of, page, render
from stages.metrics.report.tables import SHARES, full_name

if TYPE_CHECKING:
    from pipeline.artifacts import Artifact

Rule = Mapping[str, Any]
REPORT, PAGE = "report.json", "report.html"


def published_page(
    decision: Mapping[str, Any],
    evaluation: Artifact,
    incumbent: Artifact | None,
    samples: Artifact,
    incumbent_samples: Artifact | None,
    version: int | None,
    *,
    incumbent_lineage: Mapping[str, Any] | None = None,
) -> str:
    """The page around a decision (the content of decision.json).

    `evaluation` and `incumbent` are the finished evaluations of the new version and of the one in use, on the same
    held-out pictures (one without a report measured nothing); `samples` and `incumbent_samples` what they judged.
    `version` is the number of the new version where it is known. `incumbent_lineage` is the content of lineage.json of
    the run that made the version in use; without it, that of its evaluation stands in, which saw today's data.
    """
    report = evaluation.read_json(REPORT)
    before = decision["incumbent"]
    names = {"challenger": _version(version), "champion": _in_use(decision)}
    same_tokens = before is not None and before["tokenizer"] == report["inputs"]["tokenizer"]["digest"]
    figures = samples_rows = rebuilt = changes = None
    if incumbent is not None and any(entry.path == REPORT for entry in incumbent.own_files):
        rules = [rule["metric"] for rule in decision["rules"]]
        figures = compare(report["figures"], incumbent.read_json(REPORT)["figures"], rules, same_tokens=same_tokens)
        rebuilt = [] if same_tokens else rebuilt_side_by_side(evaluation, incumbent)
        changes = _changes(incumbent_lineage or _lineage(incumbent), _lineage(evaluation))
    if incumbent_samples is not None:
        classes = [row["class"] for row in report["classes"]]
        samples_rows = samples_side_by_side(samples, incumbent_samples, classes)
    title = headline(decision, version)
    body = render(
        "published.html.j2",
        decision=decision,
        rules=[{**rule, "name": _named(rule, report), **_cells(rule)} for rule in decision["rules"]],
        names=names,
        same_tokens=same_tokens,
        figures=figures,
        samples=samples_rows,
        rebuilt=rebuilt,
        changes=changes,
        report=report,
        evaluation=evaluation_of(evaluation.folder.read(PAGE).decode()),
    )
    return page(
        title, render("decision.html.j2", title=title, decision=decision, lead=explained(decision, report)), body
    )


def headline(decision: Mapping[str, Any], version: int | None) -> str:
    """Published or not, in a few words for somebody who was woken up."""
    this, in_use = _version(version), _in_use(decision)
    if decision["verdict"] == "champion":
        return f"Published: {this} takes over from {in_use}." if in_use else f"Published: {this} is the first in use."
    return f"Not published: {in_use} stays in use." if in_use else f"Not published: {this} did not pass."


def explained(decision: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """Which rule decided, against which version, on how many pictures: a sentence or two."""
    rules: Sequence[Rule] = decision["rules"]
    failed, in_use = [rule for rule in rules if not rule["passed"]], _in_use(decision)
    if failed:
        which = "the rule" if len(rules) == 1 else f"{len(failed)} of {len(rules)} rules"
        why = f"{_values(failed, in_use, report)}: {which} failed."
    elif not in_use:
        why = "There was no version to compare it with."
    elif rules:
        why = (
            f"{_values(rules, in_use, report)}: {'the rule' if len(rules) == 1 else f'all {len(rules)} rules'} passed."
        )
    else:
        why = "No rule was asked for."
    return f"{why} Judged on {report['dataset']['num_val']:,} held-out pictures."


def _values(rules: Sequence[Rule], in_use: str, report: Mapping[str, Any]) -> str:
    """The first rules with what was measured, in words."""
    parts = []
    for rule in rules[:2]:
        new, old = (_amount(rule["metric"], rule[side]) for side in ("challenger", "champion"))
        parts.append(f"{_named(rule, report)} is {new}" + (f" against {old} of {in_use}" if in_use else ""))
    more = f", and {len(rules) - 2} more" if len(rules) > 2 else ""
    return "; ".join(parts) + more


def _named(rule: Rule, report: Mapping[str, Any]) -> str:
    return full_name(rule["metric"], report["figures"].get(rule["metric"], {}))


def _amount(metric: str, measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return "unknown"
    return percent(measured["value"]) if metric.startswith(SHARES) else number(measured["value"])


def _cells(rule: Rule) -> dict[str, Any]:
    """Both sides of a rule as figures of a table, and what was asked for in words."""
    share = rule["metric"].startswith(SHARES)
    cells: dict[str, Any] = {"required": _required(rule["direction"], rule["margin"], share=share)}
    for side in ("challenger", "champion"):
        measured = rule[side]
        cells[side] = measured and {"value": measured["value"], "is_share": share}
        if measured and measured.get("low") is not None:
            cells[side]["interval"] = (measured["low"], measured["high"])
    return cells


def _required(direction: str, margin: float, *, share: bool) -> str:
    """What a rule asks for: a gain of more than its margin, which may be below nothing."""
    printed = (percent if share else number)(abs(margin))
    if margin < 0:
        return f"less than {printed} {'higher' if direction == 'lower' else 'lower'}"
    return f"{direction} by more than {printed}" if margin else direction


def _version(version: int | None) -> str:
    return "the new version" if version is None else f"version {version}"


def _in_use(decision: Mapping[str, Any]) -> str:
    """The version that it was compared with; empty without one."""
    return f"version {decision['incumbent']['version']}" if decision["incumbent"] else ""


def _lineage(evaluation: Artifact) -> Mapping[str, Any] | None:
    """What an evaluation recorded of its inputs' making; None where it was made before that was kept."""
    if not evaluation.folder.size(LINEAGE):
        return None
    lineage: Mapping[str, Any] = evaluation.folder.read_json(LINEAGE)
    return lineage


def _changes(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> Difference | None:
    return None if before is None or after is None else difference(before, after)
