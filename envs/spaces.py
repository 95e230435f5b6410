"""What an environment shows and takes, as the rest of the platform needs to know it."""

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np

from rlplatform.envs.adapter import Adaptation, adaptation_of
from rlplatform.envs.joint import ActionLayout
from rlplatform.envs.layout import Layout
from rlplatform.errors import UserError


@dataclasses.dataclass(frozen=True)
class Spec:
    """The contract between an environment and a network.

    Attributes:
        observation_shape: `[O...]`, one frame, without environments and without a frame stack.
        observation_dtype: `uint8` where the environment shows uint8, else `float32`, to which other numbers are cast.
        num_actions: A; the platform counts actions from 0 to A - 1.
        action_start: what the environment calls action 0; it is added before an action reaches the environment.
        layout: how the environment's own observation becomes `[O...]` (see `envs.layout`); None: it is that already.
        action_layout: how an action becomes one of several components (see `envs.joint`); None: it has just one.
        action_mask: whether the environment says which actions are allowed.
        binary: whether it shows a Box of bool, which networks see as 0 and 1.
    """

    observation_shape: tuple[int, ...]
    observation_dtype: str
    num_actions: int
    action_start: int = 0
    layout: Layout | None = None
    action_layout: ActionLayout | None = None
    action_mask: bool = False
    binary: bool = False

    @property
    def stored_dtype(self) -> str:
        """What a frame is stored as: `bool`, a quarter of float32, where there are only 0 and 1 to see."""
        return "bool" if self.binary else self.observation_dtype

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
    """The spec of one environment, or of each one inside a vector environment, as `make` and `make_single` give them.

    Whether a single environment masks actions in its info is not known before its first reset; `action_mask` is then
    false.

    Args:
        env: the environment.
        name: what messages call it; by default its id or its class.

    Raises:
        UserError: its spaces are not supported, or are before `make` has adapted them.
    """
    prefix = "single_" if isinstance(env, gym.vector.VectorEnv) else ""
    observation: Any = getattr(env, f"{prefix}observation_space", None)
    action: Any = getattr(env, f"{prefix}action_space", None)
    name = f"environment {name or _name(env)!r}"
    adaptation: Adaptation | None = getattr(env, "adaptation", None)
    if adaptation is None and adaptation_of(observation, action, name) is not None:
        raise UserError(
            f"{name} does not show one Box or take Discrete actions itself; rlplatform.envs.make and make_single give "
            "environments that do"
        )
    adaptation = adaptation or Adaptation()
    return Spec(
        observation_shape=tuple(int(size) for size in observation.shape),
        observation_dtype="uint8" if observation.dtype == np.uint8 else "float32",
        num_actions=int(action.n),
        action_start=int(action.start),
        layout=adaptation.layout,
        action_layout=adaptation.action_layout,
        action_mask=adaptation.action_mask,
        binary=observation.dtype == np.bool_,
    )


def _name(env: Any) -> Any:
    spec = getattr(env, "spec", None)
    return spec.id if spec is not None else type(env.unwrapped).__name__
