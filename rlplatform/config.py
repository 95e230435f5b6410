"""The configuration of a run: one tree of frozen dataclasses, its TOML form, its presets and its overrides."""

import dataclasses
import difflib
import importlib.resources
import math
import pathlib
import tomllib
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

import tomli_w

from rlplatform.errors import UserError


def _field(default: Any, help: str, low: float | None = None, high: float | None = None) -> Any:
    """A dataclass field with a sentence of help and, for numbers, the closed range of what is accepted."""
    metadata = {"help": help, "low": low, "high": high}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """A number that changes with the env steps of a run. A bare number in TOML is a constant.

    `linear`, `exponential` and `cosine` go from `start` to `end` between 0 and `fraction` of the run's
    `training.total_steps`, and stay at `end`; `piecewise` takes `values[i]` from `boundaries[i - 1]` on.
    """

    kind: Literal["constant", "linear", "exponential", "cosine", "piecewise"] = _field(
        "constant", "how the value moves between start and end"
    )
    start: float = _field(0.0, "value at step 0; a constant's only value")
    end: float = _field(0.0, "value from `fraction` of the run on")
    fraction: float = _field(1.0, "share of training.total_steps over which the value moves", 0.0, 1.0)
    boundaries: tuple[float, ...] = _field((), "piecewise: shares of training.total_steps, increasing")
    values: tuple[float, ...] = _field((), "piecewise: one value more than boundaries")

    def __post_init__(self) -> None:
        if self.kind == "constant" and (self.end or self.boundaries or self.values):
            raise UserError("a constant schedule has only a start; set kind to linear, exponential, cosine or piecewise")
        if self.kind == "exponential" and not (self.start > 0 and self.end > 0):
            raise UserError(
                f"an exponential schedule needs start and end above 0; got {self.start} and {self.end}"
            )
        if self.kind == "piecewise":
            if len(self.values) != len(self.boundaries) + 1:
                raise UserError(
                    "a piecewise schedule needs one value more than boundaries; "
                    f"got {len(self.values)} values and {len(self.boundaries)} boundaries"
                )
            if list(self.boundaries) != sorted(self.boundaries):
                raise UserError(f"piecewise boundaries must increase; got {list(self.boundaries)}")


