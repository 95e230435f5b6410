"""Environments that hide what one must know: each step is the one described, and each is usable by its name."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.testing import assert_array_equal

from rlplatform import envs
from rlplatform.config import EnvironmentConfig
from rlplatform.envs.memory import FORWARD, LEFT, RIGHT, HiddenVelocityCartPole, TMaze
from rlplatform.errors import UserError


def at_the_junction(sign, length=3):
    """A maze under a sign, and the seed that shows it, gone forward to its junction."""
    env = TMaze(length)
    for seed in range(100):
        observation, _ = env.reset(seed=seed)
        if observation[0] == sign:
            break
    for _ in range(length):
        env.step(FORWARD)
    return env


def test_the_sign_is_seen_in_the_first_cell_alone_and_the_junction_in_the_last():
    env = TMaze(length=3)
    seen = [env.reset(seed=0)[0]]
    for _ in range(3):
        observation, reward, terminated, truncated, _ = env.step(FORWARD)
        assert (reward, terminated, truncated) == (0.0, False, False)
        seen.append(observation)
    assert abs(seen[0][0]) == 1.0
    assert_array_equal(seen[1:], [[0.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    assert seen[0][1] == 0.0


@pytest.mark.parametrize(("sign", "right_way"), [(-1, LEFT), (1, RIGHT)])
def test_the_way_of_the_sign_gives_1_and_the_other_costs_1(sign, right_way):
    for action in (LEFT, RIGHT):
        _, reward, terminated, truncated, _ = at_the_junction(sign).step(action)
        assert (reward, terminated, truncated) == (1.0 if action == right_way else -1.0, True, False)


def test_walls_cost_and_do_not_move():
    env = TMaze(length=2)
    start, _ = env.reset(seed=0)
    for action in (LEFT, RIGHT):
        observation, reward, *_ = env.step(action)
        assert_array_equal(observation, start)
        assert reward == -0.1
    env.step(FORWARD)
    env.step(FORWARD)
    observation, reward, terminated, _, _ = env.step(FORWARD)
    assert (observation[1], reward, terminated) == (1.0, -0.1, False)


def test_who_stands_still_is_cut_after_four_times_the_steps_that_are_needed():
    env = TMaze(length=2)
    env.reset(seed=0)
    cuts = [env.step(LEFT)[3] for _ in range(12)]
    assert cuts == [False] * 11 + [True]


def test_both_signs_come_equally_often():
    env = TMaze()
    signs = [env.reset(seed=0)[0][0]] + [env.reset()[0][0] for _ in range(999)]
    assert abs(np.mean(signs)) < 0.1


def test_a_maze_without_a_corridor_is_refused():
    with pytest.raises(UserError, match="length must be at least 1; got 0"):
        TMaze(0)


def test_the_pole_is_the_one_of_cartpole_without_its_velocities():
    hidden, whole = HiddenVelocityCartPole(), gym.make("CartPole-v1")
    one, other = hidden.reset(seed=4)[0], whole.reset(seed=4)[0]
    assert_array_equal(one, other[[0, 2]])
    for step in range(40):
        one, other = hidden.step(step % 2), whole.step(step % 2)
        assert_array_equal(one[0], other[0][[0, 2]])
        assert one[1:4] == other[1:4]
        if other[2]:
            break
    assert one[0].dtype == np.float32
    assert hidden.observation_space.contains(hidden.reset(seed=1)[0])


def test_the_maze_keeps_the_rules_of_gymnasium():
    check_env(TMaze(), skip_render_check=True)


@pytest.mark.parametrize("name", ["TMaze", "HiddenVelocityCartPole"])
def test_each_is_made_by_its_name_with_its_time_limit_and_can_be_saved(name):
    config = EnvironmentConfig(id=f"rlplatform.envs.memory:{name}", num_envs=2)
    env = envs.make(config)
    spec = envs.spec_of(env)
    assert spec.observation_shape == (2,)
    env.reset(seed=[0, 1])
    again = envs.restore(envs.snapshot(env))
    action = np.zeros(2, np.int64)
    assert_array_equal(env.step(action)[0], again.step(action)[0])
    single = envs.make_single(config)
    assert envs.id_of({"TMaze": TMaze, "HiddenVelocityCartPole": HiddenVelocityCartPole}[name]) == config.id
    single.reset(seed=0)
    longest = 36 if name == "TMaze" else 500
    wall = LEFT if name == "TMaze" else 0
    lengths = 0
    over = False
    while not over:
        *_, terminated, truncated, _ = single.step(wall)
        lengths, over = lengths + 1, terminated or truncated
    assert lengths <= longest
