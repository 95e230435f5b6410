"""Atari, compared step by step with the emulator that ale-py gives bare, preprocessed here by loops in numpy."""

import pathlib
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import tf_keras as keras

from rlplatform import envs
from rlplatform.agents import make_actor
from rlplatform.config import Config, EnvironmentConfig
from rlplatform.envs import naming
from rlplatform.errors import UserError
from rlplatform.training.collectors import HostCollector

ale_py = pytest.importorskip("ale_py", reason="pip install 'rlplatform[atari]'")


def config(id: str = "ALE/Breakout-v5", num_envs: int = 1, **kwargs: Any) -> EnvironmentConfig:
    return EnvironmentConfig(id=id, num_envs=num_envs, kwargs=kwargs)


def resized(frame: np.ndarray, rows: int = 84, columns: int = 84) -> np.ndarray:
    """The means over areas, as differences of the sums up to each area's edge."""
    for axis, size in enumerate((rows, columns)):
        frame = np.moveaxis(frame, axis, 0)
        sums = np.concatenate([np.zeros((1, frame.shape[1])), np.cumsum(frame, axis=0, dtype=np.float64)])
        edges = np.linspace(0, len(frame), size + 1)
        below = np.minimum(edges.astype(int), len(frame) - 1)
        up_to = sums[below] + (edges - below)[:, None] * (sums[below + 1] - sums[below])
        frame = np.moveaxis(np.diff(up_to, axis=0) * size / len(frame), 0, axis)
    return frame


class Bare:
    """One game by ale-py's plain interface: frame skip, maximum of the last two frames, and area averages in numpy."""

    def __init__(self, game: str, seed: int, repeat_action_probability: float) -> None:
        self.ale = ale_py.ALEInterface()
        self.ale.setFloat("repeat_action_probability", repeat_action_probability)
        self.ale.setInt("random_seed", seed)
        self.ale.loadROM(ale_py.roms.get_rom_path(game))
        self.actions = self.ale.getMinimalActionSet()

    def reset(self) -> np.ndarray:
        self.ale.reset_game()
        return resized(self.ale.getScreenGrayscale())

    def step(self, action: int) -> tuple[np.ndarray, float, bool]:
        frames, reward = [], 0.0
        for _ in range(4):
            reward += self.ale.act(self.actions[action])
            frames.append(self.ale.getScreenGrayscale())
            if self.ale.game_over():
                break
        return resized(np.maximum(*frames[-2:] if len(frames) > 1 else frames * 2)), reward, self.ale.game_over()


@pytest.mark.slow
@pytest.mark.parametrize("sticky", [0.0, 0.25])
@pytest.mark.parametrize("game", ["Pong", "Breakout"])
def test_games_equal_the_bare_emulator_step_by_step(game: str, sticky: float) -> None:
    env = envs.make(config(f"ALE/{game}-v5", 2, repeat_action_probability=sticky, reward_clipping=False))
    bare = [Bare(game.lower(), seed, sticky) for seed in (5, 77)]
    actions = np.random.default_rng(0).integers(0, len(bare[0].actions), (300, 2))
    observation, _ = envs.reset(env, [5, 77])
    assert observation.shape == (2, 84, 84)
    assert observation.dtype == np.uint8
    expected = np.stack([one.reset() for one in bare])
    np.testing.assert_allclose(observation, expected, atol=1.0)  # grey levels of 255: the resize rounds
    over, ends, rewards = [False, False], 0, 0.0
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        for index, one in enumerate(bare):
            if over[index]:  # the dead slot: the action is ignored, the next game begins
                frame, gained, over[index] = one.reset(), 0.0, False
            else:
                frame, gained, over[index] = one.step(int(action[index]))
                if over[index]:  # where the game ends between two frames, the maximum is over other frames
                    frame = observation[index]
            np.testing.assert_allclose(observation[index], frame, atol=1.0)
            assert reward[index] == gained
            assert terminated[index] == over[index]
        assert not truncated.any()
        ends, rewards = ends + int(terminated.sum()), rewards + float(np.abs(reward).sum())
    assert rewards > 0
    assert ends > 0 or game == "Pong"
    env.close()


