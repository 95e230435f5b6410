"""LayerNorm for whole numbers: the reciprocal root as a sum of ramps."""

import numpy as np
import pytest
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from rlplatform.compression.normalize import Normalize, RampedNormalize, ramped


def network(groups, centre, seed=0):
    """Two layers of LayerNorm with random gamma and beta."""
    rng = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    observation = features = keras.Input((5,))
    for index in range(2):
        features = keras.layers.Dense(12, name=f"dense_{index}")(features)
        features = Normalize(1e-3, groups, centre, name=f"norm_{index}")(features)
        features = keras.layers.ReLU()(features)
    model = keras.Model(observation, keras.layers.Dense(3, name="q")(features))
    for layer in model.layers:
        if type(layer) is Normalize:
            layer.set_weights([rng.uniform(0.5, 2.0, 12), rng.normal(0.0, 0.5, 12)])
    return model


def states(count=300, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, 5)) * np.geomspace(0.05, 1.0, count)[:, None]).astype(np.float32)


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_ramps_give_the_networks_values(groups, centre):
    model = network(groups, centre)
    made = ramped(model, states())
    assert [type(layer) for layer in made.layers].count(RampedNormalize) == 2
    expected = model(states(seed=1)).numpy()
    assert_allclose(made(states(seed=1)).numpy(), expected, atol=0.01 * np.abs(expected).max())


@settings(max_examples=50)
@given(st.floats(1e-6, 1e3), st.floats(1.5, 1e3))
def test_between_its_bounds_the_root_is_exact_to_two_percent_and_never_too_small(low, ratio):
    layer = RampedNormalize(low, low * ratio, epsilon=1e-9)
    power = np.geomspace(low, low * ratio, 200)[:, None].astype(np.float32)
    given_, exact = layer._reciprocal_root(power).numpy(), 1.0 / np.sqrt(power + 1e-9)
    assert (given_ >= exact * (1 - 1e-4)).all()
    assert (given_ <= exact * 1.02).all()


def test_a_network_without_layer_norm_stays_as_it_is():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    assert ramped(model, states()) is model
