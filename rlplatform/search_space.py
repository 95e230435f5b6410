"""The space of a hyper-parameter search: what is varied, around which preset, and what becomes of a configuration."""

import copy
import dataclasses
import math
import pathlib
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from rlplatform import config as configuration
from rlplatform.config import Config
from rlplatform.errors import UserError, nearest

UPDATES_PER_STEP = "updates_per_step"  # no key of the configuration: gives training.gradient_steps
_RANGE = ("low", "high", "log", "step")


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole numbers where both ends are."""

    low: float
    high: float
    log: bool = False
    step: float | None = None


Entry = Range | list[Any]  # a range, or a list of choices
Space = dict[str, Entry]


def default_space(base: Config) -> Space:
    """What is varied around the settings of a preset, which it always contains.

    The update budget is bounded: `updates_per_step` goes from a quarter to twice that of the preset.
    """
    training, agent, exploration = base.training, base.agent, base.exploration
    ratio = training.gradient_steps / training.train_interval
    space: Space = {}
    if base.optimizer.learning_rate.kind != "piecewise":
        rate = base.optimizer.learning_rate.start
        part = "" if base.optimizer.learning_rate.kind == "constant" else ".start"
        space[f"optimizer.learning_rate{part}"] = Range(min(1e-4, rate), max(5e-3, rate), log=True)
    replays = agent.algorithm == "dqn"
    if replays and base.network.recurrent == "none":  # else blocks and batches are parts of one another
        space["training.batch_size"] = _with([32, 64, 128, 256], training.batch_size)
        envs_together = base.environment.num_envs
        space["training.train_interval"] = _with(
            [max(1, round(n / envs_together)) * envs_together for n in (16, 64, 256)], training.train_interval
        )
        space[UPDATES_PER_STEP] = Range(ratio / 4, ratio * 2, log=True)
    if not replays:
        space["agent.trace_decay"] = Range(min(0.3, agent.trace_decay), max(0.95, agent.trace_decay))
    elif agent.tau < 1.0:
        space["agent.tau"] = Range(min(1e-3, agent.tau), max(5e-2, agent.tau), log=True)
    else:
        interval = agent.target_update_interval
        space["agent.target_update_interval"] = Range(min(32, interval), max(2_048, interval), log=True)
    space["agent.gamma"] = _with([0.97, 0.98, 0.99, 0.995, 0.999], agent.gamma)
    if replays:
        space["agent.n_step"] = _with([1, 3, 5], agent.n_step)
    if not base.network.noisy and exploration.epsilon.kind in ("linear", "exponential", "cosine"):
        end, fraction = exploration.epsilon.end, exploration.epsilon.fraction
        space["exploration.epsilon.end"] = Range(min(0.01, end), max(0.1, end), log=end > 0.0)
        space["exploration.epsilon.fraction"] = Range(min(0.05, fraction), max(0.5, fraction))
    if base.network.torso in ("auto", "mlp"):
        units = [[64, 64], [128, 128], [256, 256]]
        own = list(base.network.hidden_units)
        space["network.hidden_units"] = units if own in units else [*units, own]
    return space


def read(path: pathlib.Path, base: Config) -> Space:
    """The space of a TOML file: by key, a range `{low = 1e-4, high = 1e-2, log = true}` or a list of choices.

    With `extends = "default"` the file's entries go over those of `default_space`, and `false` takes one out.

    Raises:
        UserError: the file is missing, is no TOML, or an entry is neither.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    extends = tree.pop("extends", None)
    if extends not in (None, "default"):
        raise UserError(f"a space can extend 'default' only; got {extends!r}")
    space = default_space(base) if extends else {}
    for key, value in _flat(tree):
        if value is False and key in space:
            del space[key]
        else:
            space[key] = _entry(key, value)
    if not space:
        raise UserError(f'{path} varies nothing; an entry looks like "agent.n_step" = [1, 3, 5]')
    return space


