"""From a configuration to running environments."""

import os
import signal
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from rlplatform import envs
from rlplatform.config import EnvironmentConfig
from rlplatform.envs import probes
from rlplatform.envs.make import NATIVE_FROM
from rlplatform.errors import UserError

ONLY_VECTOR = "gymnasium.envs.classic_control.cartpole:CartPoleVectorEnv"
COUNTING = "rlplatform.envs.probes:Counting"


def lengths_of_episodes(env: gym.vector.VectorEnv[Any, Any, Any], steps: int) -> set[int]:
    """The lengths of the episodes that environment 0 lives through with action 0 and 1 in turn, in NEXT_STEP mode."""
    env.reset(seed=0)
    lengths, length, over = set(), 0, False
    for step in range(steps):
        _, _, terminated, truncated, _ = env.step(np.full(env.num_envs, step % 2))
        length = 0 if over else length + 1
        over = bool(terminated[0] or truncated[0])
        if over:
            lengths.add(length)
    return lengths


# --- which vector form ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vectorization", "num_envs", "form"),
    [
        ("auto", 1, envs.SerialVectorEnv),
        ("auto", NATIVE_FROM - 1, envs.SerialVectorEnv),
        ("auto", NATIVE_FROM, CartPoleVectorEnv),
        ("sync", NATIVE_FROM, envs.SerialVectorEnv),
    ],
)
def test_auto_takes_the_form_that_is_faster_for_so_many(vectorization: Any, num_envs: int, form: type) -> None:
    env = envs.make(EnvironmentConfig(id="CartPole-v1", num_envs=num_envs, vectorization=vectorization))
    assert type(env) is form
    assert env.num_envs == num_envs
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert envs.spec_of(env) == envs.Spec((4,), "float32", 2)


def test_auto_takes_one_after_the_other_where_there_is_no_native_form() -> None:
    assert type(envs.make(EnvironmentConfig(id="Acrobot-v1", num_envs=NATIVE_FROM))) is envs.SerialVectorEnv


@pytest.mark.parametrize("num_envs", [2, NATIVE_FROM])
def test_the_configured_time_limit_and_arguments_reach_every_form(num_envs: int) -> None:
    config = EnvironmentConfig(
        id="CartPole-v1", num_envs=num_envs, max_episode_steps=7, kwargs={"sutton_barto_reward": True}
    )
    env = envs.make(config)
    assert lengths_of_episodes(env, 100) == {7}
    env.reset(seed=0)
    assert_array_equal(env.step(np.zeros(num_envs, np.int64))[1], np.zeros(num_envs))


@pytest.mark.parametrize("num_envs", [2, NATIVE_FROM])
def test_without_a_configured_time_limit_the_environments_own_one_holds(num_envs: int) -> None:
    env = envs.make(EnvironmentConfig(id="CartPole-v0", num_envs=num_envs))
    env.reset(seed=0)
    forms = [env.unwrapped.max_episode_steps] if hasattr(env.unwrapped, "max_episode_steps") else []  # native
    forms += [single.spec.max_episode_steps for single in getattr(env, "envs", [])]
    assert set(forms) == {200}


@settings(max_examples=15)
@given(num_envs=st.integers(1, 70), limit=st.integers(5, 40), seed=st.integers(0, 99))
def test_the_native_cartpole_equals_the_single_one_step_by_step(num_envs: int, limit: int, seed: int) -> None:
    """Single environments are put into the states that the native one's resets drew; all else they work out alone."""
    native: Any = gym.make_vec("CartPole-v1", num_envs, "vector_entry_point", max_episode_steps=limit)
    singles: list[Any] = [gym.make("CartPole-v1", max_episode_steps=limit) for _ in range(num_envs)]
    shown, _ = native.reset(seed=seed)
    over = np.zeros(num_envs, np.bool_)
    random = np.random.default_rng(seed)

    def begin(index: int) -> Any:
        singles[index].reset()
        state = native.state[:, index].copy()
        assert np.abs(state).max() <= 0.05
        singles[index].unwrapped.state = state
        return state.astype(np.float32), 0.0, False, False

    assert_array_equal(shown, [begin(index)[0] for index in range(num_envs)])
    for _ in range(60):
        actions = random.integers(0, 2, num_envs)
        given_ = native.step(actions)[:4]
        expected = [begin(i) if over[i] else singles[i].step(actions[i])[:4] for i in range(num_envs)]
        for array, column in zip(given_, zip(*expected, strict=True), strict=True):
            assert_array_equal(array, column)
        over = given_[2] | given_[3]


