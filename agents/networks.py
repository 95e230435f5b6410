"""Q-networks: functional `tf_keras` models, one function per torso, and the value streams on top of it."""

import importlib
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras

from rlplatform.config import NetworkConfig, nearest
from rlplatform.errors import UserError

Stream = Callable[[Any], Any]  # the last hidden layers of one value stream: features -> features
SMALLEST_IMAGE = 36  # pixels that three convolutions without padding need
Torso = Callable[[Any, NetworkConfig], tuple[Any, Callable[[str], Stream]]]


@keras.utils.register_keras_serializable(package="rlplatform")
class Dueling(keras.layers.Layer):
    """Q = V + A - mean(A) (Wang et al. 2016, eq. 9): `[B, 1]` and `[B, A]` to `[B, A]`, float32."""

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """The values `[B, A]` from those of the state `[B, 1]` and the advantages `[B, A]`."""
        value, advantage = inputs
        return value + advantage - tf.reduce_mean(advantage, axis=1, keepdims=True)


def build(config: NetworkConfig, observation_shape: tuple[int, ...], observation_dtype: str, num_actions: int) -> Any:
    """The Q-network, with weights drawn from Keras's seed (`keras.utils.set_random_seed`).

    Args:
        config: torso, widths and streams.
        observation_shape: what the network sees, `[O...]`, frame stack included.
        observation_dtype: `uint8` inputs are scaled to [0, 1] inside the network; all others are cast to float32.
        num_actions: A.

    Returns:
        A functional model `[B, O...]` to `[B, A]` float32. Its last layer is the Dense `q`, or, when dueling, `Dueling`
        over the Dense layers `value` and `advantage`.

    Raises:
        UserError: the torso is unknown or does not fit the observation.
    """
    observation = keras.Input(shape=observation_shape, dtype=observation_dtype, name="observation")
    features = (
        keras.layers.Rescaling(1.0 / 255.0, name="rescale")(observation)
        if observation_dtype == "uint8"
        else observation
    )
    made = torso_function(config.torso, observation_shape)(features, config)
    if not (isinstance(made, tuple) and len(made) == 2 and callable(made[1])):
        raise UserError(
            f"network.torso {config.torso!r} must give features and a function that makes a stream's last layers; "
            f"got {made!r}"
        )
    features, stream = made
    if config.dueling:
        value = keras.layers.Dense(1, name="value")(stream("value")(features))
        advantage = keras.layers.Dense(num_actions, name="advantage")(stream("advantage")(features))
        q = Dueling(name="q")((value, advantage))
    else:
        q = keras.layers.Dense(num_actions, name="q")(stream("q")(features))
    return keras.Model(observation, q, name="q_network")


def is_dense(config: NetworkConfig, observation_shape: tuple[int, ...]) -> bool:
    """Whether the network is made of dense layers alone, as far as its configuration tells."""
    return torso_function(config.torso, observation_shape) is mlp


def torso_function(name: str, observation_shape: tuple[int, ...]) -> Torso:
    """The torso by name; `auto` takes `nature` for images of at least 36 x 36 and `mlp` for all else."""
    if name == "auto":
        image = len(observation_shape) == 3 and min(observation_shape[:2]) >= SMALLEST_IMAGE
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


def mlp(observation: Any, config: NetworkConfig) -> tuple[Any, Callable[[str], Stream]]:
    """Dense layers with ReLU. With two streams, each has a last hidden layer of its own."""
    if not config.hidden_units:
        raise UserError("network.hidden_units needs at least one layer, like [64, 64]; got []")
    features = keras.layers.Flatten(name="flatten")(observation) if len(observation.shape) > 2 else observation
    for index, units in enumerate(config.hidden_units[:-1]):
        features = keras.layers.Dense(units, activation="relu", name=f"dense_{index}")(features)
    return features, _hidden_stream(config.hidden_units[-1], f"dense_{len(config.hidden_units) - 1}")


def nature(observation: Any, config: NetworkConfig) -> tuple[Any, Callable[[str], Stream]]:
    """Three convolutions and a Dense of 512 units (Mnih et al. 2015), for channels-last images of at least 36 x 36."""
    if len(observation.shape) != 4 or min(observation.shape[1:3]) < SMALLEST_IMAGE:
        raise UserError(
            "network.torso 'nature' needs images of at least 36 x 36 with channels last; got "
            f"{tuple(observation.shape[1:])}, for which 'mlp' works"
        )
    features = observation
    for index, (filters, size, stride) in enumerate(((32, 8, 4), (64, 4, 2), (64, 3, 1))):
        features = keras.layers.Conv2D(filters, size, stride, activation="relu", name=f"conv_{index}")(features)
    return keras.layers.Flatten(name="flatten")(features), _hidden_stream(512, "dense_0")


def _hidden_stream(units: int, name: str) -> Callable[[str], Stream]:
    """Makes a stream's last hidden layer: `dense_1` alone, `value_dense_1` and `advantage_dense_1` when dueling."""

    def stream(kind: str) -> Stream:
        return keras.layers.Dense(units, activation="relu", name=name if kind == "q" else f"{kind}_{name}")  # type: ignore[no-any-return]

    return stream


TORSOS: dict[str, Torso] = {"mlp": mlp, "nature": nature}
