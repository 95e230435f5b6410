"""The end of a Q-network: from features to the values of the actions, whatever head and streams made them."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras

from rlplatform.agents.layers import MIDPOINTS, Dueling, Expectation, ImplicitQuantiles, MeanQuantile, midpoints
from rlplatform.compression import chain
from rlplatform.compression.chain import Flat, Kept, Link
from rlplatform.compression.normalize import is_layer_norm, of_layer_norm

Array = np.ndarray[Any, Any]


class Ending(NamedTuple):
    """A head, folded.

    Attributes:
        features: the tensor that it starts from.
        links: from there to the values.
        centred: whether a row's values have mean zero.
    """

    features: Any
    links: list[Any]
    centred: bool


class _Stream(NamedTuple):
    """One linear map of features: `features @ kernel + bias`."""

    features: Any
    kernel: Array  # [F, A, K]
    bias: Array  # [A, K]


def read(model: Any, producers: dict[int, Any], greedy: bool, folds: list[str]) -> Ending | None:
    """The end of a network, as few layers as its head allows; None where it is none that is known.

    Args:
        model: from `agents.networks.build`.
        producers: of the model; layers that are made here are added.
        greedy: whether values may be shifted, by what all actions share.
        folds: gets a sentence for each fold.
    """
    values = model.outputs[0]
    last: Any = producers.get(id(values))
    reduction = last if isinstance(last, MeanQuantile | Expectation) else None
    output = values if reduction is None else last.input
    mean = isinstance(reduction, MeanQuantile)
    streams = _streams(output, producers, mean, folds)
    if streams is None:
        return None
    if mean:
        folds.append("folded the mean over quantiles into the last Dense")
    drops_value = greedy and not isinstance(reduction, Expectation)
    stream = _joined(streams, producers, drops_value, folds)
    if isinstance(reduction, Expectation):
        return _categorical(stream, reduction, greedy, folds)
    kernel, bias = stream.kernel[:, :, 0], stream.bias[:, 0]
    if greedy:
        kernel, bias = kernel - kernel.mean(axis=1, keepdims=True), bias - bias.mean()
        folds.append("centred the values of the actions")
    return Ending(stream.features, [Link("dense", "q", kernel, bias, keras.activations.linear)], greedy)


def _streams(output: Any, producers: dict[int, Any], mean: bool, folds: list[str]) -> list[_Stream] | None:
    """The stream of the actions; before it that of the value, where there are two."""
    layer: Any = producers.get(id(output))
    tensors = list(layer.input) if isinstance(layer, Dueling) else [output]
    found = [_stream(tensor, producers, mean, folds) for tensor in tensors]
    return None if any(stream is None for stream in found) else [stream for stream in found if stream is not None]


def _stream(output: Any, producers: dict[int, Any], mean: bool, folds: list[str]) -> _Stream | None:
    """A Dense, the atoms that its outputs are, and the quantiles' embedding before it."""
    layer: Any = producers.get(id(output))
    atoms = 1
    if type(layer) is keras.layers.Reshape and len(layer.target_shape) == 2:
        atoms = layer.target_shape[1]
        layer = producers.get(id(layer.input))
    if not chain.is_linear_dense(layer):
        return None
    kernel, bias = chain.weights(layer)
    features = layer.input
    embedding: Any = producers.get(id(features))
    if isinstance(embedding, ImplicitQuantiles):
        levels = embedding.embedding(tf.constant(midpoints(MIDPOINTS))).numpy()
        kernel = kernel * levels.mean(axis=0, dtype=np.float64)[:, None]
        features = embedding.input
        folds.append(f"folded the mean embedding of quantile levels into {layer.name!r}")
    kernel, bias = kernel.reshape(len(kernel), -1, atoms), bias.reshape(-1, atoms)
    if mean:
        kernel, bias = kernel.mean(axis=2, keepdims=True), bias.mean(axis=1, keepdims=True)
    return _Stream(features, kernel, bias)


def _joined(streams: list[_Stream], producers: dict[int, Any], drops_value: bool, folds: list[str]) -> _Stream:
    """One stream from those of the value and the advantages: Q = V + A - mean(A), atom by atom."""
    if len(streams) == 1:
        return streams[0]
    value, advantage = streams
    kernel = advantage.kernel - advantage.kernel.mean(axis=1, keepdims=True)
    bias = advantage.bias - advantage.bias.mean(axis=0)
    if drops_value:
        folds.append("dropped the value stream")
        return _Stream(advantage.features, kernel, bias)
    folds.append("folded the dueling head into one Dense")
    bias = bias + value.bias
    if value.features is advantage.features:
        return _Stream(advantage.features, kernel + value.kernel, bias)
    repeated = np.repeat(value.kernel, kernel.shape[1], axis=1)
    features = _side_by_side(value.features, advantage.features, producers, folds)
    return _Stream(features, np.concatenate([repeated, kernel]), bias)


