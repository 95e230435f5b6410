"""From a configuration to running environments: one for evaluation, or many side by side for training."""

import dataclasses
import multiprocessing
import os
import signal
import warnings
from typing import Any, TypeVar

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import PassiveEnvChecker, TimeLimit

from rlplatform.config import EnvironmentConfig
from rlplatform.envs import atari
from rlplatform.envs.adapter import Adaptation, Adapter, Described, VectorAdapter, adaptation_of
from rlplatform.envs.entry_points import explained, loaded, parameters
from rlplatform.envs.layout import notes
from rlplatform.envs.naming import Factory, find, id_of
from rlplatform.envs.serial import SerialVectorEnv
from rlplatform.envs.single import FirstOfVector
from rlplatform.errors import UserError

NATIVE_FROM = 8
"""`auto` takes an environment's own vector form from this many environments on.

Measured on CartPole-v1 (one Zen 4 core, Gymnasium 1.4): the native form costs 71 us a step with 8 environments and
75 us with 64; one after the other costs 11 us with 1, 40 us with 4, 76 us with 8 and 610 us with 64.
"""

AnyVectorEnv = gym.vector.VectorEnv[Any, Any, Any]
AnyEnv = gym.Env[Any, Any]
E = TypeVar("E", AnyVectorEnv, AnyEnv)


def make(config: EnvironmentConfig, factory: Factory | None = None) -> AnyVectorEnv:
    """The training environments: `config.num_envs` side by side.

    All that is built here resets in NEXT_STEP mode. A class or function that makes a vector environment of its own is
    taken in the mode that its `metadata["autoreset_mode"]` names. Gymnasium's checker watches the first reset and step
    of environment 0 and warns of what is wrong there; the others go unwatched, for speed.

    What is made shows one Box and takes one Discrete action. Where an environment has other spaces, a wrapper turns
    them into these (`spec_of` records how); where it has them, there is no wrapper. The first environment is reset
    once, to see whether its info offers action masks.

    Args:
        config: which environment (`naming.find` says how it may be named), how many, and how they are run.
        factory: a Python callable that makes the environment, instead of `config.id`: called with `config.kwargs`, and
            with `num_envs` if it takes that. `config.id` should then be `id_of(factory)`.

    Raises:
        UserError: there is no such environment, it cannot be made so, or its spaces are not supported.
    """
    target = factory if factory is not None else find(config.id)
    env = _vector(config, target, factory)
    return _supported(config, env)


def make_single(config: EnvironmentConfig, render_mode: str | None = None, factory: Factory | None = None) -> AnyEnv:
    """One environment with its time limit, for evaluation and video.

    Args:
        config: which environment; `num_envs` and `vectorization` do not matter here.
        render_mode: passed to the environment, `rgb_array` for video.
        factory: as for `make`.

    Raises:
        UserError: as for `make`, or the environment takes no `render_mode` while one is asked for.
    """
    target = factory if factory is not None else find(config.id)
    extra = {} if render_mode is None else {"render_mode": render_mode}
    if isinstance(target, EnvSpec) and atari.preprocessed(config, target):
        return _supported(config, atari.make_single(config, target, render_mode))
    if isinstance(target, EnvSpec) and target.entry_point is None:
        return _supported(config, FirstOfVector(_native(dataclasses.replace(config, num_envs=1), target, extra)))
    if isinstance(target, EnvSpec):
        return _supported(config, _registered(config, target, extra, check=False))
    env = _call(config, target, extra, num_envs=1)
    if isinstance(env, gym.vector.VectorEnv):
        if env.num_envs != 1:
            env.close()
            raise UserError(
                f"{_name(config, target)} makes {env.num_envs} environments where evaluation needs one; give it a "
                "`num_envs` parameter"
            )
        return _supported(config, FirstOfVector(env))
    return _supported(config, _limited(config, env))


@dataclasses.dataclass(frozen=True)
class Maker:
    """Makes one of several environments, here or in a process of its own, where the name is looked up again."""

    config: EnvironmentConfig
    factory: Factory | None
    check: bool
    parent: int | None = None  # the process that takes Ctrl-C, where the environment has a process of its own

    def __call__(self) -> AnyEnv:
        """The environment, with its time limit and supported spaces."""
        if self.parent is not None and self.parent != os.getpid():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent closes this one
        target = self.factory if self.factory is not None else find(self.config.id)
        if isinstance(target, EnvSpec):
            env = _registered(self.config, target, {}, self.check)
        else:
            made = _call(self.config, target, {}, num_envs=None)
            env = _limited(self.config, _checked(made) if self.check else made)
        try:
            env = _adapted(self.config, env)
        except UserError:
            env.close()
            raise
        if self.parent is not None and not hasattr(env, "adaptation"):
            env.adaptation = None  # type: ignore[attr-defined]  # it is asked for across processes
        return env


