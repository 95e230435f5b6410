"""Training runs as benchmarks need them: planned before any begins, trained in a process of their own, told of."""

import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from rlplatform import config as configuration
from rlplatform import envs
from rlplatform.config import Config, EnvironmentConfig
from rlplatform.errors import RunError
from rlplatform.presets import resolve
from rlplatform.workers import Job, bar

if TYPE_CHECKING:
    from rlplatform.training import Outcome, Run

# What a run may differ in and still be another seed of the same row: it is not what is learned.
APART = ("seed", "device", "threads", "checkpoint.", "logging.", "evaluation.video")


class Planned(NamedTuple):
    """One environment with one preset: what each of its seeds is trained from."""

    env: str
    preset: str
    config: Config  # of seed 0

    @property
    def key(self) -> dict[str, Any]:
        """What its records have in a benchmark's file, and those of no other row."""
        return {"env": self.env, "preset": self.preset}

    @property
    def words(self) -> str:
        """What a sentence calls it."""
        return f"{self.env} with {self.preset}"

    @property
    def sha256(self) -> str:
        """Of the configuration."""
        return digest(configuration.to_toml(self.config))

    def name(self, seed: int) -> str:
        """What the folder of one seed is called."""
        return f"{file_name(self.env)}-{file_name(self.preset)}-{self.sha256[:8]}-seed{seed}"


def plan(env_ids: Sequence[str], presets: Sequence[str], steps: int | None, overrides: Sequence[str]) -> list[Planned]:
    """Every environment with every preset, each tried so far that a wrong word is found before anything is trained.

    Raises:
        UserError: the first thing that is wrong.
    """
    planned: list[Planned] = []
    for env_id in dict.fromkeys(env_ids):
        planned += [
            Planned(env_id, preset, config_of(env_id, preset, 0, steps, overrides)) for preset in dict.fromkeys(presets)
        ]
        num_actions(planned[-1].config.environment)
    return planned


def config_of(env_id: str, preset: str | None, seed: int, steps: int | None, overrides: Iterable[str]) -> Config:
    """The configuration of one seed, over one core for each operation: the other cores have runs of their own.

    Raises:
        UserError: as for `resolve`.
    """
    training = {} if steps is None else {"training": {"total_steps": steps}}
    return resolve(env_id, preset, _quiet(overrides), seed=seed, **training)


def differences(one: Config, other: Config) -> list[str]:
    """The keys that make two runs more than two seeds of the same row."""
    return [key for key in configuration.differences(one, other) if not key.startswith(APART)]


def train(
    folder: pathlib.Path,
    env_id: str,
    preset: str,
    seed: int,
    steps: int | None,
    overrides: Iterable[str],
    tell: Callable[[int], object],
    **transfer: Any,
) -> "tuple[Run, Outcome]":
    """Trains one seed in `folder`, or goes on there, and tells the step that it has come to from time to time.

    Args:
        folder: of the run.
        env_id: as for `plan`.
        preset: as for `plan`.
        seed: of the run.
        steps: as for `plan`.
        overrides: as for `plan`.
        tell: is given env steps.
        **transfer: `source`, `freeze` and `fine_tune` of `api.transfer`, by which it trains then.

    Raises:
        UserError: as for `api.session`.
        RunError: as for `api.session`, or a signal has stopped it.
    """
    from rlplatform import api
    from rlplatform.training import Callback, RunControl

    class Telling(Callback):
        def on_log(self, run: RunControl, row: Mapping[str, float]) -> None:
            tell(run.step)

    begin: Callable[..., tuple[Run, Outcome]] = api.transfer if transfer else api.session
    run, outcome = begin(
        env=env_id,
        preset=preset,
        seed=seed,
        steps=steps,
        out=folder,
        resume=True,
        overrides=_quiet(overrides),
        callbacks=[Telling()],
        progress=False,
        **transfer,
    )
    if outcome.signal:
        raise RunError(f"{outcome.reason} at step {outcome.steps}; the same command goes on from there")
    tell(outcome.steps)
    return run, outcome


def newest_row(folder: pathlib.Path) -> dict[str, Any]:
    """A run's newest row of metrics, which has its `step` and the `seconds` spent training, over all its sessions."""
    rows = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(rows[-1])  # type: ignore[no-any-return]


def play_random(environment: EnvironmentConfig, seeds: Sequence[int]) -> list[float]:
    """What random (allowed) actions earn in the episodes of these seeds."""
    from rlplatform import training

    return compact(training.evaluate(training.random_actions(num_actions(environment), 0), environment, seeds).returns)


def num_actions(environment: EnvironmentConfig) -> int:
    """How many actions an environment has.

    Raises:
        UserError: it cannot be made, or has spaces that are not supported.
    """
    env = envs.make_single(environment)
    try:
        return envs.spec_of(env).num_actions
    finally:
        env.close()


def goal(environment: EnvironmentConfig) -> float | None:
    """The mean return from which an environment counts as solved, if it names one."""
    env = envs.make_single(environment)
    try:
        return getattr(env.spec, "reward_threshold", None)
    finally:
        env.close()


def compact(returns: Iterable[float]) -> list[float]:
    """Returns as they are kept: whole numbers exactly, others to five significant digits.

    Raises:
        RunError: one is no finite number.
    """
    kept: list[float] = []
    for value in map(float, returns):
        if not math.isfinite(value):
            raise RunError(f"an episode's return is {value}; a mean needs numbers")
        kept.append(int(value) if value.is_integer() else float(f"{value:.5g}"))
    return kept


def matches(record: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
    """Whether a record of a benchmark's file has these values."""
    return all(record[name] == value for name, value in key.items())


def digest(text: str) -> str:
    """The SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_name(text: str) -> str:
    """A part of a file's name."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in text)


def _quiet(overrides: Iterable[str]) -> list[str]:
    return ["threads=1", *overrides]


class Bar:
    """Env steps of all runs together, with the time left, and a line for each run that has ended.

    Args:
        totals: the env steps of each job, by its name; it may train more than one run.
    """

    def __init__(self, totals: Mapping[str, int]) -> None:
        self._totals, self._ended, self._failed = totals, 0, 0
        self._steps = dict.fromkeys(totals, 0)
        self._bar = bar(sum(totals.values()), " steps", unit_scale=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, job: Job, step: int) -> None:
        """A job has come to `step`, over all its runs."""
        step = min(step, self._totals[job.name])
        self._bar.update(step - self._steps[job.name])
        self._steps[job.name] = step

    def finished(self, job: Job, failed: bool) -> None:
        """A job has ended, at its last step or before."""
        self.advance(job, self._totals[job.name])
        self._ended += 1
        self._failed += failed
        failures = f", {self._failed} failed" if self._failed else ""
        self._bar.set_postfix_str(f"{self._ended} of {len(self._totals)} runs{failures}")
