"""Frame stacks against lists of frames."""

import collections
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from rlplatform.envs import Spec, Stack


def joined(frames: Any) -> NDArray[Any]:
    """One environment's frames as one array, a pixel at a time."""
    frames = [frame[..., None] if frame.ndim == 2 else frame for frame in frames]
    return np.concatenate(list(frames), axis=-1)


@given(
    shape=st.sampled_from([(1,), (3,), (2, 3), (2, 2, 2)]),
    frame_stack=st.integers(1, 4),
    num_envs=st.integers(1, 3),
    dtype=st.sampled_from(["float32", "uint8"]),
    seed=st.integers(0, 99),
)
def test_a_stack_holds_the_newest_frames_of_each_episode(
    shape: tuple[int, ...], frame_stack: int, num_envs: int, dtype: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    stack = Stack(Spec(shape, dtype, 2), frame_stack, num_envs)
    expected: list[collections.deque[NDArray[Any]]] = [collections.deque(maxlen=frame_stack) for _ in range(num_envs)]
    for step in range(8):
        observation = random.integers(0, 256, (num_envs, *shape)).astype(dtype)
        begins = np.full(num_envs, True) if step == 0 else random.random(num_envs) < 0.3
        for index, frames in enumerate(expected):
            frames.extend([observation[index]] * (frame_stack if begins[index] else 1))
        stack.push(observation)
        stack.reset(begins, observation)
        assert stack.observation.dtype == dtype
        assert_array_equal(stack.observation, [joined(frames) for frames in expected])


def test_frames_are_joined_oldest_first() -> None:
    stack = Stack(Spec((2,), "float32", 2), 3, 1)
    stack.reset(np.array([True]), np.array([[1.0, 10.0]]))
    stack.push(np.array([[2.0, 20.0]]))
    assert_array_equal(stack.observation, [[1, 10, 1, 10, 2, 20]])


@pytest.mark.parametrize("frame_stack", [1, 2])
def test_an_observation_once_read_does_not_change(frame_stack: int) -> None:
    stack = Stack(Spec((1,), "float32", 2), frame_stack, 2)
    shared = np.zeros((2, 1), np.float32)  # an environment may reuse its array
    stack.reset(np.array([True, True]), shared)
    before = stack.observation
    shared += 1
    stack.push(shared)
    stack.reset(np.array([True, False]), shared + 1)
    assert_array_equal(before, np.zeros((2, frame_stack)))


def test_other_numbers_are_cast() -> None:
    stack = Stack(Spec((2,), "float32", 2), 1, 1)
    stack.push(np.array([[1, 2]], np.int64))
    assert stack.observation.dtype == np.float32
