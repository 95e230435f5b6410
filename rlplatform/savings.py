"""Steps that transfer saves: each seed trains from scratch and with transfer, until an evaluation is good enough."""

import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tomli_w

from rlplatform import config as configuration
from rlplatform import envs, records, workers
from rlplatform.analysis.savings import ARMS, KEYS, first_reached
from rlplatform.analysis.scores import number
from rlplatform.config import Config, TransferConfig
from rlplatform.errors import UserError
from rlplatform.files import exclusive, write_atomically
from rlplatform.jobs import Bar, file_name, quiet, seconds, trained
from rlplatform.presets import as_preset, resolve
from rlplatform.workers import Ask, Done, Job, say


class Pair(NamedTuple):
    """What is transferred where, and how.

    Attributes:
        source: what the network has learned, or learns first; its `environment.id` is where.
        target: what both runs of a seed are trained with, apart from where their first weights come from.
        changes: `key=value` texts that hold for the target alone.
        freeze: first layers that do not learn; None for all that are taken over, but for the last one.
        fine_tune: the last so many of those learn in the second half of the updates.
        runs: folders of finished source runs; without them each seed trains its own.
    """

    source: Config
    target: Config
    changes: tuple[str, ...]
    freeze: int | None
    fine_tune: int
    runs: tuple[str, ...]

    @property
    def key(self) -> dict[str, Any]:
        """What tells its runs from others in a file."""
        values = (self.source.environment.id, self.target.environment.id, list(self.changes))
        return dict(zip(KEYS, (*values, self.freeze, self.fine_tune), strict=True))


def measure(
    source: str | None,
    target: str,
    *,
    seeds: int,
    out: pathlib.Path,
    runs: Sequence[str] = (),
    threshold: float | None = None,
    preset: str | None = None,
    steps: int | None = None,
    source_steps: int | None = None,
    freeze: int | None = None,
    fine_tune: int = 0,
    first_seed: int = 0,
    processes: int = 2,
    overrides: Sequence[str] = (),
    changes: Sequence[str] = (),
    overwrite: bool = False,
    command: str = "",
) -> dict[str, Any]:
    """Trains what `out` does not hold yet, and writes each run into `out` as it ends.

    Both runs of a seed have the same settings and the same seed. A run ends at the first evaluation during training
    whose mean return reaches the threshold, or at its last step. What a kill has cut short goes on from its
    checkpoints, which lie beside `out` in `NAME.runs` until they are done; runs that have failed are tried again.

    Args:
        source: where the network learns first; may be left out where `runs` are given.
        target: where the steps are counted.
        seeds: of each of the two.
        out: the JSON file.
        runs: folders of source runs, seeds of one configuration; seed S takes the one at S modulo their number.
        threshold: a mean return; by default that from which the target counts as solved, if it names one.
        preset: of both environments: what it holds for the source is taken for the target too.
        steps: at most so many env steps on the target.
        source_steps: env steps on the source.
        freeze: as of `api.transfer`.
        fine_tune: as of `api.transfer`.
        first_seed: the first seed; the others follow it.
        processes: runs side by side, with one core each.
        overrides: `key=value` texts over the preset, for both environments.
        changes: `key=value` texts for the target alone, `environment.kwargs` among them.
        overwrite: replace runs of the same pair that were made otherwise, not refuse.
        command: what the user has typed, kept in the file.

    Returns:
        The file's content.

    Raises:
        UserError: something asked for is wrong, or `out` holds something else; nothing was trained.
        RunError: `out` cannot be written.
    """
    pair = plan(
        source,
        target,
        runs=runs,
        threshold=threshold,
        preset=preset,
        steps=steps,
        source_steps=source_steps,
        freeze=freeze,
        fine_tune=fine_tune,
        overrides=overrides,
        changes=changes,
    )
    folder = out.with_name(f"{out.stem}.runs")
    with exclusive(folder):
        tree = records.read(out, "transfer") if out.exists() else records.empty("transfer", pairs=[])
        _make_room(tree, pair, out, overwrite)
        missing = [
            (seed, arm)
            for seed in range(first_seed, first_seed + seeds)
            for arm in ARMS
            if not any(_is(run, pair, seed, arm) for run in tree["runs"])
        ]
        tree["failed"] = [run for run in tree["failed"] if not any(_is(run, pair, *each) for each in missing)]
        session = records.add_session(tree, command)
        jobs, totals = [], {}
        for seed, arm in missing:
            name = f"{file_name(target)}-{_hash(pair)[:8]}-{arm}-seed{seed}"
            jobs.append(Job(name, train_one, (folder / name, pair, arm, seed)))
            before = 0 if arm == "scratch" or pair.runs else pair.source.training.total_steps
            totals[name] = before + pair.target.training.total_steps
        with Bar(totals) as shown:
            for done in workers.run(jobs, processes, folder, shown.advance):
                _take(tree, done, session, shown)
                records.write(out, tree)
                if done.error is None:
                    shutil.rmtree(done.job.arguments[0], ignore_errors=True)
                    (folder / f"{done.job.name}.log").unlink(missing_ok=True)
    if not tree["failed"]:
        shutil.rmtree(folder, ignore_errors=True)
    return tree


