"""Evaluation: greedy episodes on environments and seeds of their own, apart from training."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from rlplatform import envs
from rlplatform.agents.acting import RecurrentActor, masked
from rlplatform.config import EnvironmentConfig
from rlplatform.envs.naming import Factory
from rlplatform.errors import RunError, UserError

Array = np.ndarray[Any, Any]
Act = Callable[..., Array]
"""From [n, S...] stacked observations to [n] actions, counted from 0; where the environment offers action masks, it
takes them besides, [n, A] bool. One that remembers has a function `begin`, and all calls are then about the same n
environments: before each call it is told `first` [n] bool, in which of them an episode begins, and `live` [n] bool, in
which of them one is played; the actions of the others do not matter."""
EPISODE_LIMIT = 100_000  # env steps after which an episode without a time limit of its own is cut
SIDE_BY_SIDE = 32


class Evaluation(NamedTuple):
    """One row per episode, in the order of the seeds."""

    returns: Array  # [E] float64, undiscounted
    lengths: Array  # [E] int64
    seeds: Array  # [E] int64

    @property
    def mean(self) -> float:
        """The mean return."""
        return float(self.returns.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean return over the episodes; nan for a single one."""
        return float(self.returns.std(ddof=1) / np.sqrt(len(self.returns))) if len(self.returns) > 1 else float("nan")


def evaluate(
    act: Act,
    environment: EnvironmentConfig,
    seeds: Sequence[int],
    *,
    factory: Factory | None = None,
    on_episode: Callable[[int], None] | None = None,
    on_observation: Callable[[Array], None] | None = None,
) -> Evaluation:
    """Plays one episode per seed with `act`, several side by side.

    Every episode starts from `env.reset(seed=...)` with its own seed, so two policies given the same seeds are paired.
    An episode without a time limit is cut after 100,000 steps.

    Args:
        act: [n, S...] stacked observations to [n] actions, counted from 0. Where the environment offers action masks,
            it is called with [n, A] bool besides, true where an action is allowed.
        environment: which environment; `num_envs` and `vectorization` do not matter.
        seeds: one per episode.
        factory: a Python callable that makes the environment, instead of `environment.id`.
        on_episode: called with the number of finished episodes after each.
        on_observation: called with the [n, S...] observations before each call of `act`.

    Raises:
        UserError: there are no seeds, or the environment cannot be made.
        RunError: it shows NaN or infinity.
    """
    if not len(seeds):
        raise UserError("evaluation needs at least one episode; got no seeds")
    singles: list[Any] = []
    try:
        singles.extend(envs.make_single(environment, factory=factory) for _ in range(min(len(seeds), SIDE_BY_SIDE)))
        return _play(act, singles, environment.frame_stack, seeds, on_episode, on_observation)
    finally:
        for env in singles:
            env.close()


def _play(
    act: Act,
    singles: list[Any],
    frame_stack: int,
    seeds: Sequence[int],
    on_episode: Callable[[int], None] | None,
    on_observation: Callable[[Array], None] | None,
) -> Evaluation:
    spec = envs.spec_of(singles[0])
    stack = envs.Stack(spec, frame_stack, len(singles))
    frames = np.zeros((len(singles), *spec.observation_shape), spec.observation_dtype)
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), np.int64)
    mask = np.ones((len(singles), spec.num_actions), np.bool_)
    masks = spec.action_mask  # or the first infos say so
    waiting = iter(range(len(seeds)))
    playing = np.full(len(singles), -1)  # which episode each environment plays; -1: none
    begins = np.zeros(len(singles), np.bool_)
    finished = 0
    remember: Callable[[Array, Array], None] | None = getattr(act, "begin", None)

    def begin(slot: int) -> dict[str, Any]:
        playing[slot] = next(waiting, -1)
        if playing[slot] < 0:
            return {}
        frames[slot], info = singles[slot].reset(seed=int(seeds[playing[slot]]))
        begins[slot] = True
        return info  # type: ignore[no-any-return]

    for slot in range(len(singles)):
        info = begin(slot)
        masks |= "action_mask" in info
        mask[slot] = envs.mask_row(info.get("action_mask"), spec.num_actions)
    while (live := np.flatnonzero(playing >= 0)).size:
        if not np.isfinite(frames[live]).all():
            episode = int(playing[next(slot for slot in live if not np.isfinite(frames[slot]).all())])
            raise RunError(
                f"the environment shows NaN or infinity after step {lengths[episode]} of the episode with seed "
                f"{seeds[episode]}; a policy can answer only numbers"
            )
        stack.push(frames)
        if remember is not None:
            remember(begins, playing >= 0)
        if begins.any():
            stack.reset(begins, frames)
            begins[:] = False
        asked = live if remember is None else np.arange(len(singles))
        observation = stack.observation if asked.size == len(singles) else stack.observation[asked]
        if on_observation is not None:
            on_observation(observation)
        actions = act(observation, mask[asked]) if masks else act(observation)
        actions = actions if remember is None else actions[live]
        for slot, action in zip(live.tolist(), actions, strict=True):
            episode = int(playing[slot])
            frames[slot], reward, terminated, truncated, info = singles[slot].step(int(action) + spec.action_start)
            returns[episode] += float(reward)
            lengths[episode] += 1
            if terminated or truncated or lengths[episode] >= EPISODE_LIMIT:
                finished += 1
                if on_episode is not None:
                    on_episode(finished)
                info = begin(slot)
            if masks:
                mask[slot] = envs.mask_row(info.get("action_mask"), spec.num_actions)
    return Evaluation(returns, lengths, np.asarray(seeds, np.int64))


