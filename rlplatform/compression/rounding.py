"""A network whose weights int8 holds exactly, so that its file loses nothing of them.

What a small network has learned is lost first where its weights are rounded: a Dense has one scale for all of them. A
student is nobody's original. It may as well be the network of the rounded weights, judged by how that one plays; what
its file can then lose is the rounding of activations alone. The weights are rounded so that they make up for each other
(`compensation`), all but those of the last layer, which has a constraint of its own: the values stay centred.
"""

from typing import Any

import numpy as np

from rlplatform.compression import chain
from rlplatform.compression.canonical import Canonical, canonical
from rlplatform.compression.chain import Link
from rlplatform.compression.compensation import LARGEST, compensated
from rlplatform.compression.conversion import SMALL, Target, as_seen, static_form

Array = np.ndarray[Any, Any]


def rounded(network: Canonical, calibration: Array, target: Target) -> Canonical:
    """The canonical form of the network that a static file of `network` computes, but for its activations.

    Args:
        network: from `canonical`.
        calibration: as for `convert`, which has to be given the same: the file's weights are those of observations that
            were scaled by their ranges.
        target: as for `convert`.

    Returns:
        The network that is given, where it has a scale for each of a kernel's outputs, which do not need this, or
        layers that stay as they were.
    """
    if network.model.count_params() >= SMALL:
        return network
    form, scaling = static_form(network.model, calibration, target)
    if scaling is None:
        form = network.model  # A shift that folds for whole numbers changes no kernel, and stays before this one.
    made = compensated(form, as_seen(calibration, scaling), per_unit=False)
    producers = chain.producers(made)
    affine = chain.affine_at_start(made, producers)
    start, links = chain.read(made.output, producers)
    if start is not (made.input if affine is None else affine.output):
        return network
    _, exact = chain.read(form.output, chain.producers(form))
    for link, original in zip(links, exact, strict=True):
        is_last = link is links[-1]  # What was clustered or pruned is not compensated.
        if isinstance(link, Link) and isinstance(original, Link) and (is_last or made is form):
            link.kernel = _on_grid(original, centred=network.centred and is_last)
    model = chain.build(made, affine, start, links)
    if scaling is not None:  # Back to observations as the environment gives them.
        model = chain.scale_inputs(model, -scaling.offset * scaling.multiplier, 1.0 / scaling.multiplier)
    again = canonical(model)
    return again._replace(folds=(*network.folds, "rounded the weights to int8"))


def _on_grid(link: Link, centred: bool) -> Array:
    """The kernel with whole numbers of steps: one scale for a Dense, one for each output of a Conv2D.

    Where values are centred, their sum stays zero: in each row, what was rounded furthest is rounded the other way.
    """
    axes = None if link.kind == "dense" else (0, 1, 2)
    scale = np.abs(link.kernel).max(axis=axes, keepdims=True) / LARGEST
    scale = np.where(scale > 0, scale, 1.0)
    exact = link.kernel / scale
    steps = np.rint(exact)
    if centred and link.kind == "dense":
        for row, (own, wanted) in enumerate(zip(steps, exact, strict=True)):
            excess = int(own.sum())  # Of no more than half of the actions, each by half a step.
            back = own - np.sign(excess)
            away = np.where(np.abs(back) <= LARGEST, np.abs(wanted - back), np.inf)
            furthest = np.argsort(away)[: abs(excess)]
            steps[row, furthest] = back[furthest]
    return steps * scale
