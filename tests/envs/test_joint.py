"""Joint indices of actions of several components."""

import itertools
import json
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from numpy.testing import assert_array_equal

from rlplatform.envs.joint import MOST, action_layout_of, table_of
from rlplatform.errors import UserError


def test_a_discrete_action_needs_none() -> None:
    assert action_layout_of(spaces.Discrete(MOST + 1, start=3), "mine") is None


@pytest.mark.parametrize(
    ("space", "sizes", "start"),
    [
        (spaces.MultiDiscrete([3, 4]), [3, 4], [0, 0]),
        (spaces.MultiDiscrete([3, 2, 2], start=[-1, 5, 0]), [3, 2, 2], [-1, 5, 0]),
        (spaces.MultiDiscrete([[2, 3], [1, 2]]), [2, 3, 1, 2], [0, 0, 0, 0]),
        (spaces.MultiDiscrete([4], dtype=np.int32), [4], [0]),
        (spaces.MultiBinary(3), [2, 2, 2], [0, 0, 0]),
        (spaces.MultiBinary((2, 2)), [2, 2, 2, 2], [0, 0, 0, 0]),
    ],
)
def test_every_action_has_an_index_and_the_first_component_varies_slowest(
    space: Any, sizes: list[int], start: list[int]
) -> None:
    layout = action_layout_of(space, "mine")
    assert layout is not None
    assert json.loads(json.dumps(layout)) == layout
    table = table_of(layout)
    expected = [
        [part + first for part, first in zip(parts, start, strict=True)]
        for parts in itertools.product(*map(range, sizes))
    ]
    assert_array_equal(table.reshape(len(table), -1), expected)
    assert all(space.contains(action) for action in table)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.Box(-1, 1, (1,)), "mine takes actions of Box.*supported are"),
        (spaces.MultiDiscrete([64, 65]), "4,160 joint actions; at most 4,096"),
        (spaces.MultiBinary(13), "8,192 joint actions"),
        (spaces.MultiBinary(200), f"{2**200:,} joint actions"),
        (spaces.Tuple((spaces.Discrete(2),)), "mine takes actions of Tuple"),
        (spaces.Dict(a=spaces.Discrete(2)), "mine takes actions of Dict"),
    ],
)
def test_other_actions_and_too_many_are_refused(space: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        action_layout_of(space, "mine")


def test_the_largest_number_of_joint_actions_is_taken() -> None:
    layout = action_layout_of(spaces.MultiDiscrete([64, 64]), "mine")
    assert layout is not None
    assert len(table_of(layout)) == MOST
