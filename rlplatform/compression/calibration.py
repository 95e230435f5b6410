"""Observations that a policy meets: what ranges are calibrated on, and what files are compared on."""

from typing import Any

import numpy as np

from rlplatform import envs
from rlplatform.config import EnvironmentConfig
from rlplatform.envs.naming import Factory
from rlplatform.training import Act, evaluate

Array = np.ndarray[Any, Any]

ON_POLICY = 0.8  # Share of what the greedy policy visits; the rest is from the replay, where exploration went.
MOST_EPISODES = 4_096


class Reservoir:
    """A uniform sample of everything that was added, of at most `size` rows, in memory for twice as many.

    Args:
        size: rows to keep.
        seed: of the sampling.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self._rng = np.random.default_rng(seed)
        self._rows: list[Array] = []
        self._keys: list[Array] = []
        self._held = 0
        self._threshold = np.inf

    def add(self, rows: Array) -> None:
        """Adds `[n, O...]` rows; those that are kept are copied."""
        keys = self._rng.random(len(rows))
        chosen = keys < self._threshold
        if not chosen.any():
            return
        self._rows.append(rows[chosen])
        self._keys.append(keys[chosen])
        self._held += int(chosen.sum())
        if self._held >= 2 * self.size:
            self._compact()

    def rows(self) -> Array:
        """`[M, O...]`, M at most `size`, in random order."""
        self._compact()
        if not self._rows:
            raise ValueError("nothing was added to the reservoir")
        return self._rows[0]

    def _compact(self) -> None:
        """Keeps the rows with the smallest keys."""
        if not self._rows:
            return
        keys = np.concatenate(self._keys)
        order = np.argsort(keys)[: self.size]
        self._rows, self._keys = [np.concatenate(self._rows)[order]], [keys[order]]
        self._held = len(order)
        if self._held == self.size:
            self._threshold = float(self._keys[0][-1])


def visited(
    act: Act,
    environment: EnvironmentConfig,
    count: int,
    seed: int,
    *,
    factory: Factory | None = None,
) -> Array:
    """`[M, O...]` observations of whole episodes under a policy, M at most `count`.

    Args:
        act: the policy, as for `training.evaluate`.
        environment: where it plays.
        count: how many observations; episodes are added until there are so many.
        seed: of the episodes and of the choice among what was seen.
        factory: as for `training.evaluate`.
    """
    reservoir = Reservoir(count, seed)
    seen = 0

    def keep(observation: Array) -> None:
        nonlocal seen
        seen += len(observation)
        reservoir.add(observation)

    episodes = 8
    done = 0
    while seen < count and done < MOST_EPISODES:
        seeds = envs.seeds(seed, episodes, "calibration")[done:]
        evaluate(act, environment, seeds, factory=factory, on_observation=keep)
        done, episodes = episodes, 2 * episodes
    return reservoir.rows()


def mixture(on_policy: Array, replayed: Array, count: int, seed: int) -> Array:
    """`[M, O...]`, M at most `count`: four fifths of what the policy visits, one fifth of the replay, shuffled.

    Where one of the two has too few, the other fills up.
    """
    replay_share = min(len(replayed), max(count - round(ON_POLICY * count), count - len(on_policy)))
    rng = np.random.default_rng(seed)
    parts = []
    for rows, size in ((on_policy, count - replay_share), (replayed, replay_share)):
        chosen = rng.permutation(len(rows))[:size]
        parts.append(rows[np.sort(chosen)])
    together = np.concatenate(parts)
    return together[rng.permutation(len(together))]
