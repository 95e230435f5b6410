"""Tables of returns over many training runs, as the field reports them (Agarwal et al. 2021). Numbers in, text out.

A training run is one score: the mean return of its evaluation episodes. Episodes of one run are not independent
samples of the algorithm, so it is runs that are counted and resampled, never episodes.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rlplatform.analysis.statistics import Interval, bootstrap, mean, stratified_bootstrap

WORDS = ("environment", "preset", "method", "network", "from", "to")  # columns that are no numbers
FEW = 3  # runs below which the bootstrap's interval says nothing


@dataclasses.dataclass(frozen=True)
class Row:
    """One preset on one environment, over training seeds. Scores are the runs' mean returns, in units of return.

    Attributes:
        env: the environment's id.
        preset: the preset's name.
        steps: env steps of a run.
        seeds: runs that have finished.
        best: interquartile mean of the delivered policies' scores, with its 95 % stratified-bootstrap interval.
        last: the same of the newest policies.
        mean: of the delivered policies' scores.
        worst: the least of them.
        goal: the mean return from which the environment counts as solved; None where it names none.
        at_goal: runs whose delivered policy reaches it.
        random: the mean return of random actions, with its 95 % bootstrap interval over episodes; None where there are
            none of them.
    """

    env: str
    preset: str
    steps: int
    seeds: int
    best: Interval
    last: Interval
    mean: float
    worst: float
    goal: float | None
    at_goal: int | None
    random: Interval | None


@dataclasses.dataclass(frozen=True)
class Aggregate:
    """One preset over all environments that have a goal: scores are 0 for random actions and 1 at the goal."""

    preset: str
    environments: int
    best: Interval
    last: Interval


def rows(tree: Mapping[str, Any]) -> list[Row]:
    """The rows of a file of returns, environments and presets in the order of their first runs.

    Args:
        tree: `runs`, each with `env`, `preset`, `steps`, `best_returns` and `last_returns`; and `environments`, by id,
            each with a `goal` or None, and perhaps `random_returns`.
    """
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in tree["runs"]:
        found.setdefault((run["env"], run["preset"]), []).append(run)
    order = list(dict.fromkeys(run["env"] for run in tree["runs"]))
    table = []
    for (env, preset), runs in sorted(found.items(), key=lambda item: order.index(item[0][0])):
        best, last = _scores(runs, "best"), _scores(runs, "last")
        about = tree["environments"].get(env, {})
        goal, random = about.get("goal"), about.get("random_returns")
        table.append(
            Row(
                env=env,
                preset=preset,
                steps=max(int(run["steps"]) for run in runs),
                seeds=len(runs),
                best=stratified_bootstrap([best]),
                last=stratified_bootstrap([last]),
                mean=float(best.mean()),
                worst=float(best.min()),
                goal=goal,
                at_goal=None if goal is None else int((best >= goal).sum()),
                random=bootstrap(np.array(random, np.float64), mean) if random else None,
            )
        )
    return table


def aggregates(tree: Mapping[str, Any]) -> list[Aggregate]:
    """Each preset over the environments that have a goal and that every preset was run on; none for fewer than two.

    A score is `(return - random) / (goal - random)`. The strata of the bootstrap are the environments.
    """
    scored = {
        env: (about["random"], about["goal"])
        for env, about in tree["environments"].items()
        if about.get("goal") is not None and about.get("random") is not None and about["goal"] > about["random"]
    }
    presets = list(dict.fromkeys(run["preset"] for run in tree["runs"]))
    done = {(run["env"], run["preset"]) for run in tree["runs"]}
    shared = [env for env in scored if all((env, preset) in done for preset in presets)]
    if len(shared) < 2:
        return []

    def interval(preset: str, which: str) -> Interval:
        tasks = []
        for env in shared:
            low, high = scored[env]
            runs = [run for run in tree["runs"] if (run["env"], run["preset"]) == (env, preset)]
            tasks.append((_scores(runs, which) - low) / (high - low))
        return stratified_bootstrap(tasks)

    return [Aggregate(preset, len(shared), interval(preset, "best"), interval(preset, "last")) for preset in presets]


def as_table(tree: Mapping[str, Any], *, markdown: bool = False) -> str:
    """The rows, the aggregates and the runs that have failed, as text for a terminal or as Markdown."""
    head = ["environment", "preset", "steps", "seeds", "IQM [95 %]", "mean", "worst", "at goal"]
    head += ["newest policy's IQM", "random actions"]
    body = [
        [
            row.env,
            row.preset,
            f"{row.steps:,}",
            str(row.seeds),
            interval(row.best, row.seeds),
            number(row.mean),
            number(row.worst),
            "-" if row.goal is None else f"{row.at_goal} of {row.seeds} (≥ {row.goal:g})",
            interval(row.last, row.seeds),
            "-" if row.random is None else interval(row.random, FEW),
        ]
        for row in rows(tree)
    ]
    parts = [laid_out(head, body, markdown) if body else "no run has finished"]
    over = aggregates(tree)
    if over:
        parts.append(
            f"over the {over[0].environments} environments with a goal, 0 for random actions and 1 at the goal:"
        )
        many = [[each.preset, interval(each.best, FEW, 3), interval(each.last, FEW, 3)] for each in over]
        parts.append(laid_out(["preset", "IQM [95 %]", "newest policy's IQM"], many, markdown))
    parts += [f"failed: {run['env']} {run['preset']} seed {run['seed']}: {run['error']}" for run in tree["failed"]]
    return ("\n\n" if markdown else "\n").join(parts)


def number(value: float, decimals: int | None = None) -> str:
    """A return for people: one decimal, two where it is below 10."""
    return f"{value:,.{decimals if decimals is not None else 1 if abs(value) >= 10 else 2}f}"


def interval(value: Interval, seeds: int, decimals: int | None = None) -> str:
    """`500.0 [499.5, 500.0]`; without the interval where there are too few seeds for one."""
    if seeds < FEW:
        return number(value.estimate, decimals)
    return f"{number(value.estimate, decimals)} [{number(value.low, decimals)}, {number(value.high, decimals)}]"


def _scores(runs: Iterable[Mapping[str, Any]], which: str) -> np.ndarray[Any, Any]:
    """[S] float64, the mean return of each run."""
    return np.array([np.mean(run[f"{which}_returns"]) for run in runs], np.float64)


def laid_out(head: Sequence[str], body: Sequence[Sequence[str]], markdown: bool) -> str:
    """A table under a line of names, for a terminal or in Markdown; columns of words are set left, numbers right."""
    if markdown:
        lines = [head, ["---"] * len(head), *body]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    words = [head.index(name) for name in WORDS if name in head]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column in words else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *body)
    )
