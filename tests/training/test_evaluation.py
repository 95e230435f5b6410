"""An episode is its seed's alone: what is played beside it, before it or after it does not change it."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.config import EnvironmentConfig
from rlplatform.envs.probes import Catch, Counting, Masked
from rlplatform.errors import RunError, UserError
from rlplatform.training import Evaluation, check_filming, evaluate, evaluation, greedy, record

ACTIONS, START = 3, 2
ENDS = ("terminated", "truncated", "both")


def counting(lengths=(3, 5, 1, 2), ends=ENDS):
    return lambda: Counting(lengths, ends, ACTIONS, START)


def chosen(observation):
    """[n] for [n, d]: an action that depends on all that is seen."""
    return (observation * np.arange(1, observation.shape[1] + 1)).sum(axis=1).astype(np.int64) % ACTIONS


def played_alone(seed, lengths, frame_stack):
    """The return and length of one episode, by the rule of `Counting`."""
    length, total = lengths[seed % len(lengths)], 0.0
    for step in range(length):
        frames = [number for back in reversed(range(frame_stack)) for number in (seed, 0, max(step - back, 0))]
        action = int(chosen(np.array([frames], np.float32))[0])
        total += Counting.reward_of(seed, 0, step, action + START)
    return total, length


@given(
    seeds=st.lists(st.integers(0, 2**20), min_size=1, max_size=40),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    frame_stack=st.integers(1, 3),
    side_by_side=st.integers(1, 40),
)
@settings(max_examples=25)
def test_every_episode_is_the_one_worked_out_by_hand(seeds, lengths, frame_stack, side_by_side):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "SIDE_BY_SIDE", side_by_side)
        played = evaluate(chosen, EnvironmentConfig(frame_stack=frame_stack), seeds, factory=counting(lengths))
    expected = [played_alone(seed, lengths, frame_stack) for seed in seeds]
    assert list(zip(played.returns, played.lengths, strict=True)) == expected
    assert played.seeds.tolist() == seeds
    assert (played.returns.dtype, played.lengths.dtype, played.seeds.dtype) == (np.float64, np.int64, np.int64)


class Chance(gym.Env[Any, Any]):
    """Observations, rewards and ends are drawn from the environment's generator."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(ACTIONS)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.normal(size=2).astype(np.float32), {}

    def step(self, action):
        over = bool(self.np_random.random() < 0.1)
        return (
            self.np_random.normal(size=2).astype(np.float32),
            float(self.np_random.normal() + action),
            over,
            False,
            {},
        )


@pytest.mark.parametrize("side_by_side", [1, 3, 100])
def test_results_do_not_depend_on_how_many_play_side_by_side(monkeypatch, side_by_side):
    seeds = list(range(50, 90))
    right = evaluate(chosen, EnvironmentConfig(), seeds, factory=Chance)
    monkeypatch.setattr(evaluation, "SIDE_BY_SIDE", side_by_side)
    for part, expected in zip(evaluate(chosen, EnvironmentConfig(), seeds, factory=Chance), right, strict=True):
        assert_array_equal(part, expected)
    backwards = evaluate(chosen, EnvironmentConfig(), seeds[::-1], factory=Chance)
    assert_array_equal(backwards.returns, right.returns[::-1])


def test_two_policies_play_the_same_episodes():
    """Pairs differ by what the policies do and not by luck: chance has the same share in both."""
    seeds = list(range(30))
    low, high = (
        evaluate(lambda seen, action=action: np.full(len(seen), action), EnvironmentConfig(), seeds, factory=Chance)
        for action in (0, 2)
    )
    assert_array_equal(low.lengths, high.lengths)
    assert_allclose(high.returns - low.returns, 2.0 * low.lengths)
    assert np.std(low.returns) > 1.0


def test_an_episode_without_a_limit_is_cut(monkeypatch):
    monkeypatch.setattr(evaluation, "EPISODE_LIMIT", 7)
    played = evaluate(chosen, EnvironmentConfig(), [0, 1, 2], factory=counting(lengths=[5, 1_000_000]))
    assert played.lengths.tolist() == [5, 7, 5]
    assert played.returns[1] == played_alone(1, [7, 7], 1)[0]


