"""What acts on the host gives the values of the network whose weights it was given, and keeps them."""

import numpy as np
import pytest
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.agents import make_actor, networks
from rlplatform.agents.acting import CompiledActor, NumpyActor, flat_weights, flatten, split_weights, weight_shapes
from rlplatform.config import NetworkConfig


def built(shape=(5,), dtype="float32", seed=0, **config):
    keras.utils.set_random_seed(seed)
    network = networks.build(NetworkConfig(**config), shape, dtype, 3)
    rng = np.random.default_rng(seed)
    network.set_weights([rng.normal(size=weight.shape) for weight in network.weights])  # biases are not all 0
    return network


def seen(shape, dtype, count, seed=0):
    rng = np.random.default_rng(seed)
    if dtype == "uint8":
        return rng.integers(0, 256, (count, *shape)).astype(np.uint8)
    return rng.normal(size=(count, *shape)).astype(np.float32)


def loaded(actor, network):
    actor.load(flatten(network.get_weights()))
    return actor


def assert_acts_like(actor, network, observation):
    q = actor.q_values(observation)
    assert q.dtype == np.float32
    assert_allclose(q, network(observation), rtol=1e-4, atol=1e-4)


@given(
    widths=st.lists(st.integers(1, 33), min_size=1, max_size=3),
    dueling=st.booleans(),
    kind=st.sampled_from([((5,), "float32"), ((1,), "float32"), ((3, 4), "float32"), ((4, 3, 2), "uint8")]),
    count=st.integers(1, 9),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=12)
def test_numpy_gives_the_values_of_any_dense_network(widths, dueling, kind, count, seed):
    network = built(*kind, seed, torso="mlp", hidden_units=tuple(widths), dueling=dueling)
    actor = make_actor(network)
    assert isinstance(actor, NumpyActor)
    assert_acts_like(loaded(actor, network), network, seen(*kind, count, seed))


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize(("shape", "dtype"), [((5,), "float32"), ((36, 36, 2), "uint8")])
def test_a_compiled_copy_gives_the_values_of_any_network(shape, dtype, dueling):
    network = built(shape, dtype, hidden_units=(8, 7), dueling=dueling)
    actor = loaded(CompiledActor(network), network)
    for count in (1, 3, 2):
        assert_acts_like(actor, network, seen(shape, dtype, count))


def model(*layers):
    inputs = output = keras.Input((5,))
    for layer in layers:
        output = layer(output)
    return keras.Model(inputs, output)


def shared():
    layer, inputs = keras.layers.Dense(5, "relu"), keras.Input((5,))
    return keras.Model(inputs, layer(layer(inputs)))


@pytest.mark.parametrize(
    "network",
    [
        lambda: model(keras.layers.Dense(4, "tanh"), keras.layers.Dense(3)),
        lambda: model(keras.layers.Dense(4, use_bias=False), keras.layers.Dense(3)),
        lambda: model(keras.layers.LayerNormalization(), keras.layers.Dense(3)),
        lambda: model(keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dense(3)),
        lambda: model(model(keras.layers.Dense(4)), keras.layers.Dense(3)),
        shared,
    ],
    ids=["tanh", "no bias", "layer norm", "batch norm", "nested", "shared"],
)
def test_what_numpy_does_not_know_is_compiled(network):
    network = network()
    rng = np.random.default_rng(0)
    network.set_weights([rng.uniform(0.1, 1.0, weight.shape) for weight in network.weights])
    actor = make_actor(network)
    assert isinstance(actor, CompiledActor)
    assert_acts_like(loaded(actor, network), network, seen((5,), "float32", 4))


def test_frozen_layers_keep_their_place_among_the_weights():
    network = model(keras.layers.Dense(5, "relu"), keras.layers.Dense(5, "relu"), keras.layers.Dense(5))
    network.layers[1].trainable = False
    for actor in (NumpyActor(network), CompiledActor(network)):
        assert_acts_like(loaded(actor, network), network, seen((5,), "float32", 4))


@pytest.mark.parametrize("kind", [NumpyActor, CompiledActor])
def test_an_actor_keeps_its_weights_while_the_network_learns_on(kind):
    network = built(hidden_units=(8,))
    observation = seen((5,), "float32", 4)
    actor = loaded(kind(network), network)
    before = actor.q_values(observation)
    network.set_weights([weight + 1.0 for weight in network.get_weights()])
    assert_array_equal(actor.q_values(observation), before)
    assert_acts_like(loaded(actor, network), network, observation)
    assert not np.array_equal(actor.q_values(observation), before)


@pytest.mark.parametrize("kind", [NumpyActor, CompiledActor])
def test_acting_leaves_observations_and_earlier_values_as_they_are(kind):
    network = built((6,), "float32", hidden_units=(8,))
    actor, observation = loaded(kind(network), network), seen((6,), "float32", 4)
    copy = observation.copy()
    first = actor.q_values(observation)
    values = first.copy()
    actor.q_values(observation + 1.0)
    assert_array_equal(observation, copy)
    assert_array_equal(first, values)


def test_weights_are_published_flat_and_taken_apart_again():
    network = built(hidden_units=(8, 7), dueling=True)
    flat = flatten(network.get_weights())
    assert_array_equal(flat_weights(network), flat)
    parts = split_weights(weight_shapes(network), flat)
    for part, weight in zip(parts, network.get_weights(), strict=True):
        assert_array_equal(part, weight)
        assert np.shares_memory(part, flat)
    assert flat.dtype == np.float32
