"""The wrappers that give an environment one Box to see and one Discrete to choose from, where it has others."""

import dataclasses
from collections.abc import Sequence
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import batch_space

from rlplatform.envs.flattening import Flattening
from rlplatform.envs.joint import ActionLayout, action_layout_of, table_of
from rlplatform.envs.layout import Array, Layout, layout_of, space_of
from rlplatform.envs.masks import Mask, mask_of, mask_row


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """What stands between an environment's own spaces and those that the platform sees.

    Attributes:
        layout: of observations; None where they pass as they are.
        action_layout: of joint actions; None where they pass as they are.
        action_mask: whether the environment says which actions are allowed.
    """

    layout: Layout | None = None
    action_layout: ActionLayout | None = None
    action_mask: bool = False


def adaptation_of(observation: gym.Space[Any], action: gym.Space[Any], name: str) -> Adaptation | None:
    """What an environment of these spaces needs, or None: a Box that is no image with channels first, and Discrete.

    Args:
        observation: the space of single observations.
        action: the space of single actions.
        name: what messages call the environment.

    Raises:
        UserError: a space is not supported.
    """
    layout, action_layout = layout_of(observation, name), action_layout_of(action, name)
    if layout is None and action_layout is None:
        return None
    return Adaptation(layout, action_layout, layout is not None and layout["action_mask"] is not None)


class Adapter(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """An environment with Box observations and Discrete actions, made of one with any supported spaces.

    A mask of its actions, which stood in an entry `action_mask` of the observation or in the info, stands in the info,
    as `[A]` bool.

    Args:
        env: any environment.
        name: what messages call it; by default its class.

    Raises:
        UserError: its spaces are not supported; or, later, it shows what is not in them.
    """

    def __init__(self, env: gym.Env[Any, Any], name: str | None = None) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, name=name)
        gym.Wrapper.__init__(self, env)
        observation, action, name = env.observation_space, env.action_space, name or type(env.unwrapped).__name__
        self.adaptation = adaptation_of(observation, action, name) or Adaptation()
        self._conversion = _Conversion(self.adaptation)
        if self.adaptation.layout is not None:
            self.observation_space = space_of(self.adaptation.layout, observation)
        if self._conversion.table is not None:
            self.action_space = gym.spaces.Discrete(len(self._conversion.table))
        space: Any = self.action_space
        self._num_actions = int(space.n)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins an episode."""
        return self._seen(*self.env.reset(seed=seed, options=options))

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Takes one step; `action` is counted as the action space does."""
        table = self._conversion.table
        observation, reward, terminated, truncated, info = self.env.step(
            action if table is None else table[action].copy()
        )
        observation, info = self._seen(observation, info)
        return observation, reward, terminated, truncated, info

    def _seen(self, observation: Any, info: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        flattening, sizes = self._conversion.flattening, self._conversion.sizes
        if flattening is not None:
            mask = flattening.mask(observation)
            observation = flattening.one(observation)
            if mask is not None:
                return observation, {**info, "action_mask": mask_row(mask, self._num_actions, sizes)}
        if "action_mask" in info:
            info = {**info, "action_mask": mask_row(info["action_mask"], self._num_actions, sizes)}
        return observation, info


class VectorAdapter(gym.vector.VectorWrapper[Any, Any, Any, Any, Any]):
    """As `Adapter`, for environments that exist only as a vector, in any autoreset mode.

    `infos["action_mask"]` is `[N, A]` bool, and all true where an environment gives none.

    Args:
        env: N environments.
        adaptation: what they need.
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any], adaptation: Adaptation) -> None:
        super().__init__(env)
        self.adaptation = adaptation
        self._conversion = _Conversion(adaptation)
        if adaptation.layout is not None:
            self.single_observation_space = space_of(adaptation.layout, env.single_observation_space)
            self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        if self._conversion.table is not None:
            self.single_action_space = gym.spaces.Discrete(len(self._conversion.table))
            self.action_space = batch_space(self.single_action_space, env.num_envs)
        space: Any = self.single_action_space
        self._num_actions = int(space.n)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Begins episodes."""
        return self._seen(*self.env.reset(seed=seed, options=options))  # type: ignore[arg-type]

    def step(self, actions: Array) -> tuple[Array, Any, Any, Any, dict[str, Any]]:
        """Takes one step in every environment; `actions` `[N]` are counted as the action space does."""
        table = self._conversion.table
        observations, rewards, terminated, truncated, infos = self.env.step(
            actions if table is None else table[actions]
        )
        observations, infos = self._seen(observations, infos)
        return observations, rewards, terminated, truncated, infos

    def _seen(self, observations: Any, infos: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
        flattening = self._conversion.flattening
        mask = None
        if flattening is not None:
            mask = flattening.mask(observations)
            observations = flattening.many(observations, self.num_envs)
            if "final_obs" in infos:
                infos = {**infos, "final_obs": _finals(flattening, infos["final_obs"], self.num_envs)}
        if mask is not None:
            infos = {**infos, "action_mask": self._masks(mask, None), "_action_mask": np.ones(self.num_envs, np.bool_)}
        elif "action_mask" in infos:
            infos = {**infos, "action_mask": self._masks(infos["action_mask"], infos.get("_action_mask"))}
        return observations, infos

    def _masks(self, given: Any, present: Any) -> Mask:
        sizes, shape = self._conversion.sizes, (self.num_envs, self._num_actions)
        if sizes is None:
            return mask_of({"action_mask": given, "_action_mask": present}, *shape)
        masks = np.ones(shape, np.bool_)
        for index in range(self.num_envs):
            if present is None or present[index]:
                masks[index] = mask_row(given[index], self._num_actions, sizes)
        return masks


class Described(gym.vector.VectorWrapper[Any, Any, Any, Any, Any]):
    """A vector whose environments are adapted where they are, in processes of their own.

    Args:
        env: N environments, each in an `Adapter` if it needs one.
        adaptation: what it is.
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any], adaptation: Adaptation) -> None:
        super().__init__(env)
        self.adaptation = adaptation


class _Conversion:
    """An adaptation, prepared for speed."""

    def __init__(self, adaptation: Adaptation) -> None:
        self.flattening = None if adaptation.layout is None else Flattening(adaptation.layout)
        actions = adaptation.action_layout
        self.table = None if actions is None else table_of(actions)
        self.sizes: list[int] | None = None if actions is None else actions["sizes"]


def _finals(flattening: Flattening, given: Any, num_envs: int) -> Any:
    """The final observations of SAME_STEP, of those environments that have one."""
    if not isinstance(given, np.ndarray) or given.dtype.kind != "O":
        return flattening.many(given, num_envs)
    finals = np.full(num_envs, None, object)
    for index, observation in enumerate(given):
        if observation is not None:
            finals[index] = flattening.one(observation)
    return finals
