"""Hidden layers may compute in bfloat16; whatever is kept, compared or added up is float32."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from numpy.testing import assert_allclose

from rlplatform.agents import DQN, RecurrentDQN, networks
from rlplatform.config import Config
from rlplatform.experience import Batch

FLAGS = {
    "scalar": {},
    "noisy quantiles": {
        "network": {"noisy": True, "dueling": True, "layer_norm": True, "normalize_observations": True},
        "agent": {"head": "implicit_quantile", "num_quantiles": 4},
    },
    "atoms": {"agent": {"head": "categorical", "num_atoms": 11}, "network": {"noisy": True}},
}


def configured(flags=None, precision="bfloat16"):
    config = Config().replace(network={"hidden_units": [16, 8]}, training={"precision": precision})
    return config.replace(**(flags or {}))


def batch_of(size=32):
    rng = np.random.default_rng(0)
    fields = [rng.normal(size=(size, 3)), rng.integers(0, 2, size), rng.normal(size=size), np.full(size, 0.9)]
    fields += [rng.normal(size=(size, 3)), np.ones(size), np.zeros((size, 0)), np.zeros((size, 0)), np.arange(size)]
    dtypes = ["float32", "int32", "float32", "float32", "float32", "float32", "bool", "bool", "int32"]
    return Batch(*(tf.constant(field, dtype) for field, dtype in zip(fields, dtypes, strict=True)))


def made(config):
    keras.utils.set_random_seed(0)
    return DQN(config, (3,), "float32", 2)


@pytest.mark.parametrize("flags", FLAGS)
def test_updates_in_bfloat16_are_those_of_float32_but_for_rounding(flags):
    half, whole = made(configured(FLAGS[flags])), made(configured(FLAGS[flags], "float32"))
    before = np.concatenate([weight.ravel() for weight in whole.online.get_weights()])
    for _ in range(3):
        metrics = half.update(batch_of(), tf.constant(1e-2))
        expected = whole.update(batch_of(), tf.constant(1e-2))
    assert {field.dtype for field in metrics} == {tf.float32}
    assert {variable.dtype for variable in half.variables} <= {tf.float32, tf.int64}
    assert_allclose(metrics.loss, expected.loss, rtol=0.05)
    assert not np.array_equal(metrics.td_error, expected.td_error), "nothing was computed in bfloat16"
    moved = np.concatenate([weight.ravel() for weight in half.online.get_weights()])
    assert_allclose(moved, before, atol=0.05)
    assert np.abs(moved - before).max() > 0.01


def test_only_hidden_layers_compute_in_bfloat16_and_only_while_learning():
    config = configured(FLAGS["noisy quantiles"])
    network = networks.build(config, (3,), "float32", 2, training=True)
    computing = {layer.name: layer.compute_dtype for layer in network.layers if layer.weights}
    hidden = {name for name, dtype in computing.items() if dtype == "bfloat16"}
    assert hidden == {name for name in computing if "dense" in name}
    policy = networks.build(config, (3,), "float32", 2)
    assert {layer.compute_dtype for layer in policy.layers} == {"float32"}
    assert keras.mixed_precision.global_policy().name == "float32"
    policy.set_weights(network.get_weights())


def test_a_memory_stays_in_float32():
    config = configured({"network": {"recurrent": "lstm", "recurrent_units": 4, "hidden_units": [8]}})
    agent = RecurrentDQN(config, (3,), "float32", 2)
    inputs = [tf.zeros([6, 3]), tf.zeros([2, 8]), tf.zeros([3, 2], tf.bool)]
    output, states = agent.online(inputs)
    assert output.dtype == states.dtype == tf.float32
    assert agent.online.get_layer("dense_0").compute_dtype == "bfloat16"


def test_a_backbone_computes_in_bfloat16_behind_pixels_in_float32():
    config = configured({"network": {"torso": "mobilenet_v2", "backbone_alpha": 0.35, "hidden_units": [4]}})
    network = networks.build(config, (32, 32, 3), "uint8", 2, training=True)
    assert network.get_layer("pixels").compute_dtype == "float32"
    convolutions = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    assert {layer.compute_dtype for layer in convolutions} == {"bfloat16"}
    assert network(tf.zeros([1, 32, 32, 3], tf.uint8)).dtype == tf.float32