def _vector(config: EnvironmentConfig, target: EnvSpec | Factory, factory: Factory | None) -> AnyVectorEnv:
    """The environments side by side, each kind in its own way."""
    first = None
    if isinstance(target, EnvSpec) and atari.preprocessed(config, target):
        return atari.make_vector(config, target)
    if isinstance(target, EnvSpec):
        if target.entry_point is None:
            return _own_vector(config, loaded(target.vector_entry_point), _native(config, target, {}))
        if config.vectorization == "auto" and config.num_envs >= NATIVE_FROM and _fits_native(config, target):
            env = _native(config, target, {})
            if env.metadata.get("autoreset_mode") == AutoresetMode.NEXT_STEP:
                return env
            env.close()
    else:
        made = _call(config, target, {}, num_envs=config.num_envs)
        if isinstance(made, gym.vector.VectorEnv):
            return _own_vector(config, target, made)
        first = _limited(config, _checked(made))
        try:
            first = _adapted(config, first)
        except UserError:
            first.close()
            raise
    parent = os.getpid() if config.vectorization == "async" else None
    makers = [Maker(config, factory, check=index == 0, parent=parent) for index in range(config.num_envs)]
    if config.vectorization == "async":
        if first is not None:
            first.close()
        return _asynchronous(config, makers)
    if first is not None:
        return SerialVectorEnv([lambda: first, *makers[1:]])
    return SerialVectorEnv(makers)


def _asynchronous(config: EnvironmentConfig, makers: list[Maker]) -> AnyVectorEnv:
    """One process per environment. They are not forked from this one, whose TensorFlow threads would not survive it."""
    start = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    try:
        return gym.vector.AsyncVectorEnv(makers, context=start)
    except (EOFError, ConnectionError) as error:
        raise UserError(
            f"the processes of {config.id} ended while starting, with what is printed above; a script that uses "
            "vectorization 'async' needs its main part under `if __name__ == '__main__':`"
        ) from error


def _own_vector(config: EnvironmentConfig, target: Factory, env: AnyVectorEnv) -> AnyVectorEnv:
    """The vector environment that a user's class or function has made, if it is what the configuration asks for."""
    name = _name(config, target)
    wrong = None
    if env.num_envs != config.num_envs:
        wrong = f"{name} makes {env.num_envs} environments, not {config.num_envs}; let it take a `num_envs` parameter"
    elif config.vectorization != "auto":
        wrong = f"{name} is a vector already; environment.vectorization must be 'auto', not {config.vectorization!r}"
    elif config.max_episode_steps and "max_episode_steps" not in parameters(target):
        wrong = f"{name} is a vector environment without a `max_episode_steps` parameter; set its time limit inside it"
    elif not isinstance(env.metadata.get("autoreset_mode"), AutoresetMode):
        wrong = f"{name} does not say how it resets; set metadata['autoreset_mode'] to a gymnasium.vector.AutoresetMode"
    if wrong:
        env.close()
        raise UserError(wrong)
    return env


def _fits_native(config: EnvironmentConfig, spec: EnvSpec) -> bool:
    """Whether the environment has a vector form, and that form takes all that is configured."""
    if spec.vector_entry_point is None or spec.additional_wrappers:
        return False
    try:
        takes = parameters(loaded(spec.vector_entry_point))
    except ImportError:
        return False
    needed = {*spec.kwargs, *config.kwargs}
    if config.max_episode_steps or spec.max_episode_steps:
        needed.add("max_episode_steps")
    return "**" in takes or needed <= takes


def _native(config: EnvironmentConfig, spec: EnvSpec, extra: dict[str, Any]) -> AnyVectorEnv:
    kwargs = {**config.kwargs, **extra}
    if config.max_episode_steps:
        kwargs["max_episode_steps"] = config.max_episode_steps
    with explained(config.id, spec.vector_entry_point, kwargs):
        return gym.make_vec(spec, config.num_envs, "vector_entry_point", **kwargs)


def _registered(config: EnvironmentConfig, spec: EnvSpec, extra: dict[str, Any], check: bool) -> AnyEnv:
    with explained(config.id, spec.entry_point, config.kwargs):
        return gym.make(
            spec,
            max_episode_steps=config.max_episode_steps or None,
            disable_env_checker=None if check else True,
            **config.kwargs,
            **extra,
        )


