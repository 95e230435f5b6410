"""Hyper-parameter search with Optuna: trials in processes of their own, pruned on the way, kept in a journal.

Optuna is imported at the first use: it comes with the extra `rlplatform[sweep]`.
"""

import json
import pathlib
import shutil
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tomli_w

from rlplatform import config as configuration
from rlplatform import envs, search_space, workers
from rlplatform.config import Config
from rlplatform.errors import RunError, UserError
from rlplatform.files import exclusive, write_atomically
from rlplatform.presets import as_preset, resolve
from rlplatform.search_space import UPDATES_PER_STEP, Entry, Range, Space, applied, is_whole, to_plain
from rlplatform.workers import Ask, Done, Job, bar, say

FIRST_SEED = 1_000  # training seeds of trials: apart from 0 to 99, with which results are reported
JOURNAL, DESCRIPTION, TRIALS, BEST, SPACE = "journal.log", "sweep.json", "trials.jsonl", "best.toml", "space.toml"


class Found(NamedTuple):
    """What a sweep has found.

    Attributes:
        out: its folder.
        trials: those that have ended, by state: `complete`, `pruned` and `failed`.
        best: number of the best trial.
        value: its objective: mean return of the best policies over the training seeds.
        params: what it was tried with, by key.
        preset: the TOML file that `rlplatform train --preset` takes.
    """

    out: pathlib.Path
    trials: dict[str, int]
    best: int
    value: float
    params: dict[str, Any]
    preset: pathlib.Path


