"""Transfer: a run begins with layers of another network, those of one that has learned already."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import h5py
import numpy as np
import tf_keras as keras

from rlplatform.agents import backbones, networks
from rlplatform.agents.freezing import freeze
from rlplatform.agents.normalization import Normalization
from rlplatform.config import Config
from rlplatform.errors import UserError
from rlplatform.training.run import Run

Array = np.ndarray[Any, Any]
NOTHING = "none"  # a source that says: all weights are fresh, and that is meant


class Layer(NamedTuple):
    """A layer of the new network, and the one whose weights it takes over."""

    name: str
    source: str | None  # None: it begins fresh


def load_source(config: Config) -> Any:
    """The network whose layers are reused, that of `transfer.source`; None where all weights are fresh.

    It is a run's folder, whose best policy is taken; a Keras model as a `.keras` or `.h5` file; or, where the torso is
    a backbone, the file of its published weights.

    Raises:
        UserError: there is none.
    """
    source = config.transfer.source
    if source in ("", NOTHING):
        return None
    path = pathlib.Path(source)
    if path.is_dir():
        return Run.open(path).network("best")
    if path.suffix not in (".keras", ".h5"):
        raise UserError(f"transfer.source must be a run's folder, a .keras file or a .h5 file; got {source!r}")
    if not path.is_file():
        raise UserError(f"there is no file {source}, from which layers are to be reused")
    if path.suffix == ".h5" and not _holds_model(path):
        return backbones.load(path, config.network)
    try:
        return keras.models.load_model(path, compile=False)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{source} cannot be read as a tf_keras model: {str(error).splitlines()[0]}") from None


def _holds_model(path: pathlib.Path) -> bool:
    """Whether an HDF5 file holds a network, not its weights alone."""
    try:
        with h5py.File(path, "r") as file:
            return "model_config" in file.attrs
    except OSError as error:
        raise UserError(f"{path} is no HDF5 file, or it is cut short: {str(error).splitlines()[0]}") from None


def match(network: Any, source: Any) -> list[Layer]:
    """Which layer of `source` each layer with weights takes over: the next one whose weights have the same shapes.

    Both networks are walked from the observation on, so that layers that differ, such as the first one where the
    observations differ, are left out, and those after them still find their counterparts.
    """
    waiting = [layer for layer in source.layers if layer.weights]
    found = []
    for layer in network.layers:
        if not layer.weights:
            continue
        fitting = [index for index, other in enumerate(waiting) if _shapes(other) == _shapes(layer)]
        named = [index for index in fitting if waiting[index].name == layer.name]
        index = next(iter(named or fitting), None)
        found.append(Layer(layer.name, None if index is None else waiting[index].name))
        if index is not None:
            waiting = waiting[index + 1 :]
    return found


def begin(network: Any, config: Config) -> list[Layer]:
    """Gives a fresh network the layers that `transfer.source` has for it, and says which; none without a source.

    Raises:
        UserError: there is no such source, or no layer of it fits.
    """
    source = load_source(config)
    return [] if source is None else take_over(network, source)


def statistics(config: Config, layers: list[Layer]) -> dict[str, Array]:
    """What the run `transfer.source` has counted of its rewards and observations, as its newest checkpoint has it.

    The values of the layers that were taken over are in those units. Nothing, where the last layer begins fresh or the
    source is no run with a checkpoint; nothing of observations, where their own layer begins fresh.

    Args:
        config: the new run's.
        layers: from `begin`.
    """
    path = pathlib.Path(config.transfer.source)
    if layers[-1].source is None or not path.is_dir():
        return {}
    run = Run.open(path)
    saved = run.checkpoints().restore("agent/normalization/")
    if saved is None:
        return {}
    made = Normalization(run.config, run.fresh_network())
    places = {id(variable): index for index, variable in enumerate(made.own_variables)}
    found = {
        name: saved.variables[f"agent/normalization/{places[id(variable)]}"]
        for name, variable in made.statistics().items()
    }
    if all(layer.source is None for layer in layers if layer.name == networks.STANDARDIZE):
        found.pop("observations", None)
    return found


def take_over(network: Any, source: Any) -> list[Layer]:
    """Gives the layers of `network` that match those of `source` their weights.

    Raises:
        UserError: no layer matches.
    """
    layers = match(network, source)
    if not any(layer.source for layer in layers):
        raise UserError(
            "no layer of the source has the shape of one of the new network's: "
            f"{_described(source)} against {_described(network)}"
        )
    for name, origin in layers:
        if origin is not None:
            network.get_layer(name).set_weights(source.get_layer(origin).get_weights())
    return layers


def prepared(run: Run) -> Run:
    """A new run whose network and source were tried, with `transfer.frozen_layers` as a number where it is -1.

    Raises:
        UserError: the torso does not fit what the environment shows; there is no such source, no layer of it fits, or
            nothing would learn; or the torso is a backbone, and it is not said where its weights come from.
    """
    config = run.config
    if not config.transfer.source:
        if config.network.torso in backbones.BACKBONES:
            raise UserError(_missing(run))
        run.fresh_network()
        return run
    network = run.fresh_network()
    taken = begin(network, config)
    if config.transfer.frozen_layers < 0:
        config = config.replace(transfer={"frozen_layers": freezable(taken)})
    freeze(network, config)
    return dataclasses.replace(run, config=config)


def _missing(run: Run) -> str:
    """Which file a backbone's weights come from."""
    network = run.config.network
    name = backbones.published(network, run.observation_shape)
    return (
        f"network.torso {network.torso!r} begins with published weights, and nothing is downloaded: bring {name}, "
        f"which tf_keras keeps in {backbones.KEPT_IN}, and set transfer.source to its path; or set transfer.source to "
        f"{NOTHING!r} for random weights"
    )


def freezable(layers: list[Layer]) -> int:
    """How many layers may be frozen: those up to the last one that was taken over, but never the last of all."""
    taken = [index + 1 for index, layer in enumerate(layers[:-1]) if layer.source is not None]
    return max(taken, default=0)


def _shapes(layer: Any) -> list[tuple[int, ...]]:
    return [tuple(weight.shape) for weight in layer.weights]


def _described(network: Any) -> str:
    return ", ".join(f"{layer.name} {list(_shapes(layer)[0])}" for layer in network.layers if layer.weights)