def test_a_lost_life_ends_the_episode_and_the_game_goes_on() -> None:
    env = envs.make(config(episodic_life=True, repeat_action_probability=0.0))
    bare = Bare("breakout", 9, 0.0)
    observation, _ = envs.reset(env, [9])
    bare.reset()
    lives, over, lost, games = 5, False, 0, 0
    for step in range(400):
        action = 1 if step % 20 == 0 else step % 4
        game_over = over and bare.ale.game_over()
        if game_over:
            frame, gained = bare.reset(), 0.0
            lives = 5
        else:
            frame, gained, _ = bare.step(0 if over else action)
            gained = 0.0 if over else gained
        observation, reward, terminated, _, infos = env.step(np.array([action]))
        over = bool(terminated[0])
        assert over == (bare.ale.lives() < lives)
        assert reward[0] == min(gained, 1.0)
        lost, lives = lost + over, bare.ale.lives()
        games += game_over
        assert infos["lives"][0] == lives
        if not bare.ale.game_over():
            np.testing.assert_allclose(observation[0], frame, atol=1.0)
    assert lost > 5
    assert games >= 1
    env.close()


def test_evaluation_plays_whole_games_for_raw_scores_whatever_training_sees() -> None:
    seen = config(episodic_life=True, reward_clipping=True, repeat_action_probability=0.0)
    env, bare = envs.make_single(seen), Bare("breakout", 3, 0.0)
    env.reset(seed=3)
    bare.reset()
    score, lives = 0.0, set()
    for step in range(2_000):
        action = 1 if step % 20 == 0 else 2 + step // 7 % 2
        _, reward, terminated, _, _ = env.step(action)
        _, gained, over = bare.step(action)
        assert reward == gained
        assert terminated == over
        score += reward
        lives.add(bare.ale.lives())
        if terminated:
            break
    assert terminated
    assert lives == {0, 1, 2, 3, 4, 5}
    env.close()


