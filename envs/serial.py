"""Several environments in one process, stepped one after the other with as little between as possible."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rlplatform.envs.adapter import Adaptation
from rlplatform.errors import UserError


class SerialVectorEnv(gym.vector.VectorEnv[Any, Any, Any]):
    """A vector of separate environments with Box observations, in NEXT_STEP mode.

    Step by step the same as `gymnasium.vector.SyncVectorEnv`, infos included, without its deep copies and space
    dispatch. Every array that it returns is new. It holds no functions, so that it can be pickled in the middle of an
    episode wherever its environments can.

    Args:
        makers: one function per environment; only called here.

    Raises:
        UserError: the environments differ in their spaces, or two of them are the same object; or, later, one shows
            what is not in its observation space.
    """

    def __init__(self, makers: Sequence[Callable[[], gym.Env[Any, Any]]]) -> None:
        self.envs: list[gym.Env[Any, Any]] = []
        self.num_envs = len(makers)
        try:
            self.envs.extend(maker() for maker in makers)
            self._check()
        except Exception:
            self.close_extras()
            raise
        first = self.envs[0]
        self.spec = first.spec
        self.metadata = {**first.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}
        self.render_mode = first.render_mode
        self.single_observation_space, self.single_action_space = first.observation_space, first.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.adaptation: Adaptation | None = getattr(first, "adaptation", None)  # what `Adapter` makes of each
        self._shape = (self.num_envs, *(self.single_observation_space.shape or ()))
        self._dtype = np.dtype(self.single_observation_space.dtype)
        self._over = [False] * self.num_envs  # the episode has ended: the next step resets

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Begins an episode in every environment.

        Args:
            seed: one seed per environment, or a number to which the environment's index is added.
            options: passed to every environment.
        """
        if seed is None or isinstance(seed, int | np.integer):
            seed = [None if seed is None else int(seed) + index for index in range(self.num_envs)]
        observations = np.empty(self._shape, self._dtype)
        infos: dict[str, Any] = {}
        for index, (env, env_seed) in enumerate(zip(self.envs, seed, strict=True)):
            observation, info = env.reset(seed=env_seed, options=options)
            observations[index] = self._fitting(observation)
            infos = self._add_info(infos, info, index)
        self._over = [False] * self.num_envs
        return observations, infos

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Steps every environment; those whose episode has ended are reset instead, and their action is ignored.

        Args:
            actions: `[N]`.

        Returns:
            Observations `[N, O...]`, rewards, terminated and truncated `[N]`, and the infos of those that had any.
        """
        observations = np.empty(self._shape, self._dtype)
        rewards = np.zeros(self.num_envs)
        terminated = np.zeros(self.num_envs, np.bool_)
        truncated = np.zeros(self.num_envs, np.bool_)
        infos: dict[str, Any] = {}
        over, shape = self._over, self._shape[1:]
        for index, env in enumerate(self.envs):
            if over[index]:
                observation, info = env.reset()
                observations[index] = self._fitting(observation)
                over[index] = False
            else:
                observation, rewards[index], ended, cut, info = env.step(actions[index])
                if np.shape(observation) != shape:  # assigning would broadcast it
                    self._fitting(observation)
                observations[index] = observation
                if ended or cut:
                    terminated[index], truncated[index] = ended, cut
                    over[index] = True
            if info:
                infos = self._add_info(infos, info, index)
        return observations, rewards, terminated, truncated, infos

    def render(self) -> tuple[Any, ...]:
        """One rendered frame per environment."""
        return tuple(env.render() for env in self.envs)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Calls the method `name` of every environment; an attribute that is no method is returned as it is."""
        attributes = self.get_attr(name)
        return tuple(attribute(*args, **kwargs) if callable(attribute) else attribute for attribute in attributes)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The attribute `name` of every environment, wherever among its wrappers it is."""
        return tuple(env.get_wrapper_attr(name) for env in self.envs)

    def set_attr(self, name: str, values: Any) -> None:
        """Sets the attribute `name` of every environment, from a list of N values or from one for all."""
        values = values if isinstance(values, list | tuple) else [values] * self.num_envs
        for env, value in zip(self.envs, values, strict=True):
            env.set_wrapper_attr(name, value)

    def _check(self) -> None:
        """Refuses environments that do not go together."""
        first = self.envs[0]
        for index, env in enumerate(self.envs):
            if (env.observation_space, env.action_space) != (first.observation_space, first.action_space):
                raise UserError(
                    f"environment {index} differs in its spaces from environment 0: {env.observation_space} and "
                    f"{env.action_space}, not {first.observation_space} and {first.action_space}"
                )
            if getattr(env, "adaptation", None) != getattr(first, "adaptation", None):
                raise UserError(
                    f"environment {index} differs in its spaces from environment 0, before they are adapted"
                )
        if len({id(env.unwrapped) for env in self.envs}) < self.num_envs:
            raise UserError(
                f"{first} is handed out more than once; what makes environments must make a new one at each call"
            )

    def _fitting(self, observation: Any) -> Any:
        """`observation`, if its shape and dtype are those of the space: assigning it would silently change them."""
        given = np.asarray(observation)
        if given.shape != self._shape[1:] or not np.can_cast(given.dtype, self._dtype, "same_kind"):
            raise UserError(
                f"{self} shows an observation of shape {given.shape} and dtype {given.dtype}, but its space has "
                f"{self._shape[1:]} and {self._dtype}"
            )
        return observation

    def close_extras(self, **kwargs: Any) -> None:
        """Closes every environment."""
        for env in self.envs:
            env.close()
