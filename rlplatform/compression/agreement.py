"""How often a file acts as its network, by how sure the network is. Pure functions of arrays."""

import itertools
from typing import Any, NamedTuple

import numpy as np

from rlplatform.agents.acting import masked

Array = np.ndarray[Any, Any]

CLEAR = 2.0  # A gap of more than this many steps is one that int8 should see.
EDGES = (1.0, 2.0, 4.0, 8.0)  # Of the bins, in steps.


class Bin(NamedTuple):
    """States whose gap lies between two bounds."""

    low: float
    high: float | None  # None: no upper bound
    states: int
    agreement: float | None  # None where there is no state


class Agreement(NamedTuple):
    """Equality of greedy actions over a set of states.

    Attributes:
        states: how many.
        overall: share of all states.
        clear_states: how many have a gap of more than `CLEAR` steps.
        clear: share of those; None if there is none.
        tied: share of the clear states whose two best values the file cannot tell apart because its range ends there.
        slope: the file's values against the network's over the clear states, centred, by least squares: 1 when they
            mean the same; None if there is no clear state.
        bins: by gap.
    """

    states: int
    overall: float
    clear_states: int
    clear: float | None
    tied: float
    slope: float | None
    bins: tuple[Bin, ...]


def gaps(q: Array) -> Array:
    """`[N]`: the best value less the second best of `[N, A]`; infinite where there is one action.

    Actions that a mask forbids have the value minus infinity, from `agents.acting.masked`.
    """
    if q.shape[1] < 2:
        return np.full(len(q), np.inf)
    best = np.partition(q, -2, axis=1)
    return best[:, -1] - best[:, -2]  # type: ignore[no-any-return]


def hard_half(q: Array, count: int, masks: Array | None = None) -> Array:
    """`[count]` indices, or as many as there are: half those with the smallest gaps, then the first of the rest.

    Args:
        q: `[N, A]`, in random order.
        count: how many states are wanted.
        masks: `[N, A]` bool, the actions that are allowed; all of them if None.
    """
    by_gap = np.argsort(gaps(masked(q, masks)), kind="stable")
    half = min(len(q), count) // 2
    return np.concatenate([by_gap[:half], np.sort(by_gap[half:])[: count - half]])


def centred(q: Array) -> Array:
    """`[N, A]` float64: each row less its mean, which is all that a greedy policy sees."""
    q = q.astype(np.float64)
    return q - q.mean(axis=1, keepdims=True)  # type: ignore[no-any-return]


def step_of(q: Array, q_step: float, masks: Array | None = None) -> float:
    """One step of int8 in units of value: 1/255 of the range of `[N, A]`, or the file's own where that is coarser.

    Under `masks` `[N, A]`, the range is that of the values of allowed actions: the others are never learned.
    """
    values = centred(q) if masks is None else centred(q)[masks]
    return max(q_step, float(np.ptp(values)) / 255.0)


def measure(
    expected: Array,
    given: Array,
    step: float,
    q_range: tuple[float, float] = (-np.inf, np.inf),
    masks: Array | None = None,
) -> Agreement:
    """Compares a file with its network.

    Args:
        expected: `[N, A]`, the network's values.
        given: `[N, A]`, the file's.
        step: one int8 step, in units of value.
        q_range: the least and the greatest value that the file can give.
        masks: `[N, A]` bool, the actions that are allowed; all of them if None.
    """
    allowed, allowed_given = masked(expected, masks), masked(given, masks)
    gap = gaps(allowed) / step if step > 0 else np.where(gaps(allowed) > 0, np.inf, 0.0)
    same = allowed.argmax(axis=1) == allowed_given.argmax(axis=1)
    clear = gap > CLEAR
    bounds = [0.0, *EDGES, np.inf]
    bins = []
    for low, high in itertools.pairwise(bounds):
        within = (gap >= low) & (gap < high) if np.isfinite(high) else gap >= low
        share = float(same[within].mean()) if within.any() else None
        bins.append(Bin(low, float(high) if np.isfinite(high) else None, int(within.sum()), share))
    network, file = np.clip(centred(expected[clear]), *q_range), centred(given[clear])
    if masks is not None:
        network, file = (_centred_among(values, masks[clear]) for values in (network, file))
    energy = float((network * network).sum())
    return Agreement(
        states=len(same),
        overall=float(same.mean()),
        clear_states=int(clear.sum()),
        clear=float(same[clear].mean()) if clear.any() else None,
        tied=float(_at_an_end(allowed_given[clear], q_range, step).mean()) if clear.any() else 0.0,
        slope=float((network * file).sum() / energy) if energy > 0 else None,
        bins=tuple(bins),
    )


def _at_an_end(q: Array, q_range: tuple[float, float], step: float) -> Array:
    """`[N]` bool: the two best values are equal, and the least or the greatest that there is."""
    best = q.max(axis=1)
    ends = (best >= q_range[1] - step / 2) | (best <= q_range[0] + step / 2)
    return (gaps(q) <= 0) & ends  # type: ignore[no-any-return]


def _centred_among(q: Array, masks: Array) -> Array:
    """Each row less the mean of its allowed values; zero for those that are not allowed."""
    kept = np.where(masks, q, 0.0)
    return np.where(masks, q - kept.sum(axis=1, keepdims=True) / masks.sum(axis=1, keepdims=True), 0.0)
