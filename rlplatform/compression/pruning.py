"""Pruning: weights that matter least become zero while the network goes on learning its teacher's choices.

tfmot sets the weights of smallest size to zero, more and more of them by a cubic schedule (Zhu & Gupta 2017). Zeros by
themselves make no file smaller and no runtime faster; what they bring is units without inputs or outputs, which the
canonical form removes, and files that compress better for a download.
"""

from typing import Any, NamedTuple

import numpy as np
import tf_keras as keras

from rlplatform.agents.pruning import layer_sparsities
from rlplatform.compression import optimization
from rlplatform.compression.distillation import Distilled, Recipe, distil
from rlplatform.compression.labels import Labels
from rlplatform.errors import UserError

Array = np.ndarray[Any, Any]

BEGIN, END = 0.2, 0.8  # of the updates, between which the share of zeros grows (Graesser et al. 2022)
TIMES = 100  # that weights are chosen anew in between
PRUNED = 0.1  # With this share of zeros, kernels keep them.


class Pruned(NamedTuple):
    """A pruned network.

    Attributes:
        model: as it was, but for its zeros.
        sparsities: the share of zeros of each layer with weights, by name.
        distilled: what training has come to.
    """

    model: Any
    sparsities: dict[str, float]
    distilled: Distilled


def is_pruned(kernel: Any) -> bool:
    """Whether so many weights of an array are zero that whatever changes it is to keep them."""
    return bool(np.mean(np.asarray(kernel) == 0.0) >= PRUNED)


def prune(
    model: Any,
    labels: Labels,
    held_out: Labels,
    sparsity: float,
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    seed: int = 0,
) -> Pruned:
    """Prunes the Dense and Conv2D layers of a network against its teacher; the model that is given stays as it is.

    Args:
        model: functional, `[B, O...]` float32 to `[B, A]`.
        labels: the teacher's.
        held_out: of other episodes; the weights of the last epoch are kept whatever they say, since the ones before
            have fewer zeros.
        sparsity: the share of zeros over all kernels, at least 0 and below 1; layers get theirs by `layer_sparsities`.
        recipe: how it is trained; all its epochs are.
        seed: of the order of the states.

    Raises:
        UserError: the sparsity is out of range.
        RunError: the loss is no number.
    """
    if not 0.0 <= sparsity < 1.0:
        raise UserError(f"the sparsity must be at least 0 and below 1; got {sparsity}")
    tfmot = optimization.load()
    kernels = {layer.name: layer.kernel.shape for layer in model.layers if is_prunable(layer)}
    wanted = layer_sparsities({name: tuple(shape) for name, shape in kernels.items()}, sparsity)
    updates = recipe.epochs * recipe.updates(len(labels.values))
    first, last = int(BEGIN * updates), max(int(END * updates), int(BEGIN * updates) + 1)

    def wrapped(layer: Any) -> Any:
        copy = type(layer).from_config(layer.get_config())
        if layer.name not in wanted:
            return copy
        schedule = tfmot.sparsity.keras.PolynomialDecay(
            0.0, wanted[layer.name], first, last, frequency=max(1, (last - first) // TIMES)
        )
        return tfmot.sparsity.keras.prune_low_magnitude(copy, schedule)

    pruning = keras.models.clone_model(model, clone_function=wrapped)
    for own, layer in zip(pruning.layers, model.layers, strict=True):
        weights = layer.get_weights()
        if layer.name in wanted:
            own.layer.set_weights(weights)
        elif weights:
            own.set_weights(weights)
    distilled = distil(
        pruning,
        labels,
        held_out,
        recipe,
        seed,
        callbacks=[tfmot.sparsity.keras.UpdatePruningStep()],
        keep_last=True,
        compiled=False,
    )
    stripped = optimization.with_weights_of(model, tfmot.sparsity.keras.strip_pruning(pruning))
    layers = [layer for layer in stripped.layers if is_prunable(layer)]
    found = {layer.name: float(np.mean(layer.get_weights()[0] == 0.0)) for layer in layers}
    return Pruned(stripped, found, distilled)


def is_prunable(layer: Any) -> bool:
    """Whether a layer's kernel may be pruned."""
    return type(layer) in (keras.layers.Dense, keras.layers.Conv2D)
