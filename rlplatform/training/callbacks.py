"""Callbacks by Keras's names: they see a run's evaluations and rows of metrics, and may stop it or change its rate.

A run calls them between two rounds of training, when nothing else runs. What they keep is saved in checkpoints, so a
resumed run goes on as if it had not stopped.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from rlplatform.config import CallbacksConfig
from rlplatform.errors import UserError
from rlplatform.files import failure
from rlplatform.training.logs import Log


class RunControl(Protocol):
    """A run as callbacks see it."""

    learning_rate_scale: float  # what the scheduled learning rate is multiplied by; callbacks may set it

    @property
    def step(self) -> int:
        """Env steps done, over all environments together."""

    @property
    def updates(self) -> int:
        """Gradient updates done."""

    @property
    def scheduled_learning_rate(self) -> float:
        """What `optimizer.learning_rate` says at this step, before the scale."""

    @property
    def log(self) -> Log:
        """Where metrics go."""

    def stop(self, reason: str) -> None:
        """Ends the run before its next round, with everything saved; the first reason given is the one reported."""

    def save_network(self, path: pathlib.Path) -> None:
        """Writes the network: a `.keras` file, or a SavedModel folder where the name has no such ending."""


class Evaluated(Protocol):
    """What a callback needs of an evaluation."""

    @property
    def returns(self) -> np.ndarray:
        """[E] float64, the return of each greedy episode."""


class Callback:
    """Does nothing at every hook; a callback of your own overrides those it needs."""

    def on_train_begin(self, run: RunControl) -> None:
        """Before the first round, of a resumed run too (then after `load_state`, and `run.step` is above 0)."""

    def on_evaluation(self, run: RunControl, evaluation: Evaluated) -> None:
        """After greedy episodes have been played."""

    def on_log(self, run: RunControl, row: Mapping[str, float]) -> None:
        """After a row of metrics, by tag, has been written."""

    def on_train_end(self, run: RunControl) -> None:
        """After the last round, however it came to be the last, unless the run has failed."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep; it has to pickle."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave."""


@dataclasses.dataclass
class _Best:
    """The best mean return so far, and how many evaluations ago it was."""

    mean: float = -math.inf
    step: int = 0
    wait: int = 0

    def improved(self, run: RunControl, mean: float, min_delta: float = 0.0) -> bool:
        """Whether `mean` is better by more than `min_delta`; a nan never is."""
        if mean - min_delta > self.mean:
            self.mean, self.step, self.wait = mean, run.step, 0
            return True
        self.wait += 1
        return False


class EarlyStopping(Callback):
    """Stops the run when the mean return has not improved for some evaluations.

    Args:
        patience: evaluations without improvement after which the run stops, at least 1.
        min_delta: the smallest rise above the best mean return that counts as improvement.
    """

    def __init__(self, patience: int, min_delta: float = 0.0) -> None:
        self.patience, self.min_delta = _patience(self, patience), _min_delta(self, min_delta)
        self._best = _Best()

    def on_train_begin(self, run: RunControl) -> None:
        """Forgets what another run has left."""
        if run.step == 0:
            self._best = _Best()

    def on_evaluation(self, run: RunControl, evaluation: Evaluated) -> None:
        """Counts, and stops the run at the end of the patience."""
        best = self._best
        if not best.improved(run, _mean(evaluation), self.min_delta) and best.wait >= self.patience:
            which = (
                f"the best is {best.mean:.6g}, of step {best.step}" if best.mean > -math.inf else "none was a number"
            )
            run.stop(f"EarlyStopping: no better mean return in {best.wait} evaluations ({which})")

    def state(self) -> dict[str, Any]:
        """The best mean return, its step, and the evaluations since."""
        return dataclasses.asdict(self._best)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave."""
        self._best = _Best(**state)


class StopOnReward(Callback):
    """Stops the run when the mean return of an evaluation reaches a threshold.

    Args:
        threshold: in units of return.
    """

    def __init__(self, threshold: float) -> None:
        if math.isnan(threshold):
            raise UserError("StopOnReward needs a number as its threshold; got nan")
        self.threshold = threshold

    def on_evaluation(self, run: RunControl, evaluation: Evaluated) -> None:
        """Compares, and stops the run."""
        mean = _mean(evaluation)
        if mean >= self.threshold:
            run.stop(f"StopOnReward: the mean return {mean:.6g} has reached {self.threshold:.6g}")


