"""Observations that a policy meets: what ranges are calibrated on, and what files are compared on."""

from typing import Any, NamedTuple

import numpy as np

from rlplatform import envs
from rlplatform.config import EnvironmentConfig
from rlplatform.envs.naming import Factory
from rlplatform.training import Act, evaluate

Array = np.ndarray[Any, Any]

ON_POLICY = 0.8  # Share of what the greedy policy visits; the rest is from the replay, where exploration went.
MOST_EPISODES = 4_096


class States(NamedTuple):
    """Observations, and the masks beside them."""

    observations: Array  # [N, O...]
    masks: Array | None  # [N, A] bool, where the environment offers masks


class Reservoir:
    """A uniform sample of everything that was added, of at most `size` rows, in memory for twice as many.

    Args:
        size: rows to keep.
        seed: of the sampling.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self._rng = np.random.default_rng(seed)
        self._rows: list[tuple[Array, ...]] = []
        self._keys: list[Array] = []
        self._held = 0
        self._threshold = np.inf

    def add(self, observations: Array, masks: Array | None = None) -> None:
        """Adds `[n, O...]` observations, and `[n, A]` masks always or never; those that are kept are copied."""
        keys = self._rng.random(len(observations))
        chosen = keys < self._threshold
        if not chosen.any():
            return
        self._rows.append((observations[chosen],) if masks is None else (observations[chosen], masks[chosen]))
        self._keys.append(keys[chosen])
        self._held += int(chosen.sum())
        if self._held >= 2 * self.size:
            self._compact()

    def states(self) -> States:
        """M of them, M at most `size`, in random order."""
        self._compact()
        if not self._rows:
            raise ValueError("nothing was added to the reservoir")
        observations, *masks = self._rows[0]
        return States(observations, masks[0] if masks else None)

    def _compact(self) -> None:
        """Keeps the rows with the smallest keys."""
        if not self._rows:
            return
        keys = np.concatenate(self._keys)
        order = np.argsort(keys)[: self.size]
        self._rows = [tuple(np.concatenate(column)[order] for column in zip(*self._rows, strict=True))]
        self._keys = [keys[order]]
        self._held = len(order)
        if self._held == self.size:
            self._threshold = float(self._keys[0][-1])


def visited(
    act: Act,
    environment: EnvironmentConfig,
    count: int,
    seed: int,
    *,
    stream: str = "calibration",
    factory: Factory | None = None,
) -> States:
    """M states of whole episodes under a policy, M at most `count`.

    Args:
        act: the policy, as for `training.evaluate`.
        environment: where it plays.
        count: how many states; episodes are added until there are so many.
        seed: of the episodes and of the choice among what was seen.
        stream: of the episodes' seeds.
        factory: as for `training.evaluate`.
    """
    reservoir = Reservoir(count, seed)
    seen = 0

    def watched(observations: Array, *masks: Array) -> Array:
        nonlocal seen
        seen += len(observations)
        reservoir.add(observations, *masks)
        return act(observations, *masks)

    episodes = 8
    done = 0
    while seen < count and done < MOST_EPISODES:
        seeds = envs.seeds(seed, episodes, stream)[done:]
        evaluate(watched, environment, seeds, factory=factory)
        done, episodes = episodes, 2 * episodes
    return reservoir.states()


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
