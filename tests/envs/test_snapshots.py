"""Environments that go on from bytes as if nothing had happened."""

import pathlib
import pickle
import subprocess
import sys
import textwrap
import threading
import types
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from rlplatform import envs
from rlplatform.config import EnvironmentConfig
from rlplatform.envs import probes
from rlplatform.errors import RunError

ROOT = pathlib.Path(envs.make.__code__.co_filename).parents[2]


def assert_continues_alike(first: Any, second: Any, steps: int, seed: int) -> None:
    """Both live through the same steps, over ends of episodes."""
    random = np.random.default_rng(seed)
    start = envs.spec_of(first).action_start
    for _ in range(steps):
        actions = start + random.integers(0, envs.spec_of(first).num_actions, first.num_envs)
        (*ours, info), (*theirs, other_info) = first.step(actions), second.step(actions)
        for mine, other in zip(ours, theirs, strict=True):
            assert_array_equal(mine, other)
        assert info.keys() == other_info.keys()
        for key in info:
            assert_array_equal(info[key], other_info[key])


@pytest.mark.parametrize(
    ("id", "num_envs"),
    [
        ("CartPole-v1", 1),
        ("CartPole-v1", 3),
        ("CartPole-v1", 8),  # the native form
        ("Acrobot-v1", 2),
        ("MountainCar-v0", 2),
        ("rlplatform.envs.probes:Counting", 3),
        ("rlplatform.envs.probes:RandomMDP", 2),
        ("rlplatform.envs.probes:Catch", 2),
        ("rlplatform.envs.probes:Dials", 2),
        ("FrozenLake-v1", 3),
        ("Taxi-v4", 2),
        ("Blackjack-v1", 2),
    ],
)
@settings(max_examples=5)
@given(before=st.integers(0, 60), seed=st.integers(0, 99))
def test_a_restored_environment_continues_identically(id: str, num_envs: int, before: int, seed: int) -> None:
    env = envs.make(EnvironmentConfig(id=id, num_envs=num_envs, max_episode_steps=25))
    envs.reset(env, range(seed, seed + num_envs))
    for step in range(before):
        env.step(np.full(num_envs, step % 2))
    data = envs.snapshot(env)
    assert data is not None
    assert_continues_alike(envs.restore(data), env, 70, seed)
    assert_continues_alike(envs.restore(data), envs.restore(data), 20, seed)  # the snapshot itself did not move


def test_gymnasiums_own_sync_vector_can_be_saved_too() -> None:
    env = gym.make_vec("CartPole-v1", 2, vectorization_mode="sync")
    env.reset(seed=0)
    data = envs.snapshot(env)
    assert data is not None
    assert_continues_alike(envs.restore(data), env, 60, 0)


def test_environments_in_other_processes_cannot_be_saved() -> None:
    env = envs.make(EnvironmentConfig(id="CartPole-v1", num_envs=2, vectorization="async"))
    try:
        env.reset(seed=0)
        assert envs.snapshot(env) is None
    finally:
        env.close()


def test_an_environment_that_holds_what_cannot_be_pickled_cannot_be_saved() -> None:
    def locked() -> gym.Env[Any, Any]:
        env = probes.Counting()
        vars(env)["lock"] = threading.Lock()
        return env

    assert envs.snapshot(envs.make(EnvironmentConfig(id="locked"), factory=locked)) is None


class Remade(probes.Counting, gym.utils.EzPickle):
    """Pickles its constructor's arguments alone, as Box2D's and MuJoCo's environments do."""

    def __init__(self) -> None:
        probes.Counting.__init__(self)
        gym.utils.EzPickle.__init__(self)


def test_an_environment_that_would_come_back_as_a_new_one_cannot_be_saved() -> None:
    env = envs.make(EnvironmentConfig(id="remade"), factory=Remade)
    env.reset(seed=0)
    env.step(np.zeros(1, np.int64))
    assert pickle.loads(pickle.dumps(env)).get_attr("step_in_episode") == (0,)  # why
    assert envs.snapshot(env) is None


