"""Convolutional torsos for small and for large images, beside `nature` and `mlp` of `networks.py`."""

from collections.abc import Callable
from typing import Any

import tf_keras as keras

from rlplatform.agents.layers import hidden_stream
from rlplatform.config import NetworkConfig
from rlplatform.errors import UserError

Stream = Callable[[Any], Any]  # as in networks.py


def minatar(observation: Any, config: NetworkConfig) -> tuple[Any, Callable[[str], Stream]]:
    """One convolution of 16 filters of 3 x 3, and a Dense of 128 units (Young & Tian 2019).

    For channels-last images of at least 3 x 3, such as MinAtar's of 10 x 10.
    """
    _check("minatar", observation, smallest=3)
    features = keras.layers.Conv2D(16, 3, activation="relu", name="conv_0")(observation)
    return keras.layers.Flatten(name="flatten")(features), hidden_stream(128, "dense_0", config)


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


def _conv(features: Any, filters: int, name: str) -> Any:
    return keras.layers.Conv2D(filters, 3, padding="same", name=name)(features)


def _check(name: str, observation: Any, smallest: int) -> None:
    """Refuses what is no image, or too small a one."""
    if len(observation.shape) != 4 or min(observation.shape[1:3]) < smallest:
        raise UserError(
            f"network.torso {name!r} needs images of at least {smallest} x {smallest} with channels last; got "
            f"{tuple(observation.shape[1:])}, for which 'mlp' works"
        )
