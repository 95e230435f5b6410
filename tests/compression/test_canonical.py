import itertools
import math

import numpy as np
import pytest
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st

from rlplatform.agents import networks, torsos
from rlplatform.agents.layers import Standardize
from rlplatform.compression import canonical, chain
from rlplatform.compression.normalize import Normalize
from rlplatform.config import Config

KNOWN_LAYERS = (keras.layers.InputLayer, keras.layers.Dense, keras.layers.Conv2D, keras.layers.Flatten)
SOFTMAX = (keras.layers.Reshape, keras.layers.Softmax)
NORM = (Normalize, keras.layers.ReLU)


def network(seed=0, shape=(4,), dtype="float32", num_actions=3, offset=0.0, agent=None, **config):
    """A random network with biases that are not zero, and all its values shifted by `offset`."""
    keras.utils.set_random_seed(seed)
    model = networks.build(Config().replace(network=config, agent=agent or {}), shape, dtype, num_actions)
    rng = np.random.default_rng(seed)
    weights = [weight + rng.normal(0, 0.1, weight.shape) * (weight.ndim == 1) for weight in model.get_weights()]
    model.set_weights(weights)
    last = model.get_layer("value") if config.get("dueling") else model.get_layer("q")
    kernel, bias, *sigmas = last.get_weights()
    last.set_weights([kernel, bias + offset, *sigmas])
    for layer in model.layers:
        if isinstance(layer, Standardize):
            mean = layer.mean.shape
            size = 0.01 if dtype == "uint8" else 1.0  # of what is scaled to 1 before
            layer.set_weights([rng.normal(0.3, size, mean), size * rng.exponential(1, mean)])
    return model


def observations(model, count=256, seed=1):
    rng = np.random.default_rng(seed)
    shape = (count, *model.input_shape[1:])
    if model.inputs[0].dtype == "uint8":
        return rng.integers(0, 256, shape, np.uint8)
    return rng.normal(0, 2, shape).astype(np.float32)


def values(model, seen):
    return model(seen.astype(model.inputs[0].dtype.name)).numpy().astype(np.float64)


def assert_same_policy(model, folded, seen):
    q, canonical_q = values(model, seen), values(folded.model, seen)
    scale = max(1.0, np.abs(q).max())
    expected = q - q.mean(axis=1, keepdims=True) if folded.centred else q
    np.testing.assert_allclose(canonical_q, expected, atol=1e-5 * scale)
    best_two = np.sort(q, axis=1)[:, -2:]
    clear = best_two[:, 1] - best_two[:, 0] > 1e-5 * scale
    np.testing.assert_array_equal(canonical_q.argmax(axis=1)[clear], q.argmax(axis=1)[clear])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    hidden=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    shape=st.sampled_from([(1,), (5,), (3, 2), (2, 3, 2)]),
    dtype=st.sampled_from(["float32", "uint8"]),
    num_actions=st.integers(2, 5),
    dueling=st.booleans(),
    greedy=st.booleans(),
    offset=st.sampled_from([0.0, -30.0, 100.0]),
)
def test_the_canonical_network_takes_the_same_actions(seed, hidden, shape, dtype, num_actions, dueling, greedy, offset):
    model = network(seed, shape, dtype, num_actions, offset, torso="mlp", hidden_units=tuple(hidden), dueling=dueling)
    before = model.get_weights()
    folded = canonical(model, greedy)
    assert_same_policy(model, folded, observations(model))
    assert all(isinstance(layer, KNOWN_LAYERS) for layer in folded.model.layers)
    for weight, untouched in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, untouched)


HEADS = ("scalar", "categorical", "quantile", "implicit_quantile")


FLAGS = ("dueling", "noisy", "layer_norm", "normalize_observations")