def _call(config: EnvironmentConfig, target: Factory, extra: dict[str, Any], num_envs: int | None) -> Any:
    """What a user's class or function makes: an Env or a VectorEnv."""
    name = _name(config, target)
    if isinstance(target, gym.Env | gym.vector.VectorEnv):
        raise UserError(f"{name} is an environment already; give what makes one: its class, or a function")
    takes = parameters(target)
    kwargs = {**config.kwargs, **extra}
    if "render_mode" in extra and not {"render_mode", "**"} & takes:
        raise UserError(f"{name} takes no `render_mode` parameter, and a video needs one that accepts 'rgb_array'")
    if num_envs is not None and "num_envs" in takes and not (isinstance(target, type) and issubclass(target, gym.Env)):
        kwargs["num_envs"] = num_envs
    if config.max_episode_steps and "max_episode_steps" in takes:
        kwargs["max_episode_steps"] = config.max_episode_steps
    with explained(name, target, kwargs):
        env = target(**kwargs)
    if not isinstance(env, gym.Env | gym.vector.VectorEnv):
        raise UserError(
            f"{name} makes a {type(env).__name__}; it must make a gymnasium.Env or a gymnasium.vector.VectorEnv"
        )
    return env


def _limited(config: EnvironmentConfig, env: AnyEnv) -> AnyEnv:
    """`env` with the configured time limit, where a user's own code has made it."""
    limit = config.max_episode_steps
    if not limit:
        return env
    own = env.spec.max_episode_steps if env.spec is not None else None
    if own is not None and own < limit:
        env.close()
        raise UserError(
            f"{config.id} ends its episodes after {own} steps itself; environment.max_episode_steps must be at most "
            f"{own}, not {limit}"
        )
    return env if own == limit else TimeLimit(env, limit)


def _checked(env: AnyEnv) -> AnyEnv:
    """`env` under Gymnasium's checker of the first reset and the first step."""
    try:
        return PassiveEnvChecker(env)
    except (AssertionError, AttributeError, TypeError) as error:
        env.close()
        raise UserError(f"{type(env.unwrapped).__name__} is not a Gymnasium environment: {error}") from None


def _supported(config: EnvironmentConfig, env: E) -> E:
    """`env`, with one Box to see and one Discrete to choose from: itself, where it has them."""
    try:
        made: Any = _adapted_vector(config, env) if isinstance(env, gym.vector.VectorEnv) else _adapted(config, env)
        adaptation: Adaptation | None = getattr(made, "adaptation", None)
        for note in notes(adaptation.layout) if adaptation is not None else []:
            warnings.warn(f"{config.id}: {note}", stacklevel=1)  # from one place, so that it is shown once
    except BaseException:
        env.close()
        raise
    return made  # type: ignore[no-any-return]


def _adapted(config: EnvironmentConfig, env: AnyEnv) -> AnyEnv:
    """A single environment. Whether its info masks actions shows at its first reset, which is not here."""
    if getattr(env, "adaptation", None) is not None:  # a vector of one is adapted already
        return env
    name = f"environment {config.id!r}"
    needed = adaptation_of(env.observation_space, env.action_space, name)
    return env if needed is None else Adapter(env, name)


def _adapted_vector(config: EnvironmentConfig, env: AnyVectorEnv) -> AnyVectorEnv:
    """A vector. One reset shows whether its info masks actions: of the first environment, or of all if it must be."""
    if isinstance(env, SerialVectorEnv):
        if env.adaptation is None or not env.adaptation.action_mask:
            _, info = env.envs[0].reset(seed=0)
            if "action_mask" in info:
                env.adaptation = dataclasses.replace(env.adaptation or Adaptation(), action_mask=True)
        return env
    if isinstance(env, gym.vector.AsyncVectorEnv) and config.vectorization == "async":  # adapted one by one
        needed: Adaptation | None = env.get_attr("adaptation")[0]
        wrapper: type[Described | VectorAdapter] = Described
    else:
        name = f"environment {config.id!r}"
        needed = adaptation_of(env.single_observation_space, env.single_action_space, name)
        wrapper = VectorAdapter
    if (needed is None or not needed.action_mask) and "action_mask" in env.reset(seed=0)[1]:
        needed = dataclasses.replace(needed or Adaptation(), action_mask=True)
    return env if needed is None else wrapper(env, needed)


def _name(config: EnvironmentConfig, target: Factory) -> str:
    return config.id or id_of(target)
