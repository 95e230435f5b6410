"""Keras layers of Q-networks that Keras lacks: dueling, noisy, quantile and categorical values, standardised inputs."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from rlplatform.config import Convolution, NetworkConfig
from rlplatform.experience.draws import random_normal

COSINES = 64  # n in Dabney et al. 2018b, eq. 4
MIDPOINTS = 64  # quantiles that the greedy policy of an implicit quantile network averages over


@keras.utils.register_keras_serializable(package="rlplatform")
class Dueling(keras.layers.Layer):
    """Q = V + A - mean(A) (Wang et al. 2016, eq. 9): `[B, 1]` and `[B, A]` to `[B, A]`, float32.

    Distributions `[B, 1, K]` and `[B, A, K]` are joined atom by atom, as Hessel et al. 2018 do, to `[B, A, K]`.
    """

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """The values `[B, A]` from those of the state `[B, 1]` and the advantages `[B, A]`."""
        value, advantage = inputs
        return value + advantage - tf.reduce_mean(advantage, axis=1, keepdims=True)


@keras.utils.register_keras_serializable(package="rlplatform")
class Standardize(keras.layers.Layer):
    """`(x - mean) / sqrt(variance + 1e-4)`, with statistics that training keeps up to date; float32.

    The offset keeps a feature that has hardly moved from being blown up more than a hundredfold.
    """

    EPSILON = 1e-4

    def build(self, input_shape: Any) -> None:
        """Makes the statistics, one for each feature: mean 0 and variance 1 at first."""
        shape = input_shape[1:]
        self.mean = self.add_weight(name="mean", shape=shape, initializer="zeros", trainable=False)
        self.variance = self.add_weight(name="variance", shape=shape, initializer="ones", trainable=False)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """`[B, O...]` to `[B, O...]`."""
        return (tf.cast(inputs, tf.float32) - self.mean) * tf.math.rsqrt(self.variance + self.EPSILON)


@keras.utils.register_keras_serializable(package="rlplatform")
class NoisyDense(keras.layers.Layer):
    """A Dense layer whose weights are `mu + sigma * noise` (Fortunato et al. 2018, eq. 9), factorised (eq. 10 and 11).

    Outside `fresh_noise` it is the Dense layer of its mean weights `mu`.

    Args:
        units: how many outputs.
        activation: as of Dense.
        sigma: sigma_0, the noise at first, divided by the root of the number of inputs.
    """

    def __init__(self, units: int, activation: Any = None, sigma: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units, self.sigma = units, sigma
        self.activation = keras.activations.get(activation)
        self.noise: tuple[tf.Tensor, tf.Tensor] | None = None

    def build(self, input_shape: Any) -> None:
        """Makes `kernel`, `bias` (mu), `kernel_sigma` and `bias_sigma`."""
        self.inputs = int(input_shape[-1])
        bound = 1.0 / math.sqrt(self.inputs)
        constant = keras.initializers.Constant(self.sigma * bound)
        shape = (self.inputs, self.units)

        def uniform() -> Any:
            return keras.initializers.RandomUniform(-bound, bound)

        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=uniform())
        self.bias = self.add_weight(name="bias", shape=shape[1:], initializer=uniform())
        self.kernel_sigma = self.add_weight(name="kernel_sigma", shape=shape, initializer=constant)
        self.bias_sigma = self.add_weight(name="bias_sigma", shape=shape[1:], initializer=constant)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """`[B, I]` to `[B, U]`."""
        kernel, bias = self.weights_now()
        return self.activation(tf.matmul(inputs, kernel) + bias)

    def weights_now(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Traced: kernel `[I, U]` and bias `[U]`, with noise inside `fresh_noise`."""
        if self.noise is None:
            return self.kernel, self.bias
        of_inputs, of_units = (tf.cast(noise, self.compute_dtype) for noise in self.noise)
        kernel = self.kernel + self.kernel_sigma * of_inputs[:, None] * of_units[None]
        return kernel, self.bias + self.bias_sigma * of_units

    def get_config(self) -> dict[str, Any]:
        """See Keras."""
        own = {"units": self.units, "activation": keras.activations.serialize(self.activation), "sigma": self.sigma}
        return {**super().get_config(), **own}


