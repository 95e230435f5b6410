"""The example environments keep Gymnasium's contract and their own promises."""

import itertools
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform import envs
from rlplatform.config import EnvironmentConfig
from rlplatform.envs import probes
from rlplatform.errors import UserError


@pytest.mark.parametrize("make", [probes.Counting, *probes.PROBES, probes.Catch, probes.RandomMDP])
def test_gymnasiums_checker_passes(make: Any) -> None:
    check_env(make(), skip_render_check=True)  # the checker renders registered environments only
    name = f"rlplatform.envs.probes:{make.__name__}"
    assert envs.id_of(make) == name
    assert envs.make_single(EnvironmentConfig(id=name)).unwrapped.__class__ is make


def test_counting_tells_identity_episode_and_step_and_ends_on_schedule() -> None:
    env = probes.Counting(lengths=(2, 1, 3), ends=("terminated", "truncated", "both"))
    seen, ends, rewards = [], [], []
    observation, _ = env.reset(seed=4)  # turn 4: the second length, the second end
    for _ in range(3):
        seen.append(observation.tolist())
        over = False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(np.int64(2))
            over = terminated or truncated
            seen.append(observation.tolist())
            rewards.append(reward)
        ends.append((terminated, truncated))
        observation, _ = env.reset()
    episodes = [[0, 1], [0, 1, 2, 3], [0, 1, 2]]
    assert seen == [[4, episode, step] for episode, steps in enumerate(episodes) for step in steps]
    assert ends == [(False, True), (True, True), (True, False)]
    starts = [(episode, step) for episode, steps in enumerate(episodes) for step in steps[:-1]]
    assert rewards == [4 * 64 + 4 * episode + step / 16 + 2 / 256 for episode, step in starts]


def test_counting_rewards_differ_for_every_small_transition_and_are_exact_in_float32() -> None:
    cases = itertools.product(range(16), range(16), range(64), range(16))
    rewards = np.array([probes.Counting.reward_of(*case) for case in cases])
    assert len(np.unique(rewards)) == len(rewards)
    assert_array_equal(rewards, rewards.astype(np.float32))


@pytest.mark.parametrize("arguments", [{"lengths": []}, {"lengths": [0]}, {"ends": ["never"]}, {"ends": []}])
def test_counting_refuses_a_schedule_that_never_ends(arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must be"):
        probes.Counting(**arguments)


def followed(env: Any, first: int, best: Any, gamma: float) -> float:
    """The discounted return of action `first` and `best(observation)` after it."""
    total, discount, action, over = 0.0, 1.0, first, False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(action)
        total, discount = total + discount * reward, discount * gamma
        action, over = best(observation), terminated or truncated
    return total


@pytest.mark.parametrize("make", probes.PROBES)
def test_a_probes_q_values_are_the_returns_that_it_pays(make: Any) -> None:
    env, gamma = make(), 0.5
    observations, q = env.exact_q(gamma)
    assert q.shape == (len(observations), env.action_space.n)
    for observation, values in zip(observations, q, strict=True):
        for action, value in enumerate(values):
            env.reset(seed=0)
            env.observation = observation.copy()
            assert followed(env, action, lambda _: 0, gamma) == value


@pytest.mark.parametrize("make", probes.PROBES)
def test_a_probe_shows_only_what_its_q_values_cover(make: Any) -> None:
    env = make()
    first = {float(env.reset(seed=seed)[0][0]) for seed in range(20)}
    assert first <= set(env.exact_q(0.9)[0][:, 0].tolist())
    assert (first == {-1.0, 1.0}) == (make in (probes.ObservationReward, probes.ActionAndObservation))


def test_catch_is_won_by_following_the_ball() -> None:
    for cells, seed in itertools.product((3, 6, 12), range(12)):
        env = probes.Catch(cells)
        image, _ = env.reset(seed=seed)
        over, steps, rewards = False, 0, []
        while not over:
            size = 36 // cells
            ball = np.argwhere(image[..., 0] == 255)[0] // size
            paddle = np.argwhere(image[-1, :, 0] == 128)[0] // size
            image, reward, over, _, _ = env.step(np.int64(1 + np.sign(ball[1] - paddle[0])))
            steps += 1
            rewards.append(reward)
        assert rewards == [0.0] * (cells - 2) + [1.0]


def test_catch_pays_a_random_policy_what_it_says() -> None:
    env, random = probes.Catch(), np.random.default_rng(0)
    env.reset(seed=0)
    returns = []
    for _ in range(2_000):
        env.reset()
        for _ in range(5):
            _, reward, *_ = env.step(random.integers(3))
        returns.append(reward)
    assert_allclose(np.mean(returns), 2 / 6 - 1, atol=4 * np.std(returns) / np.sqrt(2_000))


def test_catch_shows_a_video_frame() -> None:
    env = probes.Catch(render_mode="rgb_array")
    image, _ = env.reset(seed=1)
    frame = env.render()
    assert frame is not None
    assert_array_equal(frame[::4, ::4], np.concatenate([image] * 3, axis=-1))
    assert probes.Catch().render() is None


def test_catch_refuses_cells_that_do_not_fill_the_image() -> None:
    with pytest.raises(UserError, match="got 7"):
        probes.Catch(7)


def test_the_q_values_of_a_random_mdp_solve_its_bellman_equation() -> None:
    """Solved the other way: linear equations of the greedy policy, whose improvement changes nothing."""
    env, gamma = probes.RandomMDP(num_states=5, num_actions=3, mdp_seed=4, ending=0.2), 0.9
    observations, q = env.exact_q(gamma)
    greedy = q.argmax(axis=1)
    states = np.arange(5)
    value = np.linalg.solve(np.eye(5) - gamma * 0.8 * env.transitions[states, greedy], env.rewards[states, greedy])
    assert_array_equal(observations, np.eye(5))
    assert_allclose(q, env.rewards + gamma * 0.8 * env.transitions @ value, atol=1e-10)


def test_a_random_mdp_pays_its_q_values_on_average() -> None:
    env, gamma = probes.RandomMDP(ending=0.5), 0.9
    _, q = env.exact_q(gamma)
    env.reset(seed=0)
    returns = []
    for _ in range(3_000):
        env.reset()
        env.state = 2
        returns.append(followed(env, 1, lambda observation: int(q[observation.argmax()].argmax()), gamma))
    assert_allclose(np.mean(returns), q[2, 1], atol=4 * np.std(returns) / np.sqrt(3_000))


def test_another_mdp_seed_is_another_process_and_the_same_one_the_same() -> None:
    one, same, other = probes.RandomMDP(mdp_seed=1), probes.RandomMDP(mdp_seed=1), probes.RandomMDP(mdp_seed=2)
    assert_array_equal(one.transitions, same.transitions)
    assert not np.array_equal(one.rewards, other.rewards)
