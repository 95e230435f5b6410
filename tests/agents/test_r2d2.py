"""An update on sequences learns what the same rows say when they are lived through one by one."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.agents import RecurrentDQN, make_actor
from rlplatform.agents.acting import flatten
from rlplatform.agents.r2d2 import sequence_priority
from rlplatform.agents.recurrent import state_size
from rlplatform.config import Config
from rlplatform.experience import Sequences

BURN_IN, LENGTH, N_STEP, SIZE, ACTIONS = 3, 5, 2, 4, 3
RATE = 1e-2


def configured(kind="gru", burn_in=BURN_IN, length=LENGTH, **agent):
    return Config().replace(
        network={"recurrent": kind, "recurrent_units": 6, "hidden_units": [7]},
        replay={"burn_in": burn_in, "sequence_length": length},
        agent={"n_step": N_STEP, "huber_delta": float("inf"), "target_update_interval": 1_000_000, **agent},
        optimizer={"max_gradient_norm": float("inf")},
    )


def made(config, seed=0):
    keras.utils.set_random_seed(seed)
    agent = RecurrentDQN(config, (2,), "float32", ACTIONS)
    rng = np.random.default_rng(seed)
    agent.target.set_weights([weight + rng.normal(scale=0.1, size=weight.shape) for weight in agent.target.weights])
    return agent


def drawn(config, seed=0, masks=False):
    """Sequences as a replay could give them: ends, dead rows and all numbers of steps among them."""
    rng = np.random.default_rng(seed)
    rows = config.replay.burn_in + config.replay.sequence_length + N_STEP
    items = (config.replay.sequence_length, SIZE)
    count = ACTIONS if masks else 0
    mask = rng.random((2, *items, count)) < 0.6
    mask[..., :1] = True
    return Sequences(
        observation=rng.normal(size=(rows, SIZE, 2)).astype(np.float32),
        first=rng.random((rows, SIZE)) < 0.15,
        state=rng.normal(size=(SIZE, state_size(config.network))).astype(np.float32),
        action=rng.integers(0, ACTIONS, items, np.int32),
        reward=rng.normal(size=items).astype(np.float32),
        discount=(0.9 * (rng.random(items) < 0.8)).astype(np.float32),
        steps=rng.integers(1, N_STEP + 1, items, np.int32),
        weight=(rng.random(items) < 0.8).astype(np.float32) * rng.uniform(0.2, 1.0, SIZE).astype(np.float32),
        action_mask=mask[0],
        next_action_mask=mask[1],
        slot=np.arange(SIZE, dtype=np.int32),
    )


def tensors(batch):
    return Sequences(*map(tf.constant, batch))


def lived(agent, weights, batch):
    """[R, B, A], the values of an actor with these weights that goes through the rows one by one."""
    policy = agent.policy_network()
    actor = make_actor(policy)
    actor.load(flatten(weights))
    actor.state = batch.state
    values = []
    for observation, first in zip(batch.observation, batch.first, strict=True):
        actor.begin(first)
        values.append(actor.q_values(observation))
    return np.array(values)


# --- what is learned --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("masks", [False, True])
def test_errors_are_those_of_the_values_that_acting_would_give(kind, double, masks):
    config = configured(kind, double=double)
    agent, batch = made(config), drawn(config, masks=masks)
    online, target = (lived(agent, network.get_weights(), batch) for network in (agent.online, agent.target))
    metrics = agent.update(tensors(batch), tf.constant(0.0))
    td_error, losses = np.zeros((LENGTH, SIZE)), []
    for t in range(LENGTH):
        for item in range(SIZE):
            row = BURN_IN + t
            following = row + batch.steps[t, item]
            chooser = (online if double else target)[following, item]
            if masks:
                chooser = np.where(batch.next_action_mask[t, item], chooser, -np.inf)
            value = target[following, item, chooser.argmax()]
            goal = batch.reward[t, item] + batch.discount[t, item] * value
            error = goal - online[row, item, batch.action[t, item]]
            losses.append(batch.weight[t, item] * 0.5 * error**2)
            td_error[t, item] = error * (batch.weight[t, item] > 0.0)
    assert_allclose(metrics.td_error.numpy().reshape(LENGTH, SIZE), td_error, rtol=1e-4, atol=1e-5)
    assert_allclose(metrics.loss, np.mean(losses), rtol=1e-4)
    learned = online[BURN_IN : BURN_IN + LENGTH]
    assert_allclose(metrics.q.numpy().reshape(LENGTH, SIZE), learned.max(axis=2), rtol=1e-4, atol=1e-5)
    size = np.abs(td_error)
    live = batch.weight > 0.0
    priority = 0.9 * size.max(axis=0) + 0.1 * size.sum(axis=0) / live.sum(axis=0)
    assert_allclose(metrics.priority, priority, rtol=1e-4)


def test_munchausen_adds_the_log_policy_of_the_row_itself():
    config = configured(munchausen=True, munchausen_temperature=0.5, munchausen_clip=-2.0, double=False)
    agent, batch = made(config), drawn(config)
    online, target = (lived(agent, network.get_weights(), batch) for network in (agent.online, agent.target))
    metrics = agent.update(tensors(batch), tf.constant(0.0))

    def log_policy(q):
        return q - 0.5 * np.log(np.exp(q / 0.5).sum())

    for t in range(LENGTH):
        for item in range(SIZE):
            if batch.weight[t, item] == 0.0:
                continue
            row, action = BURN_IN + t, batch.action[t, item]
            q = target[row + batch.steps[t, item], item]
            soft = log_policy(q)
            bonus = 0.9 * np.clip(log_policy(target[row, item])[action], -2.0, 0.0)
            goal = batch.reward[t, item] + bonus
            goal += batch.discount[t, item] * (np.exp(soft / 0.5) * (q - soft)).sum()
            error = goal - online[row, item, action]
            assert_allclose(metrics.td_error.numpy().reshape(LENGTH, SIZE)[t, item], error, rtol=1e-3, atol=1e-4)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("head", ["categorical", "quantile", "implicit_quantile"])
def test_every_head_learns_from_sequences(head):
    """On one batch, whose rows all end, the values come to be the rewards."""
    config = configured(head=head, num_quantiles=8, num_atoms=21, v_min=-4.0, v_max=4.0)
    config = config.replace(network={"dueling": True, "noisy": True, "noisy_sigma": 0.1})
    agent, batch = made(config), drawn(config)
    batch = tensors(batch._replace(discount=0.0 * batch.discount, weight=np.ones_like(batch.weight)))
    update = tf.function(agent.update, autograph=False)
    first = float(np.abs(update(batch, tf.constant(RATE)).td_error).mean())
    for _ in range(150):
        metrics = update(batch, tf.constant(RATE))
    assert np.abs(metrics.td_error).mean() < 0.35 * first


def test_a_memory_is_learned_across_rows():
    """The reward of every row is what was seen in the first one, which only a state can tell."""
    config = configured(burn_in=0)
    agent, batch = made(config), drawn(config)
    told = np.sign(batch.observation[0, :, 0])
    observation = np.zeros_like(batch.observation)
    observation[0, :, 0] = told
    batch = batch._replace(
        observation=observation,
        first=np.zeros_like(batch.first),
        state=np.zeros_like(batch.state),
        reward=np.broadcast_to(told.astype(np.float32), batch.reward.shape),
        discount=0.0 * batch.discount,
        weight=np.ones_like(batch.weight),
    )
    assert set(told) == {-1.0, 1.0}
    update = tf.function(agent.update, autograph=False)
    for _ in range(300):
        metrics = update(tensors(batch), tf.constant(RATE))
    assert np.abs(metrics.td_error).max() < 0.1


# --- burning in -------------------------------------------------------------------------------------------------------


def after_one_update(config, batch):
    agent = made(config)
    agent.target.set_weights(agent.online.get_weights())  # so that both burn in to the same state
    agent.update(tensors(batch), tf.constant(RATE))
    return flatten(agent.online.get_weights())


def test_burning_in_brings_the_state_up_to_date_and_no_gradient_flows_through_it():
    """The update is that of the later rows alone, from the state in which an actor would have come there."""
    config, later = configured(), configured(burn_in=0)
    batch = drawn(config)
    agent = made(config)
    actor = make_actor(agent.policy_network())
    actor.load(flatten(agent.online.get_weights()))
    actor.state = batch.state
    for row in range(BURN_IN):
        actor.begin(batch.first[row])
        actor.q_values(batch.observation[row])
    rest = batch._replace(
        observation=batch.observation[BURN_IN:], first=batch.first[BURN_IN:], state=np.array(actor.state)
    )
    burned = after_one_update(config, batch)
    assert_allclose(burned, after_one_update(later, rest), rtol=1e-3, atol=1e-4)

    # Where the rows before are part of the unrolling, though none of them is learned from, the gradient is another.
    whole = configured(burn_in=0, length=BURN_IN + LENGTH)

    def padded(field):
        return np.concatenate((np.zeros((BURN_IN, *field.shape[1:]), field.dtype), field))

    rows = ("action", "reward", "discount", "steps", "weight", "action_mask", "next_action_mask")
    through = batch._replace(**{name: padded(getattr(batch, name)) for name in rows})
    assert np.abs(after_one_update(whole, through) - burned).max() > 1e-3


def test_the_stored_state_matters_until_an_episode_begins():
    config = configured()
    batch = drawn(config)
    first = np.zeros_like(batch.first)
    first[BURN_IN - 1, :2] = True
    batch = batch._replace(first=first, weight=np.ones_like(batch.weight))
    one, two = (
        made(config).update(tensors(part), tf.constant(RATE)).td_error.numpy().reshape(LENGTH, SIZE)
        for part in (batch, batch._replace(state=batch.state + 1.0))
    )
    assert_array_equal(one[:, :2], two[:, :2])
    assert np.abs(one[:, 2:] - two[:, 2:]).min() > 0.0


# --- priorities -------------------------------------------------------------------------------------------------------


def test_a_sequence_counts_by_its_greatest_and_its_mean_error():
    error = tf.constant([[1.0, 5.0, 2.0], [3.0, 7.0, 0.0], [9.0, 100.0, 4.0]])
    live = tf.constant([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    expected = [0.9 * 3.0 + 0.1 * 2.0, 0.9 * 7.0 + 0.1 * 6.0, 0.0]
    assert_allclose(sequence_priority(error, live), expected, rtol=1e-6)
