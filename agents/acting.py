"""Acting on the host: Q-values of a network whose weights were published, outside the compiled program."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
import tf_keras as keras

from rlplatform.agents.networks import Dueling

Array = np.ndarray[Any, Any]


class Actor(Protocol):
    """Q-values with a copy of the weights of its own, so that learning can go on beside it."""

    def load(self, weights: Array) -> None:
        """Takes published weights: [P] float32, all weights of the network in order, flat."""

    def q_values(self, observation: Array) -> Array:
        """[N, A] float32 for [N, S...]."""


def make_actor(network: Any) -> Actor:
    """The fastest actor for a network: numpy for dense layers (8 us a call), else a compiled copy (200 us)."""
    return NumpyActor(network) if all(map(_runs_in_numpy, network.layers)) else CompiledActor(network)


def flat_weights(network: Any) -> tf.Tensor:
    """Traced: [P] float32, what `Actor.load` takes."""
    return tf.concat([tf.reshape(weight, [-1]) for weight in network.weights], axis=0)


def flatten(weights: list[Array]) -> Array:
    """[P] float32, what `Actor.load` takes, from a network's `get_weights()`."""
    return np.concatenate([weight.ravel() for weight in weights])


def weight_shapes(network: Any) -> list[tuple[int, ...]]:
    """The shapes of all weights of a network, in order."""
    return [tuple(weight.shape) for weight in network.weights]


def split_weights(shapes: list[tuple[int, ...]], flat: Array) -> list[Array]:
    """Weights of these shapes as views into the flat vector."""
    weights, start = [], 0
    for shape in shapes:
        end = start + math.prod(shape)
        weights.append(flat[start:end].reshape(shape))
        start = end
    return weights


class CompiledActor:
    """A copy of any network, called through one compiled function."""

    def __init__(self, network: Any) -> None:
        self._network = keras.models.clone_model(network)
        self._shapes = weight_shapes(network)
        self._dtype = network.inputs[0].dtype
        self._call = tf.function(self._network, autograph=False, reduce_retracing=True)

    def load(self, weights: Array) -> None:
        """See `Actor`."""
        self._network.set_weights(split_weights(self._shapes, weights))

    def q_values(self, observation: Array) -> Array:
        """See `Actor`."""
        return self._call(tf.constant(observation, self._dtype)).numpy()  # type: ignore[no-any-return]


class NumpyActor:
    """A dense network run by numpy, layer by layer in the model's own order."""

    def __init__(self, network: Any) -> None:
        self._shapes = weight_shapes(network)
        self._layers = [(layer.name, len(layer.weights)) for layer in network.layers]
        self._steps: list[tuple[Callable[..., Callable[..., Array]], list[int], int]] = []
        for layer in network.layers:
            if isinstance(layer, keras.layers.InputLayer):
                continue
            inputs = layer.input if isinstance(layer.input, list | tuple) else [layer.input]
            self._steps.append(
                (_NUMPY_LAYERS[type(layer)](layer), [_key(tensor) for tensor in inputs], _key(layer.output))
            )
        self._input, self._output = _key(network.input), _key(network.output)
        self._bound: list[tuple[Callable[..., Array], list[int], int]] = []

    def load(self, weights: Array) -> None:
        """See `Actor`."""
        arrays = iter(split_weights(self._shapes, weights))
        named = {name: [next(arrays) for _ in range(count)] for name, count in self._layers}
        self._bound = [(bind(named), inputs, output) for bind, inputs, output in self._steps]

    def q_values(self, observation: Array) -> Array:
        """See `Actor`."""
        values = {self._input: observation}
        for function, inputs, output in self._bound:
            values[output] = function(*[values[key] for key in inputs])
        return values[self._output]


def _key(tensor: Any) -> int:
    return id(tensor)


def _dense(layer: Any) -> Callable[[dict[str, list[Array]]], Callable[[Array], Array]]:
    relu = layer.activation is keras.activations.relu

    def bind(weights: dict[str, list[Array]]) -> Callable[[Array], Array]:
        kernel, bias = weights[layer.name]

        def forward(inputs: Array) -> Array:
            outputs = inputs @ kernel
            outputs += bias
            return np.maximum(outputs, 0.0, out=outputs) if relu else outputs

        return forward

    return bind


def _runs_in_numpy(layer: Any) -> bool:
    plain = (keras.activations.relu, keras.activations.linear)
    return (
        type(layer) in _NUMPY_LAYERS
        and len(layer.inbound_nodes) == 1  # a layer that is called twice has no one output
        and getattr(layer, "activation", plain[0]) in plain
        and getattr(layer, "use_bias", True)
    )


def _stateless(
    function: Callable[..., Array],
) -> Callable[[Any], Callable[[dict[str, list[Array]]], Callable[..., Array]]]:
    return lambda layer: lambda weights: function


def _rescaling(layer: Any) -> Callable[[dict[str, list[Array]]], Callable[[Array], Array]]:
    scale, offset = np.float32(layer.scale), np.float32(layer.offset)
    return lambda weights: lambda inputs: inputs * scale + offset  # numpy: uint8 times float32 is float32


_NUMPY_LAYERS: dict[type, Any] = {
    keras.layers.InputLayer: None,
    keras.layers.Dense: _dense,
    keras.layers.Flatten: _stateless(lambda inputs: inputs.reshape(len(inputs), -1)),
    keras.layers.Rescaling: _rescaling,
    Dueling: _stateless(lambda value, advantage: value + advantage - advantage.mean(axis=1, keepdims=True)),
}