def check(space: Space, base: Config) -> None:
    """Tries every entry's choices and ends, so that a wrong one is found before anything is trained.

    Raises:
        UserError: the first one that a run would refuse.
    """
    for key, entry in space.items():
        for value in _probes(entry):
            if key == UPDATES_PER_STEP:
                if not isinstance(value, int | float) or not 0.0 < value <= 1_000.0:
                    raise UserError(f"{UPDATES_PER_STEP} must be above 0 and at most 1000; got {value!r}")
                continue
            try:
                applied(base, {key: value})
            except UserError as error:
                if str(error).startswith("unknown key"):
                    known = [*configuration.all_keys(), UPDATES_PER_STEP]
                    raise UserError(f"unknown key {key!r} in the space; {nearest(key, known)}") from None
                raise UserError(f"in the space: {error}") from None
    if UPDATES_PER_STEP in space and "training.gradient_steps" in space:
        raise UserError(f"{UPDATES_PER_STEP} sets training.gradient_steps; vary one of the two")


def _probes(entry: Entry) -> list[Any]:
    """Values by which a wrong entry shows: all choices, or a range's ends and a number between them."""
    if not isinstance(entry, Range):
        return entry
    between = entry.low + (entry.high - entry.low) / math.pi
    return [entry.low, entry.high] + ([] if is_whole(entry) else [between])


def is_whole(entry: Range) -> bool:
    """Whether only whole numbers are meant."""
    return isinstance(entry.low, int) and isinstance(entry.high, int)


def applied(base: Config, params: Mapping[str, Any]) -> Config:
    """`base` with a trial's parameters.

    Raises:
        UserError: they do not go together.
    """
    tree: dict[str, Any] = {}
    for key, value in params.items():
        if key == UPDATES_PER_STEP:
            continue
        *path, leaf = key.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[leaf] = value
    config = configuration.change(base, **tree) if tree else base
    if UPDATES_PER_STEP in params:
        updates = max(1, round(params[UPDATES_PER_STEP] * config.training.train_interval))
        config = configuration.change(config, training={"gradient_steps": updates})
    return config


def to_plain(space: Space) -> dict[str, Any]:
    """The space in TOML's types."""
    plain: dict[str, Any] = {}
    for key, entry in space.items():
        if isinstance(entry, Range):
            table = {"low": entry.low, "high": entry.high}
            plain[key] = table | ({"log": True} if entry.log else {}) | ({"step": entry.step} if entry.step else {})
        else:
            plain[key] = copy.deepcopy(entry)
    return plain


def _with(choices: list[Any], own: Any) -> list[Any]:
    return sorted({*choices, own})


def _flat(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and what they hold; a table of low and high is not gone into."""
    for key, value in tree.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, Mapping) and not ("low" in value or "high" in value):
            yield from _flat(value, name)
        else:
            yield name, value


def _entry(key: str, value: Any) -> Entry:
    if isinstance(value, list) and value:
        return value
    if not isinstance(value, Mapping):
        raise UserError(
            f"{key} needs a list of choices like [1, 3, 5], or a range like {{low = 1e-4, high = 1e-2, log = true}}; "
            f"got {value!r}"
        )
    for part in value:
        if part not in _RANGE:
            raise UserError(f"unknown part {part!r} of the range of {key}; {nearest(part, _RANGE)}")
    low, high = value.get("low"), value.get("high")
    if isinstance(low, bool) or not isinstance(low, int | float) or not isinstance(high, int | float):
        raise UserError(f"the range of {key} needs low and high, both numbers; got {dict(value)}")
    if not low < high or not math.isfinite(high - low):
        raise UserError(f"the range of {key} needs low below high; got {low} and {high}")
    if not isinstance(value.get("log", False), bool):
        raise UserError(f"log must be true or false; got {value['log']!r} for {key}")
    if value.get("log") and low <= 0:
        raise UserError(f"the range of {key} needs low above 0 where log is true; got {low}")
    step = value.get("step")
    if step is not None and (isinstance(step, bool) or not isinstance(step, int | float) or step <= 0):
        raise UserError(f"step must be a number above 0; got {step!r} for {key}")
    if value.get("log") and step is not None:
        raise UserError(f"the range of {key} can have log or step, not both")
    return Range(low, high, bool(value.get("log", False)), step)
