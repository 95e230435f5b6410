"""What a schedule of the configuration is worth at an env step."""

import bisect
import math

import numpy as np
from numpy.typing import NDArray

from rlplatform.config import Schedule


def value(schedule: Schedule, step: int, total_steps: int) -> float:
    """The schedule's value at one env step.

    The ends are exact: `start` at step 0 (unless `fraction` is 0), `end` from `fraction` of the run on.

    Args:
        schedule: what moves, and how.
        step: env steps done, over all environments together.
        total_steps: env steps of the whole run, at least 1.
    """
    if schedule.kind == "constant":
        return schedule.start
    done = step / total_steps  # not `fraction * total_steps`: 7 / 100 is 0.07, but 0.07 * 100 is above 7
    if schedule.kind == "piecewise":
        return schedule.values[bisect.bisect_right(schedule.boundaries, done)]
    if done >= schedule.fraction:
        return schedule.end
    start, end, moved = schedule.start, schedule.end, max(0.0, done / schedule.fraction)
    if schedule.kind == "linear":
        return start * (1.0 - moved) + end * moved
    if schedule.kind == "exponential":
        return float(start * (end / start) ** moved)
    weight = 0.5 + 0.5 * math.cos(math.pi * moved)
    return start * weight + end * (1.0 - weight)


def values(schedule: Schedule, steps: NDArray[np.integer], total_steps: int) -> NDArray[np.float32]:
    """`value` at many env steps at once, rounded to float32.

    Args:
        schedule: what moves, and how.
        steps: integers of any shape.
        total_steps: env steps of the whole run, at least 1.

    Returns:
        float32 of the shape of `steps`.
    """
    if schedule.kind == "constant":
        return np.full(np.shape(steps), schedule.start, np.float32)
    done = np.asarray(steps) / total_steps
    if schedule.kind == "piecewise":
        return np.array(schedule.values, np.float32)[np.searchsorted(schedule.boundaries, done, side="right")]
    if schedule.fraction == 0.0:
        return np.full(np.shape(steps), schedule.end, np.float32)
    start, end, moved = schedule.start, schedule.end, np.clip(done, 0.0, schedule.fraction) / schedule.fraction
    if schedule.kind == "linear":
        result = start * (1.0 - moved) + end * moved
    elif schedule.kind == "exponential":
        result = start * (end / start) ** moved
    else:
        weight = 0.5 + 0.5 * np.cos(np.pi * moved)
        result = start * weight + end * (1.0 - weight)
    return np.where(done >= schedule.fraction, end, result).astype(np.float32)
