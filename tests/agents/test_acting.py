"""What acts on the host gives the values of the network whose weights it was given, and keeps them."""

import itertools

import numpy as np
import pytest
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.agents import make_actor, networks
from rlplatform.agents.acting import (
    CompiledActor,
    NumpyActor,
    flat_weights,
    flatten,
    masked,
    split_weights,
    weight_shapes,
)
from rlplatform.agents.layers import NoisyDense
from rlplatform.config import Config

HEADS = ("scalar", "categorical", "quantile", "implicit_quantile")


def built(shape=(5,), dtype="float32", seed=0, head="scalar", **network):
    keras.utils.set_random_seed(seed)
    config = Config().replace(network=network, agent={"head": head, "num_atoms": 5, "num_quantiles": 4})
    network = networks.build(config, shape, dtype, 3)
    rng = np.random.default_rng(seed)
    network.set_weights([rng.normal(size=weight.shape) for weight in network.weights])  # biases are not all 0
    if config.network.normalize_observations:
        statistics = network.get_layer("standardize")
        statistics.variance.assign(np.abs(statistics.variance) + 0.1)
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
        lambda: model(keras.layers.LayerNormalization(center=False), keras.layers.Dense(3)),
        lambda: model(keras.layers.Reshape((1, 5)), keras.layers.LayerNormalization(axis=1), keras.layers.Flatten()),
        lambda: model(keras.layers.Dense(4), keras.layers.ReLU(max_value=1.0), keras.layers.Dense(3)),
        lambda: model(NoisyDense(4, "tanh"), keras.layers.Dense(3)),
        lambda: model(keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dense(3)),
        lambda: model(model(keras.layers.Dense(4)), keras.layers.Dense(3)),
        shared,
    ],
    ids=[
        "tanh",
        "no bias",
        "uncentred norm",
        "norm of another axis",
        "relu6",
        "noisy tanh",
        "batch norm",
        "nested",
        "shared",
    ],
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


# --- heads and flags ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=4)))
def test_numpy_gives_the_values_of_every_head_with_every_flag(head, flags):
    names = ("dueling", "noisy", "layer_norm", "normalize_observations")
    network = built(head=head, hidden_units=(8, 7), **dict(zip(names, flags, strict=True)))
    actor = make_actor(network)
    assert isinstance(actor, NumpyActor)
    for count in (1, 4):
        assert_acts_like(loaded(actor, network), network, seen((5,), "float32", count))


@pytest.mark.parametrize("head", HEADS)
def test_numpy_gives_the_values_of_small_images_with_every_flag(head):
    flags = {"dueling": True, "noisy": True, "layer_norm": True, "normalize_observations": True}
    network = built((4, 3, 2), "uint8", head=head, hidden_units=(8, 7), **flags)
    actor = make_actor(network)
    assert isinstance(actor, NumpyActor)
    assert_acts_like(loaded(actor, network), network, seen((4, 3, 2), "uint8", 4))


@pytest.mark.parametrize("head", HEADS)
def test_a_compiled_copy_gives_the_values_of_every_head(head):
    network = built((36, 36, 1), "uint8", head=head, dueling=True, noisy=True, normalize_observations=True)
    actor = make_actor(network)
    assert isinstance(actor, CompiledActor)
    assert_acts_like(loaded(actor, network), network, seen((36, 36, 1), "uint8", 2))


# --- noise ----------------------------------------------------------------------------------------------------------


def noisy_actor(kind, seed=0, head="scalar"):
    network = built((36, 36, 1), "uint8", 3, head=head, torso="nature" if kind is CompiledActor else "mlp", noisy=True)
    return kind(network, seed), flatten(network.get_weights()), seen((36, 36, 1), "uint8", 2)


@pytest.mark.parametrize("kind", [NumpyActor, CompiledActor])
def test_noise_is_fresh_at_every_call_and_follows_from_seed_and_draw(kind):
    actor, weights, observation = noisy_actor(kind)
    actor.load(weights)
    mean = actor.q_values(observation)
    assert_array_equal(actor.q_values(observation), mean)

    def values(actor, draw, calls=2):
        actor.load(weights, draw)
        return [actor.q_values(observation) for _ in range(calls)]

    first, second = values(actor, 5)
    assert min(np.abs(first - mean).min(), np.abs(first - second).min()) > 0.0
    for one, again in zip((first, second), values(actor, 5), strict=True):
        assert_array_equal(one, again)  # whatever was drawn in between
    twin, _, _ = noisy_actor(kind)
    assert_array_equal(values(twin, 5)[1], second)
    other_seed, _, _ = noisy_actor(kind, seed=1)
    everything = [*values(actor, 5), *values(actor, 6), *values(other_seed, 5)]
    assert len({part.tobytes() for part in everything}) == 6
    actor.load(weights)
    assert_array_equal(actor.q_values(observation), mean)  # without a draw there is no noise


def test_every_row_has_noise_of_its_own():
    actor, weights, observation = noisy_actor(NumpyActor)
    actor.load(weights, 0)
    q = actor.q_values(np.repeat(observation[:1], 8, axis=0))
    assert len({row.tobytes() for row in q}) == 8


def test_the_noise_of_a_row_is_factorised_and_has_the_size_of_the_paper():
    """One noisy layer: q - mean = (sum of x_i sigma_ij f(e_i) + sigma_j) f(e_j), Fortunato et al. 2018, eq. 9 to 11.

    f(e) = sgn(e) sqrt|e| of a standard normal e has mean 0 and variance E|e| = sqrt(2 / pi).
    """
    network = model(NoisyDense(2))
    kernel, bias, kernel_sigma, bias_sigma = (np.full(shape, 0.3) for shape in ((5, 2), 2, (5, 2), 2))
    network.set_weights([kernel, bias, kernel_sigma, bias_sigma])
    actor, x = NumpyActor(network), np.float32([1.0, -2.0, 0.5, 0.0, 3.0])
    actor.load(flatten(network.get_weights()), 0)
    rows = 40_000
    noise = actor.q_values(np.repeat(x[None], rows, axis=0)) - 0.3 * (x.sum() + 1.0)
    f_squared = np.sqrt(2.0 / np.pi)
    variance = (0.3**2 * (x**2).sum() * f_squared + 0.3**2) * f_squared
    assert_allclose(noise.var(axis=0), variance, rtol=0.05)
    assert_allclose(noise.mean(axis=0), 0.0, atol=4.0 * np.sqrt(variance / rows))
    # With equal sigmas both units share the first factor: their ratio is f(e_0) / f(e_1) alone, without x.
    share = np.mean(np.abs(noise[:, 0]) > np.abs(noise[:, 1]))
    assert abs(share - 0.5) < 0.01
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.02  # uncorrelated, since f(e_j) is each unit's own
    assert np.corrcoef(np.abs(noise).T)[0, 1] > 0.1  # but not independent


def test_a_network_without_noise_does_not_mind_a_draw():
    for kind in (NumpyActor, CompiledActor):
        network = built(hidden_units=(8,))
        actor = kind(network)
        actor.load(flatten(network.get_weights()), 3)
        assert_acts_like(actor, network, seen((5,), "float32", 4))


# --- masks ----------------------------------------------------------------------------------------------------------


def test_an_action_that_is_not_allowed_is_never_the_greatest():
    q = np.float32([[5.0, 1.0, 2.0], [-1e38, 3.0, 4.0]])
    mask = np.array([[False, True, True], [True, False, False]])
    assert_array_equal(masked(q, mask).argmax(axis=1), [2, 0])
    assert masked(q, None) is q