def test_processes_of_their_own_give_the_same_and_outlive_ctrl_c() -> None:
    config = EnvironmentConfig(id=COUNTING, num_envs=2, kwargs={"lengths": [2, 3]}, vectorization="async")
    env: Any = envs.make(config)
    try:
        assert isinstance(env, gym.vector.AsyncVectorEnv)
        assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
        serial = envs.make(EnvironmentConfig(id=COUNTING, num_envs=2, kwargs={"lengths": [2, 3]}))
        assert_array_equal(envs.reset(env, [4, 7])[0], envs.reset(serial, [4, 7])[0])
        for process in env.processes:
            os.kill(process.pid, signal.SIGINT)  # type: ignore[arg-type]
        for step in range(8):
            for ours, theirs in zip(env.step(np.full(2, step % 3)), serial.step(np.full(2, step % 3)), strict=True):
                assert_array_equal(ours, theirs)
    finally:
        env.close()


def test_this_process_still_takes_ctrl_c_after_environments_got_their_own() -> None:
    before = signal.getsignal(signal.SIGINT)
    envs.make(EnvironmentConfig(id="CartPole-v1", vectorization="async")).close()
    assert signal.getsignal(signal.SIGINT) is before


# --- users' own classes, functions and callables --------------------------------------------------------------------


def test_a_callable_is_taken_instead_of_the_name() -> None:
    config = EnvironmentConfig(id="<here>", num_envs=3, kwargs={"lengths": (2,)})
    env = envs.make(config, factory=lambda lengths: probes.Counting(lengths=lengths, action_start=5))
    assert env.num_envs == 3
    assert envs.spec_of(env).action_start == 5
    single: Any = envs.make_single(config, factory=probes.Counting)
    assert single.lengths == (2,)


def test_a_callable_reaches_processes_of_their_own() -> None:
    config = EnvironmentConfig(id="<here>", num_envs=2, vectorization="async")
    env = envs.make(config, factory=lambda: probes.Counting(lengths=(1,)))
    try:
        assert_array_equal(envs.reset(env, [1, 2])[0], [[1, 0, 0], [2, 0, 0]])
    finally:
        env.close()


def test_a_users_environment_gets_the_configured_time_limit() -> None:
    config = EnvironmentConfig(id=COUNTING, kwargs={"lengths": [9]}, max_episode_steps=4)
    assert lengths_of_episodes(envs.make(config), 30) == {4}
    env = envs.make_single(config)
    env.reset()
    assert [env.step(0)[3] for _ in range(4)] == [False, False, False, True]


def test_a_constructor_that_takes_the_time_limit_is_told_it() -> None:
    told = []

    class Timed(probes.Counting):
        def __init__(self, max_episode_steps: int = 0) -> None:
            super().__init__(lengths=(9,))
            told.append(max_episode_steps)

    assert lengths_of_episodes(envs.make(EnvironmentConfig(id="t", max_episode_steps=4), factory=Timed), 20) == {4}
    assert told == [4]


