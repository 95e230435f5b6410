"""The configuration of a run: one tree of frozen dataclasses, its TOML form, and what changes it."""

import dataclasses
import difflib
import functools
import json
import math
import pathlib
import tomllib
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, Self

import tomli_w

from rlplatform.errors import UserError, nearest

Device = Literal["auto", "cpu", "gpu", "mirrored", "multiworker", "tpu"]
DEVICES: tuple[str, ...] = typing.get_args(Device)


def _field(
    default: Any, help: str, low: float | None = None, high: float | None = None, *, above: float | None = None
) -> Any:
    """A dataclass field with a sentence of help and the range of the numbers in it.

    `low` and `high` are themselves accepted, `above` is not. A schedule's range is that of its values, a list's that of
    its items.
    """
    metadata = {"help": help, "low": low, "high": high, "above": above}
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
    boundaries: tuple[float, ...] = _field((), "piecewise: shares of training.total_steps, rising", 0.0, 1.0)
    values: tuple[float, ...] = _field((), "piecewise: one value more than boundaries")

    def __post_init__(self) -> None:
        used = self.parts()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in used and value != field.default:
                kinds = [kind for kind, parts in SCHEDULE_PARTS.items() if field.name in parts]
                raise UserError(
                    f"a {self.kind} schedule has only {' and '.join(used[1:])}; got {field.name} = {_plain(value)}, "
                    f"for which kind must be {' or '.join(kinds)}"
                )
        if self.kind == "exponential" and not (self.start > 0 and self.end > 0):
            raise UserError(f"an exponential schedule needs start and end above 0; got {self.start} and {self.end}")
        if self.kind == "piecewise":
            if len(self.values) != len(self.boundaries) + 1:
                raise UserError(
                    "a piecewise schedule needs one value more than boundaries; "
                    f"got {len(self.values)} values and {len(self.boundaries)} boundaries"
                )
            if list(self.boundaries) != sorted(self.boundaries):
                raise UserError(f"piecewise boundaries must rise; got {list(self.boundaries)}")

    def parts(self) -> tuple[str, ...]:
        """The fields that this kind of schedule uses."""
        return ("kind", *SCHEDULE_PARTS[self.kind])


SCHEDULE_PARTS = {
    "constant": ("start",),
    "linear": ("start", "end", "fraction"),
    "exponential": ("start", "end", "fraction"),
    "cosine": ("start", "end", "fraction"),
    "piecewise": ("boundaries", "values"),
}


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


