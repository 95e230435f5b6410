"""LayerNorm after algebra: what is left of it once the layer before gives outputs whose mean is zero already."""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

Array = np.ndarray[Any, Any]


@keras.utils.register_keras_serializable(package="rlplatform")
class Normalize(keras.layers.Layer):
    """`x / sqrt(mean(x^2) + epsilon) * gamma + beta` over each group of units: `[B, U]` to `[B, U]`, float32.

    That is LayerNorm (Ba et al. 2016) of inputs whose mean is zero, which the Dense before it can see to.

    Args:
        epsilon: as of LayerNormalization.
        groups: how many layers' units lie side by side, of equal number.
        centre: whether the mean has to be taken out here.
    """

    def __init__(self, epsilon: float, groups: int = 1, centre: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon, self.groups, self.centre = epsilon, groups, centre

    def build(self, input_shape: Any) -> None:
        """Makes `gamma` and `beta`, `[U]`."""
        shape = (int(input_shape[-1]),)
        self.gamma = self.add_weight(name="gamma", shape=shape, initializer="ones")
        self.beta = self.add_weight(name="beta", shape=shape, initializer="zeros")
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """`[B, U]` to `[B, U]`."""
        units = inputs.shape[-1]
        grouped = inputs if self.groups == 1 else tf.reshape(inputs, [-1, self.groups, units // self.groups])
        if self.centre:
            grouped -= tf.reduce_mean(grouped, axis=-1, keepdims=True)
        grouped *= self._reciprocal_root(tf.reduce_mean(grouped * grouped, axis=-1, keepdims=True))
        return tf.reshape(grouped, [-1, units]) * self.gamma + self.beta

    def _reciprocal_root(self, power: tf.Tensor) -> tf.Tensor:
        """From the mean of squares, `[B, ..., 1]`, to the factor."""
        return tf.math.rsqrt(power + self.epsilon)

    def get_config(self) -> dict[str, Any]:
        """See Keras."""
        return {**super().get_config(), "epsilon": self.epsilon, "groups": self.groups, "centre": self.centre}


@keras.utils.register_keras_serializable(package="rlplatform")
class RampedNormalize(Normalize):
    """`Normalize` whose reciprocal root is a sum of ramps, `c_k relu(t_k - power)`: two small Dense layers.

    The RSQRT of int16 is coarse where the mean of squares is small, and tflite-micro computes it otherwise than LiteRT.
    The knots `t_k` lie at equal ratios. Between them the sum is the chord of a convex function, and no two of its terms
    take away from each other, so that nothing is lost to rounding.

    Args:
        low: the least mean of squares that is to be met.
        high: the greatest.
        options: as of `Normalize`.
    """

    RAMPS = 32
    RANGE = 2.0**14  # high over low at most: in int16 there is nothing below

    def __init__(self, low: float, high: float, **options: Any) -> None:
        super().__init__(**options)
        self.low, self.high = low, high
        knots = np.geomspace(max(low, high / self.RANGE), high, self.RAMPS + 1)
        roots = 1.0 / np.sqrt(knots + self.epsilon)
        slopes = np.append(-np.diff(roots) / np.diff(knots), 0.0)
        self._knots, self._changes, self._last = knots[1:], -np.diff(slopes), roots[-1]

    def _reciprocal_root(self, power: tf.Tensor) -> tf.Tensor:
        each = tf.reshape(power, [-1, 1]) @ tf.constant(-self._changes[None], tf.float32)
        ramps = tf.nn.relu(each + tf.constant(self._changes * self._knots, tf.float32))
        root = ramps @ tf.ones([self.RAMPS, 1]) + tf.constant([self._last], tf.float32)
        return tf.reshape(root, [-1, *power.shape[1:]])

    def get_config(self) -> dict[str, Any]:
        """See Keras."""
        return {**super().get_config(), "low": self.low, "high": self.high}


def ramped(model: Any, observations: Array) -> Any:
    """The same network, to a percent or so, with a `RampedNormalize` in place of each `Normalize`.

    Args:
        model: functional, `[B, O...]` to `[B, A]`.
        observations: `[N, O...]` float32, on which the means of squares are measured.
    """
    layers = [layer for layer in model.layers if type(layer) is Normalize]
    if not layers:
        return model
    given = keras.Model(model.input, [layer.input for layer in layers])(observations, training=False)
    ranges = {}
    for layer, features in zip(layers, given if isinstance(given, list | tuple) else [given], strict=True):
        grouped = np.asarray(features, np.float64).reshape(len(observations), layer.groups, -1)
        if layer.centre:
            grouped = grouped - grouped.mean(axis=-1, keepdims=True)
        power = (grouped**2).mean(axis=-1)
        ranges[layer.name] = (
            max(float(power.min()) / 2, layer.epsilon / 10),
            max(1.5 * float(power.max()), layer.epsilon),
        )

    def replaced(layer: Any) -> Any:
        if layer.name not in ranges:
            return type(layer).from_config(layer.get_config())
        low, high = ranges[layer.name]
        return RampedNormalize(low, high, **layer.get_config())

    made = keras.models.clone_model(model, clone_function=replaced)
    made.set_weights(model.get_weights())
    return made


def of_layer_norm(layers: list[Any], centre: bool) -> Normalize:
    """One layer for LayerNormalization layers whose inputs lie side by side.

    Args:
        layers: with equal numbers of units and the same epsilon.
        centre: whether the mean is still to be taken out.
    """
    made = Normalize(float(layers[0].epsilon), len(layers), centre, name=layers[-1].name)
    units = int(layers[0].input.shape[-1])
    made.build((None, units * len(layers)))
    gammas = [np.ones(units) if layer.gamma is None else layer.gamma.numpy() for layer in layers]
    betas = [np.zeros(units) if layer.beta is None else layer.beta.numpy() for layer in layers]
    made.set_weights([np.concatenate(gammas), np.concatenate(betas)])
    return made


def is_layer_norm(layer: Any) -> bool:
    """Whether it is a LayerNormalization over the units of `[B, U]`."""
    return type(layer) is keras.layers.LayerNormalization and len(layer.input.shape) == 2
