"""Quantisation-aware training: a network learns its own choices once more, with the rounding of int8 in its layers.

tfmot imitates int8 in the forward pass and lets gradients through (Jacob et al. 2018, section 3). What comes out are
weights that lie on the grid of an int8 file already, in an ordinary network, which is then converted like any other:
whether training has helped is told by its file, not by the imitation.
"""

from typing import Any, NamedTuple

import numpy as np
import tf_keras as keras

from rlplatform.compression import optimization
from rlplatform.compression.clustering import is_clustered
from rlplatform.compression.distillation import Distilled, Recipe, distil
from rlplatform.compression.labels import Labels
from rlplatform.compression.pruning import is_pruned
from rlplatform.errors import UserError

RECIPE = Recipe(epochs=20, learning_rate=3e-4, patience=5)
_KNOWN = (
    keras.layers.InputLayer,
    keras.layers.Dense,
    keras.layers.Conv2D,
    keras.layers.Flatten,
    keras.layers.Reshape,
    keras.layers.ReLU,
    keras.layers.Softmax,
)


class Aware(NamedTuple):
    """What training has come to.

    Attributes:
        model: the network with weights that int8 holds exactly, with one scale for each Dense.
        preserved: what training has kept of the kernels: `nothing`, `zeros`, or `clusters`, zeros among them.
        distilled: the losses.
    """

    model: Any
    preserved: str
    distilled: Distilled


def train(model: Any, labels: Labels, held_out: Labels, recipe: Recipe = RECIPE, seed: int = 0) -> Aware:
    """Trains a network for int8; the model that is given stays as it is.

    Args:
        model: functional, `[B, O...]` float32 to `[B, A]`, as its static int8 file is to compute it.
        labels: what it is to choose, on observations as that file takes them.
        held_out: of other episodes.
        recipe: how it is trained.
        seed: of the order of the states.

    Raises:
        UserError: it has layers that tfmot does not know.
        RunError: the loss is no number.
    """
    refuse_unknown(model)
    start = keras.models.clone_model(model)  # tfmot calls the layers that it is given.
    start.set_weights(model.get_weights())
    kernels = [layer.get_weights()[0] for layer in start.layers if layer.get_weights()]
    preserved, scheme = _scheme(kernels)
    quantisation = optimization.load().quantization.keras
    annotated = quantisation.quantize_annotate_model(start)
    imitation = quantisation.quantize_apply(annotated, scheme) if scheme else quantisation.quantize_apply(annotated)
    distilled = distil(imitation, labels, held_out, recipe, seed, compiled=False)
    imitation(labels.observations[:1].astype(np.float32), training=True)  # Scales of the weights that were kept.
    rounded = {wrapper.layer.name: wrapper.layer for wrapper in imitation.layers if hasattr(wrapper, "layer")}
    copy = keras.models.clone_model(model)
    for layer, own in zip(copy.layers, model.layers, strict=True):
        if own.get_weights():
            weights = rounded[layer.name]
            layer.set_weights([np.asarray(weights.kernel), *([np.asarray(weights.bias)] if own.use_bias else [])])
    return Aware(copy, preserved, distilled)


def knows(model: Any) -> bool:
    """Whether a network has only layers that tfmot can imitate int8 in."""
    return all(type(layer) in _KNOWN for layer in model.layers)


def refuse_unknown(model: Any) -> None:
    """Raises a `UserError` for a network with layers that tfmot does not know."""
    if not knows(model):
        other = next(type(layer).__name__ for layer in model.layers if type(layer) not in _KNOWN)
        raise UserError(
            f"quantisation-aware training is for Dense and Conv2D layers with ReLU, and this network has {other} too; "
            "--budget makes a smaller network without it"
        )


def _scheme(kernels: list[Any]) -> tuple[str, Any]:
    """What is to be preserved, and tfmot's scheme for it."""
    has_zeros = any(map(is_pruned, kernels))
    if any(is_clustered(kernel) for kernel in kernels):
        return "clusters", optimization.cluster_preserving(has_zeros)
    if has_zeros:
        return "zeros", optimization.load().experimental.combine.Default8BitPrunePreserveQuantizeScheme()
    return "nothing", None