class Convolution(NamedTuple):
    """A convolution with ReLU, without padding: a list of three whole numbers in TOML."""

    filters: int
    size: int  # of the kernel, in rows and in columns
    stride: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The Q-network: a torso and, on top of it, one or two streams of values."""

    torso: str = _field(
        "auto",
        "auto, linear, mlp, cnn, nature, minatar, impala, impala_x2, vgg16, mobilenet_v2, or `module:function` of "
        "your own",
    )
    convolutions: tuple[Convolution, ...] = _field(
        (), "cnn: filters, kernel size and stride of each convolution, like [[32, 8, 4], [64, 4, 2]]", 1, 65536
    )
    hidden_units: tuple[int, ...] = _field(
        (256, 256), "mlp, cnn, vgg16, mobilenet_v2: width of each hidden layer", 1, 65536
    )
    backbone_size: int = _field(
        0, "vgg16, mobilenet_v2: side of the images that they see, from 32 on; 0: the frames' own size", 0, 1024
    )
    backbone_alpha: float = _field(
        1.0, "mobilenet_v2: its width (Sandler et al. 2018), published at 0.35, 0.5, 0.75, 1, 1.3 and 1.4", 0.1, 4.0
    )
    dueling: bool = _field(False, "separate value and advantage streams (Wang et al. 2016)")
    noisy: bool = _field(False, "noise in the last hidden and the output layers explores (Fortunato et al. 2018)")
    noisy_sigma: float = _field(0.5, "the noise at first, over the root of a layer's inputs", 0.0, 10.0)
    layer_norm: bool = _field(False, "LayerNorm before the ReLU of dense hidden layers (Ba et al. 2016)")
    normalize_observations: bool = _field(False, "standardise each feature by running statistics, inside the network")
    recurrent: Literal["none", "lstm", "gru"] = _field(
        "none", "a memory between torso and streams, learned from sequences (R2D2, Kapturowski et al. 2019)"
    )
    recurrent_units: int = _field(128, "recurrent: width of the memory", 1, 65536)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """The ring of slots that experience is drawn from."""

    capacity: int = _field(100_000, "slots over all environments together", 2)
    prioritized: bool = _field(False, "draw by the size of the last TD error (Schaul et al. 2016)")
    priority_exponent: float = _field(0.5, "alpha: 0 draws uniformly, 1 in proportion to the priority", 0.0, 1.0)
    importance_exponent: Schedule = _field(
        Schedule(kind="linear", start=0.4, end=1.0), "beta: how far weights undo the priorities' bias", 0.0, 1.0
    )
    burn_in: int = _field(10, "recurrent: rows that bring a stored state up to date before a sequence", 0, 10_000)
    sequence_length: int = _field(20, "recurrent: rows of a sequence that are learned from", 1, 10_000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """What is learned: the targets and the loss."""

    algorithm: Literal["dqn", "pqn"] = _field(
        "dqn", "dqn: from a replay, with a target network; pqn: from the newest block, without (Gallici et al. 2024)"
    )
    head: Literal["scalar", "categorical", "quantile", "implicit_quantile"] = _field(
        "scalar", "what is learned of the return: its mean, or its distribution as C51, QR-DQN or IQN do"
    )
    gamma: float = _field(0.99, "discount per env step", 0.0, 1.0)
    n_step: int = _field(1, "rewards summed before bootstrapping", 1, 128)
    double: bool = _field(True, "the online network picks the target's action (van Hasselt et al. 2016)")
    huber_delta: float = _field(1.0, "TD error from which the loss is linear; inf is the squared loss", above=0.0)
    target_update_interval: int = _field(1_000, "gradient updates between target updates", 1)
    tau: float = _field(1.0, "share of the online network in a target update; 1 is a hard copy", high=1.0, above=0.0)
    num_atoms: int = _field(51, "categorical: atoms of the distribution (Bellemare et al. 2017)", 2, 1_001)
    v_min: float = _field(-10.0, "categorical: the first atom, in units of return", -1e6, 1e6)
    v_max: float = _field(10.0, "categorical: the last atom, in units of return", -1e6, 1e6)
    num_quantiles: int = _field(
        32, "quantile: how many; implicit_quantile: levels drawn for each update (Dabney et al. 2018)", 2, 1_000
    )
    munchausen: bool = _field(False, "soft targets, and the scaled log-policy in the reward (Vieillard et al. 2020)")
    munchausen_alpha: float = _field(0.9, "share of the log-policy in the reward", 0.0, 1.0)
    munchausen_temperature: float = _field(0.03, "of the soft policy, in units of return", high=1e6, above=0.0)
    munchausen_clip: float = _field(-1.0, "least value of the scaled log-policy", -1e6, 0.0)
    normalize_rewards: bool = _field(False, "divide rewards by the running deviation of the discounted return")
    trace_decay: float = _field(
        0.65, "pqn: lambda, the weight of the next return against the next value; 0: one-step returns", 0.0, 1.0
    )


ALGORITHM_KEYS = {  # what one algorithm alone looks at, so that the other refuses it
    "dqn": (
        "network.recurrent",
        "replay.capacity",
        "replay.prioritized",
        "agent.head",
        "agent.n_step",
        "agent.target_update_interval",
        "agent.tau",
        "agent.munchausen",
    ),
    "pqn": ("agent.trace_decay",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam, with clipping by the global norm."""

    learning_rate: Schedule = _field(constant(1e-3), "step size", 0.0, 1.0)
    epsilon: float = _field(1e-8, "Adam's denominator offset", high=1.0, above=0.0)
    max_gradient_norm: float = _field(10.0, "global norm that gradients are clipped to; inf: not clipped", above=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplorationConfig:
    """How often each environment takes a random action."""

    epsilon: Schedule = _field(
        Schedule(kind="linear", start=1.0, end=0.05, fraction=0.1),
        "chance of a random action, per environment",
        0.0,
        1.0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How much, and in which rhythm."""

    total_steps: int = _field(50_000, "env steps over all environments together", 1)
    learning_starts: int = _field(1_000, "env steps before the first update", 0)
    train_interval: int = _field(4, "env steps over all environments between two calls of `learn`", 1)
    gradient_steps: int = _field(1, "updates in one call of `learn`", 1, 100_000)
    batch_size: int = _field(32, "transitions in one update; recurrent: sequences", 1, 1_000_000)
    precision: Literal["float32", "bfloat16"] = _field(
        "float32", "of hidden layers while learning; weights, values, losses and the optimiser stay in float32"
    )


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
    """Callbacks by Keras's names; 0 or inf leaves one off."""

    early_stopping_patience: int = _field(0, "evaluations without improvement before the run stops; 0: off", 0)
    stop_on_reward: float = _field(math.inf, "stop when an evaluation's mean return reaches this; inf: off")
    reduce_lr_patience: int = _field(0, "evaluations without improvement before the rate is reduced; 0: off", 0)
    reduce_lr_factor: float = _field(0.5, "what the learning rate is multiplied by", high=1.0, above=0.0)
    min_delta: float = _field(0.0, "smallest rise of the mean return that counts as improvement", 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """Another network whose layers a run begins with; those with weights are counted from the observation on."""

    source: str = _field(
        "", "a run's folder, a .keras file, or a backbone's .h5 file of weights; empty or none: all weights are fresh"
    )
    frozen_layers: int = _field(0, "first layers that do not learn; -1: all taken over, but for the last", -1, 1_000)
    fine_tuned_layers: int = _field(0, "the last of those, which learn after all, later and less", 0, 1_000)
    fine_tune_from: float = _field(0.5, "share of the updates after which they do", 0.0, 1.0)
    fine_tune_rate: float = _field(0.1, "their share of the learning rate", 0.0, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Weights that become zero while the network learns, the smallest first (Zhu & Gupta 2017)."""

    final_sparsity: float = _field(0.0, "share of zeros in the kernels from `end` on; 0: off", 0.0, 0.999)
    begin: float = _field(0.2, "share of training.total_steps from which weights become zero", 0.0, 1.0)
    end: float = _field(0.8, "share of training.total_steps from which no more of them do", 0.0, 1.0)
    interval: int = _field(500, "gradient updates between two choices of weights", 1)
    distribution: Literal["erk", "uniform"] = _field(
        "erk", "erk: small layers keep more (Evci et al. 2020); uniform: all the same share"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a run is made from; saved whole in the run as `config.toml`."""

    seed: int = _field(0, "every random number of the run follows from it", 0, 2**31 - 1)
    device: Device = _field("auto", "where the learner runs (docs/devices.md)")
    replicas: int = _field(0, "mirrored: on how many devices; 0: one for each GPU, or two logical CPUs", 0, 1024)
    threads: int = _field(0, "cores for one operation; 0: one for dense networks, all for convolutions", 0, 1024)
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
    transfer: TransferConfig = TransferConfig()
    prune: PruneConfig = PruneConfig()

    def __post_init__(self) -> None:
        training, num_envs = self.training, self.environment.num_envs
        if self.agent.v_min >= self.agent.v_max:
            raise UserError(f"agent.v_min must lie below agent.v_max; got {self.agent.v_min} and {self.agent.v_max}")
        if training.train_interval % num_envs:
            nearest = max(1, round(training.train_interval / num_envs)) * num_envs
            raise UserError(
                f"training.train_interval must be a multiple of environment.num_envs ({num_envs}); "
                f"got {training.train_interval}, the nearest is {nearest}"
            )
        self._check_algorithm()
        self._check_pruning()
        if self.is_recurrent and self.block_steps > self.replay.sequence_length:
            raise UserError(
                "a recurrent network learns from sequences that begin where blocks do, so replay.sequence_length must "
                f"be at least train_interval / num_envs ({self.block_steps}); got {self.replay.sequence_length}"
            )
        needed = num_envs * self.rows_before_sampling + training.train_interval
        if self.agent.algorithm == "dqn" and self.replay.capacity < needed:
            parts = "burn_in, sequence_length" if self.is_recurrent else "num_envs"
            raise UserError(
                f"replay.capacity must be at least {needed} here ({parts}, n_step, frame_stack and "
                f"train_interval together); got {self.replay.capacity}"
            )

    def _check_algorithm(self) -> None:
        """Refuses what the algorithm would not look at."""
        algorithm, training = self.agent.algorithm, self.training
        defaults = {part.name: part.default for part in dataclasses.fields(self)}
        for key in ALGORITHM_KEYS["pqn" if algorithm == "dqn" else "dqn"]:
            section, _, name = key.partition(".")
            value, default = getattr(getattr(self, section), name), getattr(defaults[section], name)
            if value != default:
                raise UserError(
                    f"agent.algorithm {algorithm!r} does not use {key}: leave it at {json.dumps(default)}; "
                    f"got {json.dumps(value)}"
                )
        if algorithm == "pqn" and training.batch_size > training.train_interval:
            raise UserError(
                "a batch of PQN is a part of the newest block: training.batch_size must be at most "
                f"training.train_interval ({training.train_interval}); got {training.batch_size}"
            )

    def _check_pruning(self) -> None:
        """Refuses what would leave a run without its zeros."""
        prune, callbacks = self.prune, self.callbacks
        if prune.begin >= prune.end:
            raise UserError(f"prune.begin must lie below prune.end; got {prune.begin} and {prune.end}")
        if prune.final_sparsity == 0.0:
            return
        if self.transfer.frozen_layers:
            raise UserError(
                "layers that are pruned must learn: leave transfer.frozen_layers or prune.final_sparsity at 0; got "
                f"{self.transfer.frozen_layers} and {prune.final_sparsity}"
            )
        for name, value, off in (
            ("stop_on_reward", callbacks.stop_on_reward, math.inf),
            ("early_stopping_patience", callbacks.early_stopping_patience, 0),
        ):
            if value != off:
                raise UserError(
                    f"callbacks.{name} may end a run before prune.final_sparsity is reached: leave it at {off}, or "
                    f"prune.final_sparsity at 0; got {value} and {prune.final_sparsity}"
                )

    def replace(self, **sections: Mapping[str, Any] | Any) -> Self:
        """A copy with some values changed: `config.replace(seed=3, replay={"capacity": 500})`."""
        tree = to_dict(self)
        merge(tree, sections)
        return typing.cast(Self, from_dict(tree))

    def divided(self, replicas: int) -> Self:
        """What one of several replicas sees of the run: its share of environments, slots, batches and env steps.

        Raises:
            UserError: something does not divide; the sentence names the nearest number that does.
        """
        if replicas == 1:
            return self
        sizes = {
            "environment.num_envs": self.environment.num_envs,
            "training.batch_size": self.training.batch_size,
            "replay.capacity": self.replay.capacity,
        }
        if self.agent.algorithm == "pqn":
            del sizes["replay.capacity"]
        for key, size in sizes.items():
            if size % replicas:
                raise UserError(
                    f"{key} must be a multiple of the {replicas} replicas, each of which has its share; got {size}, "
                    f"the nearest is {max(1, round(size / replicas)) * replicas}"
                )
        training = self.training
        return self.replace(
            environment={"num_envs": self.environment.num_envs // replicas},
            replay={"capacity": self.replay.capacity // replicas} if "replay.capacity" in sizes else {},
            training={
                "total_steps": max(1, training.total_steps // replicas),
                "train_interval": training.train_interval // replicas,
                "batch_size": training.batch_size // replicas,
            },
        )

    @property
    def block_steps(self) -> int:
        """T, the env steps that each environment lives through in one block."""
        return self.training.train_interval // self.environment.num_envs

    @property
    def stored_blocks(self) -> int:
        """Blocks that are only stored: until `training.learning_starts`, and until a transition can be drawn."""
        first = -(-self.training.learning_starts // self.training.train_interval)
        return max(first, -(-self.rows_before_sampling // self.block_steps)) - 1

    @property
    def total_updates(self) -> int:
        """Gradient updates of the whole run."""
        blocks = -(-self.training.total_steps // self.training.train_interval)
        return max(0, blocks - self.stored_blocks) * self.training.gradient_steps

    @property
    def is_recurrent(self) -> bool:
        """Whether the network remembers, so that it is learned from sequences."""
        return self.network.recurrent != "none"

    @property
    def rows_before_sampling(self) -> int:
        """Rows that the replay must hold before anything can be drawn from it."""
        if not self.is_recurrent:
            return self.agent.n_step + self.environment.frame_stack
        lost = -(-(self.environment.frame_stack - 1) // self.block_steps)  # oldest blocks that may lack frames
        return self.replay.burn_in + self.replay.sequence_length + self.agent.n_step + lost * self.block_steps


# --- trees of plain values ------------------------------------------------------------------------------------------


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as nested dicts of TOML's types; a constant schedule is a bare number."""
    return typing.cast(dict[str, Any], _plain(config))


def _plain(value: Any) -> Any:
    """A copy of a value of the configuration in TOML's types."""
    if isinstance(value, Schedule):
        return value.start if value.kind == "constant" else {p: _plain(getattr(value, p)) for p in value.parts()}
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


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
            raise UserError(f"unknown key {_join(path, key)!r}; {_nearest_key(path, key, list(fields))}")
    values = {key: _value(hints[key], value, fields[key], _join(path, key)) for key, value in tree.items()}
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{path}: {error}" if path else str(error)) from None


def _value(hint: Any, value: Any, field: dataclasses.Field[Any], path: str) -> Any:
    """`value` as the type that `hint` names, or a `UserError` that names `path`."""
    if hint is Schedule:
        return _schedule(value, field, path)
    if hint is Convolution:
        return _convolution(value, field, path)
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
        kind = typing.get_args(hint)[0]
        if not isinstance(value, list | tuple):
            example = "[[32, 8, 4], [64, 4, 2]]" if kind is Convolution else "[256, 256]"
            raise UserError(f"{path} must be a list like {example}; got {value!r}")
        return tuple(_value(kind, item, field, path) for item in value)
    if origin is dict:
        return _table(value, path)
    if hint is bool:
        if not isinstance(value, bool):
            raise UserError(f"{path} must be true or false; got {value!r}")
        return value
    if hint is str:
        if not isinstance(value, str):
            raise UserError(f"{path} must be a text; got {value!r}")
        return value
    return _number(hint, value, field, path)


def _schedule(value: Any, field: dataclasses.Field[Any], path: str) -> Schedule:
    if _is_number(value):
        return constant(_number(float, value, field, path))
    if not isinstance(value, Mapping):
        raise UserError(
            f"{path} must be a number or a table like {{kind = 'linear', start = 1.0, end = 0.1}}; got {value!r}"
        )
    schedule = typing.cast(Schedule, _build(Schedule, value, path))
    for part in schedule.parts():
        if part in ("start", "end"):
            _number(float, getattr(schedule, part), field, _join(path, part))
    for number in schedule.values:
        _number(float, number, field, _join(path, "values"))
    return schedule


def _convolution(value: Any, field: dataclasses.Field[Any], path: str) -> Convolution:
    if not isinstance(value, list | tuple) or len(value) != len(Convolution._fields):
        raise UserError(
            f"each item of {path} must be filters, kernel size and stride of one convolution, like [32, 8, 4]; "
            f"got {_plain(value)!r}"
        )
    return Convolution(*(_number(int, number, field, path) for number in value))


def _table(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{path} must be a table like {{gravity = -9.8}}; got {value!r}")
    table = _plain(value)
    try:
        tomli_w.dumps(table)
    except (TypeError, ValueError, AttributeError):
        raise UserError(f"{path} can hold texts, numbers, true, false, lists and tables only; got {value!r}") from None
    return typing.cast(dict[str, Any], table)


def _number(hint: type, value: Any, field: dataclasses.Field[Any], path: str) -> Any:
    if not _is_number(value) or (hint is int and isinstance(value, float) and not value.is_integer()):
        raise UserError(f"{path} must be {'a whole number' if hint is int else 'a number'}; got {value!r}")
    low, high, above = (field.metadata[name] for name in ("low", "high", "above"))
    too_small = (low is not None and value < low) or (above is not None and value <= above)
    if too_small or (high is not None and value > high):
        raise UserError(f"{path} must be {_range(low, high, above)}; got {value!r}")
    return hint(value)


def _range(low: float | None, high: float | None, above: float | None) -> str:
    if low is not None and high is not None:
        return f"between {low} and {high}"
    bounds = (("at least", low), ("above", above), ("at most", high))
    return " and ".join(f"{words} {bound}" for words, bound in bounds if bound is not None)


def _is_number(value: Any) -> bool:
    """Whether it is a number that TOML holds and that can be compared: no `nan`, no whole number beyond 64 bits."""
    if isinstance(value, bool):
        return False
    return (isinstance(value, float) and not math.isnan(value)) or (isinstance(value, int) and abs(value) < 2**63)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def all_keys() -> list[str]:
    """Every dotted key that a configuration knows, sections and schedules' parts included."""
    return list(_types(Config, ""))


def _types(cls: type, path: str) -> dict[str, Any]:
    """The type of every dotted key below a dataclass."""
    types: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(cls).items():
        types[_join(path, name)] = hint
        if dataclasses.is_dataclass(hint):
            types |= _types(typing.cast(type, hint), _join(path, name))
    return types


def _nearest_key(path: str, key: str, siblings: list[str]) -> str:
    """The end of an error message: the known key nearest to `key`, in its own section if one is near there."""
    own = {name: _join(path, name) for name in siblings}
    anywhere = {name.rpartition(".")[2]: name for name in reversed(all_keys())}  # `batch_size`: training.batch_size
    for choices in (own, anywhere):
        for match in difflib.get_close_matches(key, choices, n=1):
            return f"did you mean {choices[match]!r}?"
    return "choices: " + ", ".join(own.values())


# --- files ------------------------------------------------------------------------------------------------------------


def to_toml(config: Config) -> str:
    """The whole configuration as TOML."""
    return tomli_w.dumps(to_dict(config))


def load(path: pathlib.Path) -> Config:
    """The configuration that a run has saved.

    Raises:
        UserError: the file is missing, is no TOML, or holds what `from_dict` refuses.
    """
    tree = read_toml(path)
    try:
        return from_dict(tree)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_toml(path: pathlib.Path) -> dict[str, Any]:
    """A TOML file's tree; a `UserError` says why there is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from None


# --- changes ----------------------------------------------------------------------------------------------------------


def change(config: Config, overrides: Iterable[str] = (), **sections: Mapping[str, Any] | Any) -> Config:
    """`config` with some values changed, in the ways and with the errors of `presets.resolve`."""
    return changed(to_dict(config), overrides, sections)


def differences(one: Config, other: Config) -> list[str]:
    """The dotted keys whose values differ."""

    def flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
        parts: dict[str, Any] = {}
        for key, value in tree.items():
            parts |= flat(value, _join(path, key)) if isinstance(value, Mapping) else {_join(path, key): value}
        return parts

    first, second = flat(to_dict(one)), flat(to_dict(other))
    return sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))


def changed(tree: dict[str, Any], overrides: Iterable[str], sections: Mapping[str, Any]) -> Config:
    """The configuration of a whole tree, in place put under `sections` and then `overrides`."""
    merge(tree, {key: value for key, value in sections.items() if value is not None})
    for override in overrides:
        merge(tree, _parse_override(override))
    return from_dict(tree)


def merge(tree: dict[str, Any], changes: Mapping[str, Any], path: str = "") -> None:
    """Puts `changes` over `tree`, in place: tables are merged, all else is replaced."""
    for key, value in changes.items():
        value, below, here = _plain(value), tree.get(key), _join(path, key)
        if isinstance(value, Mapping) and here in _schedule_keys():
            tree[key] = _over_schedule(below, value)
        elif isinstance(value, Mapping) and isinstance(below, Mapping):
            tree[key] = dict(below)
            merge(tree[key], value, here)
        else:
            tree[key] = value


def _over_schedule(below: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a schedule: `changes`, and the parts of the one below that the kind has too."""
    if not isinstance(below, Mapping):
        below = {"kind": "constant", "start": below} if _is_number(below) else {}
    kept = SCHEDULE_PARTS.get(str(changes.get("kind", below.get("kind"))), ())
    return {key: value for key, value in below.items() if key == "kind" or key in kept} | dict(changes)


@functools.cache
def _schedule_keys() -> frozenset[str]:
    return frozenset(key for key, hint in _types(Config, "").items() if hint is Schedule)


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
