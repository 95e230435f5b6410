"""Environments of other packages are found by their ids, and without the package the extra is named."""

import importlib.util
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

from rlplatform import envs
from rlplatform.config import EnvironmentConfig
from rlplatform.envs import naming, third_party
from rlplatform.errors import UserError
from rlplatform.training.evaluation import record

IDS = {
    "ALE/Pong-v5": "atari",
    "PongNoFrameskip-v4": "atari",
    "MinAtar/Breakout-v1": "minatar",
    "MiniGrid-Empty-5x5-v0": "minigrid",
    "BabyAI-GoToRedBall-v0": "minigrid",
}


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no other package was there and none had registered anything."""
    own = {id: spec for id, spec in gym.registry.items() if str(spec.entry_point).startswith("gymnasium.")}
    monkeypatch.setattr(gym.envs.registration, "registry", own)
    monkeypatch.setattr(gym, "registry", own)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize(("id", "extra"), IDS.items())
@pytest.mark.usefixtures("nothing_installed")
def test_a_missing_package_is_named_by_its_extra(id: str, extra: str) -> None:
    with pytest.raises(UserError) as refusal:
        naming.find(id)
    assert str(refusal.value) == f"{id} needs a package that is not installed: pip install 'rlplatform[{extra}]'"


@pytest.mark.usefixtures("nothing_installed")
def test_what_is_not_installed_is_not_listed() -> None:
    assert "CartPole-v1" in naming.registered()
    assert not set(IDS) & set(naming.registered())


def test_box2d_that_is_missing_is_named_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(*args: object, **kwargs: object) -> None:
        raise gym.error.DependencyNotInstalled("Box2D is not installed, you can install it by run `pip install swig`")

    monkeypatch.setattr(gym, "make", make)
    with pytest.raises(UserError, match=r"LunarLander-v3 needs .* not installed: pip install 'rlplatform\[box2d\]'"):
        envs.make_single(EnvironmentConfig(id="LunarLander-v3"))


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(("id", "extra"), IDS.items())
def test_an_id_alone_is_enough_in_a_new_process(id: str, extra: str) -> None:
    package = next(package for package in third_party.PACKAGES if package.extra == extra)
    pytest.importorskip(package.module.partition(".")[0])
    code = f"from rlplatform.envs import naming; print(naming.find({id!r}).id); print({id!r} in naming.registered())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [id, "True"]


def test_an_id_that_a_package_would_take_over_keeps_its_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minatar")
    naming.find("MinAtar/Breakout-v1")
    ours = gym.envs.registration.EnvSpec("MinAtar/Breakout-v1", entry_point="elsewhere:Breakout")
    monkeypatch.setitem(gym.registry, "MinAtar/Breakout-v1", ours)
    third_party._register.cache_clear()
    third_party.register_all()
    assert naming.find("MinAtar/Breakout-v1") is ours


def test_minatar_shows_channels_last_and_takes_its_minimal_actions() -> None:
    pytest.importorskip("minatar")
    env = envs.make(EnvironmentConfig(id="MinAtar/Breakout-v1", num_envs=2))
    observation, _ = envs.reset(env, [1, 2])
    assert observation.shape == (2, 10, 10, 4)
    assert set(np.unique(observation).tolist()) == {0, 1}
    assert envs.spec_of(env).num_actions == 3
    env.close()


def test_minatar_is_filmed_in_its_colours() -> None:
    """Its own frames are numbers from 0 to 1."""
    pytest.importorskip("minatar")
    environment = EnvironmentConfig(id="MinAtar/Breakout-v1", max_episode_steps=3)
    frames, _, _ = record(lambda observation: np.zeros(len(observation), int), environment, 1)
    assert frames.dtype == np.uint8
    assert frames.max() > 150
    assert len(np.unique(frames.reshape(-1, 3), axis=0)) == 5  # nothing, paddle, ball, its trail, bricks


def test_the_lunar_lander_lands() -> None:
    """In a process of its own: SWIG's modules crash at import where Python's warnings are errors."""
    if importlib.util.find_spec("Box2D") is None:
        pytest.skip("pip install 'rlplatform[box2d]'")
    code = (
        "from rlplatform import envs; from rlplatform.config import EnvironmentConfig; import numpy as np\n"
        "env = envs.make(EnvironmentConfig(id='LunarLander-v3', num_envs=2)); envs.reset(env, [1, 2])\n"
        "ends = sum(env.step(np.zeros(2, int))[2].sum() for _ in range(200)); print(ends > 0)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "True"
