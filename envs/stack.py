"""Frame stacks: the newest observations of each environment, joined along the last axis."""

import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rlplatform.envs.spaces import Spec


class Stack:
    """The newest `frame_stack` frames of `num_envs` environments, oldest first.

    `push` the observations of a step; where a new episode has begun, `reset` those environments with the same
    observations, so that the first frame fills the stack. With a stack of one the frame itself is passed on.
    """

    def __init__(self, spec: Spec, frame_stack: int, num_envs: int) -> None:
        self._frame_stack = frame_stack
        self._frame_shape = (num_envs, *spec.frame_shape)
        self._dtype = np.dtype(spec.observation_dtype)
        self._frames: NDArray[Any] = np.zeros((num_envs, *spec.stacked_shape(frame_stack)), self._dtype)

    @property
    def observation(self) -> NDArray[Any]:
        """`[N, *stacked_shape]` in the spec's dtype. A later `push` or `reset` leaves this array as it is."""
        return self._frames

    def push(self, observation: NDArray[Any]) -> None:
        """Adds the newest frame of every environment and forgets the oldest.

        Args:
            observation: `[N, O...]`, of any number type.
        """
        frame = np.array(observation, self._dtype).reshape(self._frame_shape)
        if self._frame_stack > 1:
            last = frame.shape[-1]
            frames = np.empty_like(self._frames)
            frames.reshape(-1)[:-last] = self._frames.reshape(-1)[last:]  # one copy moves every frame one place on
            frames[..., -last:] = frame
            frame = frames
        self._frames = frame

    @classmethod
    def joined(cls, stacks: Sequence[Self]) -> Self:
        """The stacks of all environments, in order."""
        whole = copy.copy(stacks[0])
        whole._frames = np.concatenate([stack._frames for stack in stacks])
        whole._frame_shape = (len(whole._frames), *whole._frame_shape[1:])
        return whole

    def divided(self, count: int) -> list[Self]:
        """The stacks of `count` equal parts of the environments."""
        parts = [copy.copy(self) for _ in range(count)]
        for part, frames in zip(parts, np.split(self._frames, count), strict=True):
            part._frames, part._frame_shape = frames, (len(frames), *self._frame_shape[1:])
        return parts

    def reset(self, mask: NDArray[np.bool_], observation: NDArray[Any]) -> None:
        """Fills the stacks of environments that begin an episode with their first frame.

        Args:
            mask: `[N]`, true where an episode begins.
            observation: `[N, O...]`; only the rows under `mask` are used.
        """
        if not mask.any():
            return
        frame = np.array(observation, self._dtype).reshape(self._frame_shape)
        frames = self._frames.copy()
        frames[mask] = np.concatenate([frame[mask]] * self._frame_stack, axis=-1)
        self._frames = frames
