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
        grouped *= tf.math.rsqrt(tf.reduce_mean(grouped * grouped, axis=-1, keepdims=True) + self.epsilon)
        return tf.reshape(grouped, [-1, units]) * self.gamma + self.beta

    def get_config(self) -> dict[str, Any]:
        """See Keras."""
        return {**super().get_config(), "epsilon": self.epsilon, "groups": self.groups, "centre": self.centre}


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
