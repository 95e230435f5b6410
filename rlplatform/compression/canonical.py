"""The canonical form: the same greedy policy with fewer layers and units, by algebra alone.

A trained Q-network carries what training needed and playing does not: the scaling of its input, a value stream, units
that never fire. All of it is linear or constant, so it folds into the layers beside it, without data and without loss.
"""

from typing import Any, NamedTuple

import numpy as np
import tf_keras as keras

from rlplatform.agents.layers import Dueling
from rlplatform.compression import chain
from rlplatform.compression.chain import Link
from rlplatform.compression.dead_units import remove_dead_units

Array = np.ndarray[Any, Any]


class Canonical(NamedTuple):
    """A network in canonical form, and what was folded.

    Attributes:
        model: `[B, O...]` float32 to `[B, A]` float32; uint8 observations are fed as the same numbers in float32. Made
            of Dense, Conv2D and Flatten, after whatever layers of a user's torso had to stay as they were.
        folds: one sentence for each fold that was made, and for each part that had to stay.
        centred: whether a row's values were shifted so that their mean is zero, which changes no comparison of actions.
    """

    model: Any
    folds: tuple[str, ...]
    centred: bool


class _Head(NamedTuple):
    """The linear end of a network: Q = features @ kernel + bias."""

    features: Any
    kernel: Array
    bias: Array


def canonical(model: Any, greedy: bool = True) -> Canonical:
    """The canonical form of a network that `rlplatform.agents.networks.build` made.

    Args:
        model: functional, `[B, O...]` to `[B, A]`, its weights are not touched.
        greedy: keep only what decides between actions: a dueling network loses its value stream, and all values are
            centred, which is what makes them survive int8 (an offset of 100 at gaps of 0.1 leaves nothing of them). If
            false, the values are the network's own.

    Returns:
        The canonical network. Its greedy actions are those of `model`, except where rounding in float32 decides.
    """
    folds: list[str] = []
    producers = chain.producers(model)
    head = _read_head(model, producers, greedy, folds)
    if head is None:
        return Canonical(model, ("kept the whole network: its last layer is neither Dense nor Dueling",), centred=False)
    kernel, bias = head.kernel, head.bias
    if greedy:
        kernel = kernel - kernel.mean(axis=1, keepdims=True)
        bias = bias - bias.mean()
        folds.append("centred the values of the actions")
    start, links = chain.read(head.features, producers)
    links.append(Link("dense", "q", kernel, bias, keras.activations.linear))
    uint8 = model.inputs[0].dtype == "uint8"
    rescaling = chain.rescaling_at_start(model, producers)
    if rescaling is not None and start is rescaling.output and _fold_rescaling(rescaling, links):
        folds.append(f"folded the scaling by {float(rescaling.scale):.4g} into {chain.first(links).name!r}")
        start, rescaling = model.input, None
    if start is not model.input and (rescaling is None or start is not rescaling.output):
        folds.append(f"kept the layers up to {producers[id(start)].name!r} as they were")
    whole = start is model.input  # Then the first link sees the observation itself.
    folds += remove_dead_units(links, inputs_are_positive=whole and uint8)
    return Canonical(chain.build(model, rescaling, start, links), tuple(folds), centred=greedy)


def _read_head(model: Any, producers: dict[int, Any], greedy: bool, folds: list[str]) -> _Head | None:
    last: Any = producers.get(id(model.output))
    if chain.is_linear_dense(last):
        return _Head(last.input, *chain.weights(last))
    if not isinstance(last, Dueling):
        return None
    value: Any
    advantage: Any
    value, advantage = (producers.get(id(tensor)) for tensor in last.input)
    if not (chain.is_linear_dense(value) and chain.is_linear_dense(advantage)):
        return None
    advantage_kernel, advantage_bias = chain.weights(advantage)
    advantage_kernel = advantage_kernel - advantage_kernel.mean(axis=1, keepdims=True)
    advantage_bias = advantage_bias - advantage_bias.mean()
    if greedy:
        folds.append("dropped the value stream")
        return _Head(advantage.input, advantage_kernel, advantage_bias)
    folds.append("folded the dueling head into one Dense")
    value_kernel, value_bias = chain.weights(value)
    bias = value_bias + advantage_bias
    if value.input is advantage.input:
        return _Head(advantage.input, value_kernel + advantage_kernel, bias)
    kernel = np.concatenate([np.repeat(value_kernel, advantage_kernel.shape[1], axis=1), advantage_kernel])
    return _Head(_merge(value.input, advantage.input, producers, folds), kernel, bias)


def _merge(value: Any, advantage: Any, producers: dict[int, Any], folds: list[str]) -> Any:
    """The features of both streams side by side: one wider Dense where both are one Dense, else a Concatenate."""
    layers: list[Any] = [producers.get(id(value)), producers.get(id(advantage))]
    alike = all(chain.is_plain_dense(layer) for layer in layers) and layers[0].input is layers[1].input
    if not alike or layers[0].activation is not layers[1].activation:
        features = keras.layers.Concatenate(name="streams")([value, advantage])
        producers[id(features)] = features.node.layer
        return features
    kernels, biases = zip(*(chain.weights(layer) for layer in layers), strict=True)
    units = kernels[0].shape[1] + kernels[1].shape[1]
    merged = keras.layers.Dense(units, activation=layers[0].activation, name=f"streams_{layers[1].name}")
    features = merged(layers[0].input)
    merged.set_weights([np.concatenate(kernels, axis=1), np.concatenate(biases)])
    producers[id(features)] = merged
    folds.append("merged the hidden layers of both streams")
    return features


def _fold_rescaling(rescaling: Any, links: list[Any]) -> bool:
    """Multiplies the first linear layer by the scale, in place; false where an offset meets padding with zeros."""
    first, scale, offset = chain.first(links), float(rescaling.scale), float(rescaling.offset)
    if offset and first.kind == "conv" and first.settings["padding"] != "valid":
        return False
    axes = tuple(range(first.kernel.ndim - 1))
    first.bias = first.bias + offset * first.kernel.sum(axis=axes)
    first.kernel = first.kernel * scale
    return True
