"""Steps that transfer saves: each seed trains from scratch and with transfer, until an evaluation is good enough."""

import json
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import tomli_w

from rlplatform import config as configuration
from rlplatform import workers
from rlplatform.analysis.savings import ARMS, KEYS, first_reached
from rlplatform.analysis.scores import number
from rlplatform.benchmarks import results, runs
from rlplatform.benchmarks.results import Form
from rlplatform.benchmarks.runs import Bar, compact, config_of, digest, file_name, matches
from rlplatform.config import Config, TransferConfig
from rlplatform.errors import UserError
from rlplatform.files import exclusive, write_atomically
from rlplatform.presets import as_preset
from rlplatform.workers import Ask, Done, Job, say

if TYPE_CHECKING:
    from rlplatform.training import Outcome, Run

FORM = Form(
    "rlplatform-transfer",
    1,
    "transfer",
    {"sessions": [], "configurations": [], "runs": [], "failed": []},
    records=("runs",),
)


# What both runs of a seed have in common, or their steps could not be compared.
_COMPARED = ("environment.", "evaluation.", "callbacks.", "transfer.", "training.total_steps")


class Pair(NamedTuple):
    """What is transferred where, and how.

    Attributes:
        source: what the network has learned, or learns first; its `environment.id` is where.
        config: that of the target, with which both runs of a seed are trained; where their first weights come from
            stands beside it.
        changes: `key=value` texts that hold for the target alone.
        transfer_changes: those that hold for the runs with transfer alone, over `config`.
        freeze: first layers that do not learn; None for all that are taken over, but for the last one.
        fine_tune: the last so many of those learn in the second half of the updates.
        given: folders of finished source runs; without them each seed trains its own.
    """

    source: Config
    config: Config
    changes: tuple[str, ...]
    transfer_changes: tuple[str, ...]
    freeze: int | None
    fine_tune: int
    given: tuple[str, ...]

    @property
    def key(self) -> dict[str, Any]:
        """What its records have, and those of no other pair."""
        pair = (self.source.environment.id, self.config.environment.id)
        changes = (list(self.changes), list(self.transfer_changes))
        return dict(zip(KEYS, (*pair, *changes, self.freeze, self.fine_tune), strict=True))

    @property
    def transfer_config(self) -> Config:
        """What the runs with transfer are trained with."""
        return configuration.change(self.config, self.transfer_changes)

    @property
    def words(self) -> str:
        """What a sentence calls it."""
        return f"{self.config.environment.id} after {self.source.environment.id}"

    @property
    def sha256(self) -> str:
        """Of all that its runs are made from."""
        configs = map(configuration.to_toml, (self.source, self.config))
        return digest(json.dumps([self.key, *configs, self.given]))

    def name(self, arm: str, seed: int) -> str:
        """What the folder of one run is called."""
        return f"{file_name(self.config.environment.id)}-{self.sha256[:8]}-{arm}-seed{seed}"


