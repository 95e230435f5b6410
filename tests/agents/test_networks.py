"""Networks have the layers, shapes and values that their configuration names, and refuse the rest by a sentence."""

import itertools
import math
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.agents import networks, torsos
from rlplatform.agents.layers import Dueling, NoisyDense, fresh_noise
from rlplatform.config import Config, NetworkConfig
from rlplatform.errors import UserError

KINDS = ("value", "advantage")
HEADS = ("scalar", "categorical", "quantile", "implicit_quantile")
COUNTS = {"num_atoms": 5, "num_quantiles": 4}


def built(shape=(5,), dtype="float32", num_actions=3, seed=0, training=False, head="scalar", **network):
    keras.utils.set_random_seed(seed)
    config = Config().replace(network=network, agent={"head": head} | COUNTS)
    return networks.build(config, shape, dtype, num_actions, training)


def with_other_weights(network, seed=0):
    """No weight is left at what it is at first; variances stay above 0."""
    rng = np.random.default_rng(seed)
    network.set_weights([rng.uniform(0.1, 0.9, weight.shape) * rng.choice([1, 1, -1]) for weight in network.weights])
    for layer in network.layers:
        if layer.name == "standardize":
            layer.variance.assign(np.abs(layer.variance))
    return network


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
    assert isinstance(network.layers[-1], Dueling if dueling else keras.layers.Dense)


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
    q = Dueling()((value, advantage))
    assert_allclose(q, [[8.0, 9.0, 13.0], [-2.0, -2.0, 1.0]])
    assert_allclose(Dueling()((value, advantage + 7.0)), q, rtol=1e-6)


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


# --- heads, streams and flags ---------------------------------------------------------------------------------------


FLAGS = ("dueling", "noisy", "layer_norm", "normalize_observations")
COMBINATIONS = [
    pytest.param(flags, marks=[] if sum(flags) % 2 else pytest.mark.slow)  # an odd number on: any three in all ways
    for flags in itertools.product([False, True], repeat=len(FLAGS))
]


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("flags", COMBINATIONS)
def test_both_networks_of_a_head_have_the_same_weights_in_the_same_order(head, flags):
    """Weights of one are those of the other: their values agree, however they were made."""
    network = {"hidden_units": (8, 7), "head": head} | dict(zip(FLAGS, flags, strict=True))
    policy, raw = (built(training=training, **network) for training in (False, True))
    assert [tuple(weight.shape) for weight in policy.weights] == [tuple(weight.shape) for weight in raw.weights]
    names = [[weight.name.rpartition("/")[2] for weight in network.weights] for network in (policy, raw)]
    assert names[0] == names[1]  # kernel, bias, gamma, ...
    for one, other in zip(policy.get_weights(), raw.get_weights(), strict=True):
        assert_array_equal(one, other)  # drawn from the same seed, too
    with_other_weights(raw)
    policy.set_weights(raw.get_weights())
    observation = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
    assert policy.output_shape == (None, 3)
    assert_allclose(policy(observation), greedy_values(raw, observation, head), rtol=2e-4, atol=2e-5)


