"""Environments that show less than one must know: to test an agent that remembers with, and one that does not.

Each is usable by name, as `rlplatform train rlplatform.envs.memory:TMaze --preset r2d2`.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rlplatform.errors import UserError

Observation = NDArray[np.float32]

FORWARD, LEFT, RIGHT = 0, 1, 2
STANDING_STILL = -0.1  # the reward of bumping into a wall


class TMaze(gym.Env[Observation, np.int64]):
    """A corridor with a sign at its start and a junction at its end, where the sign must be remembered (Bakker 2001).

    The observation is `[sign, junction]`: the sign is -1 or 1 in the first cell and 0 in all others, the junction is 1
    in the last cell and 0 before. Actions: forward, left, right. In the corridor only forward moves, at the junction
    only left and right do; what does not move costs 0.1. Going where the sign pointed to (-1: left, 1: right) ends the
    episode with 1, the other way with -1. Whoever remembers reaches 1; the best without a memory is 0 on average.

    Args:
        length: steps from the sign to the junction, at least 1.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(self, length: int = 8) -> None:
        if length < 1:
            raise UserError(f"length must be at least 1; got {length}")
        self.length = length
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(3)
        self.sign, self.cell, self.steps = 1, 0, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Goes back to the start, under a new sign."""
        super().reset(seed=seed)
        self.sign, self.cell, self.steps = int(self.np_random.choice([-1, 1])), 0, 0
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Moves, or stands still; an episode is cut after four times the steps that it needs."""
        self.steps += 1
        reward, over = STANDING_STILL, False
        if self.cell < self.length and action == FORWARD:
            self.cell += 1
            reward = 0.0
        elif self.cell == self.length and action != FORWARD:
            reward, over = (1.0 if (action == RIGHT) == (self.sign == 1) else -1.0), True
        return self._observation(), reward, over, not over and self.steps >= 4 * (self.length + 1), {}

    def _observation(self) -> Observation:
        return np.array([self.sign if self.cell == 0 else 0, self.cell == self.length], np.float32)


class HiddenVelocityCartPole(gym.ObservationWrapper[Observation, np.int64, Observation]):
    """CartPole-v1 that shows where cart and pole are and not how fast they move: `[position, angle]`.

    Args:
        render_mode: as CartPole's.
    """

    SHOWN = (0, 2)

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(gym.make("CartPole-v1", render_mode=render_mode, disable_env_checker=True))
        whole: Any = self.env.observation_space
        shown = list(self.SHOWN)
        self.observation_space = gym.spaces.Box(whole.low[shown], whole.high[shown], dtype=np.float32)

    def observation(self, observation: Observation) -> Observation:
        """`[4]` to `[2]`."""
        return observation[list(self.SHOWN)]
