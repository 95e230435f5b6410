"""The functions behind the commands, as a Python program calls them."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from quick import QUICK

import rlplatform
from rlplatform import api, envs
from rlplatform.errors import UserError
from rlplatform.training import Callback


class Watching(Callback):
    """Notes what it was called with."""

    def __init__(self):
        self.calls = []

    def on_train_begin(self, run):
        self.calls.append(("begin", run.step))

    def on_evaluation(self, run, evaluation):
        self.calls.append(("evaluation", run.step))

    def on_train_end(self, run):
        self.calls.append(("end", run.step))


@pytest.fixture(scope="module")
def watching():
    return Watching()


@pytest.fixture(scope="module")
def run(tmp_path_factory, watching):
    """A tiny run of an environment that was given as a callable without a name."""
    return rlplatform.train(
        lambda: gym.make("CartPole-v1"),
        steps=64,
        seed=5,
        out=tmp_path_factory.mktemp("api") / "run",
        overrides=QUICK,
        callbacks=[watching],
        progress=False,
    )


def test_callbacks_see_the_run_from_begin_to_end(run, watching):
    assert watching.calls == [("begin", 0), ("evaluation", 64), ("end", 64)]


def test_a_run_is_loaded_as_it_was_returned(run):
    assert rlplatform.load(run.path) == run
    assert run.config.seed == 5
    assert run.spec == envs.Spec((4,), "float32", 2)


def test_evaluation_returns_are_those_of_episodes_played_by_hand(run):
    evaluated = api.evaluate(run, episodes=3, seed=11, factory=lambda: gym.make("CartPole-v1"))
    network, returns = run.network("best"), []
    for seed in envs.seeds(11, 3, "evaluation"):
        env = gym.make("CartPole-v1")
        observation, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            action = network(observation[None]).numpy().argmax()
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
        env.close()
    assert_array_equal(evaluated.evaluation.returns, returns)
    assert evaluated.interval.low <= np.mean(returns) <= evaluated.interval.high
    assert evaluated.video is None


def test_a_callable_without_a_name_must_be_given_again(run):
    with pytest.raises(UserError, match="pass it again from Python, or put it into a file"):
        api.evaluate(run, episodes=1)


@pytest.mark.slow
def test_a_film_of_an_episode_is_written(run, tmp_path):
    from PIL import Image

    evaluated = api.evaluate(
        run, episodes=1, video=tmp_path / "films", factory=lambda **kwargs: gym.make("CartPole-v1", **kwargs)
    )
    with Image.open(evaluated.video) as film:
        assert film.format == "GIF"
        assert film.n_frames > 5


def test_without_a_folder_the_first_free_one_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(api._free("my envs/Env.py:Pole-v1")) == "runs/my-envs-Env.py-Pole-v1-1"
    (tmp_path / "runs" / "Pole-v1-1").mkdir(parents=True)
    assert str(api._free("Pole-v1")) == "runs/Pole-v1-2"


def test_a_torso_that_does_not_fit_is_refused_before_there_is_a_folder(tmp_path):
    with pytest.raises(UserError, match="needs images"):
        api.train("CartPole-v1", out=tmp_path / "run", overrides=[*QUICK, "network.torso=nature"], progress=False)
    assert not (tmp_path / "run").exists()


def test_importing_the_platform_loads_no_tensorflow():
    code = "import sys, rlplatform, rlplatform.runtime; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'rlplatform' has no attribute 'tain'"):
        _ = rlplatform.tain
    assert {"train", "evaluate", "compress", "verify", "load"} <= set(dir(rlplatform))
