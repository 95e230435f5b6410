"""Acting on the host: Q-values of a network whose weights were published, outside the compiled program."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
import tf_keras as keras

from rlplatform.agents.layers import (
    MIDPOINTS,
    Dueling,
    Expectation,
    ImplicitQuantiles,
    MeanQuantile,
    NoisyDense,
    Standardize,
    fresh_noise,
    midpoints,
)
from rlplatform.agents.recurrent import Output, Recurrent

Array = np.ndarray[Any, Any]


class Actor(Protocol):
    """Q-values with a copy of the weights of its own, so that learning can go on beside it."""

    def load(self, weights: Array, draw: int | None = None) -> None:
        """Takes published weights.

        Args:
            weights: [P] float32, all weights of the network in order, flat.
            draw: a counter: until the next load, a noisy network has fresh noise at every call, and for every
                environment, that follows from the actor's seed and this number. None plays by the mean weights.
        """

    def q_values(self, observation: Array) -> Array:
        """[N, A] float32 for [N, S...]."""


def make_actor(network: Any, seed: int = 0) -> Actor:
    """The fastest actor for a policy's network: numpy for dense layers (8 us a call), else a compiled copy (200 us).

    Args:
        network: `[B, S...]` to `[B, A]`; or recurrent, with the state `[B, H]` as second input and output.
        seed: what the noise of a noisy network follows from.
    """
    plain = all(map(_runs_in_numpy, network.layers))
    actor = NumpyActor(network, seed) if plain else CompiledActor(network, seed)
    return RecurrentActor(actor, int(network.inputs[1].shape[1])) if len(network.inputs) > 1 else actor


def masked(q: Array, action_mask: Array | None) -> Array:
    """[N, A]: `q` where the mask is true, and minus infinity elsewhere; without a mask, `q` itself."""
    return q if action_mask is None else np.where(action_mask, q, -np.inf)


def forget(state: Array, first: Array) -> Array:
    """[N, H]: `state` without what was before in those environments whose episode begins, `first` [N] bool.

    All zeros where `state` is of another number of environments.
    """
    if len(state) != len(first):
        return np.zeros((len(first), state.shape[1]), np.float32)
    return np.where(first[:, None], np.float32(0.0), state)


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


class RecurrentActor:
    """An actor that remembers: it keeps the state of each environment that it acts for, from one call to the next.

    Rows are environments: those of all calls after a `begin` are the same ones, in the same order.

    Args:
        actor: computes values and states.
        state_size: H.

    Attributes:
        state: [N, H] float32, after the last call; it is replaced, never written to.
    """

    def __init__(self, actor: "NumpyActor | CompiledActor", state_size: int) -> None:
        self._actor = actor
        self.state: Array = np.zeros((0, state_size), np.float32)

    def load(self, weights: Array, draw: int | None = None) -> None:
        """See `Actor`. The states stay, though other weights have made them."""
        self._actor.load(weights, draw)

    def begin(self, first: Array) -> None:
        """Forgets what was before in those of the N environments whose episode begins now, `first` `[N]` bool."""
        self.state = forget(self.state, first)

    def q_values(self, observation: Array) -> Array:
        """See `Actor`; takes one step of every environment."""
        q, self.state = self._actor.answers(observation, self.state)
        return q


class CompiledActor:
    """A copy of any network, called through one compiled function. Its noise is one draw for all environments."""

    def __init__(self, network: Any, seed: int = 0) -> None:
        self._network = keras.models.clone_model(network)
        self._shapes = weight_shapes(network)
        self._dtype = network.inputs[0].dtype
        self._noisy = any(isinstance(layer, NoisyDense) for layer in network.layers)
        self._seed, self._calls = seed, 0
        self._draw: int | None = None
        inputs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in network.inputs]  # any number of environments
        call = tf.function(self._network, autograph=False)
        # Called as ConcreteFunction, which spends half as long on its arguments.
        self._call = call.get_concrete_function(inputs if len(inputs) > 1 else inputs[0])
        self._call_noisy = tf.function(self._with_noise, autograph=False, reduce_retracing=True)

    def _with_noise(self, inputs: Any, seed: tf.Tensor) -> Any:
        with fresh_noise(self._network, seed):
            return self._network(inputs)

    def load(self, weights: Array, draw: int | None = None) -> None:
        """See `Actor`."""
        self._network.set_weights(split_weights(self._shapes, weights))
        self._draw, self._calls = draw, 0

    def q_values(self, observation: Array) -> Array:
        """See `Actor`."""
        return self._output(tf.constant(observation, self._dtype)).numpy()  # type: ignore[no-any-return]

    def answers(self, observation: Array, state: Array) -> tuple[Array, Array]:
        """A recurrent network's values `[N, A]`, and the states `[N, H]` after those that are given."""
        q, after = self._output([tf.constant(observation, self._dtype), tf.constant(state)])
        return q.numpy(), after.numpy()

    def _output(self, inputs: Any) -> Any:
        if self._draw is None or not self._noisy:
            return self._call(inputs)
        self._calls += 1
        words = np.random.SeedSequence([self._seed, self._draw, self._calls], spawn_key=(2,)).generate_state(2)
        return self._call_noisy(inputs, tf.constant(words.astype(np.int32)))