def greedy(actor: Any) -> Act:
    """The policy that takes the allowed action of the largest Q-value; the lowest index where several are equal.

    It remembers where the actor does: see `Act`.
    """

    def act(observation: Array, action_mask: Array | None = None) -> Array:
        return masked(actor.q_values(observation), action_mask).argmax(axis=1)  # type: ignore[no-any-return]

    if isinstance(actor, RecurrentActor):
        act.begin = lambda first, live: actor.begin(first)  # type: ignore[attr-defined]
    return act


def random_actions(num_actions: int, seed: int) -> Act:
    """The policy that takes each of the allowed actions as often."""
    rng = np.random.default_rng(seed)

    def act(observation: Array, action_mask: Array | None = None) -> Array:
        if action_mask is None:
            return rng.integers(0, num_actions, len(observation))
        drawn: Array = masked(rng.random((len(observation), num_actions)), action_mask).argmax(axis=1)
        return drawn

    return act


def record(
    act: Act, environment: EnvironmentConfig, seed: int, *, factory: Factory | None = None
) -> tuple[Array, float, float]:
    """Plays one rendered episode.

    Returns:
        Its frames [F, H, W, 3] uint8, its return, and the frames per second that the environment names (30 by default).

    Raises:
        UserError: the environment cannot be rendered as `rgb_array`, or needs a package for it.
    """
    env = envs.make_single(environment, render_mode="rgb_array", factory=factory)
    frames: list[Array] = []

    def keep(observation: Array) -> None:
        frames.append(_rendered(env, environment))

    try:
        result = _play(act, [env], environment.frame_stack, [seed], None, keep)
        return np.stack(frames), float(result.returns[0]), float(env.metadata.get("render_fps", 30))
    finally:
        env.close()


def check_filming(environment: EnvironmentConfig, factory: Factory | None = None) -> None:
    """Renders one frame, so that what cannot be filmed is known before anything is played.

    Raises:
        UserError: as for `record`.
    """
    env = envs.make_single(environment, render_mode="rgb_array", factory=factory)
    try:
        env.reset(seed=0)
        _rendered(env, environment)
    finally:
        env.close()


def _rendered(env: Any, environment: EnvironmentConfig) -> Array:
    """[H, W, 3] uint8, what the environment looks like now."""
    try:
        frame = np.asarray(env.render())
    except gym.error.DependencyNotInstalled as error:
        raise UserError(
            f"{environment.id} cannot be filmed without another package ({error}); Gymnasium's own are in the extra: "
            "pip install 'rlplatform[video]'"
        ) from None
    if frame.ndim != 3 or frame.shape[-1] != 3:
        raise UserError(f"{environment.id} renders frames of shape {list(frame.shape)}; a video needs [H, W, 3]")
    if frame.dtype.kind == "f":  # MinAtar's colours go from 0 to 1
        frame = frame * 255.0
    return frame.astype(np.uint8)
