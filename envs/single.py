"""One environment out of a vector environment that holds just one."""

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode


class FirstOfVector(gym.Env[Any, Any]):
    """A vector environment of one, as a single environment: for those that exist only as a vector.

    Args:
        vector: N = 1 environments in any autoreset mode.
    """

    def __init__(self, vector: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        self.vector = vector
        self.spec = vector.spec
        self.metadata = vector.metadata
        self.render_mode = vector.render_mode
        self.observation_space, self.action_space = vector.single_observation_space, vector.single_action_space
        self.adaptation = getattr(vector, "adaptation", None)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins an episode."""
        super().reset(seed=seed)
        observations, infos = self.vector.reset(seed=seed, options=options)
        return self._own(observations[0]), _first(infos)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Takes one step; at the end of an episode the observation is the final one."""
        actions = np.array([action], self.vector.action_space.dtype)
        observations, rewards, terminated, truncated, infos = self.vector.step(actions)
        observation = observations[0]
        over = bool(terminated[0] or truncated[0])
        if over and self.vector.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP:
            observation, infos = infos["final_obs"][0], infos.get("final_info", {})
        return self._own(observation), float(rewards[0]), bool(terminated[0]), bool(truncated[0]), _first(infos)

    def _own(self, observation: Any) -> Any:
        """A copy: vectors may hand out the same array at every step."""
        return np.array(observation, self.observation_space.dtype)

    def render(self) -> Any:
        """The frame of the environment."""
        frames = self.vector.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        """Closes the vector environment."""
        self.vector.close()


def _first(infos: dict[str, Any]) -> dict[str, Any]:
    """What the infos of a vector say of environment 0."""
    info: dict[str, Any] = {}
    for key, value in infos.items():
        given = infos.get(f"_{key}")
        if key.startswith("_") or (given is not None and not given[0]):
            continue
        if isinstance(value, dict):
            info[key] = _first(value)
        elif isinstance(value, np.ndarray | list | tuple) and len(value):
            info[key] = value[0].copy() if isinstance(value[0], np.ndarray) else value[0]
    return info
