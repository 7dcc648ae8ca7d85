"""What a prior is told about the pictures it draws: the one key `condition`. Imports no torch.

condition: class
condition: [class, {kind: caption, length: 16}]
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from pipeline.config import StrictModel


class NoCondition(StrictModel):
    """Nothing: the prior starts from a token that is always the same."""

    kind: Literal["none"] = "none"


class ClassCondition(StrictModel):
    """The picture's class. Data without classes get nothing."""

    kind: Literal["class"] = "class"


ConditionConfig = Annotated[NoCondition | ClassCondition, Field(discriminator="kind")]


def _as_list(value: Any) -> Any:
    """`class` and `{kind: class}` stand for themselves, or for a list of one."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    return [{"kind": item} if isinstance(item, str) else item for item in items]


def _combines(conditions: tuple[ConditionConfig, ...]) -> tuple[ConditionConfig, ...]:
    kinds = [condition.kind for condition in conditions]
    repeated = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if not kinds:
        raise ValueError("name a condition, or none")
    if repeated:
        raise ValueError(f"{', '.join(repeated)}: name each condition once")
    if "none" in kinds and len(kinds) > 1:
        raise ValueError(f"none stands alone: leave it out of {', '.join(kinds)}")
    return conditions


Conditions = Annotated[tuple[ConditionConfig, ...], BeforeValidator(_as_list), AfterValidator(_combines)]
"""One condition or a list of them; a kind's name is enough where its defaults will do."""
