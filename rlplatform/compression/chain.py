"""The part of a network that algebra can work on: a chain of layers with weights between layers that stay."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import tf_keras as keras

from rlplatform.agents.layers import NoisyDense, Standardize
from rlplatform.agents.recurrent import Output, Recurrent
from rlplatform.compression.cell import Cell, of_recurrent
from rlplatform.compression.normalize import Normalize, is_layer_norm

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

    @property
    def is_linear(self) -> bool:
        """Whether it has no activation."""
        return self.activation is keras.activations.linear

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


class Kept(NamedTuple):
    """A layer without a rule of its own, built, with one input and one output."""

    layer: Any

    def apply(self, features: Any) -> Any:
        """A copy of the layer on `features`."""
        copy = type(self.layer).from_config(self.layer.get_config())
        outputs = copy(features)
        copy.set_weights(self.layer.get_weights())
        return outputs


class Remembered(NamedTuple):
    """What remembers in a recurrent layer, built; a Link before it gives what the inputs add to its gates."""

    layer: Cell

    def apply(self, features: Any, state: Any) -> Any:
        """The state after a copy of the cell has met `features`."""
        copy = Cell.from_config(self.layer.get_config())
        after = copy([features, state])
        copy.set_weights(self.layer.get_weights())
        return after


class Affine(NamedTuple):
    """What happens to an observation before anything else: `x * scale + offset`.

    Attributes:
        output: the tensor.
        scale: `[O...]` float64.
        offset: `[O...]` float64.
        words: what a fold of it is called.
    """

    output: Any
    scale: Array
    offset: Array
    words: str


AnyLink = Link | Flat | Kept | Remembered
_KEPT = (keras.layers.ReLU, keras.layers.Reshape, keras.layers.Softmax, Normalize, Output)


def producers(model: Any) -> dict[int, Any]:
    """Which layer made a tensor, by the tensor's id; a layer that was called more than once is left out."""
    found = {}
    for layer in model.layers:
        try:
            found[id(layer.output)] = layer
        except AttributeError:  # Called more than once: it stays as it is.
            continue
    return found


def read(features: Any, producers: dict[int, Any]) -> tuple[Any, list[AnyLink]]:
    """The longest chain of known layers that ends in `features`.

    Returns:
        The tensor that the chain starts from, and its links in order.
    """
    links: list[AnyLink] = []
    while True:
        layer = producers.get(id(features))
        if layer is None or isinstance(layer, keras.layers.InputLayer):
            break
        if type(layer) is Recurrent:
            links[:0] = _parts(layer)
            features = layer.input[0]
            continue
        if type(layer) is Output and layer.units == layer.input.shape[-1]:  # A GRU shows all that it remembers.
            features = layer.input
            continue
        link = _link(layer)
        if link is None:
            break
        links.insert(0, link)
        features = layer.input
    return features, links


def affine_at_start(model: Any, producers: dict[int, Any]) -> Affine | None:
    """What one Rescaling, one Standardize or both make of the observation, which nothing else sees; None without."""
    tensor = model.inputs[0]
    shape = tuple(tensor.shape[1:])
    scale, offset, words = np.ones(shape), np.zeros(shape), []
    while (layer := _only_reader(tensor, producers)) is not None:
        if type(layer) is keras.layers.Rescaling:
            factor, shift = (np.broadcast_to(np.float64(each), shape) for each in (layer.scale, layer.offset))
            words.append(f"the scaling by {layer.scale:.4g}" if np.ndim(layer.scale) == 0 else "the scaling")
        elif type(layer) is Standardize:
            mean, variance = (np.asarray(weight, np.float64) for weight in (layer.mean, layer.variance))
            factor = 1.0 / np.sqrt(variance + layer.EPSILON)
            shift = -mean * factor
            words.append("the normalisation of observations")
        else:
            break
        scale, offset, tensor = scale * factor, offset * factor + shift, layer.output
    return Affine(tensor, scale, offset, " and ".join(words)) if words else None


def _only_reader(tensor: Any, producers: dict[int, Any]) -> Any | None:
    """The layer that takes the tensor and nothing else, if there is just one."""
    readers = []
    for layer in producers.values():
        if not isinstance(layer, keras.layers.InputLayer):
            inputs = layer.input if isinstance(layer.input, list | tuple) else [layer.input]
            readers += [layer] if any(each is tensor for each in inputs) else []
    return readers[0] if len(readers) == 1 and readers[0].input is tensor else None


def first(links: list[AnyLink]) -> Link | None:
    """The first link, if it has weights; None if something else than a Flatten comes before."""
    link = next((link for link in links if not isinstance(link, Flat)), None)
    return link if isinstance(link, Link) else None


def build(
    model: Any, affine: Affine | None, start: Any, links: list[AnyLink], shape: tuple[int, ...] | None = None
) -> Any:
    """A functional model on float32 observations of the shape that `model` takes; on the state too, if it remembers.

    Args:
        model: where the layers that stay come from.
        affine: what happens to the observation first, if it stays.
        start: the tensor in `model` up to which its layers stay.
        links: what comes after `start`.
        shape: of the observations, where it is another one and no layer of `model` stays.
    """
    shape = shape or tuple(model.inputs[0].shape[1:])
    observation = keras.Input(shape=shape, dtype="float32", name="observation")
    source, features = model.inputs[0], observation
    if affine is not None:
        scale = _fewest(affine.scale) if np.ptp(affine.scale) else float(affine.scale.flat[0])
        # Not one number: the converter would fold that into a convolution, which it was kept from.
        features = keras.layers.Rescaling(scale, _fewest(affine.offset), name="rescale")(features)
        source = affine.output
    if start is not source:
        features = keras.Model(source, start, name="kept")(features)
    takes, gives = [observation], []
    for link in links:
        if isinstance(link, Remembered):
            takes.append(keras.Input(shape=(link.layer.state_size,), name="state"))
            features = link.apply(features, takes[-1])
            gives.append(features)
        else:
            features = link.apply(features)
    if not gives:
        return keras.Model(observation, features, name="canonical")
    return keras.Model(takes, [features, *gives], name="canonical")


