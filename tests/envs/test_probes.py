"""The example environments keep Gymnasium's contract and their own promises."""

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform import envs
from rlplatform.config import EnvironmentConfig
from rlplatform.envs import probes
from rlplatform.errors import UserError


@pytest.mark.parametrize(
    "make", [probes.Counting, *probes.PROBES, probes.Catch, probes.RandomMDP, probes.Signals, probes.Dials]
)
def test_gymnasiums_checker_passes(make: Any) -> None:
    check_env(make(), skip_render_check=True)  # the checker renders registered environments only
    name = f"rlplatform.envs.probes:{make.__name__}"
    assert envs.id_of(make) == name
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*text at note is left out")
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


# --- of other spaces --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["info", "observation"])
def test_a_forbidden_action_is_an_error_and_an_allowed_one_pays_by_its_place(by: Any) -> None:
    env, random = probes.Masked(by, num_actions=4, action_start=3), np.random.default_rng(0)
    seen: list[Any] = []
    for seed in range(30):
        shown, info = env.reset(seed=seed)
        observation, mask = (shown, info["action_mask"]) if by == "info" else (shown["value"], shown["action_mask"])
        assert env.observation_space.contains(shown)
        assert mask.any()
        seen.append((float(observation[0]), *mask.tolist()))
        action = int(random.choice(np.flatnonzero(mask)))
        for forbidden in np.flatnonzero(mask == 0):
            with pytest.raises(AssertionError, match="is forbidden"):
                env.step(np.int64(3 + forbidden))
        _, reward, *_ = env.step(np.int64(3 + action))
        assert reward == pytest.approx(float(observation[0]) * [-1.0, -1 / 3, 1 / 3, 1.0][action])
    assert len(set(seen)) > 10


def test_the_best_allowed_action_pays_its_q_values_on_average() -> None:
    env, gamma = probes.Masked(num_actions=3, ending=0.3), 0.8
    observations, q = env.exact_q(gamma)
    returns: dict[tuple[int, int], list[float]] = {}
    shown, info = env.reset(seed=0)
    for _ in range(6_000):
        row = int(shown[0] > 0)
        first = int(env.np_random.choice(np.flatnonzero(info["action_mask"])))
        action, total, discount, over = first, 0.0, 1.0, False
        while not over:
            shown, reward, over, _, info = env.step(np.int64(action))
            total, discount = total + discount * reward, discount * gamma
            allowed = np.flatnonzero(info["action_mask"])
            action = int(allowed[q[int(shown[0] > 0)][allowed].argmax()])
        returns.setdefault((row, first), []).append(total)
        shown, info = env.reset()
    assert len(returns) == q.size
    for (row, action), totals in returns.items():
        assert_allclose(np.mean(totals), q[row, action], atol=4.5 * np.std(totals) / np.sqrt(len(totals)))
    assert_array_equal(observations, [[-1.0], [1.0]])


def test_signals_show_and_pay_what_their_q_values_say() -> None:
    env: Any = probes.Signals()
    observations, q = env.exact_q(0.9)
    rows = {tuple(observation): values for observation, values in zip(observations.tolist(), q, strict=True)}
    assert len(rows) == len(q) == 48
    parts = {key: part for key, part in env.observation_space.items() if key != "note"}
    seen = set()
    for seed in range(400):
        shown, _ = env.reset(seed=seed)
        vector = tuple(spaces.flatten(spaces.Dict(**parts), {key: shown[key] for key in parts}).tolist())
        seen.add(vector)
        assert env.step(np.int64(seed % 3))[1] == rows[vector][seed % 3]
    assert seen == rows.keys()


def test_dials_pay_what_their_q_values_say_and_the_best_is_known() -> None:
    env = probes.Dials()
    observations, q = env.exact_q(0.9)
    actions = [[first, second] for first in (-1, 0, 1) for second in (2, 3, 4, 5)]
    for observation, values in zip(observations, q, strict=True):
        for action, value in zip(actions, values, strict=True):
            env.reset(seed=0)
            env.observation = observation.copy()
            assert env.step(np.array(action))[1] == value
    assert [actions[best] for best in q.argmax(axis=1)] == [[-1, 5], [1, 2]]


def test_a_mask_elsewhere_is_refused() -> None:
    with pytest.raises(UserError, match="by must be 'info' or 'observation'; got 'reward'"):
        probes.Masked("reward")  # type: ignore[arg-type]
