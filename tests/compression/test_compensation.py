"""Rounding to int8 in which the other weights make up for what is lost."""

import numpy as np
import pytest
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.compression import chain, compensation, conversion
from rlplatform.compression.compensation import compensated, round_kernel
from rlplatform.compression.conversion import Scaling


def nearest(kernel, per_unit=True):
    reach = np.abs(kernel).max(axis=0) if per_unit else np.abs(kernel).max()
    return np.rint(kernel / (reach / 127)) * (reach / 127)


def correlated(count=500, inputs=40, factors=6, seed=0):
    """Inputs that go together, as those of hidden layers do, and some that never occur."""
    rng = np.random.default_rng(seed)
    made = np.maximum(rng.normal(size=(count, factors)) @ rng.normal(size=(factors, inputs)), 0.0)
    made[:, ::9] = 0.0
    return made


@settings(max_examples=40)
@given(st.integers(0, 2**16), st.booleans(), st.integers(1, 5))
def test_weights_are_whole_steps_of_the_greatest_one_and_outputs_are_nearer_than_by_rounding(seed, per_unit, units):
    rng = np.random.default_rng(seed)
    kernel, inputs = rng.normal(size=(40, units)), correlated(seed=seed)
    made = round_kernel(kernel, inputs, per_unit)
    reach = np.abs(kernel).max(axis=0) if per_unit else np.abs(kernel).max()
    assert_allclose(np.abs(made).max(axis=0) if per_unit else np.abs(made).max(), reach, rtol=1e-12)
    steps = made / (reach / 127)
    assert_allclose(steps, np.rint(steps), atol=1e-9)
    lost, by_nearest = (np.square(inputs @ (each - kernel)).sum() for each in (made, nearest(kernel, per_unit)))
    assert lost < by_nearest


@pytest.mark.parametrize("per_unit", [True, False])
def test_what_is_rounded_already_stays(per_unit):
    kernel = nearest(np.random.default_rng(0).normal(size=(300, 4)), per_unit)
    assert_allclose(round_kernel(kernel, correlated(inputs=300), per_unit), kernel, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("inputs", [np.zeros((5, 4)), np.ones((1, 4))])
def test_few_or_silent_inputs_are_rounded_all_the_same(inputs):
    kernel = np.random.default_rng(0).normal(size=(4, 3))
    made = round_kernel(kernel, inputs, True)
    assert np.abs(made - kernel).max() <= np.abs(kernel).max() / 127 * 4


def images(padding="valid", dilation=1):
    keras.utils.set_random_seed(0)
    observation = keras.Input((9, 9, 2))
    features = keras.layers.Conv2D(
        6, 3, 1 if dilation > 1 else 2, padding, dilation_rate=dilation, activation="relu", name="conv"
    )(observation)
    features = keras.layers.Flatten()(features)
    features = keras.layers.Dense(24, activation="relu", name="dense")(features)
    model = keras.Model(observation, keras.layers.Dense(3, use_bias=False, name="q")(features))
    seen = np.random.default_rng(0).integers(0, 2, (200, 9, 9, 2)).astype(np.float32)
    return model, seen


@pytest.mark.parametrize(("padding", "dilation"), [("valid", 1), ("same", 1), ("valid", 2)])
def test_what_a_convolution_multiplies_is_what_its_kernel_is_laid_out_for(padding, dilation):
    model, seen = images(padding, dilation)
    layer = model.get_layer("conv")
    kernel, bias = layer.get_weights()
    expected = keras.Model(model.input, layer.output)(seen).numpy().reshape(-1, 6)[: compensation.ROWS]
    inputs = compensation._inputs(model, layer, seen)[: len(expected)]
    assert_allclose(np.maximum(inputs @ kernel.reshape(-1, 6) + bias, 0.0), expected[: len(inputs)], atol=1e-5)


def test_a_network_is_nearer_than_by_rounding_and_keeps_the_mean():
    model, seen = images()
    made = compensated(model, seen, per_unit=True)
    plain = keras.models.clone_model(model)
    plain.set_weights(model.get_weights())
    for layer in plain.layers:
        if layer.get_weights():
            kernel, *bias = layer.get_weights()
            layer.set_weights([nearest(kernel.reshape(-1, kernel.shape[-1])).reshape(kernel.shape), *bias])
    expected = model(seen).numpy()
    lost, by_nearest = (np.square(each(seen).numpy() - expected).mean() for each in (made, plain))
    assert lost < by_nearest / 2
    hidden, own = (keras.Model(each.input, each.get_layer("conv").output)(seen).numpy() for each in (model, made))
    assert_allclose(own.mean(), hidden.mean(), rtol=1e-3)


def test_zeros_and_clusters_are_kept():
    model, seen = images()
    for change in (lambda kernel: np.where(np.abs(kernel) < np.median(np.abs(kernel)), 0.0, kernel), np.sign):
        kernel, bias = model.get_layer("dense").get_weights()
        model.get_layer("dense").set_weights([change(kernel), bias])
        assert compensated(model, seen, per_unit=True) is model
        model.get_layer("dense").set_weights([kernel, bias])


def test_features_get_units_in_which_their_weights_are_alike_and_values_stay():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(2)])
    kernel, bias = model.layers[0].get_weights()
    model.layers[0].set_weights([kernel * np.array([[1.0], [0.1], [1e-6]]), bias])
    scaling = Scaling(np.zeros(3, np.float32), np.ones(3, np.float32))
    seen = np.random.default_rng(0).uniform(-1.0, 1.0, (50, 3)).astype(np.float32)
    evened, after = conversion._evened(keras.Model(model.inputs, model.outputs), scaling)
    assert_allclose(evened(seen * after.multiplier).numpy(), model(seen).numpy(), atol=1e-5)
    assert_array_equal(after.multiplier[[0, 2]], np.array([1.0, conversion.LEAST_STEPS], np.float32))
    sizes = np.abs(chain.first(chain.read(evened.output, chain.producers(evened))[1]).kernel).mean(axis=1)
    assert 0.3 < sizes[1] / sizes[0] < 3.0