def test_a_time_limit_beyond_the_environments_own_is_refused() -> None:
    def short(**kwargs: Any) -> gym.Env[Any, Any]:
        return gym.make("CartPole-v1", max_episode_steps=50)

    with pytest.raises(
        UserError, match=r"after 50 steps itself; environment\.max_episode_steps must be at most 50, not 60"
    ):
        envs.make(EnvironmentConfig(id="short", max_episode_steps=60), factory=short)
    assert lengths_of_episodes(envs.make(EnvironmentConfig(id="s", max_episode_steps=6), factory=short), 20) == {6}


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_users_vector_environment_is_passed_through_in_its_own_mode(mode: AutoresetMode) -> None:
    made = []

    def vector(num_envs: int) -> gym.vector.VectorEnv[Any, Any, Any]:
        made.append(gym.vector.SyncVectorEnv([probes.Counting] * num_envs, autoreset_mode=mode))
        return made[-1]

    env = envs.make(EnvironmentConfig(id="v", num_envs=5), factory=vector)
    assert env is made[-1]
    assert env.num_envs == 5
    assert env.metadata["autoreset_mode"] is mode


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_one_of_a_vector_environment_lives_as_a_single_one_does(mode: AutoresetMode) -> None:
    def vector(num_envs: int) -> gym.vector.VectorEnv[Any, Any, Any]:
        return gym.vector.SyncVectorEnv([probes.Counting] * num_envs, autoreset_mode=mode)

    one = envs.make_single(EnvironmentConfig(id="v", num_envs=5), factory=vector)
    alone = probes.Counting()
    for seed in (3, 4, 4, 8):
        assert_array_equal(one.reset(seed=seed)[0], alone.reset(seed=seed)[0])
        over = False
        while not over:
            ours, theirs = one.step(np.int64(1)), alone.step(np.int64(1))
            for mine, other in zip(ours, theirs, strict=True):
                assert_array_equal(mine, other)
            over = ours[2] or ours[3]
    one.close()


def test_an_id_that_is_registered_as_a_vector_only_works_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = gym.envs.registration.EnvSpec("OnlyVector-v0", max_episode_steps=3, vector_entry_point=ONLY_VECTOR)
    monkeypatch.setitem(gym.registry, "OnlyVector-v0", spec)
    assert lengths_of_episodes(envs.make(EnvironmentConfig(id="OnlyVector-v0", num_envs=2)), 12) == {3}
    env = envs.make_single(EnvironmentConfig(id="OnlyVector-v0", num_envs=2))
    assert_array_equal(env.reset(seed=3)[0], env.reset(seed=3)[0])
    assert [env.step(1)[3] for _ in range(3)] == [False, False, True]
    with pytest.raises(UserError, match="must be 'auto', not 'sync'"):
        envs.make(EnvironmentConfig(id="OnlyVector-v0", num_envs=2, vectorization="sync"))


def fixed() -> gym.vector.VectorEnv[Any, Any, Any]:
    """Four environments, whatever is asked for."""
    return gym.vector.SyncVectorEnv([probes.Counting] * 4)


def silent() -> gym.vector.VectorEnv[Any, Any, Any]:
    """Does not say how it resets."""
    env = fixed()
    del env.metadata["autoreset_mode"]
    return env


