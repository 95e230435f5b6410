"""Joint actions: one index for an action of several components, while there are not too many of them."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlplatform.envs.layout import SUPPORTED, short
from rlplatform.errors import UserError

MOST = 4_096  # joint actions
ActionLayout = dict[str, Any]


def action_layout_of(space: gym.Space[Any], name: str) -> ActionLayout | None:
    """How an index becomes an action of `space`, as data that JSON can hold; None for a Discrete space.

    Index j stands for the components `numpy.unravel_index(j, sizes) + start`, so that the first one varies slowest, in
    the space's `shape` and `dtype`.

    Args:
        space: of single actions.
        name: what messages call the environment.

    Raises:
        UserError: the space is none of Discrete, MultiDiscrete and MultiBinary, or has too many joint actions.
    """
    if isinstance(space, spaces.Discrete):
        return None
    if isinstance(space, spaces.MultiDiscrete):
        kind, sizes, start = "MultiDiscrete", space.nvec, space.start
    elif isinstance(space, spaces.MultiBinary):
        kind, sizes, start = "MultiBinary", np.full(space.shape, 2), np.zeros(space.shape, np.int64)
    else:
        raise UserError(f"{name} takes actions of {short(space)}, and {SUPPORTED}")
    count = math.prod(np.ravel(sizes).tolist())
    if count > MOST:
        raise UserError(
            f"{name} takes actions of {short(space)}, which are {count:,} joint actions; at most {MOST:,} are supported"
        )
    return {
        "kind": kind,
        "sizes": np.ravel(sizes).astype(np.int64).tolist(),
        "start": np.ravel(start).astype(np.int64).tolist(),
        "shape": [int(size) for size in space.shape],
        "dtype": str(space.dtype),
    }


def table_of(layout: ActionLayout) -> NDArray[Any]:
    """`[A, *shape]`, the action of every index."""
    sizes, start = layout["sizes"], np.array(layout["start"], np.int64)
    components = np.stack(np.unravel_index(np.arange(math.prod(sizes)), sizes), axis=1) + start
    return components.reshape(-1, *layout["shape"]).astype(layout["dtype"])
