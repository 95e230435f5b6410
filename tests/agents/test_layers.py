"""Noise has the distribution of its paper, levels give what a loop over them gives, and neither is left behind."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.agents.layers import (
    AtLevels,
    Expectation,
    ImplicitQuantiles,
    MeanQuantile,
    NoisyDense,
    fresh_noise,
    midpoints,
)


def noisy_network():
    inputs = keras.Input((4,))
    return keras.Model(inputs, NoisyDense(3, name="second")(NoisyDense(5, "relu", name="first")(inputs)))


def noise_of(layer):
    """`(kernel, bias)` in units of sigma, inside `fresh_noise`."""
    kernel, bias = layer.weights_now()
    of_kernel = (kernel - layer.kernel) / layer.kernel_sigma
    return of_kernel.numpy(), ((bias - layer.bias) / layer.bias_sigma).numpy()


def drawn(network, seed, name="first"):
    with fresh_noise(network, tf.constant(seed)):
        return noise_of(network.get_layer(name))


# --- noise ------------------------------------------------------------------------------------------------------------


def test_noise_is_factorised():
    """Fortunato et al. 2018, eq. 10 and 11: of the kernel it is f(e_i) f(e_j), of the bias f(e_j)."""
    kernel, bias = drawn(noisy_network(), [1, 2])
    of_inputs = kernel[:, 0] / bias[0]
    for row in range(4):
        for column in range(5):
            assert_allclose(kernel[row, column], of_inputs[row] * bias[column], rtol=1e-3, atol=1e-4)


def test_noise_is_the_signed_root_of_a_standard_normal():
    """f(x) = sgn(x) sqrt|x|, so f |f| is standard normal; f itself has mean 0 and variance sqrt(2 / pi)."""
    network = keras.Sequential([keras.Input((4,)), NoisyDense(10_000, name="wide")])
    biases = drawn(network, [7, 1], "wide")[1].astype(np.float64)
    normal = np.sort(biases * np.abs(biases))
    distribution = np.array([0.5 * (1.0 + math.erf(number / math.sqrt(2.0))) for number in normal])
    distance = np.abs(distribution - (np.arange(len(normal)) + 0.5) / len(normal)).max()
    assert distance < 1.95 / math.sqrt(len(normal))  # Kolmogorov and Smirnov: exceeded once in a thousand
    assert abs(biases.mean()) < 4.0 * (math.sqrt(2.0 / math.pi) / len(biases)) ** 0.5
    assert_allclose(biases.var(), math.sqrt(2.0 / math.pi), rtol=0.05)


def test_the_same_seed_gives_the_same_noise_and_another_seed_other_noise():
    network, twin = noisy_network(), noisy_network()
    noises = [drawn(network, seed, name)[1] for seed in ([1, 2], [1, 3], [2, 2]) for name in ("first", "second")]
    assert len({float(part) for noise in noises for part in noise}) == 3 * (5 + 3)  # no layer shares another's
    assert_allclose(drawn(twin, [1, 2])[1], noises[0], rtol=1e-4, atol=1e-5)


def test_outside_the_block_a_noisy_layer_is_the_dense_layer_of_its_mean_weights():
    network, x = noisy_network(), np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    weights = {layer.name: [weight.numpy() for weight in layer.weights] for layer in network.layers}
    hidden = np.maximum(x @ weights["first"][0] + weights["first"][1], 0.0)
    expected = hidden @ weights["second"][0] + weights["second"][1]
    assert_allclose(network(x), expected, rtol=1e-4, atol=1e-5)
    with fresh_noise(network, tf.constant([0, 0])):
        assert np.abs(network(x) - expected).max() > 0.01
    assert_allclose(network(x), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ZeroDivisionError), fresh_noise(network, tf.constant([0, 0])):
        1 // 0  # noqa: B018 - the error of a trace
    assert_allclose(network(x), expected, rtol=1e-4, atol=1e-5)


def test_with_noise_the_output_is_that_of_the_papers_formula():
    layer = NoisyDense(3)
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    network = keras.Sequential([keras.Input((4,)), layer])
    with fresh_noise(network, tf.constant([5, 6])):
        of_kernel, of_bias = noise_of(layer)
        output = network(x).numpy()
    mu, mu_b, sigma, sigma_b = (weight.numpy() for weight in layer.weights)
    for row, unit in np.ndindex(6, 3):
        value = sum(x[row, i] * (mu[i, unit] + sigma[i, unit] * of_kernel[i, unit]) for i in range(4))
        assert_allclose(output[row, unit], value + mu_b[unit] + sigma_b[unit] * of_bias[unit], rtol=1e-3, atol=1e-4)


def test_noise_reaches_both_means_and_sigmas_with_its_gradient():
    network, x = noisy_network(), tf.ones([2, 4])
    with tf.GradientTape() as tape, fresh_noise(network, tf.constant([1, 2])):
        _, of_bias = noise_of(network.get_layer("second"))
        loss = tf.reduce_sum(network(x))
    second = network.get_layer("second").weights
    _, mu_b, _, sigma_b = tape.gradient(loss, second)
    assert_allclose(mu_b, [2.0] * 3)
    assert_allclose(sigma_b, 2.0 * of_bias, rtol=1e-3, atol=1e-4)


def test_the_weights_at_first_are_those_of_the_paper():
    """Fortunato et al. 2018, section 3.2: mu uniform within 1 / sqrt(p), sigma = sigma_0 / sqrt(p)."""
    layer = NoisyDense(500, sigma=0.4)
    layer.build((None, 100))
    for mean in (layer.kernel, layer.bias):
        assert np.abs(mean).max() <= 0.1
        assert_allclose(mean.numpy().std(), 0.1 / math.sqrt(3.0), rtol=0.1)
    assert_allclose(layer.kernel_sigma, 0.04, rtol=1e-6)
    assert_allclose(layer.bias_sigma, 0.04, rtol=1e-6)


# --- levels -----------------------------------------------------------------------------------------------------------


def test_the_embedding_of_a_level_is_that_of_the_formula():
    """phi_j(tau) = relu(sum over i from 0 to 63 of cos(pi i tau) w_ij + b_j), Dabney et al. 2018b, eq. 4."""
    layer, rng = ImplicitQuantiles(), np.random.default_rng(0)
    layer.build((None, 5))
    layer.set_weights([rng.normal(size=(64, 5)), rng.normal(size=5)])
    tau = np.float32([0.0, 0.013, 0.5, 1.0])
    kernel, bias = (weight.numpy() for weight in layer.weights)
    got = layer.embedding(tf.constant(tau)).numpy()
    for k, j in np.ndindex(4, 5):
        value = bias[j] + sum(math.cos(math.pi * i * float(tau[k])) * kernel[i, j] for i in range(64))
        assert_allclose(got[k, j], max(value, 0.0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("noisy", [False, True])
def test_levels_in_the_kernel_give_what_levels_on_the_features_give(noisy):
    """The naive way makes features [B, K, F] times the embedding, and puts each through the layer."""
    rng = np.random.default_rng(1)
    features, tau = rng.normal(size=(6, 5)).astype(np.float32), rng.random(7, np.float32)
    embedded = ImplicitQuantiles()
    dense = NoisyDense(3) if noisy else keras.layers.Dense(3)
    inputs, levels = keras.Input((5,)), keras.Input((7,))
    at_levels = AtLevels(dense)
    network = keras.Model([inputs, levels], at_levels(embedded((inputs, levels))))
    dense.bias.assign(rng.normal(size=3))
    with fresh_noise(network, tf.constant([1, 1])):
        output = network([features, tau[None]]).numpy()
        kernel, bias = (part.numpy() for part in (dense.weights_now() if noisy else dense.weights))
    embedding = embedded.embedding(tf.constant(tau)).numpy()
    assert output.shape == (6, 3, 7)
    for item, k in np.ndindex(6, 7):
        assert_allclose(output[item, :, k], (features[item] * embedding[k]) @ kernel + bias, rtol=1e-3, atol=1e-4)
    assert len(at_levels.trainable_variables) == (4 if noisy else 2)


def test_without_levels_the_policy_is_the_mean_over_midpoints():
    assert_allclose(midpoints(4), [0.125, 0.375, 0.625, 0.875])
    assert midpoints(4).dtype == np.float32
    layer, features = ImplicitQuantiles(), np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    mean = layer(tf.constant(features)).numpy()
    parts = [layer.embedding(tf.constant([(i + 0.5) / 64])).numpy()[0] for i in range(64)]
    assert_allclose(mean, features * (sum(parts) / 64), rtol=1e-4, atol=1e-5)


def test_the_expectations_of_distributions_are_plain_sums():
    output = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    assert_allclose(MeanQuantile()(output), sum(output[:, :, k] for k in range(5)) / 5, rtol=1e-5, atol=1e-6)
    weights = np.exp(output.astype(np.float64))
    values = sum(weights[:, :, k] * (-2.0 + 1.5 * k) for k in range(5)) / weights.sum(axis=2)  # atoms from -2 to 4
    assert_allclose(Expectation(-2.0, 4.0)(output), values, rtol=1e-4, atol=1e-5)
    huge = tf.constant([[[1e4, -1e4, 0.0]]])
    assert_array_equal(Expectation(-2.0, 4.0)(huge), [[-2.0]])


def test_noise_is_drawn_once_and_not_for_every_element_of_the_kernels():
    """XLA would draw it again wherever it is fused into: in the forward pass, the gradients and each of two layers."""
    network = keras.Sequential([keras.Input([8]), NoisyDense(16, "relu"), NoisyDense(4)])

    @tf.function(jit_compile=True, autograph=False)
    def gradients(observation, counter):
        with tf.GradientTape() as tape, fresh_noise(network, tf.stack([0, counter])):
            loss = tf.reduce_sum(network(observation) ** 2)
        return tape.gradient(loss, network.trainable_variables)

    inputs = tf.ones([2, 8]), tf.constant(3)
    program = gradients.experimental_get_compiler_ir(*inputs)(stage="optimized_hlo")
    assert program.count(" cosine(") == 1  # of Box and Muller's formula
