"""Clustering: the weights of a layer take a few values only, while the network goes on learning its teacher's choices.

A .tflite file stores every weight all the same, so it does not shrink by itself; it compresses better for a download.
"""

from typing import Any, NamedTuple

import numpy as np
import tf_keras as keras

from rlplatform.compression import optimization
from rlplatform.compression.distillation import Distilled, Recipe, distil
from rlplatform.compression.labels import Labels
from rlplatform.compression.pruning import is_prunable
from rlplatform.errors import UserError

FEWEST = 64  # weights of a kernel that is clustered: for fewer, the table of values is no gain
FEW = 256  # a kernel with fewer values than this, and than half its weights, is taken for a clustered one
KMEANS = 256  # from so many weights on, k-means++ places the first values, which smaller kernels make fail


class Clustered(NamedTuple):
    """A clustered network.

    Attributes:
        model: as it was, but for the values of its weights.
        values: how many different ones each clustered kernel has, by name; zero, where it is kept, is one.
        distilled: what training has come to.
    """

    model: Any
    values: dict[str, int]
    distilled: Distilled


def cluster(
    model: Any,
    labels: Labels,
    held_out: Labels,
    clusters: int = 16,
    recipe: Recipe = Recipe(epochs=10),  # noqa: B008
    seed: int = 0,
) -> Clustered:
    """Clusters the Dense and Conv2D kernels of a network against its teacher; the model that is given stays as it is.

    Kernels of which a share is zero keep their zeros.

    Args:
        model: functional, `[B, O...]` float32 to `[B, A]`.
        labels: the teacher's.
        held_out: of other episodes.
        clusters: values of each kernel, at least 2.
        recipe: how it is trained on.
        seed: of the order of the states, and of the first values.

    Raises:
        UserError: there are fewer than 2 clusters.
        RunError: the loss is no number.
    """
    if clusters < 2:
        raise UserError(f"clustering needs at least 2 values for a kernel; got {clusters}")
    tfmot = optimization.load()
    preserving = optimization.load(f"{tfmot.__name__}.python.core.clustering.keras.experimental.cluster")
    keras.utils.set_random_seed(seed)
    start = tfmot.clustering.keras.CentroidInitialization
    chosen = {layer.name for layer in model.layers if is_prunable(layer) and _size(layer) >= max(FEWEST, 2 * clusters)}

    def wrapped(layer: Any) -> Any:
        copy = type(layer).from_config(layer.get_config())
        if layer.name not in chosen:
            return copy
        copy.build(layer.input_shape)
        copy.set_weights(layer.get_weights())
        way = start.KMEANS_PLUS_PLUS if _size(layer) >= KMEANS else start.LINEAR
        if np.any(layer.get_weights()[0] == 0.0):
            return preserving.cluster_weights(copy, clusters, way, preserve_sparsity=True)
        return tfmot.clustering.keras.cluster_weights(copy, clusters, way)

    clustering = keras.models.clone_model(model, clone_function=wrapped)
    for own, layer in zip(clustering.layers, model.layers, strict=True):
        if layer.name not in chosen and layer.get_weights():
            own.set_weights(layer.get_weights())
    distilled = distil(clustering, labels, held_out, recipe, seed, keep_last=True, compiled=False)
    stripped = optimization.with_weights_of(model, tfmot.clustering.keras.strip_clustering(clustering))
    values = {name: len(np.unique(stripped.get_layer(name).get_weights()[0])) for name in sorted(chosen)}
    return Clustered(stripped, values, distilled)


def _size(layer: Any) -> int:
    return int(np.prod(layer.kernel.shape))


def is_clustered(kernel: Any) -> bool:
    """Whether the weights of an array have so few values that it is no accident."""
    return bool(len(np.unique(kernel)) < min(FEW, kernel.size / 2))
