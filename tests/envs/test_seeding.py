"""From the seed of a run to the seed of every environment."""

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from rlplatform import envs
from rlplatform.config import EnvironmentConfig


def test_seeds_stay_the_same_for_ever() -> None:
    """Recorded: a change would silently change every run and every evaluation."""
    assert envs.seeds(0, 3, "train") == [241032076, 339148352, 375409659]
    assert envs.seeds(1, 3, "evaluation") == [1871560014, 1582723331, 96513731]


@given(seed=st.integers(0, 2**31 - 1), count=st.integers(0, 300))
def test_seeds_are_different_small_and_begin_alike(seed: int, count: int) -> None:
    drawn = envs.seeds(seed, count, "evaluation")
    assert len(set(drawn)) == count
    assert all(0 <= number < 2**31 and type(number) is int for number in drawn)
    assert envs.seeds(seed, count + 5, "evaluation")[:count] == drawn


@given(seed=st.integers(0, 2**31 - 2))
def test_seeds_differ_between_streams_and_runs(seed: int) -> None:
    lists = [envs.seeds(seed, 20, stream) for stream in ("train", "selection", "evaluation", "verification")]
    lists.append(envs.seeds(seed + 1, 20, "train"))
    assert len(set().union(*lists)) == 100


@pytest.mark.parametrize("vectorization", ["sync", "auto"])
def test_the_same_seeds_give_the_same_episodes(vectorization: str) -> None:
    config = EnvironmentConfig(id="CartPole-v1", num_envs=8, vectorization=vectorization)  # type: ignore[arg-type]
    first, second = envs.make(config), envs.make(config)
    assert_array_equal(envs.reset(first, range(8))[0], envs.reset(second, range(8))[0])
    for step in range(60):  # over the first episodes' ends: the draws of later resets are seeded too
        actions = np.full(8, step % 7 > 2, np.int64)
        assert_array_equal(first.step(actions)[0], second.step(actions)[0])
    assert not np.array_equal(envs.reset(first, range(8))[0], envs.reset(second, range(1, 9))[0])


def test_every_environment_begins_with_its_own_seed() -> None:
    env = envs.make(EnvironmentConfig(id="CartPole-v1", num_envs=3))
    observations, _ = envs.reset(env, [7, 5, 7])
    alone = gym.make("CartPole-v1")
    assert_array_equal(observations, [alone.reset(seed=seed)[0] for seed in (7, 5, 7)])
