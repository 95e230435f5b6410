"""Hyper-parameter search: what is tried, what is pruned, what a kill leaves, what is written."""

import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time
import tomllib

import pytest

pytest.importorskip("optuna")

import optuna
from quick import QUICK

from rlplatform import api, cli, config, search_space, sweep
from rlplatform.errors import RunError, UserError
from rlplatform.presets import resolve

ROOT = pathlib.Path(__file__).resolve().parent.parent
ENV = "rlplatform.envs.probes:ActionAndObservation"
SPACE = """
"optimizer.learning_rate" = { low = 1e-4, high = 1e-2, log = true }
"agent.n_step" = [1, 3]
"network.hidden_units" = [[8], [4, 4]]
"agent.target_update_interval" = { low = 1, high = 20 }
"""


@pytest.fixture
def space(tmp_path):
    (tmp_path / "space.toml").write_text(SPACE)
    return tmp_path / "space.toml"


class Invented:
    """Trials whose returns are invented: the mean return is the batch size, at each of ten evaluations.

    Attributes:
        trained: the parameters of those that were begun, in order.
        evaluations: how many each had played when it ended.
        dies_in: a trial that is cut short after five evaluations, as by a kill.
    """

    def __init__(self):
        self.trained, self.evaluations, self.folders, self.dies_in, self.fails = [], [], [], None, False

    def __call__(self, folder, base, params, seeds, episodes, ask):
        number = len(self.trained)
        self.trained.append(dict(params))
        self.folders.append(folder.name)
        self.evaluations.append(0)
        if self.fails:
            raise RunError("training has diverged")
        value = float(params["training.batch_size"])
        for step in range(1, 11):
            self.evaluations[-1] = step
            if ask((step, value)):
                return {"pruned": True, "value": None, "returns": [], "seconds": 1.0}
            if number == self.dies_in and step == 5:
                raise KeyboardInterrupt
        return {"pruned": False, "value": value, "returns": [value] * seeds, "seconds": 1.0}


@pytest.fixture
def invented(here, monkeypatch, tmp_path):
    trial = Invented()
    monkeypatch.setattr(sweep, "run_trial", trial)
    return trial


@pytest.fixture
def batches(tmp_path):
    """A space of batch sizes alone; the preset's own, 8, is in it."""
    path = tmp_path / "batches.toml"
    path.write_text("training.batch_size = {low = 1, high = 1000}")
    return path


def search(out, trials, **options):
    return sweep.sweep(ENV, trials=trials, out=out, preset="dqn", steps=128, episodes=4, overrides=QUICK, **options)