class Broken(gym.Env):
    """Shows no number at its third observation."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.count += 1
        value = np.nan if self.count == 2 else 0.0
        return np.full(2, value, np.float32), 0.0, self.count == 5, False, {}


def test_an_observation_that_is_no_number_is_refused_and_not_answered():
    seen = []

    def act(observation):
        seen.append(observation)
        return np.zeros(len(observation), np.int64)

    with pytest.raises(RunError, match="shows NaN or infinity after step 2 of the episode with seed 4"):
        evaluate(act, EnvironmentConfig(), [4], factory=Broken)
    assert len(seen) == 2


def test_a_configured_time_limit_counts_here_too():
    played = evaluate(chosen, EnvironmentConfig(max_episode_steps=4), [0, 1], factory=counting(lengths=[9, 2]))
    assert played.lengths.tolist() == [4, 2]


def test_what_is_watched_is_what_is_acted_on():
    acted, watched, finished = [], [], []

    def act(observation):
        acted.append(observation.copy())
        return chosen(observation)

    seeds = list(range(5))
    played = evaluate(
        act,
        EnvironmentConfig(frame_stack=2),
        seeds,
        factory=counting(),
        on_episode=finished.append,
        on_observation=watched.append,
    )
    assert finished == [1, 2, 3, 4, 5]
    assert len(acted) == len(watched)
    for one, other in zip(acted, watched, strict=True):
        assert_array_equal(one, other)
    assert sum(map(len, acted)) == played.lengths.sum()


def test_environments_are_closed_whatever_happens():
    open_now = []

    class Watched(Counting):
        def __init__(self):
            super().__init__()
            open_now.append(self)

        def close(self):
            open_now.remove(self)

    evaluate(chosen, EnvironmentConfig(), [1, 2, 3], factory=Watched)
    assert open_now == []
    with pytest.raises(ZeroDivisionError):
        evaluate(lambda observation: [1 // 0], EnvironmentConfig(), [1, 2, 3], factory=Watched)
    assert open_now == []

    class OnlyTwo(Watched):
        def __init__(self):
            super().__init__()
            if len(open_now) == 3:
                self.close()
                raise RuntimeError("no more ports")

    with pytest.raises(Exception, match="no more ports"):
        evaluate(chosen, EnvironmentConfig(), [1, 2, 3], factory=OnlyTwo)
    assert open_now == []


def test_no_episode_is_refused():
    with pytest.raises(UserError, match="needs at least one episode; got no seeds"):
        evaluate(chosen, EnvironmentConfig(), [], factory=Chance)


def test_the_mean_and_its_error():
    played = Evaluation(np.array([1.0, 2.0, 6.0]), np.ones(3, np.int64), np.arange(3))
    assert played.mean == 3.0
    assert_allclose(played.standard_error, np.sqrt((4 + 1 + 9) / 2 / 3))
    assert np.isnan(Evaluation(np.ones(1), np.ones(1, np.int64), np.arange(1)).standard_error)


def test_the_greedy_policy_takes_the_largest_value_and_the_first_of_equals():
    class Fixed:
        def q_values(self, observation):
            return np.float32([[1.0, 3.0, 2.0], [5.0, 4.0, 5.0], [0.0, 0.0, 0.0]])

    assert greedy(Fixed())(np.zeros((3, 2))).tolist() == [1, 0, 0]


def test_a_recorded_episode_is_the_one_that_is_evaluated():
    environment = EnvironmentConfig(id="rlplatform.envs.probes:Catch")

    def catching(image):
        """Towards the column of the ball, which is white."""
        ball = (image[:, :30] == 255).any(axis=(1, 3)).argmax(axis=1)
        paddle = (image[:, 30:] == 128).any(axis=(1, 3)).argmax(axis=1)
        return np.sign(ball - paddle) + 1

    frames, episode_return, frames_per_second = record(catching, environment, 3)
    played = evaluate(catching, environment, [3])
    assert episode_return == played.returns[0] == 1.0
    assert frames.shape == (played.lengths[0], 144, 144, 3)
    assert frames.dtype == np.uint8
    assert frames_per_second == Catch.metadata["render_fps"]


def test_what_cannot_be_rendered_is_refused_by_a_sentence():
    with pytest.raises(UserError, match="render_mode"):
        record(chosen, EnvironmentConfig(), 3, factory=Chance)


class Undrawable(Broken):
    """Draws with a package that is not here, or draws what is no picture."""

    def __init__(self, render_mode=None, picture=None):
        self.render_mode, self.picture = render_mode, picture

    def render(self):
        if self.picture is None:
            raise gym.error.DependencyNotInstalled("pygame is not installed")
        return self.picture


def test_what_needs_a_package_to_be_filmed_is_refused_before_anything_is_played():
    environment = EnvironmentConfig(id="Undrawable")
    with pytest.raises(UserError, match=r"Undrawable cannot be filmed .* pip install 'rlplatform\[video\]'"):
        check_filming(environment, Undrawable)
    flat = EnvironmentConfig(id="Undrawable", kwargs={"picture": [[0]]})
    with pytest.raises(UserError, match=r"frames of shape \[1, 1\]; a video needs \[H, W, 3\]"):
        check_filming(flat, Undrawable)


# --- action masks and other spaces ------------------------------------------------------------------------------------


def liking(observation, action_mask):
    """The last allowed action at 1, the first at -1: the best of `Masked`."""
    values = observation[:, -1:] * np.arange(action_mask.shape[1])
    return np.where(action_mask, values, -np.inf).argmax(axis=1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("by", ["info", "observation"])
@pytest.mark.parametrize("frame_stack", [1, 2])
@pytest.mark.parametrize("episodes", [300, pytest.param(5_000, marks=pytest.mark.slow)])
def test_no_forbidden_action_is_ever_taken(by, frame_stack, episodes):
    """The environment itself raises at one; an episode has 20 steps on average."""
    kwargs = {"by": by, "num_actions": 4, "ending": 0.05, "action_start": 2}
    environment = EnvironmentConfig(id="rlplatform.envs.probes:Masked", frame_stack=frame_stack, kwargs=kwargs)
    played = evaluate(liking, environment, range(episodes))
    assert played.lengths.sum() > 15 * episodes
    greedily = evaluate(greedy(Places(4)), environment, range(episodes))
    for ours, theirs in zip(greedily, played, strict=True):
        assert_array_equal(ours, theirs)


class Places:
    """An actor whose values are the actions' places, turned round where the observation is -1."""

    def __init__(self, num_actions):
        self.num_actions = num_actions

    def q_values(self, observation):
        return observation[:, -1:] * np.arange(self.num_actions, dtype=np.float32)