class ReduceLROnPlateau(Callback):
    """Multiplies the learning rate by a factor when the mean return has not improved for some evaluations.

    Args:
        factor: above 0 and below 1.
        patience: evaluations without improvement after which the rate is reduced, and again after as many more.
        min_delta: the smallest rise above the best mean return that counts as improvement.
        min_learning_rate: the rate is not reduced below this.
    """

    def __init__(
        self, factor: float = 0.5, patience: int = 10, min_delta: float = 0.0, min_learning_rate: float = 0.0
    ) -> None:
        if not 0.0 < factor < 1.0:
            raise UserError(f"ReduceLROnPlateau needs a factor above 0 and below 1; got {factor}")
        if not 0.0 <= min_learning_rate < math.inf:
            raise UserError(f"ReduceLROnPlateau needs a min_learning_rate of at least 0; got {min_learning_rate}")
        self.factor, self.min_learning_rate = factor, min_learning_rate
        self.patience, self.min_delta = _patience(self, patience), _min_delta(self, min_delta)
        self._best = _Best()

    def on_train_begin(self, run: RunControl) -> None:
        """Forgets what another run has left."""
        if run.step == 0:
            self._best = _Best()

    def on_evaluation(self, run: RunControl, evaluation: Evaluated) -> None:
        """Counts, and reduces the rate at the end of the patience."""
        if self._best.improved(run, _mean(evaluation), self.min_delta) or self._best.wait < self.patience:
            return
        self._best.wait = 0
        scheduled, scale = run.scheduled_learning_rate, run.learning_rate_scale
        least = self.min_learning_rate / scheduled if scheduled > 0.0 else 0.0
        run.learning_rate_scale = min(scale, max(scale * self.factor, least))

    def state(self) -> dict[str, Any]:
        """The best mean return, its step, and the evaluations since."""
        return dataclasses.asdict(self._best)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave."""
        self._best = _Best(**state)


class LearningRateScheduler(Callback):
    """Sets the learning rate by a function of your own, at step 0 and at every row of metrics.

    Args:
        function: takes the env step and the learning rate now in force, returns the new one.
    """

    def __init__(self, function: Callable[[int, float], float]) -> None:
        self.function = function

    def on_train_begin(self, run: RunControl) -> None:
        """Sets the first rate; a resumed run has that of its last row already."""
        if run.step == 0:
            self._set(run)

    def on_log(self, run: RunControl, row: Mapping[str, float]) -> None:
        """Sets the rate until the next row."""
        self._set(run)

    def _set(self, run: RunControl) -> None:
        scheduled = run.scheduled_learning_rate
        wanted = self.function(run.step, scheduled * run.learning_rate_scale)
        if not (isinstance(wanted, int | float | np.number) and 0.0 <= wanted < math.inf):
            raise UserError(
                "LearningRateScheduler's function must return a learning rate of at least 0; "
                f"got {wanted!r} for step {run.step}"
            )
        if scheduled > 0.0:
            run.learning_rate_scale = float(wanted) / scheduled
        elif wanted > 0.0:
            raise UserError(
                f"LearningRateScheduler scales optimizer.learning_rate, which is 0 at step {run.step}, and cannot make "
                f"{wanted} of it; set optimizer.learning_rate to a constant above 0"
            )


class ModelCheckpoint(Callback):
    """Writes the network after each evaluation, or only after those with the best mean return so far.

    Args:
        filepath: where to; ends in `.keras`, or names a SavedModel folder. It may hold `{step}`, `{updates}` and
            `{mean_return}`, with formats such as `{step:09d}`; what lies there is replaced.
        save_best_only: write only where the mean return is higher than ever before.
    """

    def __init__(self, filepath: str | os.PathLike[str], save_best_only: bool = False) -> None:
        self.filepath = os.fspath(filepath)
        self.save_best_only = save_best_only
        self._best = _Best()
        try:
            self._path(0, 0, 0.0)
        except (LookupError, ValueError) as error:
            raise UserError(
                "ModelCheckpoint's filepath may hold {step}, {updates} and {mean_return}, as in "
                f"'best-{{step:09d}}.keras'; got {self.filepath!r}"
            ) from error

    def on_train_begin(self, run: RunControl) -> None:
        """Forgets what another run has left."""
        if run.step == 0:
            self._best = _Best()

    def on_evaluation(self, run: RunControl, evaluation: Evaluated) -> None:
        """Writes beside, then replaces: a network is there whole or not at all."""
        mean = _mean(evaluation)
        if not self._best.improved(run, mean) and self.save_best_only:
            return
        path = self._path(run.step, run.updates, mean)
        partial = path.with_name(f".partial-{path.name}")  # with the same ending, which decides the format
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove(partial)
            run.save_network(partial)
            if path.is_dir():
                _remove(path)
            partial.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                _remove(partial)
            raise failure(
                error, f"the network {path.name}", path.parent, "the run's checkpoints are as they were"
            ) from error

    def state(self) -> dict[str, Any]:
        """The best mean return, its step, and the evaluations since."""
        return dataclasses.asdict(self._best)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave."""
        self._best = _Best(**state)

    def _path(self, step: int, updates: int, mean_return: float) -> pathlib.Path:
        return pathlib.Path(self.filepath.format(step=step, updates=updates, mean_return=mean_return))


def from_config(config: CallbacksConfig) -> list[Callback]:
    """The callbacks that a configuration turns on.

    Raises:
        UserError: an argument out of a callback's range.
    """
    callbacks: list[Callback] = []
    if config.reduce_lr_patience:
        callbacks.append(ReduceLROnPlateau(config.reduce_lr_factor, config.reduce_lr_patience, config.min_delta))
    if config.early_stopping_patience:
        callbacks.append(EarlyStopping(config.early_stopping_patience, config.min_delta))
    if config.stop_on_reward < math.inf:  # a nan is not
        callbacks.append(StopOnReward(config.stop_on_reward))
    return callbacks


def states(callbacks: Iterable[Callback]) -> list[tuple[str, dict[str, Any]]]:
    """The callbacks' states by their classes' names, for a checkpoint."""
    return [(type(callback).__name__, callback.state()) for callback in callbacks]


def load_states(callbacks: Iterable[Callback], saved: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Gives each callback the state that one of its class has saved, in order; one that is new begins afresh."""
    left = list(saved)
    for callback in callbacks:
        found = next((item for item in left if item[0] == type(callback).__name__), None)
        if found is not None:
            left.remove(found)
            callback.load_state(found[1])


def _mean(evaluation: Evaluated) -> float:
    return float(np.mean(evaluation.returns))


def _patience(callback: Callback, patience: int) -> int:
    if patience < 1:
        raise UserError(f"{type(callback).__name__} needs a patience of at least 1 evaluation; got {patience}")
    return patience


def _min_delta(callback: Callback, min_delta: float) -> float:
    if not 0.0 <= min_delta < math.inf:
        raise UserError(f"{type(callback).__name__} needs a min_delta of at least 0; got {min_delta}")
    return min_delta


def _remove(path: pathlib.Path) -> None:
    """Deletes a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