def trials_of(out):
    return [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_tiny_sweep_finds_a_preset_that_trains(here, space, tmp_path):
    out = tmp_path / "out"
    found = search(out, 3, space=space, seeds=2)
    assert found.trials == {"complete": 3, "pruned": 0, "failed": 0}
    first, *others = trials_of(out)
    own = {"agent.n_step": 3, "network.hidden_units": [8]}
    assert {key: first["params"][key] for key in own} == own, "the preset itself comes first"
    for row in (first, *others):
        assert row["params"].keys() == search_space.read(space, config.Config()).keys()
        assert 1e-4 <= row["params"]["optimizer.learning_rate"] <= 1e-2
        assert row["params"]["network.hidden_units"] in ([8], [4, 4])
        assert row["value"] == pytest.approx(sum(row["returns"]) / 2)
    assert found.value == max(row["value"] for row in (first, *others))
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == [
        *("best.toml", "journal.log", "runs", "space.toml", "sweep.json", "trials.jsonl")
    ]
    assert list((out / "runs").iterdir()) == []

    best = resolve(ENV, str(found.preset))
    base = resolve(ENV, "dqn", [*QUICK, "training.total_steps=128"])
    assert best == search_space.applied(base, found.params)
    run = api.train(ENV, preset=str(found.preset), seed=sweep.FIRST_SEED, out=tmp_path / "run", progress=False)
    again = api.evaluate(run, episodes=4, seed=sweep.FIRST_SEED).evaluation.mean
    assert again == pytest.approx(trials_of(out)[found.best]["returns"][0])


@pytest.mark.slow
def test_a_trial_trains_seed_after_seed_and_stops_at_the_evaluation_that_prunes_it(here, tmp_path):
    base = resolve(ENV, "dqn", [*QUICK, "training.total_steps=128", "evaluation.interval=128"])
    told = []

    def ask(message):
        told.append(message)
        return len(told) == 2

    result = sweep.run_trial(tmp_path / "trial", config.to_toml(base), {"agent.n_step": 3}, 2, 4, ask)
    assert (result["pruned"], len(result["returns"])) == (True, 1)
    assert [step for step, _ in told] == [1, 3], "the second seed's follow the first's"
    means = []
    for seed in (1000, 1001):
        folder = tmp_path / "trial" / f"seed-{seed}"
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        means.append(rows[-1]["eval/return"])
        saved = config.load(folder / "config.toml")
        assert (saved.seed, saved.agent.n_step, saved.threads) == (seed, 3, 1)
    assert told[0][1] == pytest.approx(means[0])
    assert told[1][1] == pytest.approx((result["returns"][0] + means[1]) / 2)


@pytest.mark.slow
def test_a_trial_that_is_pruned_trains_no_further(here, tmp_path):
    base = resolve(ENV, "dqn", [*QUICK, "training.total_steps=512"])
    result = sweep.run_trial(tmp_path / "trial", config.to_toml(base), {}, 1, 4, lambda message: message[0] == 2)
    assert (result["pruned"], result["value"], result["returns"]) == (True, None, [])
    rows = (tmp_path / "trial" / "seed-1000" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == 128


@pytest.mark.slow
def test_trials_below_the_median_are_pruned_after_a_while(invented, batches, tmp_path):
    found = search(tmp_path / "out", 30, space=batches)
    assert invented.trained[0] == {"training.batch_size": 8}
    assert found.trials["pruned"] >= 3
    assert found.trials["complete"] + found.trials["pruned"] == 30
    rows = trials_of(tmp_path / "out")
    complete = [row["params"]["training.batch_size"] for row in rows if row["state"] == "complete"]
    assert found.value == max(complete)
    assert found.params == {"training.batch_size": max(complete)}
    finished = []
    for row, played in zip(rows, invented.evaluations, strict=True):
        size = row["params"]["training.batch_size"]
        below = len(finished) >= 5 and size < statistics.median(finished)
        assert (row["state"], played) == (("pruned", 1) if below else ("complete", 10))
        if not below:
            finished.append(size)
    best = resolve(ENV, str(found.preset))
    assert best == resolve(ENV, "dqn", [*QUICK, "training.total_steps=128", f"training.batch_size={max(complete)}"])


def test_a_trial_that_a_kill_has_cut_short_comes_again_and_the_count_is_kept(invented, batches, tmp_path):
    out = tmp_path / "out"
    invented.dies_in = 2
    with pytest.raises(KeyboardInterrupt):
        search(out, 4, space=batches)
    assert [row["trial"] for row in trials_of(out)] == [0, 1]
    invented.dies_in = None
    found = search(out, 4, space=batches)
    assert sum(found.trials.values()) == 4
    assert invented.trained[3] == invented.trained[2]
    assert invented.folders[3] == invented.folders[2] == "trial-2", "its run goes on"
    assert len(invented.trained) == 5
    assert len({params["training.batch_size"] for params in invented.trained}) == 4, "no trial is drawn twice"
    rows = trials_of(out)
    assert [row["trial"] for row in rows] == [0, 1, 3, 4]
    assert len(rows[2]["evaluations"]) == 10

    assert sum(search(out, 6, space=batches).trials.values()) == 6
    assert len(invented.trained) == 7
    search(out, 6, space=batches)
    assert len(invented.trained) == 7


def test_a_journal_whose_last_line_was_cut_is_read(invented, batches, tmp_path):
    out = tmp_path / "out"
    search(out, 2, space=batches)
    journal = out / "journal.log"
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 4, "wor')
    os.symlink(journal, out / "journal.log.lock")
    assert sum(search(out, 3, space=batches).trials.values()) == 3


def test_trials_that_fail_are_counted_and_a_sweep_without_a_result_is_an_error(invented, batches, tmp_path):
    invented.fails = True
    with pytest.raises(RunError, match="no trial of 2 has come to its end; the last one: training has diverged"):
        search(tmp_path / "out", 2, space=batches)
    assert [row["state"] for row in trials_of(tmp_path / "out")] == ["failed", "failed"]
    invented.fails = False
    assert search(tmp_path / "out", 3, space=batches).trials == {"complete": 1, "pruned": 0, "failed": 2}


@pytest.mark.slow
def test_the_same_seed_draws_the_same_trials(invented, batches, tmp_path):
    search(tmp_path / "a", 4, space=batches, seed=5)
    search(tmp_path / "b", 4, space=batches, seed=5)
    search(tmp_path / "c", 4, space=batches, seed=6)
    first, second, third = (invented.trained[start : start + 4] for start in (0, 4, 8))
    assert first == second
    assert first != third


def test_another_sweep_or_another_folder_is_refused(invented, batches, space, tmp_path):
    out = tmp_path / "out"
    search(out, 1, space=batches)
    for options, sentence in (
        ({"space": space}, "holds another sweep: space would change"),
        ({"space": batches, "seeds": 2}, "seeds would change"),
    ):
        with pytest.raises(UserError, match=sentence):
            search(out, 2, **options)
    with pytest.raises(UserError, match=r"agent\.gamma would change"):
        sweep.sweep(
            ENV, trials=2, out=out, preset="dqn", steps=128, episodes=4, overrides=[*QUICK, "agent.gamma=0.5"],
            space=batches,
        )  # fmt: skip
    with pytest.raises(UserError, match=r"is no sweep and not empty \(it holds batches.toml\)"):
        search(tmp_path, 1, space=batches)
    with pytest.raises(UserError, match="is a file"):
        search(batches, 1, space=batches)
    assert len(invented.trained) == 1


def test_optuna_is_asked_for_by_the_name_of_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'rlplatform\[sweep\]'"):
        search(tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()


def test_the_command_tells_the_best_trial_and_its_preset(invented, batches, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["sweep", ENV, "--trials", "2", "--space", str(batches), "--out", str(out)]
    for setting in QUICK:
        words += ["--set", setting]
    assert cli.main([*words, "--json"]) == 0
    output = capsys.readouterr()
    result = json.loads(output.out.splitlines()[-1])
    assert result["trials"] == {"complete": 2, "pruned": 0, "failed": 0}
    assert result["preset"] == str(out / "best.toml")
    assert result["params"]["training.batch_size"] == result["value"]
    assert "trial 0: mean return 8" in output.err
    assert cli.main(words) == 0
    assert f"--preset {out / 'best.toml'}" in capsys.readouterr().out
    assert tomllib.loads((out / "best.toml").read_text())["preset"]["description"].startswith("found by a sweep of")


@pytest.mark.exhaustive
@pytest.mark.slow
def test_after_kill_9_the_same_command_ends_with_the_trials_that_were_asked_for(space, tmp_path):
    out = tmp_path / "out"
    words = [sys.executable, "-m", "rlplatform", "sweep", ENV, "--trials", "3", "--out", str(out)]
    words += ["--preset", "dqn", "--steps", "2000", "--space", str(space), "--episodes", "4"]
    for setting in (*QUICK, "checkpoint.interval=256", "evaluation.interval=512"):
        words += ["--set", setting]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while not list(out.glob("runs/trial-1/seed-1000/checkpoints/step_*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [row["trial"] for row in trials_of(out)] == [0]
    done = subprocess.run([*words, "--json"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert sum(result["trials"].values()) == 3
    study = optuna.load_study(
        study_name="sweep",
        storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(out / "journal.log"))),
    )
    assert [trial.state.name for trial in study.trials].count("FAIL") == 1
    assert len(study.trials) == 4
    assert study.trials[2].params == study.trials[1].params
