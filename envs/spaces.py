"""What an environment shows and takes, as the rest of the platform needs to know it."""

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np

from rlplatform.errors import UserError

SUPPORTED = "supported are Box observations of numbers and Discrete actions"
FLATTENS = (
    gym.spaces.Discrete,
    gym.spaces.MultiDiscrete,
    gym.spaces.MultiBinary,
    gym.spaces.Dict,
    gym.spaces.Tuple,
)


@dataclasses.dataclass(frozen=True)
class Spec:
    """The contract between an environment and a network.

    Attributes:
        observation_shape: `[O...]`, one frame, without environments and without a frame stack.
        observation_dtype: `uint8` where the environment shows uint8, else `float32`, to which other numbers are cast.
        num_actions: A; the platform counts actions from 0 to A - 1.
        action_start: what the environment calls action 0; it is added before an action reaches the environment.
    """

    observation_shape: tuple[int, ...]
    observation_dtype: str
    num_actions: int
    action_start: int = 0

    def stacked_shape(self, frame_stack: int) -> tuple[int, ...]:
        """The shape that a network sees: the newest `frame_stack` frames joined along the last axis.

        `[d]` becomes `[K * d]`, `[H, W, C]` becomes `[H, W, K * C]`, and `[H, W]` becomes `[H, W, K]`.
        """
        *rest, last = self.frame_shape
        return (*rest, frame_stack * last)

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """One frame as it is joined: `[H, W]` counts as `[H, W, 1]`."""
        return (*self.observation_shape, 1) if len(self.observation_shape) == 2 else self.observation_shape


def spec_of(env: gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any], name: str | None = None) -> Spec:
    """The spec of one environment, or of each one inside a vector environment.

    Args:
        env: the environment.
        name: what messages call it; by default its id or its class.

    Raises:
        UserError: the observation is no Box of numbers with at least one axis and no axis of size 0, or the action is
            not Discrete.
    """
    prefix = "single_" if isinstance(env, gym.vector.VectorEnv) else ""
    observation: Any = getattr(env, f"{prefix}observation_space", None)
    action: Any = getattr(env, f"{prefix}action_space", None)
    name = f"environment {name or _name(env)!r}"
    if not isinstance(observation, gym.spaces.Box):
        wrapper = "gymnasium.wrappers.FlattenObservation"
        advice = f"; {wrapper} turns them into a Box" if isinstance(observation, FLATTENS) else ""
        raise UserError(f"{name} has observations of {_short(observation)}, and {SUPPORTED}{advice}")
    if observation.dtype is None or observation.dtype.kind not in "fiub":
        raise UserError(f"{name} has a Box of dtype {observation.dtype} as observation, and {SUPPORTED}")
    if observation.shape == () or 0 in observation.shape:
        raise UserError(
            f"{name} has observations of shape {observation.shape}; supported is at least one axis and no axis of "
            "size 0, such as (1,)"
        )
    if not isinstance(action, gym.spaces.Discrete):
        raise UserError(f"{name} takes actions of {_short(action)}, and {SUPPORTED}")
    return Spec(
        observation_shape=tuple(int(size) for size in observation.shape),
        observation_dtype="uint8" if observation.dtype == np.uint8 else "float32",
        num_actions=int(action.n),
        action_start=int(action.start),
    )


def _name(env: Any) -> Any:
    spec = getattr(env, "spec", None)
    return spec.id if spec is not None else type(env.unwrapped).__name__


def _short(space: Any) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