def greedy_values(raw, observation, head):
    """[B, A]: the expectation of what the training network gives, item by item and action by action."""
    if head == "scalar":
        assert raw.output_shape == (None, 3)
        return raw(observation).numpy()
    if head == "implicit_quantile":  # at all levels of the policy, four at a time
        levels = (np.arange(64, dtype=np.float32) + 0.5) / 64
        parts = [raw([observation, levels[None, at : at + 4]]).numpy() for at in range(0, 64, 4)]
        assert parts[0].shape == (len(observation), 3, 4)
        return np.concatenate(parts, axis=2).mean(axis=2)
    output = raw(observation).numpy().astype(np.float64)
    assert raw.output_shape[1:] == (3, 5 if head == "categorical" else 4)
    values = np.zeros(output.shape[:2])
    for item, action in np.ndindex(values.shape):
        if head == "quantile":
            values[item, action] = sum(output[item, action]) / 4
        else:
            chances = np.exp(output[item, action] - output[item, action].max())
            values[item, action] = np.dot(chances / chances.sum(), [-10.0, -5.0, 0.0, 5.0, 10.0])
    return values


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dueling", [False, True])
def test_images_and_stacks_go_through_every_head(head, dueling):
    frames = pictures((36, 36, 2), 2)
    flags = {"dueling": dueling, "noisy": True, "layer_norm": True, "normalize_observations": True}
    policy, raw = (built((36, 36, 2), "uint8", head=head, training=training, **flags) for training in (False, True))
    assert policy(frames).shape == (2, 3)
    assert_allclose(policy(frames), greedy_values(raw, frames, head), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_a_dueling_distribution_is_its_two_streams_put_together_atom_by_atom(head):
    """Q_k(a) = V_k + A_k(a) - the mean of A_k over actions (Wang et al. 2016, eq. 9; Hessel et al. 2018)."""
    network = with_other_weights(built(hidden_units=(8, 7), dueling=True, training=True, head=head))
    rng = np.random.default_rng(0)
    observation, tau = rng.normal(size=(4, 5)).astype(np.float32), np.float32([0.1, 0.4, 0.6, 0.97])
    layers = {layer.name: [weight.numpy().astype(np.float64) for weight in layer.weights] for layer in network.layers}
    count = {"scalar": 1, "categorical": 5}.get(head, 4)
    expected = np.zeros((4, 3, count))
    for item in range(4):
        hidden = np.maximum(observation[item] @ layers["dense_0"][0] + layers["dense_0"][1], 0.0)
        streams = {}
        for kind, actions in (("value", 1), ("advantage", 3)):
            kernel, bias = layers[f"{kind}_dense_1"]
            stream = np.maximum(hidden @ kernel + bias, 0.0)
            streams[kind] = np.zeros((actions, count))
            for k in range(count):
                features = stream
                if head == "implicit_quantile":
                    kernel, bias = layers[f"{kind}_quantiles"]
                    cosines = [math.cos(math.pi * i * tau[k]) for i in range(64)]
                    features = stream * np.maximum(np.dot(cosines, kernel) + bias, 0.0)
                    kernel, bias = layers[f"{kind}_levels"]
                    streams[kind][:, k] = features @ kernel + bias
                else:
                    kernel, bias = layers[kind]
                    streams[kind][:, k] = (features @ kernel + bias).reshape(actions, count)[:, k]
        for action in range(3):
            mean = sum(streams["advantage"]) / 3
            expected[item, action] = streams["value"][0] + streams["advantage"][action] - mean
    inputs = [observation, tau[None]] if head == "implicit_quantile" else observation
    output = network(inputs).numpy().reshape(4, 3, count)
    assert_allclose(output, expected, rtol=1e-3, atol=1e-4)


def test_noise_is_in_the_last_hidden_layers_and_the_outputs_alone():
    for dueling, names in ((False, {"dense_1", "q"}), (True, {f"{k}{s}" for k in KINDS for s in ("_dense_1", "")})):
        network = built(hidden_units=(8, 7), noisy=True, dueling=dueling)
        assert {layer.name for layer in network.layers if isinstance(layer, NoisyDense)} == names
        assert type(network.get_layer("dense_0")) is keras.layers.Dense
        for layer in network.layers:
            if isinstance(layer, NoisyDense):
                assert_allclose(layer.kernel_sigma, 0.5 / math.sqrt(layer.inputs))
    sigma = built(hidden_units=(4,), noisy=True, noisy_sigma=0.1).get_layer("q").bias_sigma
    assert_allclose(sigma, 0.1 / 2)


def test_layer_norm_stands_between_a_dense_layer_and_its_relu():
    """Hidden layers alone are normalised; relu comes after, so that features are not negative."""
    network = built(hidden_units=(8, 7), layer_norm=True)
    stages = ["dense_0", "dense_0_norm", "dense_0_relu", "dense_1", "dense_1_norm", "dense_1_relu"]
    assert of_layers(network) == ["observation", *stages, "q"]
    with_other_weights(network)
    features = np.random.default_rng(0).normal(size=(4, 5))
    for index in range(2):
        kernel, bias = (part.numpy().astype(np.float64) for part in network.get_layer(f"dense_{index}").weights)
        gamma, beta = (part.numpy().astype(np.float64) for part in network.get_layer(f"dense_{index}_norm").weights)
        rows = []
        for row in features @ kernel + bias:
            deviation = math.sqrt(sum((row - row.mean()) ** 2) / len(row) + 1e-3)
            rows.append(
                [max(g * (x - row.mean()) / deviation + b, 0.0) for x, g, b in zip(row, gamma, beta, strict=True)]
            )
        features = np.array(rows)
    kernel, bias = network.get_layer("q").weights
    observation = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    assert_allclose(network(observation), features @ kernel.numpy() + bias.numpy(), rtol=1e-3, atol=1e-4)


def test_observations_are_standardised_before_all_else_and_bytes_after_they_are_scaled():
    network = built((2,), hidden_units=(2,), normalize_observations=True)
    weights = ([1.0, -2.0], [4.0, 0.25], np.eye(2), np.zeros(2), np.ones((2, 1)) * [1, 2, 3], np.zeros(3))
    network.set_weights([np.array(weight) for weight in weights])
    x = [(5.0 - 1.0) / math.sqrt(4.0 + 1e-4), (-1.0 + 2.0) / math.sqrt(0.25 + 1e-4)]
    assert_allclose(network(np.float32([[5.0, -1.0]])), [[sum(x), 2 * sum(x), 3 * sum(x)]], rtol=1e-5)
    names = of_layers(built((6, 6, 1), "uint8", hidden_units=(2,), normalize_observations=True))
    assert names[:3] == ["observation", "rescale", "standardize"]
    statistics = built((5,), normalize_observations=True).get_layer("standardize")
    assert not statistics.trainable_variables
    assert len(statistics.non_trainable_variables) == 2


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("training", [False, True])
def test_a_network_with_every_flag_is_read_back_from_its_file_and_cloned(tmp_path, head, training):
    flags = {"dueling": True, "noisy": True, "layer_norm": True, "normalize_observations": True}
    network = with_other_weights(built(hidden_units=(8, 7), head=head, training=training, **flags))
    observation = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    implicit = training and head == "implicit_quantile"
    inputs = [observation, np.float32([[0.1, 0.4, 0.6, 0.97]])] if implicit else observation
    network.save(tmp_path / "network.keras")
    again = keras.models.load_model(tmp_path / "network.keras")
    clone = keras.models.clone_model(network)
    clone.set_weights(network.get_weights())
    seed = tf.constant([1, 2])
    with fresh_noise(network, seed):
        noisy = network(inputs)
    assert np.abs(noisy - network(inputs)).max() > 1e-3
    for other in (again, clone):
        assert_array_equal(other(inputs), network(inputs))
        with fresh_noise(other, seed):
            assert_array_equal(other(inputs), noisy)


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
    assert torsos.is_dense(NetworkConfig(), shape) == (torso == "mlp")
    assert network(pictures(shape, 2).astype(np.float32)).shape == (2, 3)


@pytest.mark.parametrize("shape", [(35, 84, 1), (84, 35, 1), (5,), (84, 84)])
def test_nature_refuses_what_it_cannot_convolve(shape):
    with pytest.raises(
        UserError, match=r"at least 36 x 36 for its convolutions, with channels last; got \(.*'mlp' works"
    ):
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
    assert not torsos.is_dense(NetworkConfig(torso=f"{own}:small", dueling=dueling), (5,))


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
