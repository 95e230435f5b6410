"""Steps that transfer saves: how many it takes to a threshold, against training from scratch. Numbers in, text out.

A run that has not reached the threshold within its budget is censored there: all that is known is that it takes longer.
What is compared is therefore the restricted mean, the mean of `min(steps, budget)` (Royston & Parmar 2013, "Restricted
mean survival time", BMC Medical Research Methodology 13:152): the steps that are spent on average by who stops at the
threshold or at the budget. It is the ordinary mean where every run has reached it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlplatform.analysis.scores import interval, laid_out
from rlplatform.analysis.statistics import Interval, bootstrap

Array = np.ndarray[Any, Any]
KEYS = ("from", "to", "changes", "transfer_changes", "freeze", "fine_tune")  # what tells one row from another
ARMS = ("scratch", "transfer")


@dataclasses.dataclass(frozen=True)
class Saving:
    """One pair of environments, over the seeds of which both runs are there.

    Attributes:
        source: the environment whose network is transferred.
        target: the environment that is learned.
        changes: `key=value` texts that hold for the target alone.
        transfer_changes: `key=value` texts that hold for the runs with transfer alone.
        frozen: how many layers do not learn at first.
        fine_tune: how many of those learn later.
        threshold: the mean return of an evaluation that counts as learned.
        budget: env steps after which a run is censored.
        source_steps: env steps that the network had learned for on the source; they are not in `transfer`.
        seeds: S.
        scratch: restricted mean of the env steps to the threshold from scratch.
        transfer: the same with transfer.
        reached: of `(scratch, transfer)`, runs that have reached the threshold.
        ratio: `transfer / scratch`, with its 95 % percentile-bootstrap interval over seeds, pairs kept together.
    """

    source: str
    target: str
    changes: tuple[str, ...]
    transfer_changes: tuple[str, ...]
    frozen: int
    fine_tune: int
    threshold: float
    budget: int
    source_steps: int
    seeds: int
    scratch: float
    transfer: float
    reached: tuple[int, int]
    ratio: Interval


def savings(tree: Mapping[str, Any]) -> list[Saving]:
    """The rows of a file of `rlplatform benchmark transfer` that have a seed with both runs.

    Args:
        tree: `configurations`, each with what tells it from others, a `threshold` and a `budget`; and `runs`, each with
            what tells the pair, its `seed`, its `arm`, and `steps`, None where the threshold was not reached.
    """
    found = []
    for pair in tree["configurations"]:
        runs = [run for run in tree["runs"] if all(run[key] == pair[key] for key in KEYS)]
        arms = [{run["seed"]: run for run in runs if run["arm"] == arm} for arm in ARMS]
        seeds = sorted(arms[0].keys() & arms[1].keys())
        if not seeds:
            continue
        budget = int(pair["budget"])
        steps = [[arm[seed]["steps"] for seed in seeds] for arm in arms]
        spent = np.array([[budget if each is None else min(each, budget) for each in arm] for arm in steps], np.float64)
        last = arms[1][seeds[-1]]
        found.append(
            Saving(
                source=pair["from"],
                target=pair["to"],
                changes=tuple(pair["changes"]),
                transfer_changes=tuple(pair["transfer_changes"]),
                frozen=int(last["frozen_layers"]),
                fine_tune=int(pair["fine_tune"]),
                threshold=float(pair["threshold"]),
                budget=budget,
                source_steps=max(int(arms[1][seed]["source_steps"]) for seed in seeds),
                seeds=len(seeds),
                scratch=float(spent[0].mean()),
                transfer=float(spent[1].mean()),
                reached=(sum(each is not None for each in steps[0]), sum(each is not None for each in steps[1])),
                ratio=bootstrap(spent, _ratio),
            )
        )
    return found


def savings_table(tree: Mapping[str, Any], *, markdown: bool = False) -> str:
    """The rows and the runs that have failed, as text for a terminal or as Markdown."""
    head = ["from", "to", "frozen", "threshold", "seeds", "steps from scratch", "with transfer", "ratio [95 %]"]
    head += ["steps on the source"]
    body = [
        [
            row.source,
            " ".join((row.target, *row.changes)),
            " ".join((how_frozen(row), *row.transfer_changes)),
            f"{row.threshold:g}",
            str(row.seeds),
            _spent(row.scratch, row.reached[0], row),
            _spent(row.transfer, row.reached[1], row),
            interval(row.ratio, row.seeds, 2),
            f"{row.source_steps:,}",
        ]
        for row in savings(tree)
    ]
    parts = [laid_out(head, body, markdown) if body else "no seed has both runs yet"]
    parts += [f"failed: {run['to']} {run['arm']} seed {run['seed']}: {run['error']}" for run in tree["failed"]]
    return ("\n\n" if markdown else "\n").join(parts)


def how_frozen(row: Saving) -> str:
    """How many layers do not learn at first, and how many of those later."""
    return f"{row.frozen}, {row.fine_tune} tuned" if row.fine_tune else str(row.frozen)


def first_reached(evaluations: Sequence[tuple[int, float]], threshold: float) -> int | None:
    """The env step of the first evaluation whose mean return is at least the threshold; None without one.

    Args:
        evaluations: env step and mean return, in order.
        threshold: in units of return.
    """
    return next((step for step, value in evaluations if value >= threshold), None)


def _ratio(spent: Array) -> Array:
    """`[R, 2, S]` steps from scratch and with transfer to `[R]`, the second's mean over the first's."""
    means = spent.mean(axis=-1)
    return means[:, 1] / means[:, 0]  # type: ignore[no-any-return]


def _spent(steps: float, reached: int, row: Saving) -> str:
    """A restricted mean; with how many runs have reached the threshold, where not all have."""
    return f"{steps:,.0f}" + ("" if reached == row.seeds else f" ({reached} of {row.seeds} within {row.budget:,})")