def test_training_clips_rewards_to_one_and_only_on_request_not() -> None:
    """MsPacman's pills are worth 10 points."""
    greatest = []
    for clipping in (True, False):
        env = envs.make(config("ALE/MsPacman-v5", reward_clipping=clipping))
        envs.reset(env, [1])
        greatest.append(max(float(env.step(np.array([step // 9 % 9]))[1][0]) for step in range(150)))
        env.close()
    assert greatest == [1.0, 10.0]


@pytest.mark.slow
def test_no_op_starts_and_the_full_action_set_are_options() -> None:
    env = envs.make(config("ALE/Pong-v5", 8, noop_max=30, full_action_space=True))
    _, infos = envs.reset(env, range(8))
    assert len(set(infos["episode_frame_number"].tolist())) > 3
    assert envs.spec_of(env).num_actions == 18
    env.close()


@pytest.mark.parametrize("given", [{"kwargs": {"max_num_frames_per_episode": 100}}, {"max_episode_steps": 25}])
def test_games_are_cut_after_their_frames_or_the_configured_steps(given: dict[str, Any]) -> None:
    env = envs.make(EnvironmentConfig(id="ALE/Pong-v5", **given))
    envs.reset(env, [1])
    for step in range(1, 52):
        _, _, terminated, truncated, infos = env.step(np.array([0]))
        assert not terminated[0]
        assert truncated[0] == (step % 26 == 25)  # the step after a cut begins the next game
        assert infos["episode_frame_number"][0] == 4 * (step % 26)
    env.close()


@pytest.mark.slow
def test_the_same_seeds_give_the_same_games_on_any_number_of_threads() -> None:
    def play(seeds: list[int]) -> np.ndarray:
        env = envs.make(config("ALE/Pong-v5", len(seeds)))
        envs.reset(env, seeds)
        frames = [env.step(np.full(len(seeds), step % 6))[0] for step in range(60)]
        env.close()
        return np.stack(frames)

    both = play([4, 8])
    np.testing.assert_array_equal(both[:, 1], play([8])[:, 0])
    assert (both[:, 0] != both[:, 1]).any()  # sticky actions fall differently


def test_a_film_shows_in_colour_what_is_played() -> None:
    env = envs.make_single(config("ALE/Pong-v5"), render_mode="rgb_array")
    observation, _ = env.reset(seed=6)
    for step in range(80):
        observation, *_ = env.step(step % 6)
    frame = env.render()
    assert frame.shape == (210, 160, 3)
    assert len(np.unique(frame.reshape(-1, 3), axis=0)) >= 3
    grey = frame @ np.array([0.299, 0.587, 0.114])
    assert np.abs(resized(grey) - observation).mean() < 2.0
    env.close()


def test_the_collector_marks_the_final_frame_as_dead_and_rebuilds_stacks_from_the_first() -> None:
    run = Config().replace(
        environment={"id": "ALE/Breakout-v5", "frame_stack": 4, "kwargs": {"episodic_life": True}},
        training={"train_interval": 400, "total_steps": 400},
        replay={"capacity": 500},
    )
    env = envs.make(run.environment)
    spec = envs.spec_of(env)
    from rlplatform.agents import networks

    keras.utils.set_random_seed(0)  # which episodes end in these rows depends on the weights
    network = networks.build(run, spec.stacked_shape(4), spec.observation_dtype, spec.num_actions)
    collector = HostCollector(run, env, spec, make_actor(network))
    weights = np.concatenate([weight.ravel() for weight in network.get_weights()])
    block, _ = collector.collect(weights)
    ends = np.flatnonzero(block.terminated[:, 0])
    assert len(ends) > 2
    for end in ends[ends < 398]:
        assert block.dead[end + 1, 0]
        assert block.first[end + 2, 0]
        assert block.reward[end + 1, 0] == 0.0
    assert block.dead.sum() == len(ends[ends < 399])
    collector.close()


def test_an_older_id_keeps_its_sticky_actions_and_leaves_skipping_to_the_preprocessing() -> None:
    env, bare = envs.make(config("PongNoFrameskip-v4")), Bare("pong", 2, 0.0)
    envs.reset(env, [2])
    bare.reset()
    for step in range(30):
        observation = env.step(np.array([step % 6]))[0]
        np.testing.assert_allclose(observation[0], bare.step(step % 6)[0], atol=1.0)
    env.close()


def test_the_memory_of_the_console_is_shown_without_preprocessing() -> None:
    env = envs.make(config("ALE/Pong-v5", obs_type="ram"))
    assert envs.spec_of(env).observation_shape == (128,)
    env.close()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (config("ALE/Pong-v5", nop_max=3), "takes no argument 'nop_max'; did you mean 'noop_max'?"),
        (config("ALE/Pong-v5", frameskip=0), "skips 0 frames, and preprocessing needs one number of at least 1"),
        (config("ale_py:Pong-v4"), r"Pong-v4 skips \(2, 5\) frames, .* as in ALE/Pong-v5"),
        (config("ALE/Pogn-v5"), "did you mean 'ALE/Pong-v5'?"),
        (
            EnvironmentConfig(id="ALE/Pong-v5", vectorization="async"),
            "is a vector already; environment.vectorization must be 'auto', not 'async'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_a_sentence(given: EnvironmentConfig, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        envs.make(given)


def test_the_games_come_with_the_package() -> None:
    """An installed extra is all that a game needs."""
    assert isinstance(naming.find("ALE/Pong-v5"), gym.envs.registration.EnvSpec)
    assert pathlib.Path(ale_py.__file__).parent in pathlib.Path(ale_py.roms.get_rom_path("pong")).parents
