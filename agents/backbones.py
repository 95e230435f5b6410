"""Backbones: networks of `tf_keras.applications` that others have trained on photographs, as layers under a torso.

Nothing is downloaded: who uses one brings the file of its published weights (`training.transfer`).
"""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras

from rlplatform.config import NetworkConfig
from rlplatform.errors import UserError

Array = np.ndarray[Any, Any]
SMALLEST = 32  # pixels, the least that either network halves five times
KEPT_IN = "~/.keras/models"  # where tf_keras puts what it downloads


class Backbone(NamedTuple):
    """One architecture, without its classifier.

    Attributes:
        make: from the image's shape `[H, W, 3]` and the width alpha to a model with random weights.
        preprocess: from pixels, 0 to 255 in RGB, to what the published weights were trained on.
        published: from the image's height and width and alpha to the name of the file of published weights.
    """

    make: Callable[[tuple[int, int, int], float], Any]
    preprocess: Callable[[Array], Array]
    published: Callable[[tuple[int, int], float], str]


def _mobilenet_file(size: tuple[int, int], alpha: float) -> str:
    side = size[0] if size[0] == size[1] and size[0] in (96, 128, 160, 192, 224) else 224
    return f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{float(alpha)}_{side}_no_top.h5"


BACKBONES = {
    "vgg16": Backbone(  # Simonyan & Zisserman 2015
        lambda shape, alpha: keras.applications.VGG16(include_top=False, weights=None, input_shape=shape),
        keras.applications.vgg16.preprocess_input,
        lambda size, alpha: "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    "mobilenet_v2": Backbone(  # Sandler et al. 2018
        lambda shape, alpha: keras.applications.MobileNetV2(shape, alpha, include_top=False, weights=None),
        keras.applications.mobilenet_v2.preprocess_input,
        _mobilenet_file,
    ),
}


def feature_maps(observation: Any, config: NetworkConfig) -> Any:
    """The last feature maps of the backbone that `config.torso` names, `[B, H / 32, W / 32, F]`.

    Args:
        observation: `[B, H, W, C]` in [0, 1], as the network sees it after `rescale`; resized and turned into three
            colours here, by `Pixels`.
        config: the network's.
    """
    backbone, size = BACKBONES[config.torso], image_size(tuple(observation.shape[1:]), config)
    features = observation
    if tuple(observation.shape[1:3]) != size:
        features = keras.layers.Resizing(*size, interpolation="bilinear", name="resize")(features)
    matrix, offset = as_trained(backbone.preprocess, observation.shape[-1])
    features = Pixels(matrix.tolist(), offset.tolist(), name="pixels", dtype="float32")(features)
    return _applied(_made(config, size), features)


def image_size(shape: tuple[int, ...], config: NetworkConfig) -> tuple[int, int]:
    """Height and width of what the backbone sees of frames `[H, W, C]`: each at least 32.

    Raises:
        UserError: `network.backbone_size` is smaller.
    """
    side = config.backbone_size
    if 0 < side < SMALLEST:
        raise UserError(f"network.backbone_size must be at least {SMALLEST}, or 0 for the frames' own size; got {side}")
    return (side, side) if side else (max(SMALLEST, shape[0]), max(SMALLEST, shape[1]))


def as_trained(preprocess: Callable[[Array], Array], channels: int) -> tuple[Array, Array]:
    """What a backbone was trained on as an affine map of the channels `[C]` of a frame in [0, 1].

    `preprocess` is affine for each pixel, so that its values at black and at the three colours are all of it. One
    channel becomes three equal ones, three are RGB; 3 n are n stacked frames in RGB, whose mean is taken. Any other
    number is averaged in three parts of equal length, in order: of four stacked grey frames the oldest are red, the
    newest blue.

    Returns:
        matrix `[C, 3]` and offset `[3]`, float64.
    """
    corners = np.concatenate([np.zeros((1, 3)), 255.0 * np.eye(3)])
    values = np.asarray(preprocess(corners[:, None, None, :].copy()), np.float64).reshape(4, 3)
    return _to_colours(channels) @ (values[1:] - values[0]), values[0]


