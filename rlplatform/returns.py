"""Returns over environments, presets and seeds: each run in a process of its own, the raw numbers in one file."""

import hashlib
import json
import math
import os
import pathlib
import shutil
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import rlplatform
from rlplatform import config as configuration
from rlplatform import envs, workers
from rlplatform.analysis.scores import number
from rlplatform.config import Config
from rlplatform.errors import RunError, UserError
from rlplatform.files import exclusive, write_atomically
from rlplatform.machine import describe, versions
from rlplatform.presets import resolve
from rlplatform.workers import Ask, Done, Job, bar, say

FORMAT, VERSION = "rlplatform-returns", 1
PACKAGES = ("tensorflow", "tf_keras", "gymnasium", "numpy", "ale-py", "minatar", "minigrid", "box2d")
# What a run may differ in and still be another seed of the same row: it is not what is learned.
APART = ("seed", "device", "threads", "checkpoint.", "logging.", "evaluation.video")


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
        tree = read(out) if out.exists() else _empty()
        _make_room(tree, planned, episodes, out, overwrite)
        missing = [
            (row, seed)
            for seed in range(first_seed, first_seed + seeds)
            for row in planned
            if not any(_is(run, row, seed) for run in tree["runs"])
        ]
        tree["failed"] = [run for run in tree["failed"] if not any(_is(run, row, seed) for row, seed in missing)]
        session = _session(tree, command)
        unknown = [row for row in planned if row.env not in tree["environments"]]
        jobs = [
            Job(f"random-{_name(row.env)}", play_random, (row.env, row.preset, overrides, episodes))
            for row in {row.env: row for row in unknown}.values()
        ]
        totals = {}
        for row, seed in missing:
            name = f"{_name(row.env)}-{_name(row.preset)}-{_hash(row.config)[:8]}-seed{seed}"
            jobs.append(Job(name, train_one, (folder / name, row.env, row.preset, seed, steps, overrides, episodes)))
            totals[name] = row.config.training.total_steps
        with _Bar(totals) as shown:
            for done in workers.run(jobs, processes, folder, shown.advance):
                _take(tree, done, session, shown)
                write(out, tree)
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
            config = resolve(env_id, preset, _quiet(overrides), **_sections(0, steps))
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
    from rlplatform.training import Callback, RunControl

    class Telling(Callback):
        def on_log(self, run: RunControl, row: Mapping[str, float]) -> None:
            ask(run.step)

    run, outcome = api.session(
        env_id,
        preset=preset,
        seed=seed,
        steps=steps,
        out=folder,
        resume=True,
        overrides=_quiet(overrides),
        callbacks=[Telling()],
        progress=False,
    )
    if outcome.signal:
        raise RunError(f"{outcome.reason} at step {outcome.steps}; the same command goes on from there")
    ask(outcome.steps)
    best = run.best()
    assert best is not None
    result: dict[str, Any] = {
        "steps": outcome.steps,
        "updates": outcome.updates,
        "best_step": best.step,
        "reason": outcome.reason,
        "training_seconds": _seconds(run.path),
        "device": devices.describe(run.config.device),
    }
    for which in ("best", "last"):
        played = api.evaluate(run, episodes=episodes, seed=seed, which=which).evaluation
        result[f"{which}_returns"] = [compact(value) for value in played.returns]
    return result


def play_random(env_id: str, preset: str, overrides: Sequence[str], episodes: int, ask: Ask) -> dict[str, Any]:
    """What random actions earn, and the mean return from which the environment counts as solved, if it names one."""
    from rlplatform import training

    environment = resolve(env_id, preset, _quiet(overrides)).environment
    env = envs.make_single(environment)
    goal, num_actions = getattr(env.spec, "reward_threshold", None), envs.spec_of(env).num_actions
    env.close()
    played = training.evaluate(
        training.random_actions(num_actions, 0), environment, envs.seeds(0, episodes, "evaluation")
    )
    returns = [compact(value) for value in played.returns]
    return {"env": env_id, "goal": goal, "random": compact(played.mean), "random_returns": returns}


def compact(value: float) -> float:
    """A return as it is kept: whole numbers exactly, others to five significant digits."""
    value = float(value)
    if not math.isfinite(value):
        raise RunError(f"an episode's return is {value}; a mean needs numbers")
    return int(value) if value.is_integer() else float(f"{value:.5g}")


def _seconds(folder: pathlib.Path) -> float:
    """What the run has spent on training, over all its sessions, by its newest row of metrics."""
    rows = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return round(float(json.loads(rows[-1])["seconds"]), 1)


