"""Action masks: which actions are allowed at an observation, in whatever form an environment says it."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlplatform.errors import UserError

Mask = NDArray[np.bool_]


def mask_of(infos: dict[str, Any], num_envs: int, num_actions: int) -> Mask:
    """The allowed actions at the observations that a vector environment's `reset` or `step` returned with `infos`.

    Args:
        infos: of the vector environment; `action_mask` is `[N, A]`, and `_action_mask` `[N]` says who gave one.
        num_envs: N.
        num_actions: A.

    Returns:
        `[N, A]` bool, a new array. All actions are allowed where no mask is given, and where one forbids all, as many
        environments' masks do after an episode's end.

    Raises:
        UserError: the masks are of another size.
    """
    given = infos.get("action_mask")
    if given is None:
        return np.ones((num_envs, num_actions), np.bool_)
    masks = np.asarray(given)
    present = infos.get("_action_mask")
    if masks.dtype == object:  # from lists, or from environments that do not all give one
        masks = np.ones((num_envs, num_actions), np.bool_)
        for index in range(num_envs):
            if given[index] is not None and (present is None or present[index]):
                masks[index] = mask_row(given[index], num_actions)
    elif masks.shape != (num_envs, num_actions):
        raise UserError(
            f"the environment's action masks have shape {list(masks.shape)}; {num_envs} environments with "
            f"{num_actions} actions need [{num_envs}, {num_actions}]"
        )
    else:
        masks = np.array(masks, np.bool_)
    free = ~masks.any(axis=1)
    if present is not None:
        free |= ~np.asarray(present, np.bool_)
    masks[free] = True
    return masks


def mask_row(given: Any, num_actions: int, sizes: list[int] | None = None) -> Mask:
    """One environment's mask.

    Args:
        given: `[A]`, true or 1 where an action is allowed. Where an action has several components: over the joint
            actions, `[A]` or in the shape of the components' sizes; or of each component, as a tuple or list of `[n_k]`
            or joined one after the other.
        num_actions: A.
        sizes: of an action's components, the first of which varies slowest; None where it has just one.

    Returns:
        `[A]` bool; all true where the mask is None or forbids all.

    Raises:
        UserError: it has another size, or both of these.
    """
    mask = _joint(given, num_actions, sizes) if sizes is not None and len(sizes) > 1 else _flat(given)
    if mask is None:
        return np.ones(num_actions, np.bool_)
    if mask.size != num_actions:
        parts = "" if sizes is None or len(sizes) < 2 else f", or of its components, which have {sizes}"
        raise UserError(
            f"the environment's action mask has {mask.size} numbers; it needs one for each of the {num_actions} "
            f"actions{parts}"
        )
    return mask if mask.any() else np.ones(num_actions, np.bool_)


def _flat(given: Any) -> Mask | None:
    return None if given is None else np.array(given, np.bool_).reshape(-1)


def _joint(given: Any, num_actions: int, sizes: list[int]) -> Mask | None:
    """`[A]`, from any of the forms that a mask of several components may have."""
    if given is None:
        return None
    if isinstance(given, tuple | list) and [np.size(part) for part in given] == sizes:
        parts = [np.asarray(part, np.bool_).reshape(-1) for part in given]
    else:
        mask = np.array(given, np.bool_)
        if mask.shape == tuple(sizes):
            return mask.reshape(-1)
        if mask.size != sum(sizes):
            return mask.reshape(-1)
        if mask.size == num_actions:
            raise UserError(
                f"an action mask of {mask.size} numbers can mean the joint actions or the components {sizes}; give it "
                f"in the shape {sizes} for the joint ones, or as a tuple with one mask for each component"
            )
        parts = np.split(mask.reshape(-1), np.cumsum(sizes)[:-1])
    joint = np.ones(math.prod(sizes), np.bool_).reshape(sizes)
    for axis, part in enumerate(parts):
        joint &= part.reshape([-1 if axis == other else 1 for other in range(len(sizes))])
    return joint.reshape(-1)
