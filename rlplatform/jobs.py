"""Runs as jobs: trained in a process of their own, in folders that they go on in, with one bar for all of them."""

import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rlplatform.errors import RunError
from rlplatform.workers import Ask, Job, bar


def trained(train: Callable[..., Any], ask: Ask, before: int = 0, **options: Any) -> tuple[Any, Any]:
    """The run and its outcome of `api.session` or `api.transfer`, begun in its folder or gone on with.

    Args:
        train: one of the two.
        ask: is told the env steps so far.
        before: env steps of the same job that other runs have made.
        **options: of `train`.

    Raises:
        RunError: a signal has stopped it, or training has failed.
    """
    from rlplatform.training import Callback, RunControl

    class Telling(Callback):
        def on_log(self, run: RunControl, row: Mapping[str, float]) -> None:
            ask(before + run.step)

    run, outcome = train(**options, resume=True, callbacks=[Telling()], progress=False)
    if outcome.signal:
        raise RunError(f"{outcome.reason} at step {outcome.steps}; the same command goes on from there")
    ask(before + outcome.steps)
    return run, outcome


def seconds(folder: pathlib.Path) -> float:
    """What a run has spent on training, over all its sessions, by its newest row of metrics."""
    rows = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return round(float(json.loads(rows[-1])["seconds"]), 1)


def quiet(overrides: Iterable[str]) -> list[str]:
    """The overrides, over one core for each operation: the other cores have runs of their own."""
    return ["threads=1", *overrides]


def file_name(text: str) -> str:
    """A part of a file's name."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in text)


class Bar:
    """Env steps of all runs together, with the time left, and a line for each run that has ended.

    Args:
        totals: the env steps of each run, by the name of its job.
    """

    def __init__(self, totals: Mapping[str, int]) -> None:
        self._totals, self._ended, self._failed = totals, 0, 0
        self._steps = dict.fromkeys(totals, 0)
        self._bar = bar(sum(totals.values()), " steps", unit_scale=True)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, job: Job, step: int) -> None:
        """A run has come to `step`."""
        step = min(step, self._totals[job.name])
        self._bar.update(step - self._steps[job.name])
        self._steps[job.name] = step

    def finished(self, job: Job, failed: bool) -> None:
        """A run has ended, at its last step or before."""
        self.advance(job, self._totals[job.name])
        self._ended += 1
        self._failed += failed
        failures = f", {self._failed} failed" if self._failed else ""
        self._bar.set_postfix_str(f"{self._ended} of {len(self._totals)} runs{failures}")