@contextlib.contextmanager
def fresh_noise(network: Any, seed: tf.Tensor) -> Iterator[None]:
    """Traced: what is computed with `network` inside the block has noise in its noisy layers, drawn from `seed`.

    The noise is no state: it lives in the trace alone, and a network outside the block plays by its mean weights.

    Args:
        network: a Keras model.
        seed: [2] int32; the same seed draws the same noise on every device.
    """
    noisy = [layer for layer in network.submodules if isinstance(layer, NoisyDense)]
    if noisy:
        sizes = [size for layer in noisy for size in (layer.inputs, layer.units)]

        def draw() -> tf.Tensor:
            normal = random_normal(sum(sizes), seed)
            return tf.sign(normal) * tf.sqrt(tf.abs(normal))  # f in Fortunato et al. 2018, under eq. 11

        # XLA on a CPU would draw the vectors anew for every element of every kernel that they are multiplied into.
        # What a branch gives is computed once, as long as XLA cannot know that the branch is always taken.
        scaled = tf.cond(seed[1] > -(2**31), draw, lambda: tf.zeros([sum(sizes)]))
        parts = iter(tf.split(scaled, sizes))
        for layer in noisy:
            layer.noise = (next(parts), next(parts))
    try:
        yield
    finally:
        for layer in noisy:
            layer.noise = None


@keras.utils.register_keras_serializable(package="rlplatform")
class ImplicitQuantiles(keras.layers.Layer):
    """Features times an embedding of quantile levels, phi(tau) = relu(cos(pi i tau) W + b) (Dabney 2018b, eq. 4).

    For training, features `[B, F]` and levels `[1, K]` become the pair of features and embedding `[K, F]`, which
    `AtLevels` multiplies. Without levels, `[B, F]` become the greedy policy's `[B, F]`: since only a linear layer
    follows, the mean over levels is that of the mean embedding, taken at the midpoints `(i + 0.5) / 64`.
    """

    def build(self, input_shape: Any) -> None:
        """Makes `kernel` `[64, F]` and `bias` `[F]`."""
        features = input_shape[0] if isinstance(input_shape[0], tuple | list | tf.TensorShape) else input_shape
        shape = (COSINES, int(features[-1]))
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer="glorot_uniform")
        self.bias = self.add_weight(name="bias", shape=shape[1:], initializer="zeros")
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        """`[B, F]`, or `([B, F], tau [1, K])`."""
        if isinstance(inputs, tuple | list):
            features, tau = inputs
            return features, self.embedding(tau[0])
        return inputs * tf.reduce_mean(self.embedding(tf.constant(midpoints(MIDPOINTS))), axis=0)

    def embedding(self, tau: tf.Tensor) -> tf.Tensor:
        """phi: `[K]` levels to `[K, F]`."""
        cosines = tf.cos(math.pi * tau[:, None] * tf.range(COSINES, dtype=tf.float32))
        return tf.nn.relu(tf.matmul(cosines, self.kernel) + self.bias)


