"""One Box to see and one Discrete to choose from, whatever an environment has: singly, as a vector, in every mode."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from numpy.testing import assert_array_equal

from rlplatform import envs
from rlplatform.config import EnvironmentConfig
from rlplatform.envs import probes
from rlplatform.envs.single import FirstOfVector
from rlplatform.errors import UserError

Info = dict[str, Any]


class Everything(gym.Env[Any, Any]):
    """Every kind of entry, all drawn from the generator; actions and masks of several components.

    The reward tells which action has reached it; episodes have 3 steps and end by turns.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(self, mask: str = "components") -> None:
        self.mask = mask
        self.observation_space: Any = spaces.Dict(
            flags=spaces.MultiBinary((2, 2)),
            image=spaces.Box(0, 255, (3, 5, 6), np.uint8),
            inner=spaces.Dict(gear=spaces.Discrete(4, start=-2), speed=spaces.Box(-1, 1, (2,), np.float64)),
            pair=spaces.Tuple((spaces.MultiDiscrete([2, 3], start=[1, 0]), spaces.Text(3, charset="ab"))),
        )
        self.action_space: Any = spaces.MultiDiscrete([2, 3], start=[0, 7])
        self.steps = self.episode = 0

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        super().reset(seed=seed)
        if seed is not None:
            self.episode = 0
            self.observation_space.seed(seed)
        self.steps = 0
        self.episode += 1
        return self._seen()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, Info]:
        assert self.action_space.contains(action)
        self.steps += 1
        over = self.steps == 3
        ended = self.episode % 2 == 0
        observation, info = self._seen()
        return observation, float(10 * action[0] + action[1]), over and ended, over and not ended, info

    def _seen(self) -> tuple[Any, Info]:
        observation = self.observation_space.sample()
        first, second = self.np_random.random(2) < 0.5, self.np_random.random(3) < 0.5
        if self.mask == "components":
            return observation, {"action_mask": (first, second)}
        return observation, {"action_mask": np.outer(first, second).reshape(-1)} if self.mask == "joint" else {}


class ChannelsFirst(probes.Counting):
    """Counting as an image `[3, 8, 9]` of uint8."""

    def __init__(self) -> None:
        super().__init__((3,))
        self.observation_space: Any = spaces.Box(0, 255, (3, 8, 9), np.uint8)

    def _observation(self) -> Any:
        return np.arange(3 * 8 * 9).reshape(3, 8, 9).astype(np.uint8) + np.uint8(self.step_in_episode)


class BinaryActions(probes.Counting):
    """Counting with a MultiBinary action."""

    def __init__(self) -> None:
        super().__init__((3,))
        self.action_space: Any = spaces.MultiBinary(3)

    def step(self, action: Any) -> Any:
        return super().step(np.int64(action @ [4, 2, 1]))


class MaskEntry(probes.Counting):
    """Counting with a mask beside it, which forbids nothing really."""

    def __init__(self) -> None:
        super().__init__((4,), num_actions=4)
        own: Any = self.observation_space
        self.observation_space: Any = spaces.Dict(action_mask=spaces.Box(0, 1, (4,), np.int8), count=own)

    def _observation(self) -> Any:
        count = super()._observation()
        return {"count": count, "action_mask": np.array([count.sum() % 2, 0, 1, self.episode % 2], np.int8)}


MAKERS: dict[str, Any] = {
    "all, masks of components": Everything,
    "all, joint masks": lambda: Everything("joint"),
    "all, no masks": lambda: Everything("none"),
    "mask as an entry": MaskEntry,
    "signals": probes.Signals,
    "dials": probes.Dials,
    "channels first": ChannelsFirst,
    "binary actions": BinaryActions,
    "Blackjack": lambda: gym.make("Blackjack-v1"),
    "FrozenLake": lambda: gym.make("FrozenLake-v1"),
    "Taxi": lambda: gym.make("Taxi-v4"),
}
each = pytest.mark.parametrize("name", MAKERS)


def checked(env: gym.Env[Any, Any]) -> None:
    """Gymnasium's checker, whose only word may be that it is given a wrapper or an environment without an id."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version")
        warnings.filterwarnings("ignore", message=".*alternative render modes")
        check_env(env, skip_render_check=True)


@each
def test_gymnasiums_checker_passes_on_an_adapted_environment(name: str) -> None:
    checked(envs.Adapter(MAKERS[name]()))


@each
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_gymnasiums_checker_passes_on_the_one_of_a_vector(name: str, mode: AutoresetMode) -> None:
    checked(FirstOfVector(adapted_vector(name, 1, mode)))


def adapted_vector(name: str, num_envs: int, mode: AutoresetMode) -> Any:
    """Adapted as a whole, not one by one."""

    def vector(num_envs: int) -> gym.vector.VectorEnv[Any, Any, Any]:
        return gym.vector.SyncVectorEnv([MAKERS[name]] * num_envs, autoreset_mode=mode)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* is left out")
        return envs.make(EnvironmentConfig(id="mine", num_envs=num_envs), factory=vector)


def lived(name: str, seed: int, steps: int, num_actions: int) -> list[tuple[Any, ...]]:
    """One adapted environment's observation, mask, and what the step after them brought, ends included."""
    env = envs.Adapter(MAKERS[name]())
    rows = []
    observation, info = env.reset(seed=seed)
    over = False
    for step in range(steps):
        if over:
            rows.append((observation, info.get("action_mask"), None, None, None))
            observation, info = env.reset()
            over = False
            continue
        action = (step * 7 + 3) % num_actions
        following, reward, terminated, truncated, next_info = env.step(np.int64(action))
        rows.append((observation, info.get("action_mask"), reward, terminated, truncated))
        observation, info, over = following, next_info, terminated or truncated
    return rows


