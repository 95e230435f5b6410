import numpy as np
import pytest
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st

from rlplatform.agents import networks
from rlplatform.compression import canonical
from rlplatform.config import Config

KNOWN_LAYERS = (keras.layers.InputLayer, keras.layers.Dense, keras.layers.Conv2D, keras.layers.Flatten)


def network(seed=0, shape=(4,), dtype="float32", num_actions=3, offset=0.0, **config):
    """A random network with biases that are not zero, and all its values shifted by `offset`."""
    keras.utils.set_random_seed(seed)
    model = networks.build(Config().replace(network=config), shape, dtype, num_actions)
    rng = np.random.default_rng(seed)
    weights = [weight + rng.normal(0, 0.1, weight.shape) * (weight.ndim == 1) for weight in model.get_weights()]
    model.set_weights(weights)
    last = model.get_layer("value") if config.get("dueling") else model.get_layer("q")
    kernel, bias = last.get_weights()
    last.set_weights([kernel, bias + offset])
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
    features = keras.layers.LayerNormalization(name="normalise")(observation)
    features = keras.layers.Dense(6, activation="tanh", name="mine")(features)
    return features, lambda kind: keras.layers.Dense(5, activation="relu", name=f"{kind}_last")


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("greedy", [False, True])
def test_layers_of_an_unknown_kind_stay_and_are_named(monkeypatch, dtype, dueling, greedy):
    monkeypatch.setitem(networks.TORSOS, "custom", custom_torso)
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
    monkeypatch.setitem(networks.TORSOS, "uneven", uneven_torso)
    model = network(torso="uneven", dueling=True)
    assert_same_policy(model, canonical(model, greedy), observations(model))


def test_a_network_with_another_end_is_kept_whole():
    observation = keras.Input((4,), name="observation")
    model = keras.Model(observation, keras.layers.Dense(3, activation="tanh")(observation))
    folded = canonical(model)
    assert folded.model is model
    assert not folded.centred
    assert "kept the whole network" in folded.folds[0]
