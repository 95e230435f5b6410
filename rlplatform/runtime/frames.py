"""The newest frames of an episode, joined into the observation that the network sees."""

from typing import Any

import numpy as np


class FrameStack:
    """Joins the newest frames along the last axis, oldest first; an episode's first frame fills the whole stack.

    Args:
        frame_shape: shape of one frame, `[F...]`. `[d]` gives `[depth * d]`, `[H, W]` gives `[H, W, depth]`, and
            `[H, W, C]` gives `[H, W, depth * C]`.
        depth: how many frames are seen at once.
    """

    def __init__(self, frame_shape: tuple[int, ...], depth: int) -> None:
        self.frame_shape = frame_shape
        self.depth = depth
        self._added_axis = len(frame_shape) == 2
        self._frames: list[np.ndarray[Any, Any]] = []

    def reset(self) -> None:
        """Forgets all frames: the next one begins an episode."""
        self._frames = []

    def push(self, frame: Any) -> np.ndarray[Any, Any]:
        """The stacked observation after one more frame, `[..., depth * C]`, of the frame's dtype."""
        frame = np.array(frame)  # A copy: environments may reuse their buffers.
        if self._added_axis:
            frame = frame[..., None]
        if not self._frames:
            self._frames = [frame] * self.depth
        else:
            self._frames = [*self._frames[1:], frame]
        return np.concatenate(self._frames, axis=-1) if self.depth > 1 else frame
