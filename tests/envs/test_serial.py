"""The lean vector environment against Gymnasium's own."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from rlplatform.envs import SerialVectorEnv, probes
from rlplatform.errors import UserError


class Informing(gym.Wrapper[Any, Any, Any, Any]):
    """Puts things of several kinds into some infos."""

    def reset(self, **kwargs: Any) -> Any:
        observation, _ = self.env.reset(**kwargs)
        return observation, {"began": True}

    def step(self, action: Any) -> Any:
        *rest, _ = self.env.step(action)
        place = rest[0]
        return *rest, {"action": int(action), "place": place, "deep": {"sum": float(place.sum())}} if action else {}


MAKERS: dict[str, Any] = {
    "CartPole": partial(gym.make, "CartPole-v1", max_episode_steps=15),
    "Acrobot": partial(gym.make, "Acrobot-v1", max_episode_steps=7),
    "counting": partial(probes.Counting, lengths=(1, 4, 2), ends=("terminated", "truncated", "both")),
    "Catch": probes.Catch,
    "infos": lambda: Informing(probes.Counting()),
}


def assert_same(first: Any, second: Any) -> None:
    """Equal arrays of equal dtypes, in dictionaries too."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    else:
        assert first.dtype == second.dtype
        assert_array_equal(first, second)


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=10)
@given(num_envs=st.integers(1, 5), seed=st.integers(0, 999), steps=st.integers(1, 60))
def test_every_step_equals_that_of_gymnasiums_sync_vector(name: str, num_envs: int, seed: int, steps: int) -> None:
    ours, theirs = SerialVectorEnv([MAKERS[name]] * num_envs), gym.vector.SyncVectorEnv([MAKERS[name]] * num_envs)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata == theirs.metadata
    ours.action_space.seed(seed)
    for mine, other in zip(ours.reset(seed=seed), theirs.reset(seed=seed), strict=True):
        assert_same(mine, other)
    for _ in range(steps):
        actions = ours.action_space.sample()
        for mine, other in zip(ours.step(actions), theirs.step(actions), strict=True):
            assert_same(mine, other)


def test_a_reset_in_the_middle_forgets_ended_episodes() -> None:
    env = SerialVectorEnv([partial(probes.Counting, lengths=(1,))] * 2)
    env.reset(seed=[3, 4])
    assert env.step(np.zeros(2, np.int64))[2].tolist() == [False, True]  # turn 3 is truncated, turn 4 terminated
    observations, _ = env.reset()
    assert_array_equal(observations, [[3, 1, 0], [4, 1, 0]])
    assert_array_equal(env.step(np.zeros(2, np.int64))[0], [[3, 1, 1], [4, 1, 1]])


def test_arrays_once_returned_do_not_change() -> None:
    env = SerialVectorEnv([probes.Counting] * 2)
    results = [env.reset(seed=0)[0], *env.step(np.zeros(2, np.int64))[:4]]
    copies = [array.copy() for array in results]
    for _ in range(4):
        env.step(np.ones(2, np.int64))
    for array, copy in zip(results, copies, strict=True):
        assert_array_equal(array, copy)


def test_it_says_that_it_resets_at_the_next_step() -> None:
    env = SerialVectorEnv([probes.Catch])
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert "autoreset_mode" not in probes.Catch.metadata


def test_attributes_methods_and_frames_of_every_environment_are_reachable() -> None:
    env = SerialVectorEnv(
        [partial(probes.Catch, render_mode="rgb_array"), partial(probes.Catch, render_mode="rgb_array")]
    )
    env.reset(seed=0)
    assert env.get_attr("cells") == (6, 6)
    env.set_attr("paddle", [0, 5])
    assert env.call("get_wrapper_attr", "paddle") == (0, 5)
    assert env.call("paddle") == (0, 5)
    assert [frame.shape for frame in env.render()] == [(144, 144, 3)] * 2
    env.close()
    assert env.closed


class Lying(probes.Counting):
    """Shows something other than its space says, from the reset or from a step on."""

    def __init__(self, shown: Any, at_reset: bool) -> None:
        super().__init__()
        self.shown, self.at_reset = shown, at_reset

    def reset(self, **kwargs: Any) -> Any:
        observation, info = super().reset(**kwargs)
        return self.shown if self.at_reset else observation, info

    def step(self, action: Any) -> Any:
        return self.shown, *super().step(action)[1:]


@pytest.mark.parametrize("shown", [np.zeros(1, np.float32), np.zeros((3, 1), np.float32), 0.0, np.zeros(4)])
@pytest.mark.parametrize("at_reset", [True, False])
def test_an_observation_of_another_shape_is_refused_and_not_broadcast(shown: Any, at_reset: bool) -> None:
    env = SerialVectorEnv([partial(Lying, shown, at_reset)])
    with pytest.raises(UserError, match=r"its space has \(3,\) and float32"):
        env.reset(), env.step(np.zeros(1, np.int64))


def test_fractions_in_a_uint8_space_are_refused_and_not_cut_off() -> None:
    class Fractions(probes.Catch):
        def reset(self, **kwargs: Any) -> Any:
            observation, info = super().reset(**kwargs)
            return observation / 255.0, info

    with pytest.raises(UserError, match="dtype float64"):
        SerialVectorEnv([Fractions]).reset()


def test_environments_with_different_spaces_are_refused() -> None:
    with pytest.raises(UserError, match="environment 1 differs"):
        SerialVectorEnv([probes.Counting, partial(probes.Counting, num_actions=5)])


def test_environments_are_closed_when_a_later_one_fails() -> None:
    closed = []

    class Watched(probes.Counting):
        def close(self) -> None:
            closed.append(self.num_made)

        def __init__(self) -> None:
            super().__init__()
            Watched.num_made += 1
            if Watched.num_made == 3:
                raise RuntimeError("no licence left")

        num_made = 0

    with pytest.raises(RuntimeError, match="no licence left"):
        SerialVectorEnv([Watched] * 4)
    assert len(closed) == 2


def test_one_environment_handed_out_twice_is_refused() -> None:
    env = probes.Counting()
    with pytest.raises(UserError, match="more than once"):
        SerialVectorEnv([lambda: env, lambda: env])