def assert_folds(head, flags, greedy=True, seed=0, hidden=(6, 9), shape=(3, 2), dtype="float32", num_actions=4):
    agent = {"head": head, "num_atoms": 7, "v_min": -2.0, "v_max": 5.0, "num_quantiles": 6}
    model = network(seed, shape, dtype, num_actions, agent=agent, torso="mlp", hidden_units=tuple(hidden), **flags)
    folded = canonical(model, greedy)
    assert_same_policy(model, folded, observations(model))
    expected = KNOWN_LAYERS + (SOFTMAX if head == "categorical" else ()) + (NORM if flags["layer_norm"] else ())
    assert all(isinstance(layer, expected) for layer in folded.model.layers), folded.folds
    too_many = head == "categorical" and num_actions > folded.model.get_layer("logits").kernel.shape[0]
    assert folded.centred == (greedy and not too_many)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    head=st.sampled_from(HEADS),
    flags=st.fixed_dictionaries({flag: st.booleans() for flag in FLAGS}),
    greedy=st.booleans(),
    seed=st.integers(0, 2**16),
    hidden=st.lists(st.integers(2, 12), min_size=1, max_size=3),
    shape=st.sampled_from([(5,), (3, 2), (2, 3, 2)]),
    dtype=st.sampled_from(["float32", "uint8"]),
    num_actions=st.sampled_from([2, 4, 15]),
)
def test_heads_fold_into_the_same_policy_under_all_flags(head, flags, greedy, seed, hidden, shape, dtype, num_actions):
    assert_folds(head, flags, greedy, seed, hidden, shape, dtype, num_actions)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("greedy", [False, True])
def test_every_head_folds_with_every_set_of_flags(head, greedy):
    for chosen in itertools.product([False, True], repeat=len(FLAGS)):
        for dtype in ("float32", "uint8"):
            assert_folds(head, dict(zip(FLAGS, chosen, strict=True)), greedy, dtype=dtype)


def layers_of(folded):
    return [type(layer).__name__ for layer in folded.model.layers[1:]]


@pytest.mark.parametrize("head", ["scalar", "quantile", "implicit_quantile"])
def test_every_head_but_the_categorical_one_ends_in_a_single_dense(head):
    model = network(hidden_units=(8, 16), dueling=True, noisy=True, normalize_observations=True, agent={"head": head})
    folded = canonical(model)
    assert layers_of(folded) == ["Dense"] * 3
    assert folded.model.count_params() == (4 * 8 + 8) + (8 * 16 + 16) + (16 * 3 + 3)
    assert_same_policy(model, folded, observations(model))


def test_the_mean_weights_of_a_noisy_network_are_what_it_plays_by():
    model = network(noisy=True, hidden_units=(8,))
    folded = canonical(model, greedy=False)
    kernel, bias = folded.model.get_layer("q").get_weights()
    np.testing.assert_array_equal(kernel, model.get_layer("q").kernel)
    np.testing.assert_array_equal(bias, model.get_layer("q").bias)
    assert "took the mean weights of the layers that are noisy in training" in folded.folds


def test_the_quantiles_mean_is_taken_of_the_weights():
    model = network(hidden_units=(8,), agent={"head": "quantile", "num_quantiles": 5})
    kernel = canonical(model, greedy=False).model.get_layer("q").get_weights()[0]
    expected = model.get_layer("q").get_weights()[0].reshape(8, 3, 5).mean(axis=2)
    np.testing.assert_allclose(kernel, expected, rtol=1e-5)


def test_a_softmax_keeps_the_value_stream_and_becomes_centred():
    agent = {"head": "categorical", "num_atoms": 7}
    model = network(hidden_units=(8, 16), dueling=True, agent=agent)
    folded = canonical(model)
    assert layers_of(folded) == ["Dense", "Dense", "Dense", "Reshape", "Softmax", "Flatten", "Dense"]
    logits = folded.model.get_layer("logits")
    assert logits.kernel.shape == (32, 3 * 7)
    np.testing.assert_allclose(logits.get_weights()[0].reshape(32, 3, 7).mean(axis=2), 0.0, atol=1e-6)
    assert "kept the softmax over atoms" in folded.folds
    assert "merged the hidden layers of both streams" in folded.folds
    np.testing.assert_allclose(values(folded.model, observations(model)).mean(axis=1), 0.0, atol=1e-4)


