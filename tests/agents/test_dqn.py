"""An update is the one of the papers, worked out on tables by hand; the target network moves when it is due.

With one-hot observations, one hidden layer that passes them on and a last layer without bias, the network is a table
`[S, A]`, and every value can be read off.
"""

import numpy as np
import pytest
import tensorflow as tf
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.agents import DQN
from rlplatform.config import Config
from rlplatform.experience import Batch

ONLINE = np.array([[1.0, 2.0, 3.0], [5.0, 4.0, 1.0], [0.0, 1.0, 0.5]], np.float32)
TARGET = np.array([[9.0, 8.0, 7.0], [2.0, 6.0, 10.0], [3.0, -1.0, 2.0]], np.float32)
STATES = np.eye(3, dtype=np.float32)


def tabular(online=ONLINE, target=TARGET, **agent):
    """A DQN whose networks are tables."""
    agent = {"target_update_interval": 1_000, "huber_delta": float("inf")} | agent
    config = Config().replace(network={"hidden_units": [3]}, agent=agent, optimizer={"max_gradient_norm": float("inf")})
    dqn = DQN(config, (3,), "float32", 3)
    for network, table in ((dqn.online, online), (dqn.target, target)):
        network.set_weights([STATES, np.zeros(3, np.float32), table, np.zeros(3, np.float32)])
    return dqn


def batch(
    states=(0, 0, 2), actions=(2, 0, 1), rewards=(1, 2, 3), discounts=(0.5, 0.5, 0), following=(1, 2, 1), weights=1
):
    return Batch(
        observation=tf.constant(STATES[list(states)]),
        action=tf.constant(actions, tf.int32),
        reward=tf.constant(rewards, tf.float32),
        discount=tf.constant(discounts, tf.float32),
        next_observation=tf.constant(STATES[list(following)]),
        weight=tf.constant(np.broadcast_to(weights, len(states)), tf.float32),
    )


def update(dqn, items=None, rate=1e-3):
    return dqn.update(batch() if items is None else items, tf.constant(rate))


def table(network):
    return network.get_weights()[2]


def test_double_q_takes_the_online_networks_choice_at_the_target_networks_value():
    # In state 1 the online network likes action 0, which the target network values 2 (and likes 2 best, at 10);
    # in state 2 the online network likes action 1, which the target network values -1 (and likes 0 best, at 3).
    errors = update(tabular(double=True)).td_error
    assert_allclose(errors, [1 + 0.5 * 2 - 3, 2 + 0.5 * -1 - 1, 3 - 1], rtol=1e-6)


def test_plain_q_takes_the_target_networks_largest_value():
    errors = update(tabular(double=False)).td_error
    assert_allclose(errors, [1 + 0.5 * 10 - 3, 2 + 0.5 * 3 - 1, 3 - 1], rtol=1e-6)


def test_the_loss_is_the_weighted_mean_over_the_batch():
    errors = np.array([2 - 3, 1.5 - 1, 3 - 1])
    metrics = update(tabular(), batch(weights=[1, 0, 1]))
    assert_allclose(metrics.loss, (0.5 * errors[0] ** 2 + 0.5 * errors[2] ** 2) / 3, rtol=1e-6)
    assert_allclose(metrics.td_error, errors * [1, 0, 1], rtol=1e-6)
    assert_allclose(metrics.q, [3, 3, 1], rtol=1e-6)
    huber = update(tabular(huber_delta=1.0)).loss
    assert_allclose(huber, (0.5 + 0.125 + 1.5) / 3, rtol=1e-6)


def test_an_update_moves_only_the_value_of_the_action_taken_in_the_state_seen():
    dqn = tabular()
    update(dqn, batch(states=[0], actions=[2], rewards=[1], discounts=[0.5], following=[1]))
    assert_array_equal(table(dqn.online) != ONLINE, STATES[[0]].T * STATES[2] > 0)  # entry [0, 2] alone
    assert table(dqn.online)[0, 2] < ONLINE[0, 2]  # the target, 2, is below
    assert_array_equal(table(dqn.target), TARGET)


def test_a_dead_draw_moves_nothing():
    dqn = tabular()
    metrics = update(dqn, batch(weights=0))
    assert_array_equal(table(dqn.online), ONLINE)
    assert float(metrics.loss) == float(metrics.gradient_norm) == 0.0


def test_after_a_termination_what_follows_does_not_matter():
    one = update(tabular(), batch(discounts=[0, 0, 0], following=[0, 1, 2]))
    other = update(tabular(), batch(discounts=[0, 0, 0], following=[2, 0, 1]))
    assert_array_equal(one.td_error, other.td_error)


def test_the_learning_rate_is_the_one_given():
    small, large = tabular(), tabular()
    update(small, rate=1e-3)
    update(large, rate=1e-2)
    moved = [table(dqn.online) - ONLINE for dqn in (small, large)]
    assert_allclose(moved[1], 10 * moved[0], rtol=1e-3, atol=1e-6)
    assert np.abs(moved[0]).max() > 0.0


@pytest.mark.parametrize("interval", [1, 3])
def test_a_hard_target_is_copied_when_it_is_due_and_not_before(interval):
    dqn, last = tabular(target_update_interval=interval), TARGET
    for number in range(1, 8):
        update(dqn)
        if number % interval == 0:
            last = table(dqn.online)
        assert_array_equal(table(dqn.target), last, err_msg=f"after update {number}")
    assert int(dqn.updates) == 7


@pytest.mark.parametrize("interval", [1, 2])
def test_a_soft_target_follows_by_its_share(interval):
    dqn, slow = tabular(tau=0.25, target_update_interval=interval), TARGET.astype(np.float64)
    for number in range(1, 6):
        update(dqn, rate=0.1)
        if number % interval == 0:
            slow = 0.25 * table(dqn.online) + 0.75 * slow
        assert_allclose(table(dqn.target), slow, rtol=1e-5, err_msg=f"after update {number}")


def test_the_target_starts_as_a_copy():
    dqn = DQN(Config().replace(network={"hidden_units": [5]}), (3,), "float32", 2)
    for online, target in zip(dqn.online.get_weights(), dqn.target.get_weights(), strict=True):
        assert_array_equal(online, target)


def test_what_is_saved_goes_on_as_if_nothing_had_happened():
    dqn = tabular(target_update_interval=2)
    for _ in range(3):
        update(dqn)
    other = tabular(TARGET, ONLINE, target_update_interval=2)
    other.load_state(dqn.state())
    for _ in range(3):
        update(dqn)
        update(other)
    for name, value in dqn.state().items():
        assert_array_equal(other.state()[name], value, err_msg=name)
    assert len(dqn.state()) == 4 + 4 + 3 + 1  # two networks of four weights, Adam's three, the number of updates


@pytest.mark.parametrize(("torso", "shape", "has"), [("mlp", (40, 40, 1), False), ("nature", (40, 40, 1), True)])
def test_it_knows_whether_it_convolves(torso, shape, has):
    assert DQN(Config().replace(network={"torso": torso}), shape, "uint8", 2).has_convolutions == has
