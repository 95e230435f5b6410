"""Returns over environments, presets and seeds: each run in a process of its own, the raw numbers in one file."""

import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlplatform import config as configuration
from rlplatform import envs, records, workers
from rlplatform.analysis.scores import number
from rlplatform.config import Config
from rlplatform.files import exclusive
from rlplatform.jobs import Bar, file_name, quiet, seconds, trained
from rlplatform.presets import resolve
from rlplatform.workers import Ask, Done, Job, say


class Planned(NamedTuple):
    """One environment with one preset: what each of its seeds is trained from."""

    env: str
    preset: str
    config: Config  # of seed 0


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
    planned = plan(env_ids, presets, steps, overrides)
    folder = out.with_name(f"{out.stem}.runs")
    with exclusive(folder):
        tree = read(out) if out.exists() else records.empty("returns", environments={}, configurations=[])
        _make_room(tree, planned, episodes, out, overwrite)
        missing = [
            (row, seed)
            for seed in range(first_seed, first_seed + seeds)
            for row in planned
            if not any(_is(run, row, seed) for run in tree["runs"])
        ]
        tree["failed"] = [run for run in tree["failed"] if not any(_is(run, row, seed) for row, seed in missing)]
        session = records.add_session(tree, command)
        unknown = [row for row in planned if row.env not in tree["environments"]]
        jobs = [
            Job(f"random-{file_name(row.env)}", play_random, (row.env, row.preset, overrides, episodes))
            for row in {row.env: row for row in unknown}.values()
        ]
        totals = {}
        for row, seed in missing:
            name = f"{file_name(row.env)}-{file_name(row.preset)}-{records.digest(row.config)[:8]}-seed{seed}"
            jobs.append(Job(name, train_one, (folder / name, row.env, row.preset, seed, steps, overrides, episodes)))
            totals[name] = row.config.training.total_steps
        with Bar(totals) as shown:
            for done in workers.run(jobs, processes, folder, shown.advance):
                _take(tree, done, session, shown)
                records.write(out, tree)
                if done.error is None and done.job.function is train_one:
                    shutil.rmtree(done.job.arguments[0], ignore_errors=True)
                    (folder / f"{done.job.name}.log").unlink(missing_ok=True)
    if not tree["failed"]:
        shutil.rmtree(folder, ignore_errors=True)
    return tree


def plan(env_ids: Sequence[str], presets: Sequence[str], steps: int | None, overrides: Sequence[str]) -> list[Planned]:
    """Every environment with every preset, each tried so far that a wrong word is found before anything is trained.

    Raises:
        UserError: the first thing that is wrong.
    """
    planned = []
    for env_id in dict.fromkeys(env_ids):
        for preset in dict.fromkeys(presets):
            config = resolve(env_id, preset, quiet(overrides), **_sections(0, steps))
            planned.append(Planned(env_id, preset, config))
        env = envs.make_single(planned[-1].config.environment)
        try:
            envs.spec_of(env)
        finally:
            env.close()
    return planned


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

    run, outcome = trained(
        api.session,
        ask,
        env=env_id,
        preset=preset,
        seed=seed,
        steps=steps,
        out=folder,
        overrides=quiet(overrides),
    )
    best = run.best()
    assert best is not None
    result: dict[str, Any] = {
        "steps": outcome.steps,
        "updates": outcome.updates,
        "best_step": best.step,
        "reason": outcome.reason,
        "training_seconds": seconds(run.path),
        "device": devices.describe(run.config.device),
    }
    for which in ("best", "last"):
        played = api.evaluate(run, episodes=episodes, seed=seed, which=which).evaluation
        result[f"{which}_returns"] = [records.compact(value) for value in played.returns]
    return result


def play_random(env_id: str, preset: str, overrides: Sequence[str], episodes: int, ask: Ask) -> dict[str, Any]:
    """What random actions earn, and the mean return from which the environment counts as solved, if it names one."""
    from rlplatform import training

    environment = resolve(env_id, preset, quiet(overrides)).environment
    env = envs.make_single(environment)
    goal, num_actions = getattr(env.spec, "reward_threshold", None), envs.spec_of(env).num_actions
    env.close()
    played = training.evaluate(
        training.random_actions(num_actions, 0), environment, envs.seeds(0, episodes, "evaluation")
    )
    returns = [records.compact(value) for value in played.returns]
    return {"env": env_id, "goal": goal, "random": records.compact(played.mean), "random_returns": returns}


# --- the file -------------------------------------------------------------------------------------------------------


def read(path: pathlib.Path) -> dict[str, Any]:
    """A file of returns.

    Raises:
        UserError: it is missing, or holds something else.
    """
    return records.read(path, "returns")


def _make_room(
    tree: dict[str, Any], planned: Sequence[Planned], episodes: int, out: pathlib.Path, overwrite: bool
) -> None:
    """Keeps one configuration for each row, and puts the planned ones in."""

    def otherwise(kept: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
        reason = records.changes(kept["config"], row.config)
        if any(len(run["best_returns"]) != episodes for run in runs):
            reason = reason or f"{len(runs[0]['best_returns'])} episodes, not {episodes}"
        return reason

    for row in planned:
        made = {"sha256": records.digest(row.config), "config": configuration.to_toml(row.config)}
        refusal = (
            f"{out} holds runs of {row.env} with {row.preset} that were made otherwise ({{reason}}); choose another "
            "--out, or replace them by --overwrite"
        )
        about = {"env": row.env, "preset": row.preset} | made
        records.make_room(tree, "configurations", about, ("env", "preset"), otherwise, refusal, overwrite)


def _is(run: Mapping[str, Any], row: Planned, seed: int) -> bool:
    return (run["env"], run["preset"], run["seed"]) == (row.env, row.preset, seed)


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
        tree["failed"].append(key | {"session": session, "error": " ".join(done.error.split())})
        say(f"{label}: failed: {' '.join(done.error.split())}")
        return
    result = done.result
    kept = next(it for it in tree["configurations"] if (it["env"], it["preset"]) == (env_id, preset))
    tree["runs"].append(key | {"session": session, "config": kept["sha256"]} | result)
    best, last = (sum(result[f"{which}_returns"]) / len(result[f"{which}_returns"]) for which in ("best", "last"))
    say(
        f"{label}: best {number(best)} (step {result['best_step']:,}), newest {number(last)}, "
        f"{result['training_seconds']:,.0f} s"
    )


def _sections(seed: int, steps: int | None) -> dict[str, Any]:
    return {"seed": seed} | ({} if steps is None else {"training": {"total_steps": steps}})
