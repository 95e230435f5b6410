"""The part of a network that algebra can work on: a chain of Dense, Conv2D and Flatten, read and built anew."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import tf_keras as keras

Array = np.ndarray[Any, Any]


@dataclasses.dataclass
class Link:
    """A Dense or Conv2D layer by its weights.

    Attributes:
        kind: `dense` or `conv`.
        name: of the layer that is built.
        kernel: `[I, U]` for Dense, `[h, w, I, U]` for Conv2D, float64 while folding.
        bias: `[U]` float64.
        activation: Keras's function.
        settings: of a Conv2D, its strides, padding and dilation rate.
    """

    kind: str
    name: str
    kernel: Array
    bias: Array
    activation: Any
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def units(self) -> int:
        """How many outputs: units of a Dense, channels of a Conv2D."""
        return int(self.kernel.shape[-1])

    def apply(self, features: Any) -> Any:
        """The layer, with these weights, on `features`."""
        if self.kind == "dense":
            layer = keras.layers.Dense(self.units, activation=self.activation, name=self.name)
        else:
            size = self.kernel.shape[:2]
            layer = keras.layers.Conv2D(self.units, size, activation=self.activation, name=self.name, **self.settings)
        outputs = layer(features)
        layer.set_weights([self.kernel.astype(np.float32), self.bias.astype(np.float32)])
        return outputs


class Flat(NamedTuple):
    """A Flatten layer, channels last: `[H, W, C]` to `[H * W * C]`."""

    name: str

    def apply(self, features: Any) -> Any:
        """The layer on `features`."""
        return keras.layers.Flatten(name=self.name)(features)


def producers(model: Any) -> dict[int, Any]:
    """Which layer made a tensor, by the tensor's id; a layer that was called more than once is left out."""
    found = {}
    for layer in model.layers:
        try:
            found[id(layer.output)] = layer
        except AttributeError:  # Called more than once: it stays as it is.
            continue
    return found


def read(features: Any, producers: dict[int, Any]) -> tuple[Any, list[Link | Flat]]:
    """The longest chain of known layers that ends in `features`.

    Returns:
        The tensor that the chain starts from, and its links in order.
    """
    links: list[Link | Flat] = []
    while True:
        layer = producers.get(id(features))
        if layer is None or isinstance(layer, keras.layers.InputLayer):
            break
        link = _link(layer)
        if link is None:
            break
        links.insert(0, link)
        features = layer.input
    return features, links


def rescaling_at_start(model: Any, producers: dict[int, Any]) -> Any | None:
    """The Rescaling that is the only layer to see the observation, by one scale and one offset; None without it."""
    found = None
    for layer in producers.values():
        if isinstance(layer, keras.layers.InputLayer):
            continue
        inputs = layer.input if isinstance(layer.input, list | tuple) else [layer.input]
        if any(tensor is model.input for tensor in inputs):
            if found is not None or type(layer) is not keras.layers.Rescaling:
                return None
            found = layer
    return found if found is not None and np.ndim(found.scale) == np.ndim(found.offset) == 0 else None


def first(links: list[Link | Flat]) -> Link:
    """The first link with weights."""
    return next(link for link in links if isinstance(link, Link))


def build(model: Any, rescaling: Any | None, start: Any, links: list[Link | Flat]) -> Any:
    """A functional model on float32 observations of the shape that `model` takes.

    Args:
        model: where the layers that stay come from.
        rescaling: the Rescaling at its start, if it stays.
        start: the tensor in `model` up to which its layers stay.
        links: what comes after `start`.
    """
    observation = keras.Input(shape=model.input_shape[1:], dtype="float32", name="observation")
    source, features = model.input, observation
    if rescaling is not None:
        features = keras.layers.Rescaling(rescaling.scale, rescaling.offset, name="rescale")(features)
        source = rescaling.output
    if start is not source:
        features = keras.Model(source, start, name="kept")(features)
    for link in links:
        features = link.apply(features)
    return keras.Model(observation, features, name="canonical")


def scale_inputs(model: Any, offset: Array, multiplier: Array) -> Any | None:
    """The same network for inputs `(observation - offset) * multiplier`, which its first Dense undoes.

    Args:
        model: from `build`.
        offset: `[O...]`.
        multiplier: `[O...]`, not zero.

    Returns:
        The model, or None where the first layer is no Dense.
    """
    start, links = read(model.output, producers(model))
    if start is not model.input or first(links).kind != "dense":
        return None
    link = first(links)
    link.bias = link.bias + offset.astype(np.float64).ravel() @ link.kernel
    link.kernel = link.kernel / multiplier.astype(np.float64).ravel()[:, None]
    return build(model, None, start, links)


def _link(layer: Any) -> Link | Flat | None:
    if is_plain_dense(layer):
        return Link("dense", layer.name, *weights(layer), layer.activation)
    if type(layer) is keras.layers.Conv2D and layer.groups == 1 and layer.data_format == "channels_last":
        settings = {name: getattr(layer, name) for name in ("strides", "padding", "dilation_rate")}
        return Link("conv", layer.name, *weights(layer), layer.activation, settings)
    if type(layer) is keras.layers.Flatten and layer.data_format == "channels_last":
        return Flat(layer.name)
    return None


def is_plain_dense(layer: Any) -> bool:
    """Whether it is a Dense layer on `[B, I]`."""
    return type(layer) is keras.layers.Dense and len(layer.input.shape) == 2


def is_linear_dense(layer: Any) -> bool:
    """Whether it is a Dense layer on `[B, I]` without an activation."""
    return is_plain_dense(layer) and layer.activation is keras.activations.linear


def weights(layer: Any) -> tuple[Array, Array]:
    """Kernel and bias in float64; a layer without a bias gets zeros."""
    kernel, *bias = (np.asarray(weight, np.float64) for weight in layer.get_weights())
    return kernel, bias[0] if bias else np.zeros(kernel.shape[-1])
