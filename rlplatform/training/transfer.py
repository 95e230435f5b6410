"""Transfer: a run begins with layers of another network, those of one that has learned already."""

import pathlib
from typing import Any, NamedTuple

import tf_keras as keras

from rlplatform.config import Config
from rlplatform.errors import UserError
from rlplatform.training.run import Run


class Layer(NamedTuple):
    """A layer of the new network, and the one whose weights it takes over."""

    name: str
    source: str | None  # None: it begins fresh


def load_source(source: str) -> Any:
    """The network whose layers are reused.

    Args:
        source: a run's folder, whose best policy is taken, or a Keras model as a `.keras` or `.h5` file.

    Raises:
        UserError: there is none.
    """
    path = pathlib.Path(source)
    if path.is_dir():
        return Run.open(path).network("best")
    if path.suffix not in (".keras", ".h5"):
        raise UserError(f"transfer.source must be a run's folder or a .keras file; got {source!r}")
    if not path.is_file():
        raise UserError(f"there is no file {source}, from which layers are to be reused")
    try:
        return keras.models.load_model(path, compile=False)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{source} cannot be read as a tf_keras model: {str(error).splitlines()[0]}") from None


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


def resolved(config: Config, network: Any) -> Config:
    """The configuration with `transfer.frozen_layers` as a number, where it is -1.

    Raises:
        UserError: there is no such source, or no layer of it fits.
    """
    if not config.transfer.source or config.transfer.frozen_layers >= 0:
        return config
    layers = take_over(network, load_source(config.transfer.source))
    return config.replace(transfer={"frozen_layers": freezable(layers)})


def freezable(layers: list[Layer]) -> int:
    """How many layers may be frozen: those up to the last one that was taken over, but never the last of all."""
    taken = [index + 1 for index, layer in enumerate(layers[:-1]) if layer.source is not None]
    return max(taken, default=0)


def _shapes(layer: Any) -> list[tuple[int, ...]]:
    return [tuple(weight.shape) for weight in layer.weights]


def _described(network: Any) -> str:
    return ", ".join(f"{layer.name} {list(_shapes(layer)[0])}" for layer in network.layers if layer.weights)