@pytest.mark.parametrize(
    ("factory", "config", "words"),
    [
        (fixed, {"num_envs": 3}, "makes 4 environments, not 3; let it take a `num_envs` parameter"),
        (fixed, {"num_envs": 4, "vectorization": "async"}, "must be 'auto', not 'async'"),
        (fixed, {"num_envs": 4, "max_episode_steps": 5}, "without a `max_episode_steps` parameter"),
        (silent, {"num_envs": 4}, r"set metadata\['autoreset_mode'\]"),
        (probes.Counting(), {}, "mine is an environment already; give what makes one"),
        (lambda: 3, {}, "makes a int; it must make a gymnasium.Env"),
        (lambda: gym.Env(), {}, "is not a Gymnasium environment: .*action space"),
    ],
)
def test_what_a_factory_makes_wrongly_is_said(factory: Any, config: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        envs.make(EnvironmentConfig(id="mine", **config), factory=factory)


def test_a_vector_of_several_cannot_be_evaluated_as_one() -> None:
    with pytest.raises(UserError, match="makes 4 environments where evaluation needs one"):
        envs.make_single(EnvironmentConfig(id="mine", num_envs=4), factory=fixed)


# --- what cannot be made --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [envs.make, envs.make_single])
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"id": "CartPol-v1"}, "did you mean 'CartPole-v1'"),
        ({"id": "Pendulum-v1"}, "environment 'Pendulum-v1' takes actions of Box"),
        ({"id": "CartPole-v1", "kwargs": {"sutton_bart_reward": True}}, "did you mean 'sutton_barto_reward'"),
        ({"id": COUNTING, "kwargs": {"length": 3}}, "takes no argument 'length'; did you mean 'lengths'"),
        ({"id": COUNTING, "kwargs": {"lengths": [0]}}, "lengths must be whole numbers"),
        ({"id": COUNTING, "kwargs": {"lengths": "ab"}}, "cannot be made with {'lengths': 'ab'} .TypeError"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(make: Any, config: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as refusal:
        make(EnvironmentConfig(**config))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("error", "command"),
    [
        (gym.error.DependencyNotInstalled('X is not installed, run `pip install "gymnasium[x]"`'), '"gymnasium[x]"'),
        (ModuleNotFoundError("No module named 'wheels.round'", name="wheels.round"), "pip install wheels"),
        (ImportError("libGL.so is missing"), "libGL.so is missing"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(error: Exception, command: str) -> None:
    def needy() -> gym.Env[Any, Any]:
        raise error

    with pytest.raises(UserError, match="needy needs a package that is not installed") as refusal:
        envs.make(EnvironmentConfig(id="needy"), factory=needy)
    assert str(refusal.value).endswith(command)


def test_a_refused_environment_is_closed() -> None:
    closed = []

    class Continuous(probes.Counting):
        def __init__(self) -> None:
            super().__init__()
            self.action_space: Any = gym.spaces.Box(-1, 1, (1,))

        def close(self) -> None:
            closed.append(True)

    with pytest.raises(UserError, match="environment 'mine' takes actions"):
        envs.make(EnvironmentConfig(id="mine"), factory=Continuous)
    assert closed == [True]


def test_gymnasiums_checker_watches_the_first_environment_only() -> None:
    class Careless(probes.Counting):
        def reset(self, **kwargs: Any) -> Any:
            observation, info = super().reset(**kwargs)
            return observation - 5, info  # below the space's low

    with pytest.warns(UserWarning, match="not within the observation space") as warned:  # `make` looks for masks
        env = envs.make(EnvironmentConfig(id="mine", num_envs=3), factory=Careless)
    assert len(warned) == 1
    env.reset(seed=0)  # and the first reset only


# --- one environment for evaluation and video -----------------------------------------------------------------------


def test_a_single_environment_is_gymnasiums_own() -> None:
    ours, theirs = envs.make_single(EnvironmentConfig(id="CartPole-v1", num_envs=9)), gym.make("CartPole-v1")
    assert_array_equal(ours.reset(seed=1)[0], theirs.reset(seed=1)[0])
    for step in range(10):
        for mine, other in zip(ours.step(step % 2), theirs.step(step % 2), strict=True):
            assert_array_equal(mine, other)
    assert ours.spec is not None
    assert ours.spec.max_episode_steps == 500


def test_a_video_mode_reaches_the_environment_or_is_refused() -> None:
    catch = envs.make_single(EnvironmentConfig(id="rlplatform.envs.probes:Catch"), "rgb_array")
    catch.reset(seed=0)
    frame: Any = catch.render()
    assert frame.shape == (144, 144, 3)
    assert envs.make_single(EnvironmentConfig(id="CartPole-v1"), "rgb_array").render_mode == "rgb_array"
    with pytest.raises(UserError, match="takes no `render_mode` parameter"):
        envs.make_single(EnvironmentConfig(id=COUNTING), "rgb_array")
