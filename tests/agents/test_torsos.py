"""Torsos are the published architectures, counted and computed by other means, and refuse what does not fit them."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from rlplatform.agents import networks
from rlplatform.config import Config
from rlplatform.errors import UserError


def built(torso, shape, dtype="float32", num_actions=3, **network):
    keras.utils.set_random_seed(1)
    config = Config().replace(network={"torso": torso, **network})
    return networks.build(config, shape, dtype, num_actions)


def correlate(image, kernel, bias):
    """[B, H', W', F]: the convolution without padding, by loops over the output's places."""
    size = kernel.shape[0]
    height, width = image.shape[1] - size + 1, image.shape[2] - size + 1
    output = np.zeros((len(image), height, width, kernel.shape[3]))
    for row in range(height):
        for column in range(width):
            patch = image[:, row : row + size, column : column + size]
            output[:, row, column] = np.tensordot(patch, kernel, axes=3) + bias
    return output


def test_minatar_is_one_convolution_and_two_dense_layers():
    network = built("minatar", (10, 10, 4))
    assert [weight.shape for weight in network.get_weights()] == [
        (3, 3, 4, 16),
        (16,),
        (8 * 8 * 16, 128),
        (128,),
        (128, 3),
        (3,),
    ]
    observation = np.random.default_rng(0).integers(0, 2, (5, 10, 10, 4)).astype(np.float32)
    kernel, bias, dense, dense_bias, output, output_bias = network.get_weights()
    features = np.maximum(correlate(observation, kernel, bias + 0.1), 0.0).reshape(5, -1)
    expected = np.maximum(features @ dense + dense_bias, 0.0) @ output + output_bias
    network.layers[1].bias.assign_add(np.full(16, 0.1, np.float32))
    np.testing.assert_allclose(network(observation), expected, atol=1e-5)


def test_impala_has_the_weights_of_the_paper():
    """Fifteen convolutions of 3 x 3: 4 to 16 and four of 16, 16 to 32 and four of 32, 32 to 32 and four of 32."""

    def count(width):
        pairs = [(4, 16)] + [(16, 16)] * 4 + [(16, 32)] + [(32, 32)] * 9
        wide = [(a if a == 4 else a * width, b * width) for a, b in pairs]
        dense = 11 * 11 * 32 * width * 256 + 256 + 256 * 3 + 3  # 84 halves to 42, 21 and 11
        return sum(9 * a * b + b for a, b in wide) + dense

    assert built("impala", (84, 84, 4), "uint8").count_params() == count(1)
    assert built("impala_x2", (84, 84, 4), "uint8").count_params() == count(2)


def test_residual_blocks_without_weights_pass_their_input_on():
    network = built("impala", (16, 16, 3))
    for layer in network.layers:
        if layer.name.startswith("conv_") and layer.name.count("_") == 3:
            layer.set_weights([np.zeros_like(weight) for weight in layer.get_weights()])
    inner = keras.Model(network.input, [network.get_layer("pool_1").output, network.get_layer("add_1_1").output])
    pooled, passed = inner(np.random.default_rng(0).random((2, 16, 16, 3), np.float32))
    assert np.abs(pooled).max() > 0
    np.testing.assert_array_equal(pooled, passed)


@pytest.mark.parametrize("hidden", [[7, 6], []])
def test_cnn_has_the_convolutions_and_the_dense_layers_asked_for(hidden):
    network = built("cnn", (9, 8, 2), convolutions=[[4, 3, 2], [5, 2, 1]], hidden_units=hidden)
    rng = np.random.default_rng(0)
    network.set_weights([weight + rng.normal(0, 0.1, weight.shape) for weight in network.get_weights()])
    weights = network.get_weights()
    units = [3 * 2 * 5, *hidden, 3]
    assert [weight.shape for weight in weights[::2]] == [
        (3, 3, 2, 4),
        (2, 2, 4, 5),
        *itertools.pairwise(units),
    ]
    observation = rng.normal(size=(5, 9, 8, 2)).astype(np.float32)
    first = np.maximum(correlate(observation, *weights[:2])[:, ::2, ::2], 0.0)
    features = np.maximum(correlate(first, *weights[2:4]), 0.0).reshape(5, -1)
    for kernel, bias in zip(weights[4:-2:2], weights[5:-2:2], strict=True):
        features = np.maximum(features @ kernel + bias, 0.0)
    np.testing.assert_allclose(network(observation), features @ weights[-2] + weights[-1], atol=1e-5)


def test_cnn_without_convolutions_is_refused():
    with pytest.raises(
        UserError, match=r"network.convolutions needs at least one layer, like \[\[16, 3, 1\]\]; got \[\]"
    ):
        built("cnn", (9, 8, 2))


@pytest.mark.parametrize("convolutions", [[[1, 8, 4]], [[1, 3, 2], [1, 3, 1]], [[1, 2, 3], [1, 1, 2], [1, 4, 1]]])
def test_an_image_is_too_small_where_the_last_convolution_would_have_no_place(convolutions):
    side = next(side for side in range(1, 40) if places(side, convolutions))
    assert built("cnn", (side, side + 1, 1), convolutions=convolutions).output_shape == (None, 3)
    with pytest.raises(UserError, match=rf"'cnn' needs images of at least {side} x {side} for its convolutions"):
        built("cnn", (side + 1, side - 1, 1), convolutions=convolutions)


def places(side, convolutions):
    """How many the last convolution has along one side, each counted one after the other."""
    for _, size, stride in convolutions:
        side = len(range(0, side - size + 1, stride))
    return side


@pytest.mark.parametrize("torso", ["cnn", "minatar", "impala", "impala_x2"])
@pytest.mark.parametrize("streams", [{}, {"dueling": True}, {"noisy": True}])
def test_torsos_carry_every_kind_of_stream_and_learn(torso, streams):
    network = built(torso, (10, 10, 2), convolutions=[[4, 3, 2]], **streams)
    observation = np.random.default_rng(0).random((4, 10, 10, 2), np.float32)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(network(observation) - 1.0))
    kernels = [layer.kernel for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    assert all(np.abs(gradient).max() > 0 for gradient in tape.gradient(loss, kernels))
    assert network.output_shape == (None, 3)


@pytest.mark.parametrize(
    ("torso", "shape"), [("minatar", (2, 9, 1)), ("impala", (7, 80, 3)), ("minatar", (12,)), ("cnn", (12,))]
)
def test_what_is_no_image_or_too_small_is_refused(torso, shape):
    with pytest.raises(UserError, match=f"network.torso '{torso}' needs images of at least . x . .* 'mlp' works"):
        built(torso, shape, convolutions=[[4, 3, 2]])


@pytest.mark.parametrize("network", [{}, {"dueling": True}, {"noisy": True}, {"normalize_observations": True}])
@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_linear_has_no_hidden_layer_and_its_values_add_up(network, shape):
    model = built("linear", shape, **network)
    kernels = [weight for weight in model.trainable_weights if len(weight.shape) == 2]
    assert all(kernel.shape[0] == np.prod(shape) for kernel in kernels)
    one, other = np.random.default_rng(0).normal(size=(2, 1, *shape)).astype(np.float32)
    between = model((one + other) / 2)
    np.testing.assert_allclose(between, (model(one) + model(other)) / 2, atol=1e-5)
