"""How long one decision takes, in a tight loop."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

WARM_UP = 200  # Calls that are not measured.
BLOCKS = 7
BLOCK_SECONDS = 0.02


def microseconds(act: Callable[[Any], Any], observations: Sequence[Any] | Array) -> float:
    """The median, over blocks of calls, of the mean time of a call.

    Args:
        act: decides for one observation.
        observations: N of them, which are gone through in turn.
    """
    turns = list(observations)
    for index in range(WARM_UP):
        act(turns[index % len(turns)])
    once = _seconds(act, turns[:1])
    size = max(1, min(10_000, int(BLOCK_SECONDS / max(once, 1e-7))))
    block = [turns[index % len(turns)] for index in range(size)]
    return float(np.median([_seconds(act, block) / size for _ in range(BLOCKS)])) * 1e6


def _seconds(act: Callable[[Any], Any], block: Iterable[Any]) -> float:
    start = time.perf_counter()
    for observation in block:
        act(observation)
    return time.perf_counter() - start
