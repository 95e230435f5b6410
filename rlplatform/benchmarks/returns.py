"""Returns over environments, presets and seeds: each run in a process of its own, the raw numbers in one file."""

import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from rlplatform import envs, workers
from rlplatform.analysis.scores import number
from rlplatform.benchmarks import results, runs
from rlplatform.benchmarks.results import Form
from rlplatform.benchmarks.runs import Bar, compact, config_of, matches
from rlplatform.files import exclusive
from rlplatform.workers import Ask, Done, Job, say

FORM = Form(
    "rlplatform-returns",
    1,
    "returns",
    {"sessions": [], "environments": {}, "configurations": [], "runs": [], "failed": []},
    records=("runs",),
)


def measure(
    env_ids: Sequence[str],
    presets: Sequence[str],
    *,
    seeds: int,
    out: pathlib.Path,
    first_seed: int = 0,
    episodes: int = 100,
    processes: int = 2,
    steps: int | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    command: str = "",
) -> dict[str, Any]:
    """Trains what `out` does not hold yet, evaluates it, and writes each run into `out` as it ends.

    A run is evaluated over episodes whose seeds were used neither for training nor for choosing the best policy: first
    the delivered, best policy, then the newest. Runs that a kill has cut short go on from their checkpoints, which lie
    beside `out` in `NAME.runs` until they are done; runs that have failed are tried again.

    Args:
        env_ids: environments.
        presets: shipped presets' names, or TOML files.
        seeds: training seeds for each environment and preset.
        out: the JSON file.
        first_seed: the first of them; the others follow it.
        episodes: greedy episodes of each policy.
        processes: runs side by side. An operation uses one core, unless `overrides` say otherwise.
        steps: env steps of each run; the preset's by default.
        overrides: `key=value` texts over every preset.
        overwrite: replace runs of the same environment and preset that were made otherwise, not refuse.
        command: what the user has typed, kept in the file.

    Returns:
        The file's content.

    Raises:
        UserError: an environment, a preset or a key is wrong, or `out` holds something else; nothing was trained.
        RunError: `out` cannot be written.
    """
    planned = runs.plan(env_ids, presets, steps, overrides)
    folder = out.with_name(f"{out.stem}.runs")
    with exclusive(folder):
        tree = results.read_or_begin(out, FORM)

        def differs(_: Mapping[str, Any], records: results.Records) -> str:
            counts = [len(run["best_returns"]) for run in records["runs"]]
            return f"{counts[0]} episodes, not {episodes}" if set(counts) - {episodes} else ""

        results.make_room(tree, FORM, planned, out, overwrite, differs)
        missing = [
            (row, seed)
            for seed in range(first_seed, first_seed + seeds)
            for row in planned
            if not any(matches(run, row.key | {"seed": seed}) for run in tree["runs"])
        ]
        again = [row.key | {"seed": seed} for row, seed in missing]
        tree["failed"] = [run for run in tree["failed"] if not any(matches(run, key) for key in again)]
        session = results.session(tree, command)
        unknown = [row for row in planned if row.env not in tree["environments"]]
        jobs = [
            Job(f"random-{runs.file_name(row.env)}", play_random, (row.env, row.preset, overrides, episodes))
            for row in {row.env: row for row in unknown}.values()
        ]
        totals = {}
        for row, seed in missing:
            name = row.name(seed)
            jobs.append(Job(name, train_one, (folder / name, row.env, row.preset, seed, steps, overrides, episodes)))
            totals[name] = row.config.training.total_steps
        with Bar(totals) as shown:
            for done in workers.run(jobs, processes, folder, shown.advance):
                _take(tree, done, session, shown)
                results.write(out, tree)
                if done.error is None and done.job.function is train_one:
                    shutil.rmtree(done.job.arguments[0], ignore_errors=True)
                    (folder / f"{done.job.name}.log").unlink(missing_ok=True)
    if not tree["failed"]:
        shutil.rmtree(folder, ignore_errors=True)
    return tree


def read(path: pathlib.Path) -> dict[str, Any]:
    """A file of returns.

    Raises:
        UserError: it is missing, or holds something else.
    """
    return results.read(path, FORM)


# --- in a process of its own ----------------------------------------------------------------------------------------


def train_one(
    folder: pathlib.Path,
    env_id: str,
    preset: str,
    seed: int,
    steps: int | None,
    overrides: Sequence[str],
    episodes: int,
    ask: Ask,
) -> dict[str, Any]:
    """Trains one seed in `folder`, or goes on there, and evaluates its best and its newest policy."""
    from rlplatform import api, devices

    run, outcome = runs.train(folder, env_id, preset, seed, steps, overrides, ask)
    best = run.best()
    assert best is not None
    result: dict[str, Any] = {
        "steps": outcome.steps,
        "updates": outcome.updates,
        "best_step": best.step,
        "reason": outcome.reason,
        "training_seconds": round(float(runs.newest_row(run.path)["seconds"]), 1),
        "device": devices.describe(run.config.device, run.config.replicas),
    }
    for which in ("best", "last"):
        played = api.evaluate(run, episodes=episodes, seed=seed, which=which).evaluation
        result[f"{which}_returns"] = compact(played.returns)
    return result


def play_random(env_id: str, preset: str, overrides: Sequence[str], episodes: int, ask: Ask) -> dict[str, Any]:
    """What random actions earn, and the mean return from which the environment counts as solved, if it names one."""
    environment = config_of(env_id, preset, 0, None, overrides).environment
    returns = runs.play_random(environment, envs.seeds(0, episodes, "evaluation"))
    (mean,) = compact([sum(returns) / len(returns)])
    return {"env": env_id, "goal": runs.goal(environment), "random": mean, "random_returns": returns}


# --- the file, and words ----------------------------------------------------------------------------------------------


def _take(tree: dict[str, Any], done: Done, session: int, shown: Bar) -> None:
    """Puts what has ended into the file's content, and says so."""
    if done.job.function is play_random:
        if done.error is None:
            about = dict(done.result)
            tree["environments"][about.pop("env")] = about
        else:
            say(f"{done.job.name}: failed: {done.error}")
        return
    _, env_id, preset, seed, *_ = done.job.arguments
    label = f"{env_id} {preset} seed {seed}"
    key = {"env": env_id, "preset": preset, "seed": seed}
    shown.finished(done.job, failed=done.error is not None)
    if done.error is not None:
        say(f"{label}: failed: {results.fail(tree, key, session, done.error)}")
        return
    result = done.result
    config = results.configuration_of(tree, {"env": env_id, "preset": preset})
    tree["runs"].append(key | {"session": session, "config": config} | result)
    best, last = (sum(result[f"{which}_returns"]) / len(result[f"{which}_returns"]) for which in ("best", "last"))
    say(
        f"{label}: best {number(best)} (step {result['best_step']:,}), newest {number(last)}, "
        f"{result['training_seconds']:,.0f} s"
    )