def fold_shift(model: Any) -> Any:
    """The same network with a shift before its first Conv2D in that one's bias; itself where there is none to fold.

    Args:
        model: from `build`.
    """
    producers_of = producers(model)
    affine = affine_at_start(model, producers_of)
    start, links = read(model.output, producers_of)
    link = first(links)
    if affine is None or start is not affine.output or link is None or link.kind != "conv":
        return model
    places = tuple(range(affine.offset.ndim - 1))
    uneven = np.ptp(affine.offset, axis=places).any() or (affine.scale != 1.0).any()
    if uneven or link.settings["padding"] != "valid":  # an offset must not meet padding with zeros
        return model
    link.bias = link.bias + np.einsum("hwcu,c->u", link.kernel, affine.offset[0, 0])
    return build(model, None, model.input, links)


def join_pixels(model: Any) -> Any:
    """The same network on images whose pixels stand together as far as the strides of the first Conv2D never part them.

    `[H, W, C]` are `[H, W / n, n * C]` then, in the same order, and weights `[h, w, C, U]` with a stride of columns `s`
    are `[h, w / n, n * C, U]` with `s / n`. Kernels for whole numbers sum over the channels of one place at a time, and
    an image has few of those.

    Args:
        model: from `build`; itself where n is 1, or something else comes before a Conv2D.
    """
    start, links = read(model.output, producers(model))
    link = first(links)
    if start is not model.input or link is None or link.kind != "conv" or link.settings["padding"] != "valid":
        return model
    height, width, channels = start.shape[1:]
    rows, columns, _, units = link.kernel.shape
    down, along = link.settings["strides"]
    joined = math.gcd(width, columns, along)
    if joined == 1 or link.settings["dilation_rate"] != (1, 1):
        return model
    link.kernel = link.kernel.reshape(rows, columns // joined, joined * channels, units)
    link.settings = link.settings | {"strides": (down, along // joined)}
    return build(model, None, start, links, (height, width // joined, joined * channels))


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
    link = first(links)
    if start is not model.input or link is None or link.kind != "dense":
        return None
    link.bias = link.bias + offset.astype(np.float64).ravel() @ link.kernel
    link.kernel = link.kernel / multiplier.astype(np.float64).ravel()[:, None]
    return build(model, None, start, links)


def _fewest(constant: Array) -> list[Any]:
    """`[O...]`, with one entry in place of many on each axis but the first, where they are the same."""
    for axis in range(1, constant.ndim):
        if not np.ptp(constant, axis=axis).any():
            constant = constant.take([0], axis=axis)
    shared: list[Any] = constant.tolist()
    return shared


def _link(layer: Any) -> AnyLink | None:
    if is_plain_dense(layer):
        return Link("dense", layer.name, *weights(layer), layer.activation)
    if type(layer) is keras.layers.Conv2D and layer.groups == 1 and layer.data_format == "channels_last":
        settings = {name: getattr(layer, name) for name in ("strides", "padding", "dilation_rate")}
        return Link("conv", layer.name, *weights(layer), layer.activation, settings)
    if type(layer) is keras.layers.Flatten and layer.data_format == "channels_last":
        return Flat(layer.name)
    if type(layer) in _KEPT or is_layer_norm(layer):
        return Kept(layer)
    return None


def _parts(layer: Any) -> tuple[Link, Remembered]:
    """A recurrent layer as a Dense, which can take in what comes before, and a cell."""
    kernel, _, bias = (np.asarray(weight, np.float64) for weight in layer.get_weights())
    own = bias[0] if layer.kind == "gru" else bias
    into = Link("dense", f"{layer.name}_inputs", kernel, own, keras.activations.linear)
    return into, Remembered(of_recurrent(layer))


def is_plain_dense(layer: Any) -> bool:
    """Whether it is a Dense layer on `[B, I]`, or a noisy one, which plays by its mean weights."""
    return type(layer) in (keras.layers.Dense, NoisyDense) and len(layer.input.shape) == 2


def is_noisy(layer: Any) -> bool:
    """Whether its weights have noise in training."""
    return type(layer) is NoisyDense


def is_rectifier(layer: Any) -> bool:
    """Whether it is a layer whose outputs are at least zero."""
    return type(layer) is keras.layers.ReLU and not layer.negative_slope and layer.threshold >= 0


def is_linear_dense(layer: Any) -> bool:
    """Whether it is a Dense layer on `[B, I]` without an activation."""
    return is_plain_dense(layer) and layer.activation is keras.activations.linear


def weights(layer: Any) -> tuple[Array, Array]:
    """Kernel and bias in float64, those of the mean if there is noise; a layer without a bias gets zeros."""
    kernel, *bias = (np.asarray(weight, np.float64) for weight in layer.get_weights())
    return kernel, bias[0] if bias else np.zeros(kernel.shape[-1])
