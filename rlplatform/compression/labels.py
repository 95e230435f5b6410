"""What a teacher answers in the states that are met: the data that smaller networks learn from."""

from typing import Any, NamedTuple

import numpy as np

from rlplatform.agents.acting import masked
from rlplatform.compression.agreement import gaps
from rlplatform.compression.calibration import States, visited
from rlplatform.config import EnvironmentConfig
from rlplatform.envs.naming import Factory
from rlplatform.training import Act, random_actions

Array = np.ndarray[Any, Any]

EPSILON = 0.05  # of the teacher's rollouts: next to its own path lie the states in which a student's mistakes end
BATCH = 1_024
FORBIDDEN = -1e9  # the value of a forbidden action beside those of a softmax: its share is 0, without 0 * inf


class Labels(NamedTuple):
    """States, and the teacher's values in them."""

    observations: Array  # [N, O...] as the environment gives them
    values: Array  # [N, A] float32
    masks: Array | None  # [N, A] bool, where the environment offers masks

    def actions(self) -> Array:
        """[N] int64, the teacher's greedy actions."""
        return masked(self.values, self.masks).argmax(axis=1)  # type: ignore[no-any-return]

    def at(self, rows: Array) -> "Labels":
        """Those of the given rows, `[M]` integers."""
        return Labels(self.observations[rows], self.values[rows], None if self.masks is None else self.masks[rows])

    def gaps(self) -> Array:
        """[N]: the best value less the second best among the allowed ones, infinite where only one is allowed."""
        return gaps(masked(self.values, self.masks))


def label(teacher: Any, states: States) -> Labels:
    """Asks a canonical network, `[B, O...]` float32 to `[B, A]`, about states."""
    observations = states.observations
    parts = [
        np.asarray(teacher(observations[start : start + BATCH].astype(np.float32), training=False))
        for start in range(0, len(observations), BATCH)
    ]
    return Labels(observations, np.concatenate(parts), states.masks)


def gather(
    teacher: Any,
    act: Act,
    environment: EnvironmentConfig,
    count: int,
    seed: int,
    stream: str,
    *,
    epsilon: float = EPSILON,
    factory: Factory | None = None,
) -> Labels:
    """States of whole episodes under a policy, with the teacher's values; at most `count`, in random order.

    Args:
        teacher: the canonical network that is asked.
        act: the policy that plays: the teacher's own, or a student's, whose mistakes the teacher then sees
            (DAgger: Ross et al. 2011, algorithm 3.1).
        environment: where it plays.
        count: how many states.
        seed: of the episodes, of the random actions, and of the choice among what was seen.
        stream: of the episodes' seeds: other streams are other episodes.
        epsilon: the share of random actions.
        factory: as for `training.evaluate`.
    """
    num_actions = int(teacher.output_shape[-1])
    exploring = act if epsilon == 0.0 else explorer(act, epsilon, num_actions, seed)
    return label(teacher, visited(exploring, environment, count, seed, stream=stream, factory=factory))


def explorer(act: Act, epsilon: float, num_actions: int, seed: int) -> Act:
    """The policy that takes a random allowed action with the chance `epsilon`, and else that of `act`."""
    rng, at_random = np.random.default_rng(seed), random_actions(num_actions, seed)

    def explore(observations: Array, *masks: Array) -> Array:
        chance = rng.random(len(observations)) < epsilon
        return np.where(chance, at_random(observations, *masks), act(observations, *masks))

    return explore


def together(*parts: Labels) -> Labels:
    """All states of all parts."""
    masks = [part.masks for part in parts]
    return Labels(
        np.concatenate([part.observations for part in parts]),
        np.concatenate([part.values for part in parts]),
        None if any(mask is None for mask in masks) else np.concatenate([mask for mask in masks if mask is not None]),
    )