def test_values_of_very_many_actions_under_a_softmax_are_not_centred():
    model = network(hidden_units=(4,), num_actions=9, agent={"head": "categorical", "num_atoms": 7})
    folded = canonical(model)
    assert not folded.centred
    assert folded.model.count_params() == (4 * 4 + 4) + (4 * 63 + 63) + (7 + 1)
    assert_same_policy(model, folded, observations(model))


@pytest.mark.parametrize("greedy", [False, True])
def test_the_mean_of_a_layer_norm_goes_into_the_dense_before_it(greedy):
    model = network(hidden_units=(8, 16), layer_norm=True, dueling=True)
    folded = canonical(model, greedy)
    assert layers_of(folded) == ["Dense", "Normalize", "ReLU"] * 2 + ["Dense"]
    for layer in folded.model.layers:
        if isinstance(layer, Normalize):
            assert not layer.centre
    assert folded.model.layers[5].groups == (1 if greedy else 2)
    np.testing.assert_allclose(folded.model.layers[1].get_weights()[0].mean(axis=1), 0.0, atol=1e-7)
    assert_same_policy(model, folded, observations(model))


def test_units_before_a_layer_norm_all_count():
    model = network(hidden_units=(6,), layer_norm=True)
    model.get_layer("dense_0").set_weights([np.zeros((4, 6)), np.array([-1.0, 2.0, 0.5, -1.0, 0.0, 3.0])])
    folded = canonical(model)
    assert folded.model.get_layer("dense_0").units == 6
    assert_same_policy(model, folded, observations(model))


def layer_norm_torso(observation, config):
    """A user's torso: LayerNorm of the observation itself, and behind an activation."""
    features = keras.layers.LayerNormalization(name="first")(observation)
    features = keras.layers.Dense(6, activation="tanh", name="mine")(features)
    features = keras.layers.LayerNormalization(scale=False, center=False, epsilon=0.1, name="second")(features)
    return features, lambda kind: keras.layers.Dense(5, activation="relu", name=f"{kind}_last")


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("greedy", [False, True])
def test_a_layer_norm_that_no_linear_layer_comes_before_takes_its_mean_out_itself(monkeypatch, greedy, dueling):
    monkeypatch.setitem(torsos.TORSOS, "normed", layer_norm_torso)
    model = network(torso="normed", dueling=dueling, normalize_observations=True)
    folded = canonical(model, greedy)
    assert all(layer.centre for layer in folded.model.layers if isinstance(layer, Normalize))
    assert "kept the normalisation of observations" in folded.folds
    assert_same_policy(model, folded, observations(model))


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_statistics_of_single_pixels_stay_before_a_convolution_in_one_step(dtype):
    model = network(shape=(36, 36, 2), dtype=dtype, torso="nature", normalize_observations=True)
    folded = canonical(model)
    assert layers_of(folded) == ["Rescaling", "Conv2D", "Conv2D", "Conv2D", "Flatten", "Dense", "Dense"]
    assert folded.folds[-1].startswith("kept ")
    assert_same_policy(model, folded, observations(model, count=16))


def test_statistics_that_all_places_share_fold_into_a_convolution():
    model = network(shape=(36, 36, 2), dtype="uint8", torso="nature", normalize_observations=True)
    mean, variance = np.array([0.3, 0.6]), np.array([0.02, 0.05])
    model.get_layer("standardize").set_weights([np.broadcast_to(part, (36, 36, 2)) for part in (mean, variance)])
    folded = canonical(model)
    assert layers_of(folded) == ["Rescaling", "Conv2D", "Conv2D", "Conv2D", "Flatten", "Dense", "Dense"]
    assert "folded the scaling by 0.003922 and the normalisation of observations into 'conv_0'" in folded.folds
    assert "kept the shift of observations, exact in float32" in folded.folds
    assert_same_policy(model, folded, observations(model, count=16))
    whole = chain.fold_shift(folded.model)
    assert layers_of(folded._replace(model=whole)) == ["Conv2D", "Conv2D", "Conv2D", "Flatten", "Dense", "Dense"]
    assert_same_policy(model, folded._replace(model=whole), observations(model, count=16))


