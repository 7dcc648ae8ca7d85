"""YAML from anyone: plain values alone, every key once, of bounded size; nothing in it is executed."""

from __future__ import annotations

from typing import Any

import yaml

LONGEST = 2**20
"""Bytes of a text above which it is no configuration."""
MOST_VALUES = 100_000
"""Values of a text with its aliases written out: a few lines of aliases of aliases can stand for billions."""

_MERGE = "tag:yaml.org,2002:merge"
_WRONG_VALUES = (ValueError, LookupError, AttributeError, TypeError, OverflowError)
"""What PyYAML lets through of values that are not what their tag says, such as `!!int x`."""


def read_yaml(text: str | bytes) -> Any:
    """Return the value of a text. Raises yaml.YAMLError naming the place of the first mistake."""
    if len(text) > LONGEST:
        raise yaml.YAMLError(f"it has more than {LONGEST:,} bytes, which no configuration needs")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


class _Loader(yaml.SafeLoader):
    """Says where a value stands that is not what its tag says."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except _WRONG_VALUES as error:
            raise yaml.constructor.ConstructorError(None, None, f"no such value: {error}", node.start_mark) from None


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node stands for; `known` has those of nodes that were met before."""
    if id(node) in known:
        if not known[id(node)]:
            raise yaml.constructor.ConstructorError(None, None, "it holds itself", node.start_mark)
        return known[id(node)]
    known[id(node)] = 0
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _refuse_repeated_keys(node)
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    total = 1
    for child in children:
        total += _count(child, known)
    if total > MOST_VALUES:
        what = f"its aliases stand for more than {MOST_VALUES:,} values"
        raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
    known[id(node)] = total
    return total


def _refuse_repeated_keys(node: yaml.MappingNode) -> None:
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
            if (key.tag, key.value) in seen:
                what = f"key {key.value!r} stands here twice: keep one"
                raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
            seen.add((key.tag, key.value))
