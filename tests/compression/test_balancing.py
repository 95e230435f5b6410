"""Balancing: the same values, from units of like ranges."""

import numpy as np
import pytest
import tf_keras as keras
from numpy.testing import assert_allclose

from rlplatform.agents import networks
from rlplatform.compression import balancing, canonical, conversion
from rlplatform.compression.balancing import balanced
from rlplatform.compression.normalize import Normalize
from rlplatform.config import Config
from rlplatform.runtime import open_graph


def skewed(shape=(4,), hidden=(32, 24), seed=0, **network):
    """The canonical form of a random network whose hidden units differ a hundredfold in range."""
    keras.utils.set_random_seed(seed)
    config = Config().replace(network={"hidden_units": hidden, **network})
    dtype = "float32" if len(shape) == 1 else "uint8"
    model = canonical(networks.build(config, shape, dtype, 3)).model
    rng = np.random.default_rng(seed)
    for layer in model.layers[:-1]:
        if layer.get_weights():
            factor = np.exp(rng.uniform(np.log(0.1), np.log(10.0), layer.get_weights()[0].shape[-1]))
            if type(layer) is Normalize or not network.get("layer_norm"):
                layer.set_weights([weight * factor for weight in layer.get_weights()])
    return model


def states(model, count=300, seed=1):
    return np.random.default_rng(seed).uniform(0.0, 1.0, (count, *model.input_shape[1:])).astype(np.float32)


def spread(model, seen):
    """The greatest over the median range of the last hidden layer's units, of those that answer at all."""
    last = keras.Model(model.input, model.layers[-2].output)
    reach = last(seen).numpy().reshape(len(seen), -1).max(axis=0)
    return float(reach.max() / np.median(reach[reach > 0]))


NETWORKS = {
    "dense": {},
    "one layer": {"hidden": (16,)},
    "layer norm": {"layer_norm": True},
    "images": {"shape": (10, 10, 4), "hidden": (16,), "torso": "cnn", "convolutions": [(8, 3, 1), (6, 3, 2)]},
}


@pytest.mark.parametrize("about", NETWORKS.values(), ids=NETWORKS.keys())
def test_values_stay_and_ranges_become_alike(about):
    model = skewed(**about)
    seen = states(model)
    even = balanced(model, seen, norms=True)
    assert even is not model
    expected, other = model(seen).numpy(), states(model, seed=9)
    assert_allclose(even(seen).numpy(), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert_allclose(even(other).numpy(), model(other).numpy(), rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert spread(even, seen) < 0.7 * spread(model, seen)


def test_a_unit_that_hardly_answers_does_not_rule_the_weights():
    model = skewed(hidden=(8, 8))
    kernel, bias = model.layers[-2].get_weights()
    kernel[:, 0], bias[0] = 0.0, 1e-30
    model.layers[-2].set_weights([kernel, bias])
    seen = states(model)
    rows = np.abs(balanced(model, seen).layers[-1].get_weights()[0]).max(axis=1)
    before = np.abs(model.layers[-1].get_weights()[0]).max(axis=1)
    ratio = rows / before
    assert np.isfinite(ratio).all()
    assert ratio.max() / ratio.min() <= balancing.MOST * 1.01


def test_the_gamma_and_beta_of_layer_norm_which_int8_gives_one_scale_stay_as_they_are():
    model = skewed(layer_norm=True)
    assert balanced(model, states(model)) is model


def test_a_linear_network_and_one_with_clusters_stay_as_they_are():
    linear = skewed(hidden=(), torso="linear")
    assert balanced(linear, states(linear)) is linear
    clustered = skewed(hidden=(32, 32))
    kernel, bias = clustered.layers[-2].get_weights()
    clustered.layers[-2].set_weights([np.round(kernel), bias])
    assert balanced(clustered, states(clustered)) is clustered


@pytest.mark.slow
def test_a_static_file_is_nearer_to_a_network_whose_units_are_balanced(monkeypatch):
    monkeypatch.setattr(conversion, "SMALL", 0)
    model = skewed(hidden=(48, 48))
    seen = states(model, 500)
    q = model(seen).numpy()
    found = []
    for balance in (lambda model, *_, **options: model, balanced):
        monkeypatch.setattr(conversion, "balanced", balance)
        files = conversion.convert(model, seen, "mcu")
        scaling = files.scaling._asdict()
        given = open_graph(files.int8_file, "file", scaling=scaling).q_batch(seen)
        found.append(float(np.square(given - q).mean()))
    assert found[1] < found[0]
