"""Values, targets and losses are those of loops and of hand-worked numbers; gradients flow only where they should."""

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.agents.heads import (
    HEADS,
    Following,
    categorical_loss,
    categorical_q_values,
    categorical_target,
    greedy_policy,
    head_of,
    huber,
    log_soft_policy,
    mix,
    project,
    quantile_loss,
    quantile_q_values,
    quantile_target,
    scalar_loss,
    scalar_q_values,
    scalar_target,
    soft_policy,
    take,
)
from rlplatform.config import AgentConfig

NO_MASK = np.zeros((4, 0), np.bool_)
MASK = np.array([[True, True, True], [False, True, True], [True, False, False], [False, True, False]])
LOW, HIGH, ATOMS = -2.0, 2.0, 9
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


def test_take_picks_one_value_of_each_row_and_mix_weighs_them():
    values = tf.constant([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert_array_equal(take(values, tf.constant([2, 0])), [3.0, 4.0])
    policy = tf.constant([[0.5, 0.0, 0.5], [0.25, 0.75, 0.0]])
    assert_array_equal(mix(values, policy), [2.0, 4.75])
    distributions = tf.stack([values, 10.0 * values], axis=2)  # [B, A, K]
    assert_array_equal(take(distributions, tf.constant([2, 0])), [[3.0, 30.0], [4.0, 40.0]])
    assert_array_equal(mix(distributions, policy), [[2.0, 20.0], [4.75, 47.5]])


# --- policies ---------------------------------------------------------------------------------------------------------


def looped_policy(q, temperature, mask):
    """`(policy, temperature * log policy)` of one state, in float64; 0 and 0 where an action is not allowed."""
    q = [float(value) for value in q]
    greatest = max(value for value, is_allowed in zip(q, mask, strict=True) if is_allowed)
    weights = [math.exp((v - greatest) / temperature) if m else 0.0 for v, m in zip(q, mask, strict=True)]
    # log(w / sum) = (v - greatest) / temperature - log(sum): exact where w itself is too small for any float
    scaled = [v - greatest - temperature * math.log(sum(weights)) if m else 0.0 for v, m in zip(q, mask, strict=True)]
    return [weight / sum(weights) for weight in weights], scaled


@pytest.mark.parametrize("masked", [False, True])
def test_a_greedy_policy_takes_the_greatest_value_that_is_allowed(masked):
    q = tf.constant([[1.0, 3.0, 2.0], [9.0, -1.0, 0.0], [-7.0, 5.0, 5.0], [1e30, -1e30, 0.0]])
    expected = [[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]] if masked else [[0, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert_array_equal(greedy_policy(q, tf.constant(MASK) if masked else NO_MASK), expected)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("temperature", [0.03, 1.0, 50.0])
@pytest.mark.parametrize(("size", "offset"), [(1.0, 0.0), (500.0, 0.0), (0.05, 500.0), (500.0, -5_000.0)])
def test_soft_policies_are_those_of_a_loop_however_large_the_values(size, offset, temperature, masked):
    q = (np.random.default_rng(3).normal(size=(4, 3)) * size + offset).astype(np.float32)
    mask = MASK if masked else np.ones_like(MASK)
    chances = soft_policy(tf.constant(q), temperature, tf.constant(mask) if masked else NO_MASK).numpy()
    scaled = log_soft_policy(tf.constant(q), temperature, tf.constant(mask) if masked else NO_MASK).numpy()
    for row in range(4):
        expected = looped_policy(q[row], temperature, mask[row])
        # Of the values float32 keeps 7 digits: over the temperature that is what a chance can be wrong by.
        assert_allclose(chances[row], expected[0], rtol=1e-5 + 1e-6 * (size + abs(offset)) / temperature, atol=1e-7)
        assert_allclose(scaled[row], expected[1], rtol=1e-5, atol=2e-6 * (temperature + 0.1))
    assert_allclose(chances.sum(axis=1), 1.0, rtol=1e-5)
    assert np.all(scaled <= 1e-6)
    assert not chances[~mask].any()
    assert not scaled[~mask].any()


# --- targets ----------------------------------------------------------------------------------------------------------


def what_follows(shape, soft, masked, seed=0):
    """Random `Following` of four items, one of them terminated, with the policy and the bonus of their values."""
    rng = np.random.default_rng(seed)
    output = rng.normal(size=(4, 3, *shape)).astype(np.float32)
    values = rng.normal(size=(4, 3))  # another network's, as in double Q-learning
    policy, bonus = np.zeros((4, 3)), np.zeros((4, 3))
    for row in range(4):
        mask = MASK[row] if masked else [True] * 3
        if soft:
            policy[row], scaled = looped_policy(values[row], 0.3, mask)
            bonus[row] = [-value for value in scaled]
        else:
            policy[row, max((a for a in range(3) if mask[a]), key=lambda a: values[row, a])] = 1.0
    return Following(
        reward=rng.normal(size=4).astype(np.float32),
        discount=np.float32([0.9, 0.0, 0.729, 0.81]),
        output=output,
        policy=policy.astype(np.float32),
        bonus=bonus.astype(np.float32) if soft else None,
    )


def tensors(following):
    return Following(*(None if part is None else tf.constant(part) for part in following))


BOTH = [pytest.mark.parametrize("soft", [False, True]), pytest.mark.parametrize("masked", [False, True])]


def for_all_policies(test):
    for mark in BOTH:
        test = mark(test)
    return test


@for_all_policies
def test_scalar_targets_are_those_of_a_loop(soft, masked):
    f = what_follows((), soft, masked)
    expected = []
    for row in range(4):
        value = 0.0
        for action in range(3):
            bonus = f.bonus[row, action] if soft else 0.0
            value += f.policy[row, action] * (f.output[row, action] + bonus)
        expected.append(f.reward[row] + f.discount[row] * value)
    assert_allclose(scalar_target(tensors(f)), expected, rtol=1e-5)
    assert float(scalar_target(tensors(f))[1]) == f.reward[1]  # terminated


@for_all_policies
def test_quantile_targets_are_those_of_a_loop(soft, masked):
    f = what_follows((5,), soft, masked)
    expected = np.zeros((4, 5))
    for row, k in np.ndindex(4, 5):
        value = 0.0
        for action in range(3):
            bonus = f.bonus[row, action] if soft else 0.0
            value += f.policy[row, action] * (f.output[row, action, k] + bonus)
        expected[row, k] = f.reward[row] + f.discount[row] * value
    assert_allclose(quantile_target(tensors(f)), expected, rtol=1e-5, atol=1e-6)


def looped_projection(positions, probabilities):
    """Bellemare et al. 2017, algorithm 1, of one distribution; with all mass to an atom that is hit exactly."""
    step = (HIGH - LOW) / (ATOMS - 1)
    projected = [0.0] * ATOMS
    for position, probability in zip(positions, probabilities, strict=True):
        b = (min(max(float(position), LOW), HIGH) - LOW) / step
        lower, upper = math.floor(b), math.ceil(b)
        if lower == upper:
            projected[lower] += probability
        else:
            projected[lower] += probability * (upper - b)
            projected[upper] += probability * (b - lower)
    return projected


@given(
    hnp.arrays(np.float32, (3, ATOMS), elements=st.floats(-4.0, 4.0, width=32) | st.sampled_from([-0.5, 0.0, 2.0])),
    hnp.arrays(np.float32, (3, ATOMS), elements=st.floats(0.0, 1.0, width=32)),
)
def test_projection_is_that_of_the_algorithm(positions, probabilities):
    projected = project(tf.constant(positions), tf.constant(probabilities), LOW, HIGH).numpy()
    for row in range(3):
        assert_allclose(projected[row], looped_projection(positions[row], probabilities[row]), rtol=1e-4, atol=1e-5)
    assert_allclose(projected.sum(axis=1), probabilities.sum(axis=1), rtol=1e-5, atol=1e-6)  # no mass is lost


def softmax(logits):
    weights = [math.exp(float(logit)) for logit in logits]
    return [weight / sum(weights) for weight in weights]


SUPPORT = [LOW + k * (HIGH - LOW) / (ATOMS - 1) for k in range(ATOMS)]


@for_all_policies
def test_categorical_targets_are_those_of_the_algorithm(soft, masked):
    f = what_follows((ATOMS,), soft, masked)
    target = categorical_target(tensors(f), LOW, HIGH).numpy()
    for row in range(4):
        expected = np.zeros(ATOMS)
        for action in range(3):
            bonus = f.bonus[row, action] if soft else 0.0
            positions = [f.reward[row] + f.discount[row] * (z + bonus) for z in SUPPORT]
            expected += f.policy[row, action] * np.array(looped_projection(positions, softmax(f.output[row, action])))
        assert_allclose(target[row], expected, rtol=1e-4, atol=1e-6)
    assert_allclose(target.sum(axis=1), 1.0, rtol=1e-5)


@for_all_policies
def test_where_nothing_is_cut_a_categorical_targets_mean_is_the_scalar_target(soft, masked):
    f = what_follows((ATOMS,), soft, masked)
    scale = np.float32(0.1)
    f = f._replace(reward=f.reward * scale, discount=f.discount * scale)  # the ends lie far out
    values = categorical_q_values(tf.constant(f.output), LOW, HIGH)
    mean = categorical_target(tensors(f), LOW, HIGH).numpy() @ np.array(SUPPORT)
    assert_allclose(mean, scalar_target(tensors(f)._replace(output=values)), rtol=1e-4, atol=1e-5)


def test_the_values_of_distributions_are_their_means():
    output = np.random.default_rng(0).normal(size=(4, 3, ATOMS)).astype(np.float32)
    categorical, quantile = categorical_q_values(output, LOW, HIGH).numpy(), quantile_q_values(output).numpy()
    for row, action in np.ndindex(4, 3):
        chances = softmax(output[row, action])
        assert_allclose(categorical[row, action], sum(p * z for p, z in zip(chances, SUPPORT, strict=True)), atol=1e-5)
        assert_allclose(quantile[row, action], sum(output[row, action]) / ATOMS, atol=1e-5)


# --- losses -----------------------------------------------------------------------------------------------------------


def test_the_loss_of_each_item_worked_out_by_hand():
    output = tf.constant([[1.0, 5.0, 2.0], [0.0, -1.0, 3.0]])
    item = scalar_loss(output, tf.constant([1, 2]), tf.constant([5.5, -1.0]), 1.0)
    assert_array_equal(item.td_error, [0.5, -4.0])
    assert_array_equal(item.loss, [0.125, 3.5])


def test_the_categorical_loss_is_the_cross_entropy_and_its_priority_the_divergence():
    rng = np.random.default_rng(1)
    logits, action = rng.normal(size=(4, 3, ATOMS)).astype(np.float32), [2, 0, 1, 1]
    target = rng.dirichlet(np.ones(ATOMS), 4).astype(np.float32)
    target[0] = np.eye(ATOMS)[3]  # 0 log 0 = 0
    target[1] = softmax(logits[1, 0])  # nothing to learn
    item = categorical_loss(tf.constant(logits), tf.constant(action), tf.constant(target), LOW, HIGH)
    for row in range(4):
        chances = softmax(logits[row, action[row]])
        cross = -sum(t * math.log(p) for t, p in zip(target[row], chances, strict=True))
        divergence = sum(t * math.log(t / p) for t, p in zip(target[row], chances, strict=True) if t > 0.0)
        error = sum((t - p) * z for t, p, z in zip(target[row], chances, SUPPORT, strict=True))
        assert_allclose(item.loss[row], cross, rtol=1e-5)
        assert_allclose(item.priority[row], divergence, rtol=1e-4, atol=1e-6)
        assert_allclose(item.td_error[row], error, rtol=1e-4, atol=1e-5)
    assert float(item.priority[1]) < 1e-6 < float(item.priority[0])


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("targets", [5, 7])
def test_the_quantile_loss_is_that_of_two_loops(delta, targets):
    """Dabney et al. 2018b, eq. 3: the Huber loss over kappa, as in 2018a, eq. 10, for kappa = 1."""
    rng = np.random.default_rng(2)
    output, action, tau = rng.normal(size=(4, 3, 5)).astype(np.float32), [2, 0, 1, 1], rng.random(5, np.float32)
    target = (2.0 * rng.normal(size=(4, targets))).astype(np.float32)
    item = quantile_loss(tf.constant(output), tf.constant(action), tf.constant(target), tf.constant(tau), delta)
    for row in range(4):
        loss, absolute = 0.0, 0.0
        for i in range(5):
            for j in range(targets):
                error = float(target[row, j]) - float(output[row, action[row], i])
                weight = abs(float(tau[i]) - (1.0 if error < 0.0 else 0.0))
                loss += weight * looped_huber(np.array([error]), delta)[0] / (1.0 if delta == math.inf else delta)
                absolute += abs(error) / (5 * targets)
        assert_allclose(item.loss[row], loss / targets, rtol=1e-5)
        assert_allclose(item.priority[row], absolute, rtol=1e-5)
        assert_allclose(item.td_error[row], sum(target[row]) / targets - sum(output[row, action[row]]) / 5, atol=1e-5)


def test_the_quantile_loss_is_least_at_the_quantiles():
    """Huber's threshold near 0 is plain quantile regression: of 0, ..., 99 the quantile at 0.25 lies near 25."""
    target, tau = tf.range(100.0)[None], tf.constant([0.25, 0.9])
    losses = {}
    for guess in range(0, 100, 5):
        output = tf.fill([1, 1, 2], float(guess) + 0.5)
        with tf.GradientTape() as tape:
            tape.watch(output)
            loss = quantile_loss(output, tf.constant([0]), target, tau, 1e-3).loss
        losses[guess] = tape.gradient(loss, output).numpy().ravel()
    for index, level in enumerate((25, 90)):
        assert all((gradient[index] < 0.0) == (guess < level - 1) for guess, gradient in losses.items()), losses


# --- gradients, and no gradients --------------------------------------------------------------------------------------

LOSSES = {
    "scalar": ((), lambda output, action, target: scalar_loss(output, action, target, 1.0)),
    "categorical": ((ATOMS,), lambda output, action, target: categorical_loss(output, action, target, LOW, HIGH)),
    "quantile": (
        (5,),
        lambda output, action, target: quantile_loss(output, action, target, tf.range(5.0) / 5.0 + 0.1, 1.0),
    ),
}
TARGETS = {
    "scalar": scalar_target,
    "categorical": lambda following: categorical_target(following, LOW, HIGH),
    "quantile": quantile_target,
}


@pytest.mark.parametrize("head", LOSSES)
def test_gradient_reaches_only_the_action_taken(head):
    shape, loss = LOSSES[head]
    output = tf.Variable(np.random.default_rng(0).normal(size=(4, 3, *shape)), dtype=tf.float32)
    target = TARGETS[head](tensors(what_follows(shape, False, False)))
    action = np.array([2, 0, 1, 1])
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(loss(output, tf.constant(action), target).loss)
    gradient = tape.gradient(total, output).numpy().reshape(4, 3, -1)
    taken = np.eye(3, dtype=bool)[action]
    assert np.all(gradient[~taken] == 0.0)
    assert np.all(np.abs(gradient[taken]).max(axis=1) > 0.0)
    if head == "categorical":  # of the cross entropy of a softmax: chances minus target
        expected = [np.array(softmax(output[row, action[row]])) - target[row].numpy() for row in range(4)]
        assert_allclose(gradient[taken], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("head", LOSSES)
def test_no_gradient_reaches_what_follows_the_td_error_or_the_priority(head, soft):
    shape, loss = LOSSES[head]
    following = Following(*(None if part is None else tf.Variable(part) for part in what_follows(shape, soft, False)))
    output = tf.Variable(np.random.default_rng(0).normal(size=(4, 3, *shape)), dtype=tf.float32)
    with tf.GradientTape(persistent=True) as tape:
        target = TARGETS[head](following)
        item = loss(output, tf.constant([2, 0, 1, 1]), target)
    sources = [part for part in following if part is not None]
    assert tape.gradient(target, sources) == tape.gradient(item.loss, sources) == [None] * len(sources)
    assert tape.gradient(item.loss, output) is not None
    assert tape.gradient(item.td_error, output) is None
    assert tape.gradient(item.priority, output) is None


# --- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
def test_the_table_joins_each_heads_functions_with_their_configuration(name):
    config = AgentConfig(head=name, v_min=LOW, v_max=HIGH, num_atoms=ATOMS, num_quantiles=5, huber_delta=0.5)
    kind = "quantile" if name == "implicit_quantile" else name
    head, (shape, _) = head_of(config), LOSSES[kind]
    following = tensors(what_follows(shape, True, False))
    output, action, tau = following.output, tf.constant([2, 0, 1, 1]), tf.range(5.0) / 5.0
    values = {
        "scalar": scalar_q_values,
        "categorical": lambda output: categorical_q_values(output, LOW, HIGH),
        "quantile": quantile_q_values,
    }[kind]
    assert_array_equal(head.q_values(output), values(output))
    target = TARGETS[kind](following)
    assert_array_equal(head.target(following), target)
    expected = {
        "scalar": lambda: scalar_loss(output, action, target, 0.5),
        "categorical": lambda: categorical_loss(output, action, target, LOW, HIGH),
        "quantile": lambda: quantile_loss(output, action, target, tau, 0.5),
    }[kind]()
    for one, other in zip(head.loss(output, action, target, tau), expected, strict=True):
        assert_array_equal(one, other)