@settings(max_examples=25, deadline=None)
@given(width=st.integers(8, 17), kernel=st.integers(1, 8), stride=st.integers(1, 8), channels=st.integers(1, 3))
def test_pixels_that_no_stride_parts_are_joined_without_another_value(width, kernel, stride, channels):
    settings = {"torso": "cnn", "convolutions": [[3, kernel, stride]], "hidden_units": ()}
    model = chain.fold_shift(canonical(network(shape=(9, width, channels), dtype="uint8", **settings)).model)
    joined = chain.join_pixels(model)
    size = math.gcd(width, kernel, stride)
    parted, together = (each.get_layer("conv_0").kernel.shape[:3] for each in (model, joined))
    assert (parted, together) == ((kernel, kernel, channels), (kernel, kernel // size, size * channels))
    assert (joined is model) == (size == 1)
    for layer in model.layers:  # Whole numbers, which no order of summing rounds.
        layer.set_weights([np.rint(8 * weight) for weight in layer.get_weights()])
    seen = np.rint(observations(model, count=4))
    joined = chain.join_pixels(model)
    np.testing.assert_array_equal(joined(seen.reshape(-1, *joined.input.shape[1:])), model(seen))


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("hidden", [(), (6,)])
def test_a_network_on_bytes_with_any_convolutions_becomes_these_and_dense_layers_alone(hidden, dueling):
    settings = {"torso": "cnn", "convolutions": [[4, 3, 2], [5, 2, 1]], "hidden_units": hidden}
    model = network(shape=(9, 8, 2), dtype="uint8", num_actions=4, dueling=dueling, **settings)
    folded = canonical(model)
    assert_same_policy(model, folded, observations(model))
    assert layers_of(folded) == ["Conv2D", "Conv2D", "Flatten", *["Dense"] * len(hidden), "Dense"]


@pytest.mark.parametrize("dueling", [False, True])
def test_a_nature_network_on_bytes_becomes_convolutions_and_dense_layers_alone(dueling):
    model = network(shape=(36, 36, 2), dtype="uint8", torso="nature", dueling=dueling)
    folded = canonical(model)
    assert_same_policy(model, folded, observations(model, count=16))
    assert [type(layer).__name__ for layer in folded.model.layers] == [
        "InputLayer", "Conv2D", "Conv2D", "Conv2D", "Flatten", "Dense", "Dense",
    ]  # fmt: skip


def test_a_dueling_network_loses_the_parameters_of_its_value_stream():
    model = network(hidden_units=(8, 16), dueling=True, num_actions=3)
    folded = canonical(model)
    assert folded.model.count_params() == (4 * 8 + 8) + (8 * 16 + 16) + (16 * 3 + 3)
    assert "dropped the value stream" in folded.folds


def test_without_greedy_both_streams_become_one_wider_dense():
    model = network(hidden_units=(8, 16), dueling=True, num_actions=3)
    folded = canonical(model, greedy=False)
    assert [layer.units for layer in folded.model.layers if isinstance(layer, keras.layers.Dense)] == [8, 32, 3]
    assert not folded.centred


def dead_unit_network(second_kernel_row=1.0):
    """4 hidden units on 2 inputs: one alive, one unused, one that never fires, one that is always 2."""
    model = network(shape=(2,), num_actions=2, hidden_units=(4,))
    hidden, q = model.get_layer("dense_0"), model.get_layer("q")
    hidden.set_weights([np.array([[1.0, 1.0, 0.0, 0.0], [0.5, 1.0, 0.0, 0.0]]), np.array([0.0, 0.0, -1.0, 2.0])])
    q.set_weights([np.array([[1.0, -1.0], [0.0, 0.0], [3.0, 4.0], [second_kernel_row, 5.0]]), np.array([0.5, 0.0])])
    return model


def test_units_that_no_observation_can_make_matter_are_removed():
    model = dead_unit_network()
    folded = canonical(model, greedy=False)
    assert folded.model.get_layer("dense_0").units == 1
    np.testing.assert_allclose(folded.model.get_layer("q").get_weights()[1], [0.5 + 2.0 * 1.0, 0.0 + 2.0 * 5.0])
    assert_same_policy(model, folded, observations(model))
    assert any(fold.startswith("removed 3 of 4 units of 'dense_0'") for fold in folded.folds)


def test_a_layer_of_dead_units_keeps_one():
    model = network(hidden_units=(6,))
    model.get_layer("q").set_weights([np.zeros((6, 3)), np.array([1.0, 3.0, 2.0])])
    folded = canonical(model)
    assert folded.model.get_layer("dense_0").units == 1
    assert (values(folded.model, observations(model)).argmax(axis=1) == 1).all()


def test_weights_that_only_subtract_are_dead_on_bytes_but_not_on_signed_numbers():
    for dtype, units in (("uint8", 1), ("float32", 2)):
        model = network(shape=(3,), dtype=dtype, hidden_units=(2,), torso="mlp")
        model.get_layer("dense_0").set_weights([np.array([[1.0, -1.0]] * 3), np.array([0.0, -0.5])])
        folded = canonical(model)
        assert folded.model.get_layer("dense_0").units == units
        assert_same_policy(model, folded, observations(model))


def test_dead_channels_of_a_convolution_are_removed_through_flatten():
    model = network(shape=(36, 36, 1), dtype="uint8", torso="nature")
    last = model.get_layer("conv_2")
    kernel, bias = last.get_weights()
    kernel[..., :10], bias[:5], bias[5:10] = 0.0, -1.0, 0.5  # five that never fire, five that are constant
    last.set_weights([kernel, bias])
    folded = canonical(model)
    assert folded.model.get_layer("conv_2").filters == 54
    assert_same_policy(model, folded, observations(model, count=16))


def test_a_constant_channel_before_padding_stays():
    observation = keras.Input((8, 8, 1), name="observation")
    features = keras.layers.Conv2D(3, 3, padding="same", activation="relu", name="first")(observation)
    features = keras.layers.Conv2D(2, 3, padding="same", activation="relu", name="second")(features)
    q = keras.layers.Dense(2, name="q")(keras.layers.Flatten()(features))
    model = keras.Model(observation, q)
    kernel, _ = model.get_layer("first").get_weights()
    kernel[..., 0] = 0.0
    model.get_layer("first").set_weights([kernel, np.array([1.0, 0.0, 0.0])])
    folded = canonical(model)
    assert folded.model.get_layer("first").filters == 3
    assert_same_policy(model, folded, observations(model, count=16))


def custom_torso(observation, config):
    """A user's torso: layers that algebra does not know, then a Dense."""
    features = keras.layers.UnitNormalization(name="normalise")(observation)
    features = keras.layers.Dense(6, activation="tanh", name="mine")(features)
    return features, lambda kind: keras.layers.Dense(5, activation="relu", name=f"{kind}_last")


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("greedy", [False, True])
def test_layers_of_an_unknown_kind_stay_and_are_named(monkeypatch, dtype, dueling, greedy):
    monkeypatch.setitem(torsos.TORSOS, "custom", custom_torso)
    model = network(dtype=dtype, torso="custom", dueling=dueling)
    folded = canonical(model, greedy)
    assert_same_policy(model, folded, observations(model))
    assert "kept the layers up to 'normalise' as they were" in folded.folds
    assert folded.model.inputs[0].dtype.name == "float32"


def uneven_torso(observation, config):
    """A torso whose value stream has one layer more than its advantage stream."""

    def stream(kind):
        last = keras.layers.Dense(5, activation="relu", name=f"{kind}_last")
        return last if kind == "advantage" else keras.Sequential([keras.layers.Dense(3, activation="tanh"), last])

    return observation, stream


@pytest.mark.parametrize("greedy", [False, True])
def test_streams_that_differ_are_joined_side_by_side(monkeypatch, greedy):
    monkeypatch.setitem(torsos.TORSOS, "uneven", uneven_torso)
    model = network(torso="uneven", dueling=True)
    assert_same_policy(model, canonical(model, greedy), observations(model))


def test_a_network_with_another_end_is_kept_whole():
    observation = keras.Input((4,), name="observation")
    model = keras.Model(observation, keras.layers.Dense(3, activation="tanh")(observation))
    folded = canonical(model)
    assert folded.model is model
    assert not folded.centred
    assert "kept the whole network" in folded.folds[0]