def constant(value: float) -> Schedule:
    """The schedule that is always `value`."""
    return Schedule(kind="constant", start=value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvironmentConfig:
    """Which environment, and how many of it."""

    id: str = _field("", "a registered id, `module:id`, or `file.py:Name`")
    num_envs: int = _field(1, "environments side by side", 1, 4096)
    frame_stack: int = _field(1, "newest observations joined along the last axis", 1, 64)
    max_episode_steps: int = _field(0, "time limit in env steps; 0 keeps the environment's own", 0)
    vectorization: Literal["auto", "sync", "async"] = _field(
        "auto", "auto: the environment's own vector form where it has one; sync: one process; async: one each"
    )
    kwargs: dict[str, Any] = _field({}, "passed to the environment's constructor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The Q-network: a torso and, on top of it, one or two streams of values."""

    torso: str = _field("auto", "auto, mlp, nature, or `module:function` of your own")
    hidden_units: tuple[int, ...] = _field((256, 256), "mlp: width of each hidden layer", 1, 65536)
    dueling: bool = _field(False, "separate value and advantage streams (Wang et al. 2016)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """The ring of slots that experience is drawn from."""

    capacity: int = _field(100_000, "slots over all environments together", 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """What is learned: the targets and the loss."""

    gamma: float = _field(0.99, "discount per env step", 0.0, 1.0)
    n_step: int = _field(1, "rewards summed before bootstrapping", 1, 128)
    double: bool = _field(True, "the online network picks the target's action (van Hasselt et al. 2016)")
    huber_delta: float = _field(1.0, "TD error from which the loss is linear; inf is the squared loss", 0.0)
    target_update_interval: int = _field(1_000, "gradient updates between target updates", 1)
    tau: float = _field(1.0, "share of the online network in a target update; 1 is a hard copy", 0.0, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam, with clipping by the global norm."""

    learning_rate: Schedule = _field(constant(1e-3), "step size")
    epsilon: float = _field(1e-8, "Adam's denominator offset", 0.0, 1.0)
    max_gradient_norm: float = _field(10.0, "global norm that gradients are clipped to", 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplorationConfig:
    """How often each environment takes a random action."""

    epsilon: Schedule = _field(
        Schedule(kind="linear", start=1.0, end=0.05, fraction=0.1), "chance of a random action, per environment"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How much, and in which rhythm."""

    total_steps: int = _field(50_000, "env steps over all environments together", 1)
    learning_starts: int = _field(1_000, "env steps before the first update", 0)
    train_interval: int = _field(4, "env steps over all environments between two calls of `learn`", 1)
    gradient_steps: int = _field(1, "updates in one call of `learn`", 1, 100_000)
    batch_size: int = _field(32, "transitions in one update", 1, 1_000_000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Greedy episodes during training, on environments and seeds of their own. They choose the best policy."""

    interval: int = _field(10_000, "env steps between evaluations; 0 evaluates only at the end", 0)
    episodes: int = _field(10, "episodes in each evaluation", 1, 100_000)
    video: bool = _field(False, "log the first episode of each evaluation to TensorBoard as images")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What a run that was stopped goes on from."""

    interval: int = _field(10_000, "env steps between checkpoints; 0 saves only at the end", 0)
    keep: int = _field(2, "newest checkpoints that are kept", 1, 1_000)
    replay: bool = _field(True, "save the replay ring too; without it a resumed run starts with an empty one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What TensorBoard and metrics.jsonl get."""

    interval: int = _field(1_000, "env steps between two rows of metrics", 1)
    histograms: bool = _field(True, "histograms of TD errors and Q-values")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CallbacksConfig:
    """Callbacks by Keras's names; 0, inf or nan leaves one off."""

    early_stopping_patience: int = _field(0, "evaluations without improvement before the run stops; 0: off", 0)
    stop_on_reward: float = _field(math.inf, "stop when an evaluation's mean return reaches this; inf: off")
    reduce_lr_patience: int = _field(0, "evaluations without improvement before the rate is reduced; 0: off", 0)
    reduce_lr_factor: float = _field(0.5, "what the learning rate is multiplied by", 0.0, 1.0)
    min_delta: float = _field(0.0, "smallest rise of the mean return that counts as improvement", 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a run is made from; saved whole in the run as `config.toml`."""

    seed: int = _field(0, "every random number of the run follows from it", 0, 2**31 - 1)
    device: Literal["auto", "cpu", "gpu"] = _field("auto", "where the learner runs")
    environment: EnvironmentConfig = EnvironmentConfig()
    network: NetworkConfig = NetworkConfig()
    replay: ReplayConfig = ReplayConfig()
    agent: AgentConfig = AgentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    exploration: ExplorationConfig = ExplorationConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    callbacks: CallbacksConfig = CallbacksConfig()

    def __post_init__(self) -> None:
        training, num_envs = self.training, self.environment.num_envs
        if training.train_interval % num_envs:
            nearest = max(1, round(training.train_interval / num_envs)) * num_envs
            raise UserError(
                f"training.train_interval must be a multiple of environment.num_envs ({num_envs}); "
                f"got {training.train_interval}, the nearest is {nearest}"
            )
        needed = num_envs * (self.agent.n_step + self.environment.frame_stack) + training.train_interval
        if self.replay.capacity < needed:
            raise UserError(
                f"replay.capacity must be at least {needed} here (num_envs, n_step, frame_stack and "
                f"train_interval together); got {self.replay.capacity}"
            )

    def replace(self, **sections: Mapping[str, Any] | Any) -> Self:
        """A copy with some values changed: `config.replace(seed=3, replay={"capacity": 500})`."""
        tree = to_dict(self)
        for name, value in sections.items():
            if isinstance(value, Mapping) and isinstance(tree.get(name), dict):
                tree[name] |= value
            else:
                tree[name] = value
        return typing.cast(Self, from_dict(tree))

    @property
    def block_steps(self) -> int:
        """T, the env steps that each environment lives through in one block."""
        return self.training.train_interval // self.environment.num_envs


# --- trees of plain values ------------------------------------------------------------------------------------------


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as nested dicts of TOML's types; a constant schedule is a bare number."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Schedule) and value.kind == "constant":
            result[field.name] = value.start
        elif dataclasses.is_dataclass(value):
            result[field.name] = to_dict(value)
        else:
            result[field.name] = list(value) if isinstance(value, tuple) else value
    return result


def from_dict(tree: Mapping[str, Any]) -> Config:
    """The configuration that the nested dicts describe.

    Raises:
        UserError: a key is unknown, or a value has another type or lies out of range.
    """
    return typing.cast(Config, _build(Config, tree, ""))


def _build(cls: type, tree: Mapping[str, Any], path: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in tree:
        if key not in fields:
            raise UserError(f"unknown key {_join(path, key)!r}; {nearest(_join(path, key), all_keys())}")
    return cls(**{key: _value(hints[key], value, fields[key], _join(path, key)) for key, value in tree.items()})


def _value(hint: Any, value: Any, field: dataclasses.Field[Any], path: str) -> Any:
    """`value` as the type that `hint` names, or a `UserError` that names `path`."""
    if hint is Schedule:
        if _is_number(value):
            return constant(float(value))
        if isinstance(value, Mapping):
            return _build(Schedule, value, path)
        raise UserError(f"{path} must be a number or a table like {{kind = 'linear', start = 1.0, end = 0.1}}; got {value!r}")
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{path} is a section and needs keys of its own; got {value!r}")
        return _build(typing.cast(type, hint), value, path)
    origin = typing.get_origin(hint)
    if origin is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise UserError(f"{path} cannot be {value!r}; {nearest(str(value), choices)}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{path} must be a list like [256, 256]; got {value!r}")
        return tuple(_value(typing.get_args(hint)[0], item, field, path) for item in value)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{path} must be a table like {{gravity = -9.8}}; got {value!r}")
        return dict(value)
    if hint is bool:
        if not isinstance(value, bool):
            raise UserError(f"{path} must be true or false; got {value!r}")
        return value
    if hint is str:
        if not isinstance(value, str):
            raise UserError(f"{path} must be a text; got {value!r}")
        return value
    if not _is_number(value) or (hint is int and value != int(value)):
        raise UserError(f"{path} must be {'a whole number' if hint is int else 'a number'}; got {value!r}")
    low, high = field.metadata.get("low"), field.metadata.get("high")
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        allowed = f"at least {low}" if high is None else f"between {low} and {high}"
        raise UserError(f"{path} must be {allowed}; got {value!r}")
    return hint(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def all_keys(cls: type = Config, path: str = "") -> list[str]:
    """Every dotted key that a configuration knows, schedules' parts included."""
    keys = []
    for name, hint in typing.get_type_hints(cls).items():
        keys.append(_join(path, name))
        if dataclasses.is_dataclass(hint):
            keys += all_keys(typing.cast(type, hint), _join(path, name))
    return keys


def nearest(name: str, choices: Iterable[str]) -> str:
    """The end of an error message: the choice nearest to `name`, or all of them when none is near."""
    choices = list(choices)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if not close:  # `capcity` for `replay.capacity`: compare the last parts alone
        last = {choice.rpartition(".")[2]: choice for choice in choices}
        close = [last[match] for match in difflib.get_close_matches(name.rpartition(".")[2], last, n=1, cutoff=0.6)]
    if close:
        return f"did you mean {close[0]!r}?"
    return "choices: " + ", ".join(choices[:30])


# --- files, presets and overrides -----------------------------------------------------------------------------------


def to_toml(config: Config) -> str:
    """The whole configuration as TOML."""
    return tomli_w.dumps(to_dict(config))


def load(path: pathlib.Path) -> Config:
    """The configuration that a run has saved.

    Raises:
        UserError: the file is missing, is no TOML, or holds what `from_dict` refuses.
    """
    return from_dict(_read_toml(path))


def _read_toml(path: Any) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from None


def presets() -> dict[str, dict[str, Any]]:
    """Every shipped preset by name: a partial tree, and under `preset` its `description` and the `environments` it suits."""
    folder = importlib.resources.files("rlplatform.agents") / "presets"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    return {file.name.removesuffix(".toml"): _read_toml(file) for file in files}


def resolve(
    env_id: str,
    preset: str | None = None,
    overrides: Iterable[str] = (),
    **sections: Mapping[str, Any] | Any,
) -> Config:
    """The configuration of a new run: defaults, then the preset, then `sections`, then `key=value` overrides.

    Args:
        env_id: the environment; without a `preset`, the first preset that lists it is taken, else `dqn`.
        preset: a shipped preset's name, or the path of a TOML file.
        overrides: texts like `replay.capacity=100000`; values are TOML, and a bare word is a text.
        **sections: like `Config.replace`.

    Raises:
        UserError: an unknown preset or key, or a value of the wrong type or out of range.
    """
    shipped = presets()
    if preset is None:
        suited = (name for name, tree in shipped.items() if env_id in tree.get("preset", {}).get("environments", ()))
        preset = next(suited, "dqn")
    if preset in shipped:
        chosen = dict(shipped[preset])
    elif preset.endswith(".toml"):
        chosen = _read_toml(pathlib.Path(preset))
    else:
        raise UserError(f"unknown preset {preset!r} for {env_id}; {nearest(preset, shipped)} (presets: {', '.join(shipped)})")
    chosen.pop("preset", None)
    tree = to_dict(Config())  # so that `exploration.epsilon.end` alone changes the default's end
    _merge(tree, chosen)
    _merge(tree, {"environment": {"id": env_id}})
    _merge(tree, {key: value for key, value in sections.items() if value is not None})
    for override in overrides:
        _merge(tree, _parse_override(override))
    return from_dict(tree)


def _merge(tree: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Puts `changes` over `tree`, in place; tables are merged, all else is replaced, a schedule with a `kind` too."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict) and "kind" not in value:
            tree[key] = dict(tree[key])
            _merge(tree[key], value)
        else:
            tree[key] = dict(value) if isinstance(value, Mapping) else value


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, raw = text.partition("=")
    key, raw = key.strip(), raw.strip()
    if not equals or not key:
        raise UserError(f"--set needs key=value, like replay.capacity=100000; got {text!r}")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw
    for part in reversed(key.split(".")):
        value = {part: value}
    return typing.cast(dict[str, Any], value)