def test_an_environment_of_a_callable_without_a_name_can_be_saved() -> None:
    def local() -> gym.Env[Any, Any]:
        class Local(probes.Counting):
            pass

        env = Local(lengths=(2, 3))
        vars(env)["reward_of"] = lambda *numbers: float(sum(numbers))
        return env

    env = envs.make(EnvironmentConfig(id="<local>", num_envs=2), factory=local)
    envs.reset(env, [1, 2])
    env.step(np.ones(2, np.int64))
    data = envs.snapshot(env)
    assert data is not None
    assert_continues_alike(envs.restore(data), env, 20, 0)


def test_an_open_window_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for pygame, which is not always installed: its surfaces and clocks refuse to be pickled."""

    class Surface:
        def __reduce__(self) -> Any:
            raise TypeError("cannot pickle a surface")

    Surface.__module__ = "pygame.surface"
    pygame = types.ModuleType("pygame")
    pygame.display = pygame  # type: ignore[attr-defined]
    pygame.quit = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pygame", pygame)
    env = envs.make(EnvironmentConfig(id="CartPole-v1", num_envs=2))
    env.reset(seed=0)
    for single in env.envs:  # type: ignore[attr-defined]
        single.unwrapped.screen = Surface()
    data = envs.snapshot(env)
    assert data is not None
    restored: Any = envs.restore(data)
    assert [single.unwrapped.screen for single in restored.envs] == [None, None]
    assert_continues_alike(restored, env, 60, 0)
    assert isinstance(env.envs[0].unwrapped.screen, Surface)  # type: ignore[attr-defined]


SAVE = """
    import sys, numpy as np
    from rlplatform import envs
    from rlplatform.config import EnvironmentConfig
    env = envs.make(EnvironmentConfig(id=sys.argv[1], num_envs=2))
    envs.reset(env, [4, 5])
    open("saved", "wb").write(envs.snapshot(env))
    """
LOAD = """
    import numpy as np
    from rlplatform import envs
    env = envs.restore(open("saved", "rb").read())
    print(env.step(np.ones(2, np.int64))[0].tolist(), type(env.envs[0].unwrapped).__name__)
    """
MY_ENV = """
    from rlplatform.envs.probes import Counting
    class MyEnv(Counting):
        pass
    """


def python(folder: pathlib.Path, code: str, *arguments: str) -> str:
    """Runs `code` in a process of its own in `folder`."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code), *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout if done.returncode == 0 else done.stderr


def test_a_class_from_a_file_is_restored_in_another_process_and_after_a_move(tmp_path: pathlib.Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (old / "my_env.py").write_text(textwrap.dedent(MY_ENV), encoding="utf-8")
    python(old, SAVE, "my_env.py:MyEnv")
    assert python(old, LOAD) == "[[4.0, 0.0, 1.0], [5.0, 0.0, 1.0]] MyEnv\n"
    old.rename(new)
    assert python(new, LOAD) == "[[4.0, 0.0, 1.0], [5.0, 0.0, 1.0]] MyEnv\n"
    (new / "my_env.py").unlink()
    assert "RunError: the saved environments cannot be restored: UserError: the file my_env.py" in python(new, LOAD)


def test_a_class_from_a_module_in_the_current_folder_is_restored_in_another_process(tmp_path: pathlib.Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (old / "my_env.py").write_text(textwrap.dedent(MY_ENV), encoding="utf-8")
    python(old, SAVE, "my_env:MyEnv")
    assert python(old, LOAD) == "[[4.0, 0.0, 1.0], [5.0, 0.0, 1.0]] MyEnv\n"
    old.rename(new)
    assert python(new, LOAD) == "[[4.0, 0.0, 1.0], [5.0, 0.0, 1.0]] MyEnv\n"


@pytest.mark.parametrize(
    "data", [b"", b"nothing", pickle.dumps(3), pickle.dumps({"folders": [], "files": [], "env": b"x"})]
)
def test_bytes_that_hold_no_environment_are_refused_in_a_sentence(data: bytes) -> None:
    with pytest.raises(RunError, match="the saved environments cannot be restored"):
        envs.restore(data)