class NumpyActor:
    """A dense network run by numpy, layer by layer in the model's own order."""

    def __init__(self, network: Any, seed: int = 0) -> None:
        self._shapes = weight_shapes(network)
        self._layers = [(layer.name, len(layer.weights)) for layer in network.layers]
        self._steps: list[tuple[Bind, list[int], int]] = []
        self._seed = seed
        for layer in network.layers:
            if isinstance(layer, keras.layers.InputLayer):
                continue
            inputs = layer.input if isinstance(layer.input, list | tuple) else [layer.input]
            self._steps.append(
                (_NUMPY_LAYERS[type(layer)](layer), [_key(tensor) for tensor in inputs], _key(layer.output))
            )
        self._inputs, self._outputs = (list(map(_key, part)) for part in (network.inputs, network.outputs))
        self._bound: list[tuple[Forward, list[int], int]] = []

    def load(self, weights: Array, draw: int | None = None) -> None:
        """See `Actor`."""
        arrays = iter(split_weights(self._shapes, weights))
        named = {name: [next(arrays) for _ in range(count)] for name, count in self._layers}
        rng = None
        if draw is not None:
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, draw], spawn_key=(2,))))
        self._bound = [(bind(named, rng), inputs, output) for bind, inputs, output in self._steps]

    def q_values(self, observation: Array) -> Array:
        """See `Actor`."""
        return self._run({self._inputs[0]: observation})[self._outputs[0]]

    def answers(self, observation: Array, state: Array) -> tuple[Array, Array]:
        """A recurrent network's values `[N, A]`, and the states `[N, H]` after those that are given."""
        values = self._run(dict(zip(self._inputs, (observation, state), strict=True)))
        return values[self._outputs[0]], values[self._outputs[1]]

    def _run(self, values: dict[int, Array]) -> dict[int, Array]:
        """The values of all tensors, from those of the inputs."""
        for function, inputs, output in self._bound:
            values[output] = function(*[values[key] for key in inputs])
        return values


Forward = Callable[..., Array]
Bind = Callable[[dict[str, list[Array]], np.random.Generator | None], Forward]  # weights by layer, noise


def _key(tensor: Any) -> int:
    return id(tensor)


def _activation(layer: Any) -> Callable[[Array], Array]:
    if layer.activation is keras.activations.relu:
        return lambda outputs: np.maximum(outputs, 0.0, out=outputs)
    return lambda outputs: outputs


def _dense(layer: Any) -> Bind:
    activation = _activation(layer)

    def bind(weights: dict[str, list[Array]], rng: np.random.Generator | None) -> Forward:
        kernel, bias = weights[layer.name]

        def forward(inputs: Array) -> Array:
            outputs = inputs @ kernel
            outputs += bias
            return activation(outputs)

        return forward

    return bind


def _noisy_dense(layer: Any) -> Bind:
    activation, num_inputs, units = _activation(layer), layer.inputs, layer.units

    def bind(weights: dict[str, list[Array]], rng: np.random.Generator | None) -> Forward:
        kernel, bias, kernel_sigma, bias_sigma = weights[layer.name]

        def forward(inputs: Array) -> Array:
            outputs = inputs @ kernel
            outputs += bias
            if rng is not None:  # factorised noise of its own for every row, without a kernel for each
                normal = rng.standard_normal((len(inputs), num_inputs + units), np.float32)
                noise = np.sign(normal) * np.sqrt(np.abs(normal))
                of_inputs, of_units = noise[:, :num_inputs], noise[:, num_inputs:]
                outputs += ((inputs * of_inputs) @ kernel_sigma + bias_sigma) * of_units
            return activation(outputs)

        return forward

    return bind


def _layer_norm(layer: Any) -> Bind:
    epsilon = np.float32(layer.epsilon)

    def bind(weights: dict[str, list[Array]], rng: np.random.Generator | None) -> Forward:
        gamma, beta = weights[layer.name]

        def forward(inputs: Array) -> Array:
            centred = inputs - inputs.mean(axis=-1, keepdims=True)
            variance = np.square(centred).mean(axis=-1, keepdims=True)
            return centred / np.sqrt(variance + epsilon) * gamma + beta  # type: ignore[no-any-return]

        return forward

    return bind


def _standardize(layer: Any) -> Bind:
    def bind(weights: dict[str, list[Array]], rng: np.random.Generator | None) -> Forward:
        mean, variance = weights[layer.name]
        factor = 1.0 / np.sqrt(variance + np.float32(layer.EPSILON))
        return lambda inputs: (inputs - mean) * factor

    return bind