def sweep(
    env_id: str,
    *,
    trials: int,
    out: pathlib.Path,
    preset: str | None = None,
    steps: int | None = None,
    seeds: int = 1,
    episodes: int = 50,
    processes: int = 1,
    space: pathlib.Path | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> Found:
    """Searches for the settings with the highest return, or goes on with a search that was stopped or killed.

    The first trial is the preset as it is. A trial trains `seeds` agents one after the other, on seeds from 1000 on;
    its objective is the mean return of their best policies over fresh episodes, averaged over the seeds. While it
    trains, its evaluations are compared with those of other trials, and it is pruned where it stays below their median.

    Args:
        env_id: the environment.
        trials: how many in all; a sweep that goes on may have more than before.
        out: the sweep's folder. It gets `best.toml`, `trials.jsonl`, `space.toml` and Optuna's `journal.log`.
        preset: what the trials start from; by default the environment's own.
        steps: env steps of each run; the preset's by default.
        seeds: training seeds of each trial.
        episodes: fresh episodes for each seed.
        processes: trials side by side. An operation uses one core, unless `overrides` say otherwise.
        space: a TOML file with what is varied; `search_space.default_space` without it.
        seed: of the sampler.
        overrides: `key=value` texts over the preset, for every trial.

    Raises:
        UserError: Optuna is missing, a key is wrong, or `out` holds something else; nothing was trained.
        RunError: no trial has come to its end, or `out` cannot be written.
    """
    optuna = _optuna()
    base = resolve(env_id, preset, overrides, **_training(steps))
    env = envs.make_single(base.environment)
    try:
        envs.spec_of(env)
    finally:
        env.close()
    searched = search_space.default_space(base) if space is None else search_space.read(space, base)
    search_space.check(searched, base)
    description = {
        "format": 1,
        "config": configuration.to_toml(base),
        "space": to_plain(searched),
        "seeds": seeds,
        "episodes": episodes,
        "seed": seed,
    }
    _check_place(out, description)
    with exclusive(out):
        write_atomically(out / DESCRIPTION, json.dumps(description, indent=1) + "\n")
        write_atomically(out / SPACE, tomli_w.dumps(to_plain(searched)))
        study = _study(optuna, out, base, seed)
        _begin(optuna, study, searched, base)
        asked: dict[str, Any] = {}  # the trials that are under way, by the names of their jobs

        def jobs() -> Iterator[Job]:
            while _count(optuna, study) < trials:
                trial = _ask_for(optuna, study, searched)
                arguments = (_folder(out, trial), configuration.to_toml(base), _params(trial), seeds, episodes)
                asked[job := f"trial-{trial.number}"] = trial
                yield Job(job, run_trial, arguments)

        def answer(job: Job, message: tuple[int, float]) -> bool:
            trial, (step, value) = asked[job.name], message
            if step not in study.trials[trial.number].intermediate_values:  # else it was reported before a kill
                trial.report(value, step)
            return bool(trial.should_prune())

        with _Bar(_count(optuna, study), trials) as bar:
            for done in workers.run(jobs(), processes, out, answer):
                trial = asked.pop(done.job.name)
                _tell(optuna, study, trial, done)
                _write_results(optuna, study, out, base)
                shutil.rmtree(_folder(out, trial), ignore_errors=True)
                if done.error is None:
                    (out / f"{done.job.name}.log").unlink(missing_ok=True)
                bar.told(study.trials[trial.number])
        _write_results(optuna, study, out, base)
        return _found(optuna, study, out)


# --- Optuna ---------------------------------------------------------------------------------------------------------


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError:
        raise UserError("a sweep needs Optuna: pip install 'rlplatform[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(optuna: Any, out: pathlib.Path, base: Config, seed: int) -> Any:
    """The study of a folder: this process alone writes its journal, since it holds the folder."""
    journal = out / JOURNAL
    if journal.exists():  # a kill may have cut the last line short, and left the lock
        content = journal.read_bytes()
        if not content.endswith(b"\n"):
            journal.write_bytes(content[: content.rfind(b"\n") + 1])
    for stale in out.glob(f"{JOURNAL}.lock*"):
        stale.unlink(missing_ok=True)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    done = 0
    if any(study.study_name == "sweep" for study in storage.get_all_studies()):
        done = len(optuna.load_study(study_name="sweep", storage=storage).trials)
    evaluations = base.training.total_steps // (base.evaluation.interval or base.training.total_steps)
    return optuna.create_study(
        study_name="sweep",
        storage=storage,
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=seed + done),  # else it would draw its first trials again
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=evaluations // 4),
    )


def _begin(optuna: Any, study: Any, space: Space, base: Config) -> None:
    """Queues the preset itself before the first trial, and again each trial that a kill has cut short."""
    states = optuna.trial.TrialState
    if not study.trials:
        study.enqueue_trial(_own(space, base))
    for trial in study.trials:
        if trial.state == states.RUNNING:
            study.tell(trial.number, state=states.FAIL)
            again = trial.user_attrs.get("again", trial.number)
            study.enqueue_trial(trial.params, user_attrs={"again": again, "before": trial.number})
    queued = {trial.user_attrs.get("before") for trial in study.trials}
    for trial in study.trials:  # a kill between the two lines above
        if trial.state == states.FAIL and "error" not in trial.user_attrs and trial.number not in queued:
            again = trial.user_attrs.get("again", trial.number)
            study.enqueue_trial(trial.params, user_attrs={"again": again, "before": trial.number})


def _own(space: Space, base: Config) -> dict[str, Any]:
    """The preset's own values, in so far as the space contains them."""
    own: dict[str, Any] = {}
    tree = configuration.to_dict(base)
    for key, entry in space.items():
        value: Any = tree
        if key == UPDATES_PER_STEP:
            value = base.training.gradient_steps / base.training.train_interval
        else:
            for part in key.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(entry, Range):
            if isinstance(value, int | float) and entry.low <= value <= entry.high:
                own[key] = value
        elif value in entry:
            own[key] = _encoded(value)
    return own


def _ask_for(optuna: Any, study: Any, space: Space) -> Any:
    """The next trial; one that a kill has cut short knows what was reported of it before."""
    trial = study.ask({key: _distribution(optuna, entry) for key, entry in space.items()})
    before = trial.user_attrs.get("before")
    if before is not None:
        for step, value in study.trials[before].intermediate_values.items():
            trial.report(value, step)
    return trial


def _distribution(optuna: Any, entry: Entry) -> Any:
    if not isinstance(entry, Range):
        return optuna.distributions.CategoricalDistribution([_encoded(choice) for choice in entry])
    if is_whole(entry):
        step = 1 if entry.step is None else int(entry.step)
        return optuna.distributions.IntDistribution(entry.low, entry.high, log=entry.log, step=step)
    return optuna.distributions.FloatDistribution(entry.low, entry.high, log=entry.log, step=entry.step)


def _encoded(choice: Any) -> Any:
    """A choice as Optuna keeps it: texts and numbers as they are, lists and tables as JSON."""
    return json.dumps(choice) if isinstance(choice, list | dict | str) else choice


def _decoded(choice: Any) -> Any:
    return json.loads(choice) if isinstance(choice, str) else choice


def _folder(out: pathlib.Path, trial: Any) -> pathlib.Path:
    """Where a trial trains; one that was cut short goes on where it was."""
    return out / "runs" / f"trial-{trial.user_attrs.get('again', trial.number)}"


def _tell(optuna: Any, study: Any, trial: Any, done: Done) -> None:
    """Puts what came of a trial into the journal."""
    if done.error is not None:
        trial.set_user_attr("error", " ".join(done.error.split()))
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return
    for key in ("seconds", "returns"):
        trial.set_user_attr(key, done.result[key])
    if done.result["pruned"]:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    else:
        study.tell(trial, done.result["value"])


def _count(optuna: Any, study: Any) -> int:
    """The trials that count: all but those that wait, and those that a kill has cut short, which come again."""
    waiting = optuna.trial.TrialState.WAITING
    return sum(trial.state != waiting and _counts(optuna, trial) for trial in study.trials)


# --- a trial, in a process of its own -------------------------------------------------------------------------------


def run_trial(
    folder: pathlib.Path, base: str, params: Mapping[str, Any], seeds: int, episodes: int, ask: Ask
) -> dict[str, Any]:
    """Trains and evaluates one agent for each seed, until it is pruned.

    A step of the pruner is an evaluation: those of the first seed, then those of the second, and so on. Its value is
    the mean over the seeds that are done and the newest evaluation of the one that is training.
    """
    from rlplatform import api
    from rlplatform.training import Callback, RunControl

    config = applied(configuration.from_dict(tomllib.loads(base)), params)
    preset = folder / "trial.toml"
    folder.mkdir(parents=True, exist_ok=True)
    preset.write_text(tomli_w.dumps(as_preset(config)), encoding="utf-8")
    interval = config.evaluation.interval or config.training.total_steps
    a_seed = -(-config.training.total_steps // interval) + 1
    returns: list[float] = []

    class Pruning(Callback):
        pruned = False

        def on_evaluation(self, run: RunControl, evaluation: Any) -> None:
            value = (sum(returns) + float(evaluation.returns.mean())) / (len(returns) + 1)
            if ask((len(returns) * a_seed + run.step // interval, value)):
                self.pruned = True
                run.stop("pruned")

        def state(self) -> dict[str, Any]:
            return {"pruned": self.pruned}

        def load_state(self, state: Mapping[str, Any]) -> None:
            self.pruned = bool(state["pruned"])

    begin = time.perf_counter()
    pruning = Pruning()
    for index in range(seeds):
        seed = FIRST_SEED + index
        run, outcome = api.session(
            config.environment.id,
            preset=str(preset),
            seed=seed,
            out=folder / f"seed-{seed}",
            resume=True,
            overrides=[] if config.threads else ["threads=1"],
            callbacks=[pruning],
            progress=False,
        )
        if outcome.signal:
            raise RunError(f"{outcome.reason} at step {outcome.steps}")
        if pruning.pruned:
            break
        returns.append(float(api.evaluate(run, episodes=episodes, seed=seed).evaluation.mean))
    return {
        "pruned": pruning.pruned,
        "value": sum(returns) / len(returns) if returns else None,
        "returns": returns,
        "seconds": round(time.perf_counter() - begin, 1),
    }


# --- the folder -----------------------------------------------------------------------------------------------------


def _training(steps: int | None) -> dict[str, Any]:
    return {} if steps is None else {"training": {"total_steps": steps}}


def _check_place(out: pathlib.Path, description: Mapping[str, Any]) -> None:
    """A sweep needs a folder of its own, or the one of the same sweep.

    Raises:
        UserError: the folder holds something else.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out needs a folder that is new or empty")
    path = out / DESCRIPTION
    if not path.is_file():
        foreign = sorted(it.name for it in out.iterdir() if not it.name.startswith(".")) if out.is_dir() else []
        if foreign:
            raise UserError(f"{out} is no sweep and not empty (it holds {foreign[0]}); choose another --out")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    changed = [key for key, value in description.items() if before.get(key) != value]
    if "config" in changed:
        try:
            then, now = (configuration.from_dict(tomllib.loads(it["config"])) for it in (before, description))
            keys = configuration.differences(then, now)
        except (UserError, KeyError):
            keys = ["config"]
        changed = [*keys, *(key for key in changed if key != "config")]
    if changed:
        raise UserError(
            f"{out} holds another sweep: {', '.join(changed[:4])} would change; go on with it without that, or choose "
            "another --out"
        )


def _write_results(optuna: Any, study: Any, out: pathlib.Path, base: Config) -> None:
    """`trials.jsonl`, a line for each trial that has ended, and the best one's preset."""
    rows = [_row(optuna, trial) for trial in study.trials if trial.state.is_finished() and _counts(optuna, trial)]
    write_atomically(out / TRIALS, "".join(json.dumps(row) + "\n" for row in rows))
    best = _best(optuna, study)
    if best is None:
        return
    about = {
        "description": f"found by a sweep of {base.environment.id}: trial {best.number}, mean return {best.value:.6g}"
    }
    write_atomically(out / BEST, tomli_w.dumps(as_preset(applied(base, _params(best)), about)))


def _row(optuna: Any, trial: Any) -> dict[str, Any]:
    states = {optuna.trial.TrialState.COMPLETE: "complete", optuna.trial.TrialState.PRUNED: "pruned"}
    row = {
        "trial": trial.number,
        "state": states.get(trial.state, "failed"),
        "value": trial.value if trial.state == optuna.trial.TrialState.COMPLETE else None,
        "params": _params(trial),
        "returns": trial.user_attrs.get("returns", []),
        "evaluations": {str(step): value for step, value in sorted(trial.intermediate_values.items())},
        "seconds": trial.user_attrs.get("seconds"),
    }
    return row | ({"error": trial.user_attrs["error"]} if "error" in trial.user_attrs else {})


def _params(trial: Any) -> dict[str, Any]:
    """A trial's parameters as the configuration takes them."""
    return {
        key: _decoded(value) if hasattr(trial.distributions[key], "choices") else value
        for key, value in trial.params.items()
    }


def _counts(optuna: Any, trial: Any) -> bool:
    return trial.state != optuna.trial.TrialState.FAIL or "error" in trial.user_attrs


def _best(optuna: Any, study: Any) -> Any:
    complete = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    return max(complete, key=lambda trial: trial.value) if complete else None


def _found(optuna: Any, study: Any, out: pathlib.Path) -> Found:
    rows = [_row(optuna, trial) for trial in study.trials if trial.state.is_finished() and _counts(optuna, trial)]
    counts = {state: sum(row["state"] == state for row in rows) for state in ("complete", "pruned", "failed")}
    best = _best(optuna, study)
    if best is None:
        why = f"; the last one: {rows[-1]['error']}" if rows and "error" in rows[-1] else ""
        raise RunError(f"no trial of {len(rows)} has come to its end{why}")
    return Found(out, counts, best.number, float(best.value), _params(best), out / BEST)


class _Bar:
    """Trials with the time left, and a line for each that has ended."""

    def __init__(self, done: int, trials: int) -> None:
        self._bar = bar(trials, " trials", initial=min(done, trials))

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def told(self, trial: Any) -> None:
        """A trial has ended."""
        state = trial.state.name.lower()
        if state == "complete":
            words = f"mean return {trial.value:.6g}"
        elif state == "pruned":
            words = f"pruned at evaluation {max(trial.intermediate_values)}"
        else:
            words = f"failed: {trial.user_attrs['error']}"
        say(f"trial {trial.number}: {words}")
        self._bar.update()
