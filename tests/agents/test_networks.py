"""Networks have the layers, shapes and values that their configuration names, and refuse the rest by a sentence."""

import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.agents import networks
from rlplatform.config import NetworkConfig
from rlplatform.errors import UserError


def built(shape=(5,), dtype="float32", num_actions=3, seed=0, **config):
    keras.utils.set_random_seed(seed)
    return networks.build(NetworkConfig(**config), shape, dtype, num_actions)


def of_layers(network):
    return [layer.name for layer in network.layers]


def pictures(shape, count=4):
    return np.random.default_rng(1).integers(0, 256, (count, *shape)).astype(np.uint8)


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize(
    ("torso", "shape", "dtype"),
    [
        ("mlp", (5,), "float32"),
        ("mlp", (4, 3), "float32"),
        ("mlp", (6, 6, 2), "uint8"),
        ("nature", (36, 40, 3), "uint8"),
        ("nature", (84, 84, 4), "float32"),
    ],
)
def test_a_network_gives_one_value_per_action_in_float32(torso, shape, dtype, dueling):
    network = built(shape, dtype, 3, torso=torso, hidden_units=(8, 7), dueling=dueling)
    assert network.input_shape == (None, *shape)
    assert network.inputs[0].dtype == dtype
    for count in (1, 4):
        q = network(pictures(shape, count).astype(dtype))
        assert q.shape == (count, 3)
        assert q.dtype == tf.float32
    assert of_layers(network)[-1] == "q"
    assert isinstance(network.layers[-1], networks.Dueling if dueling else keras.layers.Dense)


def test_the_layers_have_the_names_that_others_look_for():
    names = ["observation", "dense_0", "dense_1", "q"]
    assert of_layers(built(hidden_units=(8, 7))) == names
    names = ["observation", "dense_0", "advantage_dense_1", "value_dense_1", "advantage", "value", "q"]
    assert sorted(of_layers(built(hidden_units=(8, 7), dueling=True))) == sorted(names)
    names = ["observation", "rescale", "conv_0", "conv_1", "conv_2", "flatten", "dense_0", "q"]
    assert of_layers(built((84, 84, 4), "uint8", torso="nature")) == names


def test_the_mlp_has_the_widths_asked_for():
    shapes = [tuple(weight.shape) for weight in built(hidden_units=(8, 7)).weights]
    assert shapes == [(5, 8), (8,), (8, 7), (7,), (7, 3), (3,)]


def test_nature_has_the_layers_of_mnih_et_al_2015():
    shapes = [tuple(weight.shape) for weight in built((84, 84, 4), "uint8", 6, torso="nature").weights]
    kernels = [(8, 8, 4, 32), (4, 4, 32, 64), (3, 3, 64, 64), (3136, 512), (512, 6)]
    assert shapes == [part for kernel in kernels for part in (kernel, kernel[-1:])]


def test_bytes_are_scaled_to_one_inside_the_network():
    frames = pictures((6, 6, 1))
    scaled = built((6, 6, 1), "float32", torso="mlp", hidden_units=(8,))(frames / np.float32(255.0))
    assert_allclose(built((6, 6, 1), "uint8", torso="mlp", hidden_units=(8,))(frames), scaled, rtol=1e-5, atol=1e-6)


def test_other_numbers_are_left_as_they_are():
    network = built((2,), "float32", hidden_units=(2,))
    network.set_weights([np.eye(2), np.zeros(2), np.ones((2, 3)), np.zeros(3)])
    assert_array_equal(network(np.float32([[300.0, -5.0]])), [[300.0] * 3])