def measure(
    source: str | None,
    target: str,
    *,
    seeds: int,
    out: pathlib.Path,
    given: Sequence[str] = (),
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
    transfer_changes: Sequence[str] = (),
    overwrite: bool = False,
    command: str = "",
) -> dict[str, Any]:
    """Trains what `out` does not hold yet, and writes each run into `out` as it ends.

    Both runs of a seed have the same seed, and the same settings but for `transfer_changes`. A run ends at the first
    evaluation during training whose mean return reaches the threshold, or at its last step. What a kill has cut short
    goes on from its checkpoints, which lie beside `out` in `NAME.runs` until they are done; runs that have failed are
    tried again.

    Args:
        source: where the network learns first; may be left out where runs are `given`.
        target: where the steps are counted.
        seeds: of each of the two.
        out: the JSON file.
        given: folders of source runs, seeds of one configuration; seed S takes the one at S modulo their number.
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
        transfer_changes: `key=value` texts for the runs with transfer alone, none of what the two are compared by.
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
        given=given,
        threshold=threshold,
        preset=preset,
        steps=steps,
        source_steps=source_steps,
        freeze=freeze,
        fine_tune=fine_tune,
        overrides=overrides,
        changes=changes,
        transfer_changes=transfer_changes,
    )
    folder = out.with_name(f"{out.stem}.runs")
    with exclusive(folder):
        tree = results.read_or_begin(out, FORM)
        _make_room(tree, pair, out, overwrite)
        asked = [(arm, seed) for seed in range(first_seed, first_seed + seeds) for arm in ARMS]
        missing = [each for each in asked if not any(matches(run, _key(pair, *each)) for run in tree["runs"])]
        again = [_key(pair, *each) for each in missing]
        tree["failed"] = [run for run in tree["failed"] if not any(matches(run, key) for key in again)]
        session = results.session(tree, command)
        jobs, totals = [], {}
        for arm, seed in missing:
            name = pair.name(arm, seed)
            jobs.append(Job(name, train_one, (folder / name, pair, arm, seed)))
            before = 0 if arm == "scratch" or pair.given else pair.source.training.total_steps
            totals[name] = before + pair.config.training.total_steps
        with Bar(totals) as shown:
            for done in workers.run(jobs, processes, folder, shown.advance):
                _take(tree, done, session, shown)
                results.write(out, tree)
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
    given: Sequence[str],
    threshold: float | None,
    preset: str | None,
    steps: int | None,
    source_steps: int | None,
    freeze: int | None,
    fine_tune: int,
    overrides: Sequence[str],
    changes: Sequence[str],
    transfer_changes: Sequence[str],
) -> Pair:
    """The pair, tried so far that a wrong word is found before anything is trained; arguments as of `measure`.

    Raises:
        UserError: the first thing that is wrong.
    """
    if given:
        if preset is not None or source_steps is not None:
            raise UserError("the source runs have settings and steps of their own; leave out preset and source steps")
        learned = _configuration_of(given)
        if source not in (None, learned.environment.id):
            raise UserError(f"the source runs have learned {learned.environment.id}, not {source}")
    elif source is None:
        raise UserError("say what the network learns first, as --from ENV_ID, or give runs that have, as --source RUN")
    else:
        learned = config_of(source, preset, 0, source_steps, overrides)
        runs.num_actions(learned.environment)
    sections = {"environment": {"id": target}, "transfer": configuration.to_dict(TransferConfig())}
    sections |= {} if steps is None else {"training": {"total_steps": steps}}
    trained_on = configuration.change(learned, [*overrides, *changes], **sections)
    if trained_on.environment == learned.environment:
        raise UserError(
            f"{target} is what the network has learned; name another, or change something of the target alone"
        )
    if not trained_on.evaluation.interval:
        raise UserError("evaluation.interval must be above 0 here: its evaluations say when the threshold is reached")
    runs.num_actions(trained_on.environment)
    reached = runs.goal(trained_on.environment) if threshold is None else threshold
    if reached is None:
        raise UserError(f"{target} names no return from which it counts as solved; give one as the threshold")
    trained_on = trained_on.replace(callbacks={"stop_on_reward": float(reached), "early_stopping_patience": 0})
    pair = Pair(learned, trained_on, tuple(changes), tuple(transfer_changes), freeze, fine_tune, tuple(given))
    for key in configuration.differences(trained_on, pair.transfer_config):
        if key.startswith(_COMPARED):
            raise UserError(f"both runs of a seed must have the same {key}; change it with --set or --set-to")
    return pair


def _configuration_of(given: Sequence[str]) -> Config:
    """That of finished runs, which must be one but for the seed; over one core, as all that is trained here."""
    from rlplatform.training import Run

    opened = [Run.open(path) for path in given]
    for run in opened:
        if run.best() is None:
            raise UserError(f"{run.path} has no best policy yet: its first evaluation is still to come")
        keys = runs.differences(opened[0].config, run.config)
        if keys:
            raise UserError(
                f"the source runs must be seeds of one configuration; from the first to {run.path}, "
                f"{', '.join(keys[:4])} would change"
            )
    return opened[0].config.replace(seed=0, threads=1)


# --- in a process of its own ----------------------------------------------------------------------------------------


def train_one(folder: pathlib.Path, pair: Pair, arm: str, seed: int, ask: Ask) -> dict[str, Any]:
    """Trains one seed, from scratch or with transfer, in `folder`, or goes on there."""
    from rlplatform import devices
    from rlplatform.training import Run

    folder.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {}
    if arm == "scratch":
        run, outcome = _train(folder / "run", pair.config, seed, ask)
    else:
        if pair.given:
            source, steps = Run.open(pair.given[seed % len(pair.given)]), 0
            learned = source.config.training.total_steps
        else:
            source, first = _train(folder / "source", pair.source, seed, ask)
            learned = steps = first.steps
        best = source.best()
        assert best is not None
        transfer = {"source": source, "freeze": pair.freeze, "fine_tune": pair.fine_tune}
        run, outcome = _train(folder / "run", pair.transfer_config, seed, lambda step: ask(steps + step), **transfer)
        (source_return,) = compact([best.mean_return])
        about = {"source_steps": learned, "source_return": source_return}
        about |= {"frozen_layers": run.config.transfer.frozen_layers}
    evaluations = _evaluations(run.path)
    return about | {
        "steps": first_reached(evaluations, pair.config.callbacks.stop_on_reward),
        "trained_steps": outcome.steps,
        "evaluations": evaluations,
        "training_seconds": round(float(runs.newest_row(run.path)["seconds"]), 1),
        "device": devices.describe(run.config.device, run.config.replicas),
    }


def _train(
    folder: pathlib.Path, config: Config, seed: int, tell: Callable[[int], object], **transfer: Any
) -> "tuple[Run, Outcome]":
    """Trains by a whole configuration, which lies as a preset beside the run's folder."""
    preset, threads = folder.with_suffix(".toml"), f"threads={config.threads}"
    write_atomically(preset, tomli_w.dumps(as_preset(config)))
    return runs.train(folder, config.environment.id, str(preset), seed, None, [threads], tell, **transfer)


