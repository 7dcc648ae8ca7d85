"""The key `condition`: one line chooses, lists combine, nonsense is refused."""

import pytest
from pydantic import TypeAdapter, ValidationError

from stages.data.condition_config import ClassCondition, Conditions, NoCondition

CONDITIONS: TypeAdapter[Conditions] = TypeAdapter(Conditions)


@pytest.mark.parametrize("written", ["class", ["class"], {"kind": "class"}, [{"kind": "class"}]])
def test_one_condition_can_be_written_in_four_ways(written: object) -> None:
    assert CONDITIONS.validate_python(written) == (ClassCondition(),)


def test_none_is_a_condition_that_stands_alone() -> None:
    assert CONDITIONS.validate_python("none") == (NoCondition(),)
    with pytest.raises(ValidationError, match="none stands alone: leave it out of none, class"):
        CONDITIONS.validate_python(["none", "class"])


@pytest.mark.parametrize(
    ("written", "complaint"),
    [([], "name a condition, or none"), (["class", "class"], "class: name each condition once"), ("colour", "colour")],
)
def test_nonsense_is_refused(written: object, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        CONDITIONS.validate_python(written)
