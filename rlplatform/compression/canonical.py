"""The canonical form: the same greedy policy with fewer layers and units, by algebra alone.

A trained Q-network carries what training needed and playing does not: the scaling of its input, noise, a value stream,
quantiles whose mean is all that decides, units that never fire. Most of it is linear or constant, so it folds into the
layers beside it, without data and without loss. Two parts are neither and stay: the softmax of a categorical head, and
what LayerNorm does beside taking a mean out.
"""

from typing import Any, NamedTuple

import numpy as np

from rlplatform.compression import chain, ending
from rlplatform.compression.chain import Affine, Kept, Link, Remembered
from rlplatform.compression.dead_units import remove_dead_units
from rlplatform.compression.normalize import is_layer_norm, of_layer_norm

Array = np.ndarray[Any, Any]


class Canonical(NamedTuple):
    """A network in canonical form, and what was folded.

    Attributes:
        model: `[B, O...]` float32 to `[B, A]` float32; uint8 observations are fed as the same numbers in float32. Made
            of Dense, Conv2D and Flatten, of a softmax for a categorical head, of `Normalize` for LayerNorm and of
            `Cell` for what remembers, after whatever layers of a user's torso had to stay as they were. One that
            remembers takes the state `[B, H]` besides, and gives the one after.
        folds: one sentence for each fold that was made, and for each part that had to stay.
        centred: whether a row's values were shifted so that their mean is zero, which changes no comparison of actions.
    """

    model: Any
    folds: tuple[str, ...]
    centred: bool


def canonical(model: Any, greedy: bool = True) -> Canonical:
    """The canonical form of a network that `rlplatform.agents.networks.build` made.

    Args:
        model: functional, `[B, O...]` to `[B, A]`, with a state beside both where it remembers; its weights are not
            touched.
        greedy: keep only what decides between actions: a dueling network loses its value stream, and all values are
            centred, which is what makes them survive int8 (an offset of 100 at gaps of 0.1 leaves nothing of them). If
            false, the values are the network's own. Under a softmax the value stream decides too, and stays; and the
            values of more actions than the last layer has inputs are not centred, since it would cost more than it
            is worth.

    Returns:
        The canonical network. Its greedy actions are those of `model`, except where rounding in float32 decides.
    """
    folds: list[str] = []
    producers = chain.producers(model)
    end = ending.read(model, producers, greedy, folds)
    if end is None:
        return Canonical(model, ("kept the whole network: its last layers are no value head",), centred=False)
    observation = model.inputs[0]
    start, links = chain.read(end.features, producers)
    if len(model.inputs) > 1 and not any(isinstance(link, Remembered) for link in links):
        return Canonical(model, ("kept the whole network: nothing is known of what follows its memory",), centred=False)
    if any(chain.is_noisy(layer) for layer in model.layers):
        folds.append("took the mean weights of the layers that are noisy in training")
    links += end.links
    _fold_layer_norm(links, folds)
    affine = chain.affine_at_start(model, producers)
    if affine is not None:
        into = chain.first(links) if start is affine.output else None
        rest = affine if into is None else _fold_affine(affine, into)
        if into is not None and rest is not affine:
            folds.append(f"folded {affine.words} into {into.name!r}")
        if rest is not None:
            folds.append(f"kept {rest.words}")
        elif start is affine.output:
            start = observation
        affine = rest
    if start is not observation and (affine is None or start is not affine.output):
        folds.append(f"kept the layers up to {producers[id(start)].name!r} as they were")
    whole = start is observation  # Then the first link sees the observation itself.
    folds += remove_dead_units(links, inputs_are_positive=whole and observation.dtype == "uint8")
    return Canonical(chain.build(model, affine, start, links), tuple(folds), end.centred)


def _fold_layer_norm(links: list[Any], folds: list[str]) -> None:
    """Lets the Dense before a LayerNorm take the mean out, in place; what is left is `Normalize`."""
    for index, link in enumerate(links):
        if not (isinstance(link, Kept) and is_layer_norm(link.layer)):
            continue
        before = links[index - 1] if index else None
        centred = isinstance(before, Link) and before.kind == "dense" and before.is_linear
        if isinstance(before, Link) and centred:
            before.kernel = before.kernel - before.kernel.mean(axis=1, keepdims=True)
            before.bias = before.bias - before.bias.mean()
            folds.append(f"folded the mean of {link.layer.name!r} into {before.name!r}")
        links[index] = Kept(of_layer_norm([link.layer], centre=not centred))


def _fold_affine(affine: Affine, link: Link) -> Affine | None:
    """Puts `x * scale + offset` into the first layer, in place; what is given back has to stay before it.

    A convolution has one kernel for all places, so what differs between places stays. So does a shift, although it
    would fit into the bias: an image is mostly background, a sum over hundreds of its pixels is large, and to take it
    away again afterwards leaves its rounding in float32 in place of what is small. A difference of bytes is exact.
    Whole numbers do not round; `chain.fold_shift` folds it for those.
    """
    scale, offset = affine.scale, affine.offset
    if link.kind == "dense":
        link.bias = link.bias + offset.ravel() @ link.kernel
        link.kernel = link.kernel * scale.ravel()[:, None]
        return None
    places = tuple(range(scale.ndim - 1))
    if scale.ndim != 3 or np.ptp(scale, axis=places).any() or not scale.all():
        return affine
    link.kernel = link.kernel * scale[0, 0][None, None, :, None]
    if not offset.any():
        return None
    return Affine(affine.output, np.ones_like(scale), offset / scale, "the shift of observations, exact in float32")
