"""Atari games with the preprocessing of the field, by ale-py's vector environment in C++."""

import math
import os
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rlplatform.config import EnvironmentConfig
from rlplatform.envs.entry_points import explained
from rlplatform.errors import UserError, nearest

OPTIONS: dict[str, Any] = {
    "repeat_action_probability": 0.25,
    "frameskip": 4,
    "max_num_frames_per_episode": 108_000,
    "full_action_space": False,
    "noop_max": 0,
    "use_fire_reset": False,
    "episodic_life": False,
    "reward_clipping": True,
    "img_height": 84,
    "img_width": 84,
    "grayscale": True,
}
"""What `environment.kwargs` may set, with defaults: those of Machado et al. 2018, whose start states vary by sticky
actions alone, and the clipped rewards of Mnih et al. 2015. An older id brings values of its own."""

SCREEN = {"img_height": 210, "img_width": 160, "grayscale": False}
NOOP = 0  # of every game's minimal actions and of the full set


def preprocessed(config: EnvironmentConfig, spec: EnvSpec) -> bool:
    """Whether `spec` is an Atari game that is played through the preprocessing here.

    A game that is asked for with `obs_type` (`ram`, `rgb`, `grayscale`) is played as ale-py's single environment
    shows it instead.
    """
    shown = {**spec.kwargs, **config.kwargs}
    return str(spec.entry_point).startswith("ale_py.env:") and "obs_type" not in shown


def make_vector(config: EnvironmentConfig, spec: EnvSpec) -> "AtariVector":
    """The training environments: `config.num_envs` games in C++ threads, with clipped rewards unless told otherwise.

    Raises:
        UserError: an option is unknown or does not fit.
    """
    if config.vectorization != "auto":
        raise UserError(
            f"{spec.id} is a vector already; environment.vectorization must be 'auto', not {config.vectorization!r}"
        )
    return AtariVector(spec, config.num_envs, options_of(config, spec))


def make_single(config: EnvironmentConfig, spec: EnvSpec, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """One game for evaluation and video: whole games and raw scores, whatever training sees.

    Raises:
        UserError: an option is unknown or does not fit.
    """
    options = options_of(config, spec) | {"episodic_life": False, "reward_clipping": False}
    return AtariGame(spec, options, render_mode)


def options_of(config: EnvironmentConfig, spec: EnvSpec) -> dict[str, Any]:
    """All of `OPTIONS` as the id and `config.kwargs` set them.

    Raises:
        UserError: an option is unknown, or the id's frame skip is a random one.
    """
    unknown = next((key for key in config.kwargs if key not in OPTIONS), None)
    if unknown is not None:
        raise UserError(f"{spec.id} takes no argument {unknown!r}; {nearest(unknown, OPTIONS)}")
    registered = {key: value for key, value in spec.kwargs.items() if key in OPTIONS}
    if registered.get("frameskip") == 1:  # NoFrameskip: the id leaves skipping to the preprocessing, which is here
        del registered["frameskip"]
    options = OPTIONS | registered | config.kwargs
    if not isinstance(options["frameskip"], int) or options["frameskip"] < 1:
        raise UserError(
            f"{spec.id} skips {options['frameskip']} frames, and preprocessing needs one number of at least 1, as in "
            "ALE/Pong-v5 or with environment.kwargs.frameskip=4"
        )
    if config.max_episode_steps:
        limit = config.max_episode_steps * options["frameskip"]
        options["max_num_frames_per_episode"] = min(options["max_num_frames_per_episode"], limit)
    return options


class AtariVector(gym.vector.VectorEnv[Any, Any, Any]):
    """N games side by side, in NEXT_STEP mode. Each shows its newest frame `[84, 84]` uint8; stacks are the replay's.

    With `episodic_life`, a lost life ends the episode, yet the game goes on: the step after it does nothing in the game
    (NOOP), and shows the first observation of the next episode. Only the end of a game begins a new one.

    Args:
        spec: which game.
        num_envs: N.
        options: all of `OPTIONS`.

    Raises:
        UserError: the game cannot be made so.
    """

    def __init__(self, spec: EnvSpec, num_envs: int, options: dict[str, Any]) -> None:
        from ale_py.vector_env import AtariVectorEnv  # the package may be missing; an id of it has been found by now

        own = {key: value for key, value in options.items() if key != "episodic_life"}
        threads = min(num_envs, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0)
        with explained(spec.id, AtariVectorEnv, own):
            self._games = AtariVectorEnv(
                spec.kwargs["game"],
                num_envs,
                stack_num=1,
                life_loss_info=options["episodic_life"],
                autoreset_mode=AutoresetMode.NEXT_STEP,
                num_threads=threads,
                **own,
            )
        height, width = options["img_height"], options["img_width"]
        frame = (height, width) if options["grayscale"] else (height, width, 3)
        self.spec, self.num_envs = spec, num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_fps": 60 / options["frameskip"]}
        self.render_mode = None
        self.single_observation_space = gym.spaces.Box(0, 255, frame, np.uint8)
        self.single_action_space = self._games.single_action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._over = np.zeros(num_envs, np.bool_)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Begins a new game in every environment.

        Args:
            seed: one seed per environment, or a number to which the environment's index is added.
            options: not used.
        """
        if seed is not None and not isinstance(seed, int | np.integer):
            given: Any = np.asarray(seed, np.int64)
        else:
            given = None if seed is None else int(seed)
        observations, infos = self._games.reset(seed=given)
        self._over[:] = False
        return observations[:, 0], infos

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Repeats each action for `frameskip` frames; where the episode has ended, the action is ignored.

        Args:
            actions: `[N]`.
        """
        over = self._over
        observations, rewards, terminated, truncated, infos = self._games.step(np.where(over, NOOP, actions))
        self._over = terminated | truncated
        return observations[:, 0], np.where(over, 0.0, rewards), terminated, truncated, infos


class AtariGame(gym.Env[Any, Any]):
    """One game, as a single environment.

    What is filmed is the screen in colour: a second game on the same seed takes the same steps and shows it.

    Args:
        spec: which game.
        options: all of `OPTIONS`.
        render_mode: `rgb_array` or None.
    """

    def __init__(self, spec: EnvSpec, options: dict[str, Any], render_mode: str | None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise UserError(f"{spec.id} is rendered as 'rgb_array' alone, not as {render_mode!r}")
        self._vector = AtariVector(spec, 1, options)
        self._screen = AtariVector(spec, 1, options | SCREEN) if render_mode else None
        self._shown: NDArray[np.uint8] | None = None
        self.spec, self.render_mode = spec, render_mode
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": math.ceil(self._vector.metadata["render_fps"])}
        self.observation_space = self._vector.single_observation_space
        self.action_space = self._vector.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins a new game."""
        super().reset(seed=seed)
        if seed is None and self._screen is not None:
            seed = int(self.np_random.integers(2**31))  # both games need the same one
        observations, _ = self._vector.reset(seed=seed)
        if self._screen is not None:
            self._shown = self._screen.reset(seed=seed)[0][0]
        return observations[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Repeats the action for `frameskip` frames."""
        actions = np.array([action], np.int64)
        observations, rewards, terminated, truncated, _ = self._vector.step(actions)
        if self._screen is not None:
            self._shown = self._screen.step(actions)[0][0]
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), {}

    def render(self) -> Any:
        """[210, 160, 3] uint8, the brighter of the last two frames at each pixel; None without a render mode."""
        return self._shown