def _side_by_side(value: Any, advantage: Any, producers: dict[int, Any], folds: list[str]) -> Any:
    """The features of both streams: one wider layer where both are alike, else a Concatenate."""
    stacks = [_hidden(tensor, producers) for tensor in (value, advantage)]
    merged = _merged(stacks, producers) if _alike(stacks) else None
    if merged is None:
        features = keras.layers.Concatenate(name="streams")([value, advantage])
        producers[id(features)] = features.node.layer
        return features
    folds.append("merged the hidden layers of both streams")
    return merged


def _hidden(features: Any, producers: dict[int, Any]) -> list[Any]:
    """The last hidden layer of a stream, and the LayerNorm and ReLU after it."""
    layers: list[Any] = []
    while True:
        layer: Any = producers.get(id(features))
        if chain.is_plain_dense(layer):
            return [layer, *layers]
        if not (is_layer_norm(layer) or type(layer) is keras.layers.ReLU):
            return []
        layers.insert(0, layer)
        features = layer.input


def _alike(stacks: list[list[Any]]) -> bool:
    value, advantage = stacks
    if not value or [type(layer) for layer in value[1:]] != [type(layer) for layer in advantage[1:]]:
        return False
    norms = [[layer for layer in stack if is_layer_norm(layer)] for stack in stacks]
    return bool(
        advantage
        and value[0].input is advantage[0].input
        and value[0].activation is advantage[0].activation
        and all(chain.is_rectifier(layer) for stack in stacks for layer in stack[1:] if not is_layer_norm(layer))
        and [norm.epsilon for norm in norms[0]] == [norm.epsilon for norm in norms[1]]
        and (not norms[0] or value[0].units == advantage[0].units)
    )


def _merged(stacks: list[list[Any]], producers: dict[int, Any]) -> Any:
    kernels, biases = zip(*(chain.weights(stack[0]) for stack in stacks), strict=True)
    units = sum(kernel.shape[1] for kernel in kernels)
    first = stacks[1][0]
    centre = len(stacks[0]) < 2 or not is_layer_norm(stacks[0][1]) or not chain.is_linear_dense(first)
    if not centre:
        kernels = tuple(kernel - kernel.mean(axis=1, keepdims=True) for kernel in kernels)
        biases = tuple(bias - bias.mean() for bias in biases)
    dense = keras.layers.Dense(units, activation=first.activation, name=f"streams_{first.name}")
    features = dense(first.input)
    dense.set_weights([np.concatenate(kernels, axis=1), np.concatenate(biases)])
    producers[id(features)] = dense
    for layers in zip(*(stack[1:] for stack in stacks), strict=True):
        made = of_layer_norm(list(layers), centre) if is_layer_norm(layers[1]) else layers[1]
        features = Kept(made).apply(features)
        producers[id(features)] = features.node.layer
        centre = True  # Only the first sees what the Dense has centred.
    return features


def _categorical(stream: _Stream, expectation: Expectation, greedy: bool, folds: list[str]) -> Ending:
    """Logits, a softmax over the atoms, and their expectation, which is one more Dense unless actions are too many."""
    inputs, actions, atoms = stream.kernel.shape
    kernel = stream.kernel - stream.kernel.mean(axis=2, keepdims=True)  # A softmax does not see what its inputs share.
    bias = stream.bias - stream.bias.mean(axis=1, keepdims=True)
    flat = kernel.reshape(inputs, -1), bias.ravel()
    links = [
        Link("dense", "logits", *flat, keras.activations.linear),
        Kept(keras.layers.Reshape((actions, atoms), name="atoms")),
        Kept(keras.layers.Softmax(name="probabilities")),
    ]
    support = np.linspace(expectation.low, expectation.high, atoms)
    folds.append("kept the softmax over atoms")
    if actions > inputs:
        dense = keras.layers.Dense(1, name="expectation")
        dense.build((None, actions, atoms))
        dense.set_weights([support[:, None], np.zeros(1)])
        return Ending(stream.features, [*links, Kept(dense), Flat("q")], centred=False)
    own = np.eye(actions)
    if greedy:
        own = own - 1.0 / actions
        folds.append("centred the values of the actions")
    last = (own[:, None, :] * support[None, :, None]).reshape(-1, actions)  # [A * K, A]
    q = Link("dense", "q", last, np.zeros(actions), keras.activations.linear)
    return Ending(stream.features, [*links, Flat("distributions"), q], greedy)
