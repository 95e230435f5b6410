"""Seeds: from the one seed of a run to the seed of every environment, and to the reset that uses them."""

import zlib
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from rlplatform.envs.atari import AtariVector


def seeds(seed: int, count: int, stream: str) -> list[int]:
    """The seeds of `count` environments or episodes: all different, and the same for ever.

    A longer list begins with the shorter one, so that more episodes are the same episodes and some more.

    Args:
        seed: the run's seed, not negative.
        count: how many.
        stream: what they are for (`train`, `selection`, `evaluation`, ...); each stream has seeds of its own.

    Returns:
        Numbers below 2**31, which simulators in C accept too.
    """
    bits = np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(stream.encode())]))  # a stream numpy keeps for ever
    drawn: dict[int, None] = {}  # keeps the order, drops repeats
    while len(drawn) < count:
        drawn[int(bits.random_raw()) >> 33] = None
    return list(drawn)


def reset(env: gym.vector.VectorEnv[Any, Any, Any], seeds: Sequence[int]) -> tuple[Any, dict[str, Any]]:
    """Resets every environment, each with its own seed.

    Vector environments that hold one random generator for all (Gymnasium's native ones) take the first seed alone.

    Args:
        env: N environments.
        seeds: N seeds.

    Returns:
        Observations `[N, O...]` and the info dictionary.
    """
    separate = hasattr(env.unwrapped, "get_attr")  # Gymnasium's mark of a vector of separate environments
    if separate or isinstance(env.unwrapped, AtariVector):
        return env.reset(seed=list(seeds))  # type: ignore[arg-type]
    return env.reset(seed=int(seeds[0]))
