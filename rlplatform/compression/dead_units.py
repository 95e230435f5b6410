"""Units that no observation can make matter, proved from the weights alone and removed."""

from typing import Any

import numpy as np
import tf_keras as keras

from rlplatform.compression.chain import AnyLink, Flat, Kept, Link, is_rectifier

Array = np.ndarray[Any, Any]


def remove_dead_units(links: list[AnyLink], inputs_are_positive: bool) -> list[str]:
    """Removes, in place, units whose output is never used, is never above zero, or never changes.

    Args:
        links: a chain of layers; the outputs of the last one, and of any before a layer without a rule, are all kept.
        inputs_are_positive: whether the first layer's inputs are known to be at least zero.

    Returns:
        One sentence for each layer that lost units.
    """
    sentences = []
    for linear, positive in _runs(links, inputs_are_positive):
        before = [link.units for link in linear]
        while any(_shrink(linear, index, positive) for index in range(len(linear) - 1)):
            pass
        sentences += [
            f"removed {count - link.units} of {count} units of {link.name!r}, which no observation can make matter"
            for link, count in zip(linear, before, strict=True)
            if link.units < count
        ]
    return sentences


def _runs(links: list[AnyLink], inputs_are_positive: bool) -> list[tuple[list[Link], bool]]:
    """The layers with weights that follow each other directly, and whether the first one's inputs are at least zero."""
    runs: list[tuple[list[Link], bool]] = [([], inputs_are_positive)]
    for link in links:
        if isinstance(link, Link):
            runs[-1][0].append(link)
        elif not isinstance(link, Flat):
            runs.append(([], isinstance(link, Kept) and is_rectifier(link.layer)))
    return runs


def _shrink(linear: list[Link], index: int, inputs_are_positive: bool) -> bool:
    """One layer, against the layers before and after it; whether it lost units."""
    link, following = linear[index], linear[index + 1]
    incoming = link.kernel.reshape(-1, link.units)  # [everything that a unit sees, U]
    outgoing = following.kernel.reshape(-1, link.units, following.units)  # [positions, U, units of the next]
    rectified = link.activation is keras.activations.relu
    positive = inputs_are_positive if index == 0 else linear[index - 1].activation is keras.activations.relu

    unused = ~outgoing.any(axis=(0, 2))
    blind = ~incoming.any(axis=0)
    never = np.zeros(link.units, bool)
    if rectified:
        never = (link.bias <= 0) & (blind | (positive & (incoming <= 0).all(axis=0)))
    constant = rectified & blind & (link.bias > 0) & _sees_no_padding(following)
    dead = unused | never | constant
    if dead.all():
        dead[0] = constant[0] = False  # A layer keeps one unit.
    if not dead.any():
        return False

    following.bias = following.bias + np.einsum("puo,u->o", outgoing, np.where(constant & ~unused, link.bias, 0.0))
    link.kernel, link.bias = link.kernel[..., ~dead], link.bias[~dead]
    kept = outgoing[:, ~dead]
    shape = (-1, following.units) if following.kind == "dense" else (*following.kernel.shape[:2], -1, following.units)
    following.kernel = kept.reshape(shape)
    return True


def _sees_no_padding(link: Link) -> bool:
    """Whether a constant input is a constant at every position of the layer."""
    return link.kind == "dense" or link.settings["padding"] == "valid"
