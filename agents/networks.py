"""Q-networks: functional `tf_keras` models, a torso with the value streams on top of it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import tf_keras as keras

from rlplatform.agents.layers import (
    AtLevels,
    Dueling,
    Expectation,
    ImplicitQuantiles,
    MeanQuantile,
    Standardize,
    linear,
)
from rlplatform.agents.recurrent import Output, Recurrent, state_size
from rlplatform.agents.torsos import torso_function
from rlplatform.config import Config, NetworkConfig
from rlplatform.errors import UserError

STANDARDIZE = "standardize"  # what the layer is called that holds the statistics of observations


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
        training: whether the output is what the head's loss takes; only then `training.precision` counts.

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
        features = Standardize(name=STANDARDIZE)(features)
    computing = (
        f"mixed_{config.training.precision}" if training and config.training.precision != "float32" else "float32"
    )
    with _computing_in(computing):
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
        with _computing_in(computing):
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


@contextlib.contextmanager
def _computing_in(policy: str) -> Iterator[None]:
    """Layers that are made inside compute as one of Keras's policies says; their weights are float32 in each.

    Hidden layers are where the work is. Values, their distributions and a memory stay in float32, to which their layers
    turn what they are given.
    """
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(policy)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


def _memory_inputs(network: NetworkConfig, training: bool) -> list[Any]:
    """What a recurrent layer takes beside the features: the state, and for training where episodes begin."""
    state = keras.Input(shape=(state_size(network),), name="state")
    return [state, keras.Input(shape=(None,), dtype="bool", name="first")] if training else [state]


def _alone(tensors: list[Any]) -> Any:
    """The only one of the tensors, or all of them."""
    return tensors[0] if len(tensors) == 1 else tensors