# --- the file -------------------------------------------------------------------------------------------------------


def read(path: pathlib.Path) -> dict[str, Any]:
    """A file of returns.

    Raises:
        UserError: it is missing, or holds something else.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(tree, dict) or (tree.get("format"), tree.get("version")) != (FORMAT, VERSION):
        raise UserError(f"{path} is no file of `rlplatform benchmark returns`; choose another one")
    return tree


def write(path: pathlib.Path, tree: Mapping[str, Any]) -> None:
    """Writes the file whole or not at all, a line for each run.

    Raises:
        RunError: the disk is full, or the folder is read-only; the old file is as it was.
    """
    parts = []
    for key, value in tree.items():
        if isinstance(value, list) and value:
            lines = ",\n".join(f"  {json.dumps(item, ensure_ascii=False)}" for item in value)
            parts.append(f" {json.dumps(key)}: [\n{lines}\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "{\n" + ",\n".join(parts) + "\n}\n")


def _empty() -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "sessions": [],
        "environments": {},
        "configurations": [],
        "runs": [],
        "failed": [],
    }


def _make_room(
    tree: dict[str, Any], planned: Sequence[Planned], episodes: int, out: pathlib.Path, overwrite: bool
) -> None:
    """Keeps one configuration for each row, and puts the planned ones in."""
    for row in planned:
        kept = next((it for it in tree["configurations"] if (it["env"], it["preset"]) == (row.env, row.preset)), None)
        runs = [run for run in tree["runs"] if (run["env"], run["preset"]) == (row.env, row.preset)]
        if kept is not None:
            reason = _changes(kept["config"], row.config)
            if any(len(run["best_returns"]) != episodes for run in runs):
                reason = reason or f"{len(runs[0]['best_returns'])} episodes, not {episodes}"
            if reason and runs and not overwrite:
                raise UserError(
                    f"{out} holds runs of {row.env} with {row.preset} that were made otherwise ({reason}); choose "
                    "another --out, or replace them by --overwrite"
                )
            if not reason:
                continue
            for name, stale in (("runs", runs), ("configurations", [kept])):
                tree[name] = [it for it in tree[name] if it not in stale]
        tree["configurations"].append(
            {
                "env": row.env,
                "preset": row.preset,
                "sha256": _hash(row.config),
                "config": configuration.to_toml(row.config),
            }
        )


def _changes(saved: str, config: Config) -> str:
    """What differs between the configuration of a row that is there and a planned one, in words; empty if nothing."""
    try:
        before = configuration.from_dict(tomllib.loads(saved))
    except (UserError, tomllib.TOMLDecodeError):
        return "by another version"
    keys = [key for key in configuration.differences(before, config) if not key.startswith(APART)]
    return f"{', '.join(keys[:4])} would change" if keys else ""


def _hash(config: Config) -> str:
    return hashlib.sha256(configuration.to_toml(config).encode()).hexdigest()


def _is(run: Mapping[str, Any], row: Planned, seed: int) -> bool:
    return (run["env"], run["preset"], run["seed"]) == (row.env, row.preset, seed)


def _take(tree: dict[str, Any], done: Done, session: int, shown: "_Bar") -> None:
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


def _session(tree: dict[str, Any], command: str) -> int:
    """The number of this session in the file: runs name theirs, since they need not all be of one."""
    used = {"rlplatform": rlplatform.__version__} | versions(PACKAGES)
    session = {"command": command, "versions": used, "machine": describe() | {"cores": _cores()}}
    if session not in tree["sessions"]:
        tree["sessions"].append(session)
    return int(tree["sessions"].index(session))


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- words and progress ---------------------------------------------------------------------------------------------


def _quiet(overrides: Iterable[str]) -> list[str]:
    """The overrides, over one core for each operation: the other cores have runs of their own."""
    return ["threads=1", *overrides]


def _sections(seed: int, steps: int | None) -> dict[str, Any]:
    return {"seed": seed} | ({} if steps is None else {"training": {"total_steps": steps}})


def _name(text: str) -> str:
    """A part of a file's name."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in text)


class _Bar:
    """Env steps of all runs together, with the time left, and a line for each run that has ended.

    Args:
        totals: the env steps of each run, by the name of its job.
    """

    def __init__(self, totals: Mapping[str, int]) -> None:
        self._totals, self._ended, self._failed = totals, 0, 0
        self._steps = dict.fromkeys(totals, 0)
        self._bar = bar(sum(totals.values()), " steps", unit_scale=True)

    def __enter__(self) -> "_Bar":
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
