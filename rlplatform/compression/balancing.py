"""Units of a hidden layer brought to like ranges, since they share one int8 scale: algebra before a static conversion.

A ReLU lets a positive factor through: a unit may be divided by it where the weights that read the unit are multiplied
by it (Nagel et al. 2019, section 4.1). In a network that was trained, a few units reach far and share their scale with
many that do not.
"""

from typing import Any

import numpy as np
import tf_keras as keras

from rlplatform.compression import chain
from rlplatform.compression.chain import AnyLink, Flat, Kept, Link
from rlplatform.compression.clustering import is_clustered
from rlplatform.compression.normalize import Normalize

Array = np.ndarray[Any, Any]

# A unit is divided by its range to the one power, over the largest weight that reads it to the other. Nagel et al. take
# a half for both; kernels have a scale for each of their outputs here, activations one in all, so ranges matter more.
OF_RANGE, OF_WEIGHTS = 0.7, 0.3
MOST = 64.0  # Two units' factors differ by no more: what hardly ever answers is not to rule the weights.


def balanced(model: Any, observations: Array, norms: bool = False) -> Any:
    """The same function, up to rounding, of a network whose hidden units have like ranges.

    Args:
        model: from `canonical` or `chain.scale_inputs`, `[B, O...]` to `[B, A]`.
        observations: `[N, O...]` float32, on which ranges are measured, as the model takes them.
        norms: whether LayerNorm's gamma and beta may be divided too: int8 has one scale for all of them, and would lose
            the small ones; int16 does not.

    Returns:
        A new model; the one that is given where it has no two layers with nothing but a ReLU between them, or where
        kernels are clustered, whose few values would become many.
    """
    start, links = chain.read(model.output, chain.producers(model))
    pairs = _pairs(links, norms)
    if (
        start is not model.input
        or not pairs
        or any(is_clustered(link.kernel) for link in links if isinstance(link, Link))
    ):
        return model
    outputs = [model.get_layer(_name(links[rectified])).output for _, rectified, _ in pairs]
    for (writer, _, reader), features in zip(pairs, _predicted(model, outputs, observations), strict=True):
        after = links[reader]
        assert isinstance(after, Link)
        units = features.shape[-1]
        reach = features.reshape(-1, units).max(axis=0).astype(np.float64)
        if not reach.max() > 0:
            continue
        rows = after.kernel.reshape(-1, units, after.units) if after.kind == "dense" else after.kernel
        weight = np.abs(rows).max(axis=tuple(axis for axis in range(rows.ndim) if axis != rows.ndim - 2))
        factor = _factors(reach, weight)
        links[writer] = _divided(links[writer], factor)
        after.kernel = (rows * factor[:, None]).reshape(after.kernel.shape)
    return chain.build(model, None, start, links)


def _factors(reach: Array, weight: Array) -> Array:
    """`[U]`, from what units reach and the largest weights that read them; their geometric mean is 1."""
    reach = np.maximum(reach, reach.max() / MOST**2)
    weight = np.maximum(weight, max(weight.max() / MOST**2, np.finfo(np.float32).tiny))
    factor = reach**OF_RANGE / weight**OF_WEIGHTS
    factor = np.maximum(factor, factor.max() / MOST)
    return factor / np.exp(np.log(factor).mean())  # type: ignore[no-any-return]


def _pairs(links: list[AnyLink], norms: bool) -> list[tuple[int, int, int]]:
    """Hidden layers that may be divided: what gives each its units' sizes, what rectifies them, and what reads them."""
    found = []
    for reader, link in enumerate(links):
        rectifies = reader - 1
        while rectifies >= 0 and isinstance(links[rectifies], Flat):
            rectifies -= 1
        before = links[rectifies]
        if rectifies < 0 or not isinstance(link, Link):
            continue
        if isinstance(before, Link) and before.activation is keras.activations.relu:
            found.append((rectifies, rectifies, reader))
        elif rectifies and isinstance(before, Kept) and _lets_factors_through(before.layer):
            sized = links[rectifies - 1]
            if (isinstance(sized, Link) and sized.is_linear) or (
                norms and isinstance(sized, Kept) and type(sized.layer) is Normalize
            ):
                found.append((rectifies - 1, rectifies, reader))
    return found


def _lets_factors_through(layer: Any) -> bool:
    return chain.is_rectifier(layer) and layer.max_value is None and not layer.threshold


def _divided(link: Any, factor: Array) -> Any:
    """A link whose units are divided by `[U]`."""
    if isinstance(link, Link):
        link.kernel, link.bias = link.kernel / factor, link.bias / factor
        return link
    copy = Normalize.from_config(link.layer.get_config())
    copy.build(tuple(link.layer.input.shape))
    copy.set_weights([weight / factor for weight in link.layer.get_weights()])
    return Kept(copy)


def _predicted(model: Any, outputs: list[Any], observations: Array) -> list[Array]:
    """What layers answer, each `[N, ..., U]`."""
    found = keras.Model(model.input, outputs)(observations, training=False)
    return [np.asarray(each) for each in (found if isinstance(found, list | tuple) else [found])]


def _name(link: Any) -> str:
    return str(link.name if isinstance(link, Link) else link.layer.name)