def test_the_mask_is_the_one_that_was_shown_beside_the_observation():
    """Each environment's own, whatever is played beside it and however many are left."""
    shown = {}

    class Numbered(Counting):
        def reset(self, **kwargs):
            observation, _ = super().reset(**kwargs)
            return observation, self._info()

        def step(self, action):
            assert self._info()["action_mask"][action - START]
            *rest, _ = super().step(action)
            return *rest, self._info()

        def _info(self):
            free = (self.identity + self.step_in_episode) % ACTIONS
            shown[self.identity, self.step_in_episode] = [place == free for place in range(ACTIONS)]
            return {"action_mask": np.array(shown[self.identity, self.step_in_episode], np.int8)}

    def act(observation, action_mask):
        assert action_mask.dtype == np.bool_
        for (identity, _, step), mask in zip(observation.astype(int).tolist(), action_mask.tolist(), strict=True):
            assert mask == shown[identity, step]
        return action_mask.argmax(axis=1)

    played = evaluate(act, EnvironmentConfig(), range(60), factory=lambda: Numbered((3, 9, 1), ENDS, ACTIONS, START))
    assert played.lengths.tolist() == [(3, 9, 1)[seed % 3] for seed in range(60)]


def test_without_masks_a_policy_is_given_the_observation_alone():
    def act(*given):
        assert len(given) == 1
        return chosen(given[0])

    evaluate(act, EnvironmentConfig(), range(3), factory=counting())


def test_the_greedy_policy_takes_the_best_allowed_action():
    act = greedy(Places(3))
    observation = np.array([[1.0], [1.0], [-1.0]], np.float32)
    mask = np.array([[True, True, False], [False, False, True], [False, True, True]])
    assert act(observation, mask).tolist() == [1, 2, 1]
    assert act(observation).tolist() == [2, 2, 0]


def test_joint_actions_and_many_entries_are_played():
    dials = EnvironmentConfig(id="rlplatform.envs.probes:Dials")
    best = evaluate(lambda seen: np.where(seen[:, 0] > 0, 8, 3), dials, range(20))  # [1, 2] and [-1, 5]
    right, left = (2 * 2 - 0) / 4, -(2 * 0 - 3) / 4
    assert set(best.returns.tolist()) == {right, left}

    def answer(seen):
        """From the vector: sign, two one-hots of 2, one of 3, and a bit."""
        total = seen[:, 2] + seen[:, 4] + seen[:, 5:8].argmax(axis=1) + seen[:, 8]
        return (total + (seen[:, 0] < 0)).astype(np.int64) % 3

    with pytest.warns(UserWarning, match="text at note is left out"):
        played = evaluate(answer, EnvironmentConfig(id="rlplatform.envs.probes:Signals"), range(50))
    assert played.returns.tolist() == [1.0] * 50


def test_an_environment_with_masks_is_recorded_too():
    class Drawn(Masked):
        def __init__(self, render_mode=None):
            super().__init__("observation")
            self.render_mode = render_mode

        def render(self):
            return np.full((4, 5, 3), self.mask[0], np.uint8)

    frames, episode_return, _ = record(liking, EnvironmentConfig(id="drawn"), 3, factory=Drawn)
    played = evaluate(liking, EnvironmentConfig(id="drawn"), [3], factory=Drawn)
    assert frames.shape == (played.lengths[0], 4, 5, 3)
    assert episode_return == played.returns[0]