def plan(
    source: str | None,
    target: str,
    *,
    runs: Sequence[str],
    threshold: float | None,
    preset: str | None,
    steps: int | None,
    source_steps: int | None,
    freeze: int | None,
    fine_tune: int,
    overrides: Sequence[str],
    changes: Sequence[str],
) -> Pair:
    """The pair, tried so far that a wrong word is found before anything is trained; arguments as of `measure`.

    Raises:
        UserError: the first thing that is wrong.
    """
    if runs:
        if preset is not None or source_steps is not None:
            raise UserError("the source runs have settings and steps of their own; leave out preset and source steps")
        learned = _configuration_of(runs)
        if source not in (None, learned.environment.id):
            raise UserError(f"the source runs have learned {learned.environment.id}, not {source}")
    elif source is None:
        raise UserError("say what the network learns first, as --from ENV_ID, or give runs that have, as --source RUN")
    else:
        learned = resolve(source, preset, quiet(overrides), **_steps(source_steps))
    learned = learned.replace(seed=0)
    sections = {"environment": {"id": target}, "transfer": configuration.to_dict(TransferConfig()), **_steps(steps)}
    trained_on = configuration.change(learned, [*quiet(overrides), *changes], **sections)
    if trained_on.environment == learned.environment:
        raise UserError(
            f"{target} is what the network has learned; name another, or change something of the target alone"
        )
    if not trained_on.evaluation.interval:
        raise UserError("evaluation.interval must be above 0 here: its evaluations say when the threshold is reached")
    if not runs:
        _goal(learned)
    goal = _goal(trained_on)
    reached = goal if threshold is None else threshold
    if reached is None:
        raise UserError(f"{target} names no return from which it counts as solved; give one as the threshold")
    trained_on = trained_on.replace(callbacks={"stop_on_reward": float(reached), "early_stopping_patience": 0})
    return Pair(learned, trained_on, tuple(changes), freeze, fine_tune, tuple(runs))


def _goal(config: Config) -> float | None:
    """Makes an environment once, and gives the mean return from which it counts as solved, if it names one."""
    env = envs.make_single(config.environment)
    try:
        envs.spec_of(env)
        return getattr(env.spec, "reward_threshold", None)
    finally:
        env.close()


def _configuration_of(runs: Sequence[str]) -> Config:
    """That of finished runs, which must be one but for the seed."""
    from rlplatform.training import Run

    opened = [Run.open(run) for run in runs]
    for run in opened:
        if run.best() is None:
            raise UserError(f"{run.path} has no best policy yet: its first evaluation is still to come")
        reason = records.changes(configuration.to_toml(opened[0].config), run.config)
        if reason:
            raise UserError(
                f"the source runs must be seeds of one configuration; from the first to {run.path}: {reason}"
            )
    return opened[0].config


# --- in a process of its own ----------------------------------------------------------------------------------------