def _evaluations(folder: pathlib.Path) -> list[tuple[int, float]]:
    """Env step and mean return of each evaluation during training."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    found = [row for row in rows if "eval/return" in row]
    returns = compact(row["eval/return"] for row in found)
    return [(int(row["step"]), value) for row, value in zip(found, returns, strict=True)]


# --- the file, and words ----------------------------------------------------------------------------------------------


def read(path: pathlib.Path) -> dict[str, Any]:
    """A file of steps to thresholds.

    Raises:
        UserError: it is missing, or holds something else.
    """
    return results.read(path, FORM)


def _make_room(tree: dict[str, Any], pair: Pair, out: pathlib.Path, overwrite: bool) -> None:
    """Keeps one configuration for each pair, and puts this one in."""

    def differs(kept: Mapping[str, Any], _: results.Records) -> str:
        if kept["source_runs"] != list(pair.given):
            return f"other source runs, {', '.join(kept['source_runs']) or 'none'} before"
        reason = results.changes(kept["source_config"], pair.source)
        return f"of the source, {reason}" if reason else ""

    settings = {
        "threshold": pair.config.callbacks.stop_on_reward,
        "budget": pair.config.training.total_steps,
        "source_runs": list(pair.given),
        "source_config": configuration.to_toml(pair.source),
    }
    results.make_room(tree, FORM, [pair], out, overwrite, differs, **settings)


def _key(pair: Pair, arm: str, seed: int) -> dict[str, Any]:
    """What the record of one run has, and no other."""
    return pair.key | {"seed": seed, "arm": arm}


def _take(tree: dict[str, Any], done: Done, session: int, shown: Bar) -> None:
    """Puts what has ended into the file's content, and says so."""
    _, pair, arm, seed = done.job.arguments
    label = f"{pair.config.environment.id} {arm} seed {seed}"
    key = _key(pair, arm, seed)
    shown.finished(done.job, failed=done.error is not None)
    if done.error is not None:
        say(f"{label}: failed: {results.fail(tree, key, session, done.error)}")
        return
    result = done.result
    tree["runs"].append(key | {"session": session, "config": results.configuration_of(tree, pair.key)} | result)
    threshold = pair.config.callbacks.stop_on_reward
    reached = f"{number(threshold)} not reached" if result["steps"] is None else f"{result['steps']:,} steps"
    say(f"{label}: {reached}, {result['training_seconds']:,.0f} s")
