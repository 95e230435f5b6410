"""Values, targets and losses are those of loops and of hand-worked numbers; gradients flow only where they should."""

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.agents.heads import HEADS, huber, scalar_loss, scalar_q_values, scalar_target, take

DELTAS = (0.5, 1.0, math.inf)
ERRORS = hnp.arrays(np.float32, st.integers(1, 8), elements=st.floats(-100.0, 100.0, width=32))


def looped_huber(error, delta):
    """Huber 1964, by its two cases."""
    return [0.5 * e * e if abs(e) <= delta else delta * (abs(e) - 0.5 * delta) for e in error.astype(np.float64)]


@given(ERRORS, st.sampled_from(DELTAS))
def test_huber_is_that_of_a_loop_and_its_gradient_is_the_clipped_error(error, delta):
    variable = tf.Variable(error)
    with tf.GradientTape() as tape:
        loss = huber(variable, delta)
    assert_allclose(loss, looped_huber(error, delta), rtol=1e-5, atol=1e-7)
    assert_allclose(tape.gradient(loss, variable), np.clip(error, -delta, delta), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("delta", "expected"), [(0.5, [0.02, 0.125, 0.375, 0.875]), (1.0, [0.02, 0.125, 0.5, 1.5])])
def test_huber_worked_out_by_hand(delta, expected):
    for sign in (1.0, -1.0):
        assert_allclose(huber(tf.constant([0.2, 0.5, 1.0, 2.0]) * sign, delta), expected, rtol=1e-6)


def test_the_squared_loss_of_a_huge_error_has_no_nan():
    assert_array_equal(huber(tf.constant([0.0, 1e10]), math.inf), np.float32([0.0, 5e19]))


def test_take_picks_one_value_of_each_row():
    values = tf.constant([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert_array_equal(take(values, tf.constant([2, 0])), [3.0, 4.0])


def test_the_target_bootstraps_with_the_chosen_action_and_not_after_a_termination():
    reward, discount = tf.constant([1.0, 2.0, 3.0]), tf.constant([0.5, 0.0, 0.25])
    following = tf.constant([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]])
    target = scalar_target(reward, discount, following, tf.constant([1, 1, 0]))
    assert_array_equal(target, [1.0 + 0.5 * 20.0, 2.0, 3.0 + 0.25 * 50.0])


def test_the_loss_of_each_item_worked_out_by_hand():
    output = tf.constant([[1.0, 5.0, 2.0], [0.0, -1.0, 3.0]])
    item = scalar_loss(output, tf.constant([1, 2]), tf.constant([5.5, -1.0]), 1.0)
    assert_array_equal(item.td_error, [0.5, -4.0])
    assert_array_equal(item.loss, [0.125, 3.5])


def test_gradient_reaches_only_the_action_taken():
    output = tf.Variable([[1.0, 5.0, 2.0], [0.0, -1.0, 3.0]])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(scalar_loss(output, tf.constant([1, 2]), tf.constant([5.5, -1.0]), 1.0).loss)
    assert_array_equal(tape.gradient(loss, output), [[0.0, -0.5, 0.0], [0.0, 0.0, 1.0]])


def test_no_gradient_reaches_the_target_or_the_td_error():
    following, output = tf.Variable([[1.0, 2.0]]), tf.Variable([[3.0, 4.0]])
    with tf.GradientTape(persistent=True) as tape:
        target = scalar_target(tf.constant([1.0]), tf.constant([0.9]), following, tf.constant([0]))
        item = scalar_loss(output, tf.constant([0]), target, 1.0)
    assert tape.gradient(target, following) is None
    assert tape.gradient(item.loss, following) is None
    assert tape.gradient(item.loss, output) is not None
    assert tape.gradient(item.td_error, output) is None


def test_the_scalar_head_is_these_three_functions():
    assert tuple(HEADS["scalar"]) == (scalar_q_values, scalar_target, scalar_loss)
    output = tf.constant([[1.0, 2.0]])
    assert scalar_q_values(output) is output
