"""Torsos: from observations to features, one function each, and how a configuration names them."""

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import tf_keras as keras

from rlplatform.agents.backbones import BACKBONES, feature_maps
from rlplatform.agents.layers import convolve, hidden, hidden_stream
from rlplatform.config import Convolution, NetworkConfig
from rlplatform.errors import UserError, nearest

Stream = Callable[[Any], Any]  # the last hidden layers of one value stream: features -> features
Torso = Callable[[Any, NetworkConfig], tuple[Any, Callable[[str], Stream]]]
NATURE = (Convolution(32, 8, 4), Convolution(64, 4, 2), Convolution(64, 3, 1))
MINATAR = (Convolution(16, 3, 1),)


def is_dense(config: NetworkConfig, observation_shape: tuple[int, ...]) -> bool:
    """Whether the network is made of dense layers alone, as far as its configuration tells."""
    return torso_function(config.torso, observation_shape) in (mlp, linear)


def torso_function(name: str, observation_shape: tuple[int, ...]) -> Torso:
    """The torso by name; `auto` takes `nature` for images of at least 36 x 36 and `mlp` for all else."""
    if name == "auto":
        image = len(observation_shape) == 3 and min(observation_shape[:2]) >= _smallest_image(NATURE)
        name = "nature" if image else "mlp"
    if name in TORSOS:
        return TORSOS[name]
    if ":" in name:
        module, _, function = name.partition(":")
        try:
            torso = getattr(importlib.import_module(module), function)
        except Exception as error:  # whatever a user's module raises when it is imported
            raise UserError(f"network.torso {name!r} cannot be imported: {error}") from error
        if not callable(torso):
            raise UserError(f"network.torso {name!r} is a {type(torso).__name__}, not a function")
        return torso  # type: ignore[no-any-return]
    raise UserError(f"unknown network.torso {name!r}; {nearest(name, ['auto', *TORSOS])} or `module:function`")


def linear(observation: Any, config: NetworkConfig) -> tuple[Any, Callable[[str], Stream]]:
    """No hidden layer: values are linear in the observation."""
    return _flat(observation), lambda kind: lambda features: features


def mlp(observation: Any, config: NetworkConfig) -> tuple[Any, Callable[[str], Stream]]:
    """Dense layers with ReLU. With two streams, each has a last hidden layer of its own."""
    if not config.hidden_units:
        raise UserError(
            "network.hidden_units needs at least one layer, like [64, 64]; got []: network.torso = 'linear' has none"
        )
    features = _flat(observation)
    for index, units in enumerate(config.hidden_units[:-1]):
        features = hidden(features, units, f"dense_{index}", config)
    return features, hidden_stream(config.hidden_units[-1], f"dense_{len(config.hidden_units) - 1}", config)


def cnn(observation: Any, config: NetworkConfig) -> tuple[Any, Callable[[str], Stream]]:
    """Convolutions without padding, then dense layers as those of `mlp`, or none; for channels-last images."""
    if not config.convolutions:
        raise UserError(
            "network.convolutions needs at least one layer, like [[16, 3, 1]]; got []: network.torso = 'mlp' has none"
        )
    _check(config.torso, observation, _smallest_image(config.convolutions))
    return (mlp if config.hidden_units else linear)(convolve(observation, config.convolutions), config)


def nature(observation: Any, config: NetworkConfig) -> tuple[Any, Callable[[str], Stream]]:
    """Three convolutions and a Dense of 512 units (Mnih et al. 2015), for channels-last images of at least 36 x 36."""
    return cnn(observation, dataclasses.replace(config, convolutions=NATURE, hidden_units=(512,)))


def minatar(observation: Any, config: NetworkConfig) -> tuple[Any, Callable[[str], Stream]]:
    """One convolution of 16 filters of 3 x 3, and a Dense of 128 units (Young & Tian 2019).

    For channels-last images of at least 3 x 3, such as MinAtar's of 10 x 10.
    """
    return cnn(observation, dataclasses.replace(config, convolutions=MINATAR, hidden_units=(128,)))


def impala(observation: Any, config: NetworkConfig) -> tuple[Any, Callable[[str], Stream]]:
    """Three stages of 16, 32 and 32 filters, each with two residual blocks, and a Dense of 256 units.

    The large network of Espeholt et al. 2018 (figure 3, without the LSTM), for channels-last images of at least 8 x 8.
    """
    return _impala("impala", observation, config, width=1)


def impala_x2(observation: Any, config: NetworkConfig) -> tuple[Any, Callable[[str], Stream]]:
    """`impala` with twice the filters, as in the scaled agents since (Cobbe et al. 2020)."""
    return _impala("impala_x2", observation, config, width=2)


def _impala(name: str, observation: Any, config: NetworkConfig, width: int) -> tuple[Any, Callable[[str], Stream]]:
    _check(name, observation, smallest=8)
    features = observation
    for stage, filters in enumerate((16, 32, 32)):
        features = _conv(features, width * filters, f"conv_{stage}")
        features = keras.layers.MaxPooling2D(3, strides=2, padding="same", name=f"pool_{stage}")(features)
        for block in range(2):
            label = f"{stage}_{block}"
            inner = keras.layers.ReLU(name=f"relu_{label}_a")(features)
            inner = _conv(inner, width * filters, f"conv_{label}_a")
            inner = keras.layers.ReLU(name=f"relu_{label}_b")(inner)
            inner = _conv(inner, width * filters, f"conv_{label}_b")
            features = keras.layers.Add(name=f"add_{label}")([features, inner])
    features = keras.layers.ReLU(name="relu")(features)
    return keras.layers.Flatten(name="flatten")(features), hidden_stream(256, "dense_0", config)


def pretrained(observation: Any, config: NetworkConfig) -> tuple[Any, Callable[[str], Stream]]:
    """`mlp` on the last feature maps of the backbone that `config.torso` names, for images of any size and channels."""
    _check(config.torso, observation, smallest=1)
    return mlp(feature_maps(observation, config), config)


def _flat(observation: Any) -> Any:
    return keras.layers.Flatten(name="flatten")(observation) if len(observation.shape) > 2 else observation


def _conv(features: Any, filters: int, name: str) -> Any:
    return keras.layers.Conv2D(filters, 3, padding="same", name=name)(features)


def _smallest_image(convolutions: Sequence[Convolution]) -> int:
    """The side in pixels of the image of which the last convolution makes a single place."""
    side = 1
    for _, size, stride in reversed(convolutions):
        side = (side - 1) * stride + size
    return side


def _check(name: str, observation: Any, smallest: int) -> None:
    """Refuses what is no image, or too small a one."""
    if len(observation.shape) != 4 or min(observation.shape[1:3]) < smallest:
        raise UserError(
            f"network.torso {name!r} needs images of at least {smallest} x {smallest} for its convolutions, with "
            f"channels last; got {tuple(observation.shape[1:])}, for which 'mlp' works"
        )


TORSOS: dict[str, Torso] = {
    "linear": linear,
    "mlp": mlp,
    "cnn": cnn,
    "nature": nature,
    "minatar": minatar,
    "impala": impala,
    "impala_x2": impala_x2,
    **dict.fromkeys(BACKBONES, pretrained),
}