def train_one(folder: pathlib.Path, pair: Pair, arm: str, seed: int, ask: Ask) -> dict[str, Any]:
    """Trains one seed, from scratch or with transfer, in `folder`, or goes on there."""
    from rlplatform import api, devices
    from rlplatform.training import Run

    folder.mkdir(parents=True, exist_ok=True)
    options = _options(folder / "run", pair.target, seed)
    result: dict[str, Any] = {}
    if arm == "scratch":
        run, outcome = trained(api.session, ask, **options)
    else:
        if pair.runs:
            source, steps = Run.open(pair.runs[seed % len(pair.runs)]), 0
            before = source.config.training.total_steps
        else:
            source, learned = trained(api.session, ask, **_options(folder / "source", pair.source, seed))
            before = steps = learned.steps
        best = source.best()
        assert best is not None
        result |= {"source_steps": before, "source_return": records.compact(best.mean_return)}
        transfer = {"source": source, "freeze": pair.freeze, "fine_tune": pair.fine_tune}
        run, outcome = trained(api.transfer, ask, steps, **transfer, **options)
        result |= {"frozen_layers": run.config.transfer.frozen_layers}
    evaluations = [(step, records.compact(value)) for step, value in _evaluations(run.path)]
    return result | {
        "steps": first_reached(evaluations, pair.target.callbacks.stop_on_reward),
        "trained_steps": outcome.steps,
        "evaluations": evaluations,
        "training_seconds": seconds(run.path),
        "device": devices.describe(run.config.device),
    }


def _options(out: pathlib.Path, config: Config, seed: int) -> dict[str, Any]:
    """What a run is trained with, its configuration as a preset beside its folder."""
    preset = out.with_suffix(".toml")
    write_atomically(preset, tomli_w.dumps(as_preset(config)))
    return {"env": config.environment.id, "preset": str(preset), "seed": seed, "out": out}


def _evaluations(folder: pathlib.Path) -> list[tuple[int, float]]:
    """Env step and mean return of each evaluation during training."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [(int(row["step"]), float(row["eval/return"])) for row in rows if "eval/return" in row]


# --- the file -------------------------------------------------------------------------------------------------------


def read(path: pathlib.Path) -> dict[str, Any]:
    """A file of steps to thresholds.

    Raises:
        UserError: it is missing, or holds something else.
    """
    return records.read(path, "transfer")


def _make_room(tree: dict[str, Any], pair: Pair, out: pathlib.Path, overwrite: bool) -> None:
    """Keeps one configuration for each pair, and puts this one in."""

    def otherwise(kept: Mapping[str, Any], _: Sequence[Mapping[str, Any]]) -> str:
        source = records.changes(kept["source_config"], pair.source)
        given = f"other source runs, {', '.join(kept['source_runs'])} before" if kept["source_runs"] != runs else ""
        return records.changes(kept["config"], pair.target) or (source and f"of the source, {source}") or given

    runs = list(pair.runs)
    row = pair.key | {
        "threshold": pair.target.callbacks.stop_on_reward,
        "budget": pair.target.training.total_steps,
        "source_runs": runs,
        "sha256": _hash(pair),
        "source_config": configuration.to_toml(pair.source),
        "config": configuration.to_toml(pair.target),
    }
    refusal = (
        f"{out} holds runs from {row['from']} to {row['to']} that were made otherwise ({{reason}}); choose another "
        "--out, or replace them by --overwrite"
    )
    records.make_room(tree, "pairs", row, KEYS, otherwise, refusal, overwrite)


def _hash(pair: Pair) -> str:
    return records.digest(pair.target)


def _is(run: Mapping[str, Any], pair: Pair, seed: int, arm: str) -> bool:
    return all(run[key] == value for key, value in (pair.key | {"seed": seed, "arm": arm}).items())


def _take(tree: dict[str, Any], done: Done, session: int, shown: Bar) -> None:
    """Puts what has ended into the file's content, and says so."""
    _, pair, arm, seed = done.job.arguments
    label = f"{pair.target.environment.id} {arm} seed {seed}"
    key = pair.key | {"seed": seed, "arm": arm, "session": session}
    shown.finished(done.job, failed=done.error is not None)
    if done.error is not None:
        sentence = " ".join(done.error.split())
        tree["failed"].append(key | {"error": sentence})
        say(f"{label}: failed: {sentence}")
        return
    result = done.result
    tree["runs"].append(key | {"config": _hash(pair)} | result)
    threshold = pair.target.callbacks.stop_on_reward
    reached = f"{number(threshold)} not reached" if result["steps"] is None else f"{result['steps']:,} steps"
    say(f"{label}: {reached}, {result['training_seconds']:,.0f} s")


def _steps(steps: int | None) -> dict[str, Any]:
    return {} if steps is None else {"training": {"total_steps": steps}}
