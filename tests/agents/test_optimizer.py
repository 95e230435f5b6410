"""Adam takes the steps of the paper's formulas, and those of Keras's Adam with a clipped global norm."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.agents.optimizer import Adam

SHAPES = [(3, 4), (4,), (4, 2), ()]


def weights(seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]


def stepped(gradients, rates, epsilon=1e-8, max_gradient_norm=10.0):
    """Our weights after each gradient, and the norms that `apply` gives."""
    variables = [tf.Variable(weight) for weight in weights(0)]
    optimizer = Adam(variables, epsilon, max_gradient_norm)
    norms = [
        float(optimizer.apply([tf.constant(part) for part in gradient], variables, tf.constant(rate, tf.float32)))
        for gradient, rate in zip(gradients, rates, strict=True)
    ]
    return [variable.numpy() for variable in variables], norms


def of_the_paper(gradients, rates, epsilon, max_gradient_norm):
    """Kingma & Ba 2015 in float64, in the order of the end of section 2, on gradients clipped by their global norm."""
    theta = np.concatenate([part.ravel() for part in weights(0)]).astype(np.float64)
    first, second = np.zeros_like(theta), np.zeros_like(theta)
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        g = np.concatenate([part.ravel() for part in gradient]).astype(np.float64)
        norm = math.sqrt(sum(g * g))
        if norm > max_gradient_norm:
            g *= max_gradient_norm / norm
        first = 0.9 * first + (1 - 0.9) * g
        second = 0.999 * second + (1 - 0.999) * g**2
        alpha = rate * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        theta -= alpha * first / (np.sqrt(second) + epsilon)
    return theta


@pytest.mark.parametrize("epsilon", [1e-8, 1e-2])
@pytest.mark.parametrize("max_gradient_norm", [0.5, 10.0, math.inf])
def test_several_steps_are_those_of_the_paper(epsilon, max_gradient_norm):
    gradients = [weights(seed) for seed in range(1, 30)]
    rates = np.linspace(1e-2, 1e-3, len(gradients))
    ours, norms = stepped(gradients, rates, epsilon, max_gradient_norm)
    expected = of_the_paper(gradients, rates, epsilon, max_gradient_norm)
    assert_allclose(np.concatenate([part.ravel() for part in ours]), expected, rtol=2e-4, atol=2e-5)
    assert [weight.shape for weight in ours] == SHAPES
    assert_allclose(norms, [math.sqrt(sum(np.sum(part**2) for part in gradient)) for gradient in gradients], rtol=1e-5)


@pytest.mark.parametrize("max_gradient_norm", [0.5, 10.0])
def test_several_steps_are_those_of_keras(max_gradient_norm):
    gradients = [weights(seed) for seed in range(1, 30)]
    ours, _ = stepped(gradients, [3e-3] * len(gradients), 1e-7, max_gradient_norm)
    variables = [tf.Variable(weight) for weight in weights(0)]
    adam = keras.optimizers.Adam(3e-3, epsilon=1e-7, global_clipnorm=max_gradient_norm, jit_compile=False)
    for gradient in gradients:
        adam.apply_gradients(zip([tf.constant(part) for part in gradient], variables, strict=True))
    for mine, theirs in zip(ours, variables, strict=True):
        assert_allclose(mine, theirs.numpy(), rtol=1e-4, atol=1e-6)


def test_the_first_step_has_the_size_of_the_learning_rate():
    gradient = [np.full(shape, 0.01, np.float32) for shape in SHAPES]
    ours, _ = stepped([gradient], [1e-3])
    for before, after in zip(weights(0), ours, strict=True):
        assert_allclose(before - after, 1e-3, rtol=1e-3)


def test_no_gradient_moves_nothing():
    ours, norms = stepped([[np.zeros(shape, np.float32) for shape in SHAPES]] * 3, [1e-3] * 3)
    for before, after in zip(weights(0), ours, strict=True):
        assert_array_equal(before, after)
    assert norms == [0.0] * 3


def test_a_gradient_that_is_not_finite_shows_in_the_norm():
    gradient = weights(1)
    gradient[1][0] = np.nan
    assert math.isnan(stepped([gradient], [1e-3])[1][0])
