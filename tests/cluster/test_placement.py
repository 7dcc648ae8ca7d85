import pytest

from pipeline.config import ClusterConfig, validate
from pipeline.errors import ConfigError
from pipeline.ray_runtime.nodes import Node
from pipeline.ray_runtime.pool import arrange

A, B, C = (Node(name, name) for name in "abc")


def test_spread_takes_one_worker_from_each_node_in_turn_the_roomiest_first():
    assert arrange({A: 1, B: 3, C: 2}, 3, "spread") == [B, C, A]
    assert arrange({A: 1, B: 3, C: 2}, 9, "spread") == [B, C, A, B, C, B], "no more than there is room for"


def test_pack_takes_as_few_nodes_as_hold_them():
    assert arrange({A: 1, B: 3, C: 2}, 4, "pack") == [B, B, B, C]


def test_full_nodes_are_left_out():
    assert arrange({A: 0, B: 1}, 4, "spread") == arrange({A: 0, B: 1}, 4, "pack") == [B]
    assert arrange({}, 4, "spread") == []


@pytest.mark.parametrize(("given", "ranks"), [(3, (3, 3)), ([1, 3], (1, 3)), (None, None)])
def test_the_number_of_ranks_is_a_number_or_the_fewest_and_the_most(given, ranks):
    assert validate(ClusterConfig, {"num_workers": given}, "config").ranks == ranks


@pytest.mark.parametrize("given", [[3, 1], [0, 2], 0, [2]])
def test_impossible_numbers_of_ranks_are_refused(given):
    with pytest.raises(ConfigError, match="num_workers"):
        validate(ClusterConfig, {"num_workers": given}, "config")