@keras.utils.register_keras_serializable(package="rlplatform")
class AtLevels(keras.layers.Layer):
    """A Dense or NoisyDense layer on features that are multiplied by each level's embedding: `[B, F]` to `[B, U, K]`.

    The embedding goes into the kernel, one for each level, so that no `[B, K, F]` array arises: the work is that of a
    Dense with K times as many units.

    Args:
        dense: the layer whose weights are used.
    """

    def __init__(self, dense: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense = dense

    def build(self, input_shape: Any) -> None:
        """Makes the weights of `dense`."""
        self.dense.build(input_shape[0])
        super().build(input_shape)

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """Features `[B, F]` and embedding `[K, F]` to `[B, U, K]`."""
        features, embedding = inputs
        noisy = isinstance(self.dense, NoisyDense)
        kernel, bias = self.dense.weights_now() if noisy else (self.dense.kernel, self.dense.bias)
        kernels = kernel[:, :, None] * tf.transpose(embedding)[:, None, :]  # [F, U, K]
        units, levels = kernels.shape[1:]
        outputs = tf.matmul(features, tf.reshape(kernels, [-1, units * levels]))
        return tf.reshape(outputs, [-1, units, levels]) + bias[:, None]

    def get_config(self) -> dict[str, Any]:
        """See Keras."""
        return {**super().get_config(), "dense": keras.layers.serialize(self.dense)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """See Keras."""
        return cls(keras.layers.deserialize(config.pop("dense")), **config)


@keras.utils.register_keras_serializable(package="rlplatform")
class MeanQuantile(keras.layers.Layer):
    """The expectation of quantiles at midpoints, their mean (Dabney et al. 2018a): `[B, A, K]` to `[B, A]`."""

    def call(self, quantiles: tf.Tensor) -> tf.Tensor:
        """`[B, A, K]` to `[B, A]`."""
        return tf.reduce_mean(quantiles, axis=-1)


@keras.utils.register_keras_serializable(package="rlplatform")
class Expectation(keras.layers.Layer):
    """The expectation of a categorical distribution over fixed atoms (Bellemare et al. 2017): `[B, A, K]` to `[B, A]`.

    Args:
        low: the first atom, v_min.
        high: the last atom, v_max.
    """

    def __init__(self, low: float, high: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.low, self.high = low, high

    def call(self, logits: tf.Tensor) -> tf.Tensor:
        """Logits `[B, A, K]` to `[B, A]`."""
        atoms = tf.linspace(tf.constant(self.low, tf.float32), self.high, logits.shape[-1])
        return tf.reduce_sum(tf.nn.softmax(logits) * atoms, axis=-1)

    def get_config(self) -> dict[str, Any]:
        """See Keras."""
        return {**super().get_config(), "low": self.low, "high": self.high}


def midpoints(count: int) -> np.ndarray[Any, Any]:
    """`[count]` float32, (i + 0.5) / count: the levels tau-hat of Dabney et al. 2018a, lemma 2."""
    return ((np.arange(count) + 0.5) / count).astype(np.float32)


def linear(units: int, name: str, config: NetworkConfig) -> Any:
    """An output layer, noisy where the configuration says so."""
    return (
        NoisyDense(units, sigma=config.noisy_sigma, name=name) if config.noisy else keras.layers.Dense(units, name=name)
    )


def convolve(features: Any, convolutions: Iterable[Convolution]) -> Any:
    """Convolutions `conv_0`, `conv_1`, ... on `features` `[B, H, W, C]`, each without padding and with ReLU."""
    for index, (filters, size, stride) in enumerate(convolutions):
        features = keras.layers.Conv2D(filters, size, stride, activation="relu", name=f"conv_{index}")(features)
    return features


def hidden(features: Any, units: int, name: str, config: NetworkConfig, noisy: bool = False) -> Any:
    """A hidden layer on `features`: Dense or NoisyDense, LayerNorm where configured (Ba et al. 2016), ReLU."""
    activation = None if config.layer_norm else "relu"
    if noisy and config.noisy:
        layer = NoisyDense(units, activation, config.noisy_sigma, name=name)
    else:
        layer = keras.layers.Dense(units, activation=activation, name=name)
    features = layer(features)
    if config.layer_norm:
        features = keras.layers.LayerNormalization(name=f"{name}_norm")(features)
        features = keras.layers.ReLU(name=f"{name}_relu")(features)
    return features


def hidden_stream(units: int, name: str, config: NetworkConfig) -> Any:
    """Makes a stream's last hidden layer: `dense_1` alone, `value_dense_1` and `advantage_dense_1` when dueling."""

    def stream(kind: str) -> Any:
        own = name if kind == "q" else f"{kind}_{name}"
        return lambda features: hidden(features, units, own, config, noisy=True)

    return stream
