"""A recurrent network remembers what it saw in its episode, the same when it acts step by step and when it learns."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.agents import RecurrentActor, make_actor, networks
from rlplatform.agents.acting import CompiledActor, NumpyActor, flatten
from rlplatform.agents.layers import midpoints
from rlplatform.agents.recurrent import Recurrent, state_size
from rlplatform.config import Config

KINDS = ("lstm", "gru")
HEADS = ("scalar", "categorical", "quantile", "implicit_quantile")
ROWS, ITEMS = 7, 3


def configured(kind="lstm", head="scalar", **network):
    return Config().replace(
        network={"recurrent": kind, "recurrent_units": 5, "hidden_units": [6, 4], **network},
        agent={"head": head, "num_quantiles": 4, "num_atoms": 5},
    )


def pair(config, shape=(3,), dtype="float32"):
    """The network that learns and the one that acts, with the same weights, none of them 0."""
    training, policy = (networks.build(config, shape, dtype, 2, training=training) for training in (True, False))
    rng = np.random.default_rng(0)
    weights = [rng.normal(scale=0.5, size=weight.shape) for weight in training.weights]
    training.set_weights(weights)
    policy.set_weights(weights)
    return training, policy


def lived(seed=0, shape=(3,)):
    """Observations [L, B, S...], and where episodes begin [L, B]: also in the first and in the last row."""
    rng = np.random.default_rng(seed)
    first = rng.random((ROWS, ITEMS)) < 0.3
    first[0, 0] = first[-1, 1] = True
    first[:, 2] = False  # and one that goes on through all of them
    return rng.normal(size=(ROWS, ITEMS, *shape)).astype(np.float32), first


def unrolled(network, config, observation, first, state):
    inputs = [tf.constant(observation.reshape(-1, *observation.shape[2:])), tf.constant(state), tf.constant(first)]
    if config.agent.head == "implicit_quantile":
        inputs.append(tf.constant(midpoints(config.agent.num_quantiles))[None])
    output, states = network(inputs)
    return output.numpy().reshape(*first.shape, *output.shape[1:]), states.numpy().reshape(*first.shape, -1)


def acted(actor, network, observation, first):
    """The values and the states of an actor that lives through the rows one by one."""
    actor.load(flatten(network.get_weights()))
    actor.begin(np.ones(first.shape[1], np.bool_))
    q, states = [], []
    for row, begins in zip(observation, first, strict=True):
        actor.begin(begins)
        q.append(actor.q_values(row))
        states.append(actor.state)
    return np.array(q), np.array(states)


def expected(output, config):
    """[L, B, A], the values that the outputs of a head stand for."""
    if config.agent.head == "scalar":
        return output
    if config.agent.head == "categorical":
        chances = np.exp(output) / np.exp(output).sum(axis=-1, keepdims=True)
        return chances @ np.linspace(config.agent.v_min, config.agent.v_max, config.agent.num_atoms)
    return output.mean(axis=-1)


# --- cells ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_is_the_one_of_keras(kind):
    layer = Recurrent(kind, 5)
    theirs = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[kind](5, return_sequences=True)
    observation, _ = lived()
    state = np.random.default_rng(1).normal(size=(ITEMS, 10 if kind == "lstm" else 5)).astype(np.float32)
    states = layer([tf.constant(observation.reshape(-1, 3)), tf.constant(state), tf.zeros([ROWS, ITEMS], tf.bool)])
    theirs.build((None, None, 3))
    theirs.set_weights(layer.get_weights())
    initial = [tf.constant(part) for part in ([state[:, :5], state[:, 5:]] if kind == "lstm" else [state])]
    outputs = theirs(tf.constant(observation.swapaxes(0, 1)), initial_state=initial).numpy().swapaxes(0, 1)
    assert_allclose(states.numpy().reshape(ROWS, ITEMS, -1)[..., :5], outputs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_as_long_as_the_configuration_says(kind):
    config = configured(kind)
    training, policy = pair(config)
    assert training.output_shape[1][-1] == policy.inputs[1].shape[1] == state_size(config.network)
    assert state_size(Config().network) == 0


def test_a_long_short_term_memory_remembers_at_first():
    bias = networks.build(configured("lstm"), (3,), "float32", 2).get_layer("recurrent").get_weights()[2]
    assert_array_equal(bias, np.repeat([0.0, 1.0, 0.0, 0.0], 5))


# --- step by step and all rows at once --------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "head"), list(itertools.product(KINDS, HEADS)))
def test_acting_step_by_step_gives_the_values_of_unrolling(kind, head):
    config = configured(kind, head, dueling=True, noisy=True, layer_norm=True, normalize_observations=True)
    training, policy = pair(config)
    for network in (training, policy):
        network.get_layer("standardize").variance.assign([0.5, 1.0, 2.0])
    observation, first = lived()
    nothing = np.zeros((ITEMS, state_size(config.network)), np.float32)
    output, states = unrolled(training, config, observation, first, nothing)
    actor = make_actor(policy)
    assert isinstance(actor, RecurrentActor)
    assert isinstance(actor._actor, NumpyActor)
    q, kept = acted(actor, policy, observation, first)
    assert_allclose(kept, states, rtol=1e-4, atol=1e-5)
    if head != "implicit_quantile":  # its policy averages over other levels
        assert_allclose(q, expected(output, config), rtol=1e-3, atol=1e-4)
    assert q.dtype == kept.dtype == np.float32
    compiled = RecurrentActor(CompiledActor(policy), state_size(config.network))
    again, after = acted(compiled, policy, observation, first)
    assert_allclose(again, q, rtol=1e-3, atol=1e-4)
    assert_allclose(after, kept, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_remembered_too(kind):
    config = configured(kind)
    training, policy = pair(config, (36, 36, 1), "uint8")
    actor = make_actor(policy)
    assert isinstance(actor._actor, CompiledActor)
    observation = np.random.default_rng(0).integers(0, 256, (ROWS, ITEMS, 36, 36, 1)).astype(np.uint8)
    _, first = lived()
    nothing = np.zeros((ITEMS, state_size(config.network)), np.float32)
    output, _ = unrolled(training, config, observation, first, nothing)
    assert_allclose(acted(actor, policy, observation, first)[0], output, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_in_two_parts_are_the_rows_in_one(kind):
    config = configured(kind)
    training, _ = pair(config)
    observation, first = lived()
    nothing = np.zeros((ITEMS, state_size(config.network)), np.float32)
    whole, states = unrolled(training, config, observation, first, nothing)
    early, between = unrolled(training, config, observation[:3], first[:3], nothing)
    late, end = unrolled(training, config, observation[3:], first[3:], between[-1])
    assert_allclose(np.concatenate((early, late)), whole, rtol=1e-5, atol=1e-6)
    assert_allclose(end[-1], states[-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_before_an_episode_is_forgotten_and_what_was_in_it_is_not(kind):
    config = configured(kind)
    training, _ = pair(config)
    observation, first = lived()
    first[:] = False
    first[3, 0] = True
    nothing = np.zeros((ITEMS, state_size(config.network)), np.float32)
    other = observation.copy()
    other[1] += 1.0
    one, two = (unrolled(training, config, seen, first, nothing)[1] for seen in (observation, other))
    assert_array_equal(one[3:, 0], two[3:, 0])
    assert_array_equal(one[:1], two[:1])
    assert np.abs(one[1:, 1:] - two[1:, 1:]).max(axis=2).min() > 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_flow_back_to_the_row_that_begins_the_episode_and_no_further(kind):
    training, _ = pair(configured(kind))
    observation, first = lived()
    first[:] = False
    first[2, 0] = True
    rows = tf.constant(observation)
    state = tf.zeros([ITEMS, training.inputs[1].shape[1]])
    with tf.GradientTape() as tape:
        tape.watch([rows, state])
        _, states = training([tf.reshape(rows, [-1, 3]), state, tf.constant(first)])
        last = tf.reduce_sum(tf.square(states[-ITEMS:]))
    by_row, by_state = tape.gradient(last, [rows, state])
    size = np.abs(by_row.numpy()).sum(axis=2)
    assert_array_equal(size[:2, 0], 0.0)
    assert (size[2:, 0] > 0.0).all()
    assert (size[:, 1:] > 0.0).all()
    assert_array_equal(by_state[0], 0.0)
    assert np.abs(by_state[1:]).sum(axis=1).min() > 0.0


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dueling", [False, True])
def test_both_networks_have_the_same_weights_in_the_same_order(head, dueling):
    config = configured("gru", head, dueling=dueling, noisy=True, layer_norm=True, normalize_observations=True)
    shapes = [
        [(weight.name.rpartition("/")[2], tuple(weight.shape)) for weight in network.weights]
        for network in pair(config)
    ]
    assert shapes[0] == shapes[1]


# --- the actor --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_environment_is_remembered_apart(kind):
    _, policy = pair(configured(kind))
    observation, first = lived()
    together, _ = acted(make_actor(policy), policy, observation, first)
    for item in range(ITEMS):
        only = slice(item, item + 1)
        alone, _ = acted(make_actor(policy), policy, observation[:, only], first[:, only])
        assert_allclose(alone[:, 0], together[:, item], rtol=1e-5, atol=1e-6)


def test_a_state_that_was_taken_is_not_written_to():
    _, policy = pair(configured())
    actor = make_actor(policy)
    observation, first = lived()
    acted(actor, policy, observation, first)
    taken = actor.state
    copy = taken.copy()
    actor.begin(np.array([True, False, True]))
    assert_array_equal(actor.state[[0, 2]], 0.0)
    assert_array_equal(actor.state[1], copy[1])
    actor.q_values(observation[0])
    assert_array_equal(taken, copy)


def test_new_weights_leave_the_states_as_they_are():
    _, policy = pair(configured())
    actor = make_actor(policy)
    observation, first = lived()
    acted(actor, policy, observation, first)
    before = actor.state
    actor.load(flatten([weight + 1.0 for weight in policy.get_weights()]))
    assert_array_equal(actor.state, before)


def test_gates_far_out_do_not_overflow():
    _, policy = pair(configured())
    actor = make_actor(policy)
    observation, first = lived()
    q, _ = acted(actor, policy, 1e6 * observation, first)  # warnings are errors
    assert np.isfinite(q).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_policy_is_the_same_network(kind, tmp_path):
    _, policy = pair(configured(kind, dueling=True))
    policy.save(tmp_path / "policy.keras")
    loaded = keras.models.load_model(tmp_path / "policy.keras")
    observation, first = lived()
    assert_array_equal(
        acted(make_actor(loaded), loaded, observation, first)[0],
        acted(make_actor(policy), policy, observation, first)[0],
    )
