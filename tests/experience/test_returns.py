"""Returns forwards and stacks backwards are what loops over one column at a time give."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.experience import n_step_return, stack_rows

REWARDS = st.floats(-100.0, 100.0, width=32)


def looped_return(reward, terminated, dead, gamma):
    """One column: the return, the discount of what it bootstraps from, and the steps to there."""
    total = 0.0
    for step, (gain, over, closed) in enumerate(zip(reward, terminated, dead, strict=True)):
        total += gamma**step * float(gain)
        if over:
            return total, 0.0, step + 1
        if closed:
            return total, gamma ** (step + 1), step + 1
    return total, gamma ** len(reward), len(reward)


@given(st.data(), st.integers(1, 6), st.integers(1, 5), st.sampled_from([0.0, 0.5, 0.99, 1.0]))
def test_n_step_returns_are_those_of_a_loop(data, n, batch, gamma):
    reward = data.draw(hnp.arrays(np.float32, (n, batch), elements=REWARDS))
    terminated, dead = (data.draw(hnp.arrays(np.bool_, (n, batch))) for _ in range(2))
    result = n_step_return(reward, terminated, dead, gamma)
    for column in range(batch):
        total, discount, steps = looped_return(reward[:, column], terminated[:, column], dead[:, column], gamma)
        assert_allclose(result.reward[column], total, rtol=1e-5, atol=1e-4)
        assert_allclose(result.discount[column], discount, rtol=1e-6)
        assert int(result.steps[column]) == steps


def test_a_three_step_return_worked_out_by_hand():
    reward = np.array([[1, 1, 1, 1, 1], [2, 2, 2, 2, 2], [4, 4, 4, 4, 4]], np.float32)
    #                  goes on, terminates at 2, at 3, arrives at a dead slot after 1, terminates and then a dead slot
    terminated = np.array([[0, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]], np.bool_)
    dead = np.array([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]], np.bool_)
    result = n_step_return(reward, terminated, dead, 0.5)
    assert_array_equal(result.reward, [3, 2, 3, 1, 1])
    assert_array_equal(result.discount, [0.125, 0, 0, 0.5, 0])
    assert_array_equal(result.steps, [3, 2, 3, 1, 1])


@pytest.mark.parametrize("foreign", [np.nan, np.inf])
def test_what_comes_after_an_end_does_not_reach_a_return(foreign):
    reward = np.array([[1, 1], [foreign, foreign]], np.float32)
    terminated, dead = np.array([[True, False], [False, False]]), np.array([[False, True], [False, False]])
    assert_array_equal(n_step_return(reward, terminated, dead, 0.5).reward, [1, 1])


@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 5), st.integers(1, 4))), st.integers(0, 1000))
def test_stacks_stop_at_the_first_slot_of_an_episode(first, newest):
    back, batch = first.shape
    rows = stack_rows(np.full(batch, newest, np.int32), first).numpy()
    for column in range(batch):
        expected = [newest]
        for is_first in first[:, column]:  # of the slots newest, newest - 1, ...
            expected.insert(0, expected[0] if is_first else expected[0] - 1)
            if is_first:
                break
        expected = [expected[0]] * (back + 1 - len(expected)) + expected
        assert rows[:, column].tolist() == expected


def test_a_stack_of_four_worked_out_by_hand():
    #          no start near; this slot; the one before; two before; three before, which is the oldest of the stack
    first = np.array([[0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]], np.bool_)
    rows = stack_rows(np.full(5, 9, np.int32), first).numpy()
    assert_array_equal(rows.T, [[6, 7, 8, 9], [9, 9, 9, 9], [8, 8, 8, 9], [7, 7, 8, 9], [6, 7, 8, 9]])