def _to_colours(channels: int) -> Array:
    """`[C, 3]` float64, what each channel gives to red, green and blue; columns sum to one."""
    if channels % 3 == 0:
        return np.tile(np.eye(3), (channels // 3, 1)) * (3.0 / channels)
    edges = np.arange(4) * channels / 3.0
    places = np.arange(channels)[:, None]
    overlap = np.minimum(places + 1, edges[1:]) - np.maximum(places, edges[:-1])
    return np.asarray(np.maximum(overlap, 0.0) * (3.0 / channels))


@keras.utils.register_keras_serializable(package="rlplatform")
class Pixels(keras.layers.Layer):
    """`x @ matrix + offset` for each pixel, `[B, H, W, C]` to `[B, H, W, 3]` float32; nothing of it learns.

    Args:
        matrix: `[C, 3]`.
        offset: `[3]`.
    """

    def __init__(self, matrix: list[list[float]], offset: list[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.matrix, self.offset = matrix, offset

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """As a convolution of 1 x 1, which every runtime has in float and in int8."""
        kernel = tf.constant(self.matrix, tf.float32)[None, None]
        return tf.nn.bias_add(tf.nn.conv2d(inputs, kernel, 1, "VALID"), tf.constant(self.offset, tf.float32))

    def get_config(self) -> dict[str, Any]:
        """See Keras."""
        return {**super().get_config(), "matrix": self.matrix, "offset": self.offset}


def load(path: pathlib.Path, config: NetworkConfig) -> Any:
    """The backbone that `config.torso` names with the weights of a file, for its layers to be taken over.

    Args:
        path: an HDF5 file of weights without the classifier, as `tf_keras.applications` publishes them.
        config: the network's.

    Raises:
        UserError: the torso is no backbone, or the file is damaged or holds the weights of another network.
    """
    if config.torso not in BACKBONES:
        raise UserError(
            f"{path} holds weights without a network; network.torso must say whose they are: {' or '.join(BACKBONES)}"
        )
    template = _made(config, (SMALLEST, SMALLEST))  # convolutions have the same weights for every size
    try:
        template.load_weights(path)
    except Exception as error:  # h5py and Keras each have several kinds for a damaged file and for another network's
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} holds no weights of {described(config)} without its classifier, or it is damaged: {reason}"
        ) from None
    image = keras.Input(template.input_shape[1:])
    network = keras.Model(image, _applied(template, image))
    for name, weights in _folded(template).items():
        network.get_layer(name).set_weights(weights)
    return network


def described(config: NetworkConfig) -> str:
    """The backbone and, where it comes in several, its width."""
    return f"{config.torso} at alpha {config.backbone_alpha:g}" if config.torso == "mobilenet_v2" else config.torso


def published(config: NetworkConfig, observation_shape: tuple[int, ...]) -> str:
    """The name of the file with the published weights that fit."""
    size = image_size(observation_shape, config)
    return BACKBONES[config.torso].published(size, config.backbone_alpha)


def _made(config: NetworkConfig, size: tuple[int, int]) -> Any:
    return BACKBONES[config.torso].make((*size, 3), config.backbone_alpha)


def _applied(template: Any, image: Any) -> Any:
    """The output of layers like those of `template` on another image, with fresh weights.

    Batch normalisation is left out: with the statistics of its training it is affine, and `_folded` puts it into the
    layer before. So it plays while learning just as it plays after, its statistics never move, and what is exported is
    convolutions with biases.
    """
    values = {id(template.input): image}
    for layer in template.layers[1:]:
        inputs = (
            [values[id(each)] for each in layer.input] if isinstance(layer.input, list) else values[id(layer.input)]
        )
        values[id(layer.output)] = inputs if _is_norm(layer) else _twin(layer)(inputs)
    return values[id(template.output)]


def _twin(layer: Any) -> Any:
    """A layer like it, with fresh weights and a bias."""
    settings = layer.get_config()
    return type(layer).from_config(settings | {"use_bias": True} if "use_bias" in settings else settings)


def _folded(template: Any) -> dict[str, list[Array]]:
    """Kernel and bias of each convolution by its name, with the normalisation that follows it inside."""
    producers = {id(layer.output): layer for layer in template.layers}
    found = {layer.name: layer.get_weights() for layer in template.layers if layer.weights and not _is_norm(layer)}
    for norm in filter(_is_norm, template.layers):
        layer = producers[id(norm.input)]
        gamma, beta, mean, variance = (np.asarray(weight, np.float64) for weight in norm.get_weights())
        scale = gamma / np.sqrt(variance + norm.epsilon)
        kernel, *bias = found[layer.name]
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)  # its kernel is [h, w, C, 1]
        found[layer.name] = [
            (kernel * (scale[:, None] if depthwise else scale)).astype(np.float32),
            (((bias[0] if bias else 0.0) - mean) * scale + beta).astype(np.float32),
        ]
    return found


def _is_norm(layer: Any) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization)