def test_dueling_adds_the_advantage_over_its_mean_to_the_value():
    value, advantage = np.float32([[10.0], [-1.0]]), np.float32([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    q = networks.Dueling()((value, advantage))
    assert_allclose(q, [[8.0, 9.0, 13.0], [-2.0, -2.0, 1.0]])
    assert_allclose(networks.Dueling()((value, advantage + 7.0)), q, rtol=1e-6)


def test_a_dueling_network_is_its_two_streams_put_together():
    network = built(hidden_units=(8, 7), dueling=True)
    observation = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    weights = {weight.name.removesuffix(":0"): weight.numpy() for weight in network.weights}

    def layer(name, features):
        return features @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    features = np.maximum(layer("dense_0", observation), 0.0)
    value = layer("value", np.maximum(layer("value_dense_1", features), 0.0))
    advantage = layer("advantage", np.maximum(layer("advantage_dense_1", features), 0.0))
    assert_allclose(
        network(observation), value + advantage - advantage.mean(axis=1, keepdims=True), rtol=1e-4, atol=1e-5
    )


def test_weights_follow_from_the_seed():
    one, same, other = (built(seed=seed).get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0], other[0])


@pytest.mark.parametrize("dueling", [False, True])
def test_a_network_is_read_back_from_its_file(tmp_path, dueling):
    network = built(hidden_units=(8, 7), dueling=dueling)
    observation = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    network.save(tmp_path / "network.keras")
    assert_array_equal(keras.models.load_model(tmp_path / "network.keras")(observation), network(observation))


# --- torsos -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "torso"),
    [
        ((5,), "mlp"),
        ((84, 84, 4), "nature"),
        ((36, 36, 1), "nature"),
        ((35, 84, 1), "mlp"),
        ((84, 35, 1), "mlp"),
        ((10, 10, 1), "mlp"),
        ((2, 3, 4, 5), "mlp"),
    ],
)
def test_auto_takes_convolutions_for_images_that_are_large_enough(shape, torso):
    network = built(shape, hidden_units=(4,))
    assert any(isinstance(layer, keras.layers.Conv2D) for layer in network.layers) == (torso == "nature")
    assert networks.is_dense(NetworkConfig(), shape) == (torso == "mlp")
    assert network(pictures(shape, 2).astype(np.float32)).shape == (2, 3)


@pytest.mark.parametrize("shape", [(35, 84, 1), (84, 35, 1), (5,), (84, 84)])
def test_nature_refuses_what_it_cannot_convolve(shape):
    with pytest.raises(UserError, match=r"needs images of at least 36 x 36 with channels last; got \(.*'mlp' works"):
        built(shape, torso="nature")


def test_an_unknown_torso_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"unknown network.torso 'natur'; did you mean 'nature'\?.*module:function"):
        built(torso="natur")


def test_an_mlp_without_hidden_layers_is_refused():
    with pytest.raises(UserError, match=r"hidden_units needs at least one layer, like \[64, 64\]"):
        built(hidden_units=())


OWN = """
import tf_keras as keras

def small(observation, config):
    features = keras.layers.Dense(config.hidden_units[0], "tanh", name="own")(observation)
    return features, lambda kind: keras.layers.Dense(4, "relu", name=f"{kind}_last")

def nothing(observation, config):
    return None

number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_torsos.py").write_text(OWN)
    (tmp_path / "broken_torsos.py").write_text("def small(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_torsos"
    for name in ("own_torsos", "broken_torsos"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("dueling", [False, True])
def test_a_torso_of_ones_own_is_found_by_module_and_function(own, dueling):
    network = built(torso=f"{own}:small", hidden_units=(9,), dueling=dueling)
    assert network.get_layer("own").units == 9
    last = ["value_last", "advantage_last"] if dueling else ["q_last"]
    assert set(last) < set(of_layers(network))
    assert network(np.zeros((2, 5), np.float32)).shape == (2, 3)


@pytest.mark.parametrize("dueling", [False, True])
def test_a_torso_of_ones_own_is_not_taken_for_dense(own, dueling):
    assert not networks.is_dense(NetworkConfig(torso=f"{own}:small", dueling=dueling), (5,))


@pytest.mark.parametrize(
    ("torso", "said"),
    [
        ("nowhere_to_be_found:small", "cannot be imported: No module named"),
        ("own_torsos:large", "has no attribute 'large'"),
        ("own_torsos:", "has no attribute"),
        (":small", "cannot be imported"),
        (".own_torsos:small", "cannot be imported"),
        ("own_torsos:number", "is a int, not a function"),
        ("own_torsos:nothing", "must give features and a function that makes a stream's last layers"),
        ("broken_torsos:small", "cannot be imported: .*syntax"),
    ],
)
def test_a_torso_of_ones_own_that_cannot_be_had_is_refused(own, torso, said):
    with pytest.raises(UserError, match=rf"network.torso '{torso}'.*{said}"):
        built(torso=torso)
