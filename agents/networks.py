"""Q-networks: functional `tf_keras` models, one function per torso, and the value streams on top of it."""

import importlib
from collections.abc import Callable
from typing import Any

import tf_keras as keras

from rlplatform.agents.layers import (
    AtLevels,
    Dueling,
    Expectation,
    ImplicitQuantiles,
    MeanQuantile,
    Standardize,
    hidden,
    hidden_stream,
    linear,
)
from rlplatform.agents.recurrent import Output, Recurrent, state_size
from rlplatform.agents.torsos import impala, impala_x2, minatar
from rlplatform.config import Config, NetworkConfig, nearest
from rlplatform.errors import UserError

Stream = Callable[[Any], Any]  # the last hidden layers of one value stream: features -> features
SMALLEST_IMAGE = 36  # pixels that three convolutions without padding need
Torso = Callable[[Any, NetworkConfig], tuple[Any, Callable[[str], Stream]]]


def build(
    config: Config,
    observation_shape: tuple[int, ...],
    observation_dtype: str,
    num_actions: int,
    training: bool = False,
) -> Any:
    """The Q-network, with weights drawn from Keras's seed (`keras.utils.set_random_seed`).

    The policy's network and the one that training works on have the same weights in the same order; they are one and
    the same network where the head is scalar.

    Args:
        config: torso, widths, streams and the value head.
        observation_shape: what the network sees, `[O...]`, frame stack included.
        observation_dtype: `uint8` inputs are scaled to [0, 1] inside the network; all others are cast to float32.
        num_actions: A.
        training: whether the output is what the head's loss takes.

    Returns:
        A functional model `[B, O...]` to `[B, A]` float32, the expected returns. For training, its output is the
        head's: `[B, A]`, or `[B, A, K]` for distributions; with the head `implicit_quantile` it takes a list of the
        observation and the quantile levels `[1, K]`, the same for all items. The last Dense is `q`, or, when dueling,
        `Dueling` joins the Dense layers `value` and `advantage`.

        A recurrent network takes the state `[B, H]` after the observation and gives the new one after its values. For
        training it takes L rows of B sequences at once, time-major: observations `[L * B, O...]`, the state `[B, H]`
        before the first row, `first` `[L, B]` (there an episode begins, and what was before is forgotten), then the
        levels; and gives the output `[L * B, ...]` and the states `[L * B, H]` after each row.

    Raises:
        UserError: the torso is unknown or does not fit the observation.
    """
    network, agent = config.network, config.agent
    observation = keras.Input(shape=observation_shape, dtype=observation_dtype, name="observation")
    features = (
        keras.layers.Rescaling(1.0 / 255.0, name="rescale")(observation)
        if observation_dtype == "uint8"
        else observation
    )
    if network.normalize_observations:
        features = Standardize(name="standardize")(features)
    made = torso_function(network.torso, observation_shape)(features, network)
    if not (isinstance(made, tuple) and len(made) == 2 and callable(made[1])):
        raise UserError(
            f"network.torso {network.torso!r} must give features and a function that makes a stream's last layers; "
            f"got {made!r}"
        )
    features, stream = made
    takes, gives = [observation], []
    if config.is_recurrent:
        memory = _memory_inputs(network, training)
        states = Recurrent(network.recurrent, network.recurrent_units, name="recurrent")([features, *memory])
        features = Output(network.recurrent_units, name="remembered")(states)
        takes, gives = [observation, *memory], [states]
    implicit = agent.head == "implicit_quantile"
    tau = keras.Input(shape=(agent.num_quantiles,), name="tau") if implicit and training else None
    takes += [] if tau is None else [tau]
    atoms = {"categorical": agent.num_atoms, "quantile": agent.num_quantiles}.get(agent.head, 1)

    def values(kind: str, count: int) -> Any:
        """One stream: `[B, count]`, or `[B, count, K]`."""
        inputs = stream(kind)(features)
        if implicit:
            embedded = ImplicitQuantiles(name="quantiles" if kind == "q" else f"{kind}_quantiles")
            inputs = embedded(inputs if tau is None else (inputs, tau))
        dense = linear(count * atoms, kind, network)
        if tau is not None:
            return AtLevels(dense, name=f"{kind}_levels")(inputs)
        outputs = dense(inputs)
        return outputs if atoms == 1 else keras.layers.Reshape((count, atoms), name=f"{kind}_atoms")(outputs)

    if network.dueling:
        output = Dueling(name="q")((values("value", 1), values("advantage", num_actions)))
    else:
        output = values("q", num_actions)
    if not training and agent.head == "quantile":
        output = MeanQuantile(name="mean")(output)
    if not training and agent.head == "categorical":
        output = Expectation(agent.v_min, agent.v_max, name="expectation")(output)
    gives = [output, *gives]
    return keras.Model(_alone(takes), _alone(gives), name="q_network")


def _memory_inputs(network: NetworkConfig, training: bool) -> list[Any]:
    """What a recurrent layer takes beside the features: the state, and for training where episodes begin."""
    state = keras.Input(shape=(state_size(network),), name="state")
    return [state, keras.Input(shape=(None,), dtype="bool", name="first")] if training else [state]


def _alone(tensors: list[Any]) -> Any:
    """The only one of the tensors, or all of them."""
    return tensors[0] if len(tensors) == 1 else tensors


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
        features = hidden(features, units, f"dense_{index}", config)
    return features, hidden_stream(config.hidden_units[-1], f"dense_{len(config.hidden_units) - 1}", config)


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
    return keras.layers.Flatten(name="flatten")(features), hidden_stream(512, "dense_0", config)


TORSOS: dict[str, Torso] = {
    "mlp": mlp,
    "nature": nature,
    "minatar": minatar,
    "impala": impala,
    "impala_x2": impala_x2,
}