@each
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_an_adapted_vector_lives_as_its_adapted_singles_do(name: str, mode: AutoresetMode) -> None:
    """Step by step: observations, masks, rewards, ends, and the final observations of SAME_STEP."""
    num_envs, steps = 3, 24
    env = adapted_vector(name, num_envs, mode)
    spec = envs.spec_of(env)
    expected = [lived(name, 5 + index, steps, spec.num_actions) for index in range(num_envs)]
    place = [0] * num_envs  # of each environment in what it should live through
    observation, infos = env.reset(seed=5)
    assert type(env) is envs.VectorAdapter
    assert env.observation_space.contains(observation)
    for _ in range(steps // 2):
        for index in range(num_envs):
            seen, mask, *_ = expected[index][place[index]]
            assert_array_equal(observation[index], seen)
            assert seen.dtype == observation.dtype
            if mask is not None:
                assert spec.action_mask
                assert_array_equal(infos["action_mask"][index], mask)
                assert infos["action_mask"].dtype == np.bool_
        actions = np.array([(at * 7 + 3) % spec.num_actions for at in place])
        observation, rewards, terminated, truncated, infos = env.step(actions)
        for index in range(num_envs):
            _, _, reward, ended, cut = expected[index][place[index]]
            place[index] += 1
            if reward is None:  # NEXT_STEP: the episode after an end begins
                assert mode is AutoresetMode.NEXT_STEP
                continue
            assert (rewards[index], terminated[index], truncated[index]) == (reward, ended, cut)
            if (ended or cut) and mode is not AutoresetMode.NEXT_STEP:
                if mode is AutoresetMode.SAME_STEP:
                    assert_array_equal(infos["final_obs"][index], expected[index][place[index]][0])
                place[index] += 1
        if mode is AutoresetMode.DISABLED and (terminated | truncated).any():
            over = terminated | truncated
            step_mask = infos.get("action_mask")
            observation, infos = env.reset(options={"reset_mask": over})
            if step_mask is not None:
                infos["action_mask"][~over] = step_mask[~over]


@each
def test_environments_side_by_side_live_as_an_adapted_vector_does(name: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* is left out")
        serial = envs.make(EnvironmentConfig(id="mine", num_envs=3), factory=MAKERS[name])
    whole = adapted_vector(name, 3, AutoresetMode.NEXT_STEP)
    assert type(serial) is envs.SerialVectorEnv
    spec = envs.spec_of(serial)
    assert spec == envs.spec_of(whole)
    assert (spec.layout, spec.action_layout) != (None, None)
    (one, info), (other, other_info) = serial.reset(seed=1), whole.reset(seed=1)
    for step in range(20):
        assert_array_equal(one, other)
        assert one.dtype == other.dtype
        masks = [envs.mask_of(infos, 3, spec.num_actions) for infos in (info, other_info)]
        assert_array_equal(*masks)
        actions = (step + np.arange(3)) % spec.num_actions
        (one, *rest, info), (other, *other_rest, other_info) = serial.step(actions), whole.step(actions)
        for ours, theirs in zip(rest, other_rest, strict=True):
            assert_array_equal(ours, theirs)


@each
def test_a_joint_action_reaches_the_environment_as_its_own(name: str) -> None:
    env, taken = MAKERS[name](), []
    own = env.action_space

    class Watched(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            taken.append(action)
            return super().step(action)

    adapted = envs.Adapter(Watched(env))
    space: Any = adapted.action_space
    for index in range(int(space.n)):
        adapted.reset(seed=0)
        adapted.step(np.int64(space.start + index))
    assert all(own.contains(action) for action in taken)
    assert len({np.asarray(action).tobytes() for action in taken}) == len(taken)


def test_processes_of_their_own_give_the_same() -> None:
    name = "rlplatform.envs.probes:Masked"
    vectors = [
        envs.make(EnvironmentConfig(id=name, num_envs=2, kwargs={"by": "observation"}, vectorization=form))
        for form in ("sync", "async")
    ]
    try:
        specs = [envs.spec_of(env) for env in vectors]
        assert specs[0] == specs[1]
        assert specs[1].action_mask
        (one, info), (other, other_info) = (envs.reset(env, [3, 4]) for env in vectors)
        for _ in range(10):
            assert_array_equal(one, other)
            masks = envs.mask_of(info, 2, 5)
            assert_array_equal(masks, envs.mask_of(other_info, 2, 5))
            (one, *_, info), (other, *_, other_info) = (env.step(masks.argmax(axis=1)) for env in vectors)
    finally:
        for env in vectors:
            env.close()


def test_masks_in_the_info_of_processes_of_their_own_are_found() -> None:
    env = envs.make(EnvironmentConfig(id="rlplatform.envs.probes:Masked", num_envs=2, vectorization="async"))
    try:
        assert envs.spec_of(env) == envs.Spec((1,), "float32", 5, action_mask=True)
    finally:
        env.close()


@pytest.mark.parametrize("num_envs", [1, 3])
def test_masks_in_the_info_are_found_without_a_wrapper(num_envs: int) -> None:
    env: Any = envs.make(EnvironmentConfig(id="rlplatform.envs.probes:Masked", num_envs=num_envs))
    assert envs.spec_of(env) == envs.Spec((1,), "float32", 5, action_mask=True)
    assert type(env) is envs.SerialVectorEnv
    assert type(env.envs[0].unwrapped) is probes.Masked
    assert not isinstance(env.envs[-1], envs.Adapter)
    assert type(envs.make_single(EnvironmentConfig(id="rlplatform.envs.probes:Masked"))) is probes.Masked


@pytest.mark.parametrize(("id", "num_envs"), [("CartPole-v1", 2), ("CartPole-v1", 8), ("Acrobot-v1", 8)])
def test_where_nothing_is_needed_nothing_is_wrapped(id: str, num_envs: int) -> None:
    env: Any = envs.make(EnvironmentConfig(id=id, num_envs=num_envs))
    assert env.unwrapped is env
    plain = gym.make(id)
    single = envs.make_single(EnvironmentConfig(id=id))
    assert str(single) == str(plain).replace("PassiveEnvChecker<", "").replace(">>>>>", ">>>>")
    for each in getattr(env, "envs", [])[1:]:
        assert str(each) == str(single)


@pytest.mark.parametrize("vectorization", ["auto", "async"])
def test_a_space_that_is_not_supported_is_one_sentence(vectorization: Any) -> None:
    config = EnvironmentConfig(id="Pendulum-v1", num_envs=2, vectorization=vectorization)
    with pytest.raises(UserError, match=r"environment 'Pendulum-v1' takes actions of Box.*supported are"):
        envs.make(config)
    with pytest.raises(UserError, match=r"environment 'Pendulum-v1' takes actions of Box.*supported are"):
        envs.make_single(config)


def test_environments_whose_vectors_only_look_alike_are_refused() -> None:
    """The flat observations are the same, what they mean is not."""
    kinds = iter(
        [{"a": spaces.MultiBinary(2), "b": spaces.Discrete(2)}, {"a": spaces.Discrete(2), "b": spaces.MultiBinary(2)}]
    )

    class Turning(probes.Counting):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space: Any = spaces.Dict(next(kinds))

    with pytest.raises(UserError, match="environment 1 differs in its spaces from environment 0, before they are"):
        envs.make(EnvironmentConfig(id="mine", num_envs=2), factory=Turning)


def test_text_is_left_out_with_one_warning_that_names_it() -> None:
    for make in (envs.make, envs.make_single):
        with pytest.warns(UserWarning, match="probes:Signals: the observation's text at note is left out") as warned:
            env: Any = make(EnvironmentConfig(id="rlplatform.envs.probes:Signals", num_envs=3))  # type: ignore[operator]
        assert len(warned) == 1
        assert envs.spec_of(env).observation_shape == (9,)


def test_an_adapted_environment_can_be_made_again_from_its_spec() -> None:
    env = envs.Adapter(gym.make("Blackjack-v1"))
    assert env.spec is not None
    again = env.spec.make()
    assert isinstance(again, envs.Adapter)
    assert_array_equal(env.reset(seed=4)[0], again.reset(seed=4)[0])


@pytest.mark.parametrize("id", ["Taxi-v4", "Blackjack-v1", "minigrid:MiniGrid-Empty-5x5-v0"])
def test_environments_of_other_packages_just_make(id: str) -> None:
    if id.startswith("minigrid"):
        pytest.importorskip("minigrid")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*text at mission is left out")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        env = envs.make(EnvironmentConfig(id=id, num_envs=2))
    shapes = {"Taxi-v4": (500,), "Blackjack-v1": (32 + 11 + 2,), "minigrid:MiniGrid-Empty-5x5-v0": (4 + 7 * 7 * 3,)}
    spec = envs.spec_of(env)
    assert spec.observation_shape == shapes[id]
    assert spec.action_mask == (id == "Taxi-v4")
    observation, infos = envs.reset(env, [0, 1])
    for _ in range(5):
        assert env.observation_space.contains(observation)
        observation, *_, infos = env.step(envs.mask_of(infos, 2, spec.num_actions).argmax(axis=1))
    env.close()
