"""What a policy remembers of an episode between two decisions, and what is taken for it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .errors import ObservationError

Array = np.ndarray[Any, Any]


class Decision(NamedTuple):
    """What a policy that remembers answers.

    Attributes:
        action: the greedy action, as the environment counts.
        q: `[A]` float32, what each action is worth, up to a constant that all actions share.
        state: `[H]` float32, for the decision on the episode's next observation.
    """

    action: int
    q: Array
    state: Array


def state_check(shape: tuple[int, ...]) -> Callable[[Any], Array]:
    """Makes the check of a state: finite real numbers `[H]`, to float32.

    Args:
        shape: `[H]`.
    """

    def checked(given: Any) -> Array:
        try:
            state = np.asarray(given)
        except ValueError:
            raise ObservationError("a state must be one array; got sequences of unequal lengths") from None
        if state.shape != shape:
            raise ObservationError(
                f"a state must have shape {list(shape)}; got {list(state.shape)}: an episode begins with initial_state"
            )
        if state.dtype.kind not in "fiu":
            raise ObservationError(f"a state must hold real numbers (float32); got {state.dtype}")
        with np.errstate(over="ignore"):  # Too great for float32 becomes infinite, which is refused.
            state = state.astype(np.float32, copy=False)
        if not np.isfinite(state).all():
            index = int(np.isfinite(state).argmin())
            raise ObservationError(f"a state must be finite; got {state[index]} at [{index}]")
        return state

    return checked