def _implicit_quantiles(layer: Any) -> Bind:
    levels = midpoints(MIDPOINTS)

    def bind(weights: dict[str, list[Array]], rng: np.random.Generator | None) -> Forward:
        kernel, bias = weights[layer.name]
        cosines = np.cos(np.float32(np.pi) * levels[:, None] * np.arange(len(kernel), dtype=np.float32))
        embedding = np.maximum(cosines @ kernel + bias, 0.0).mean(axis=0)
        return lambda inputs: inputs * embedding

    return bind


def _expectation(layer: Any) -> Bind:
    def forward(logits: Array) -> Array:
        chances = np.exp(logits - logits.max(axis=-1, keepdims=True))
        chances /= chances.sum(axis=-1, keepdims=True)
        return chances @ np.linspace(layer.low, layer.high, logits.shape[-1], dtype=np.float32)  # type: ignore[no-any-return]

    return lambda weights, rng: forward


def _recurrent(layer: Any) -> Bind:
    step = _lstm_step if layer.kind == "lstm" else _gru_step

    def bind(weights: dict[str, list[Array]], rng: np.random.Generator | None) -> Forward:
        kernel, recurrent_kernel, bias = weights[layer.name]
        return lambda features, state: step(features @ kernel, state, recurrent_kernel, bias)

    return bind


def _lstm_step(projected: Array, state: Array, kernel: Array, bias: Array) -> Array:
    units = len(kernel)
    gates = projected + state[:, :units] @ kernel
    gates += bias
    candidate = np.tanh(gates[:, 2 * units : 3 * units])
    gates = _sigmoid(gates)
    cell = gates[:, units : 2 * units] * state[:, units:]
    cell += gates[:, :units] * candidate
    return np.concatenate((gates[:, 3 * units :] * np.tanh(cell), cell), axis=1)


def _gru_step(projected: Array, state: Array, kernel: Array, bias: Array) -> Array:
    units = len(kernel)
    projected += bias[0]
    own = state @ kernel
    own += bias[1]
    gates = _sigmoid(projected[:, : 2 * units] + own[:, : 2 * units])
    candidate = np.tanh(projected[:, 2 * units :] + gates[:, units:] * own[:, 2 * units :])
    return candidate + gates[:, :units] * (state - candidate)  # type: ignore[no-any-return]


def _sigmoid(values: Array) -> Array:
    return 0.5 * np.tanh(0.5 * values) + 0.5  # without the overflow of an exponential


def _runs_in_numpy(layer: Any) -> bool:
    plain = (keras.activations.relu, keras.activations.linear)
    return (
        type(layer) in _NUMPY_LAYERS
        and len(layer.inbound_nodes) == 1  # a layer that is called twice has no one output
        and getattr(layer, "activation", plain[0]) in plain
        and getattr(layer, "use_bias", True)
        and (not isinstance(layer, keras.layers.LayerNormalization) or _is_plain_norm(layer))
        and (not isinstance(layer, keras.layers.ReLU) or _is_plain_relu(layer))
    )


def _is_plain_norm(layer: Any) -> bool:
    return bool(layer.center and layer.scale and list(layer.axis) == [len(layer.input_shape) - 1])


def _is_plain_relu(layer: Any) -> bool:
    return layer.max_value is None and not layer.negative_slope and not layer.threshold


def _stateless(function: Forward) -> Callable[[Any], Bind]:
    return lambda layer: lambda weights, rng: function


def _rescaling(layer: Any) -> Bind:
    scale, offset = np.float32(layer.scale), np.float32(layer.offset)
    return lambda weights, rng: lambda inputs: inputs * scale + offset  # numpy: uint8 times float32 is float32


def _reshape(layer: Any) -> Bind:
    return lambda weights, rng: lambda inputs: inputs.reshape(len(inputs), *layer.target_shape)


_NUMPY_LAYERS: dict[type, Any] = {
    keras.layers.InputLayer: None,
    keras.layers.Dense: _dense,
    keras.layers.Flatten: _stateless(lambda inputs: inputs.reshape(len(inputs), -1)),
    keras.layers.LayerNormalization: _layer_norm,
    keras.layers.ReLU: _stateless(lambda inputs: np.maximum(inputs, 0.0)),
    keras.layers.Rescaling: _rescaling,
    keras.layers.Reshape: _reshape,
    Dueling: _stateless(lambda value, advantage: value + advantage - advantage.mean(axis=1, keepdims=True)),
    Expectation: _expectation,
    ImplicitQuantiles: _implicit_quantiles,
    MeanQuantile: _stateless(lambda quantiles: quantiles.mean(axis=-1)),
    NoisyDense: _noisy_dense,
    Output: lambda layer: lambda weights, rng: lambda state: state[:, : layer.units],
    Recurrent: _recurrent,
    Standardize: _standardize,
}
