"""The benchmark of returns: what is kept, what is trained again, what is refused."""

import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import time
import tomllib

import pytest
from numpy.testing import assert_allclose
from quick import QUICK, run_here

from rlplatform import api, cli, config, workers
from rlplatform.benchmarks import results, returns, runs
from rlplatform.errors import RunError, UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
ENV = "rlplatform.envs.probes:TwoSteps"


@pytest.fixture
def invented(here, monkeypatch):
    """Runs whose returns are invented, and a list of the seeds that were trained. Seeds in `fails` fail."""

    class Invented:
        trained, fails = [], set()

    def train_one(folder, env_id, preset, seed, steps, overrides, episodes, ask):
        Invented.trained.append((env_id, preset, seed))
        if seed in Invented.fails:
            raise RunError("training has\ndiverged")
        ask(10)
        played = {f"{which}_returns": [seed + 0.5] * episodes for which in ("best", "last")}
        return {"steps": 64, "best_step": 64, "training_seconds": 1.0} | played

    Invented.trained = []
    Invented.fails = set()
    monkeypatch.setattr(returns, "train_one", train_one)
    return Invented


def measure(out, presets=("dqn",), env_ids=(ENV,), seeds=2, episodes=3, overrides=QUICK, **options):
    return returns.measure(
        env_ids, presets, seeds=seeds, out=out, episodes=episodes, steps=64, overrides=overrides, **options
    )


@pytest.mark.slow
def test_a_run_is_kept_as_it_was_trained_and_evaluated(here, tmp_path):
    out = tmp_path / "made" / "returns.json"
    tree = measure(out, env_ids=["CartPole-v1"], seeds=1, first_seed=7, command="rlplatform benchmark returns ...")
    assert json.loads(out.read_text()) == tree
    assert [path.name for path in out.parent.iterdir()] == ["returns.json"], "the runs' folders are gone"
    (kept,) = tree["runs"]
    run = api.train(
        "CartPole-v1",
        preset="dqn",
        steps=64,
        seed=7,
        out=tmp_path / "run",
        overrides=["threads=1", *QUICK],
        progress=False,
    )
    for which in ("best", "last"):
        expected = api.evaluate(run, episodes=3, seed=7, which=which).evaluation.returns
        assert_allclose(kept[f"{which}_returns"], expected)
        assert all(isinstance(value, int) for value in kept[f"{which}_returns"])
    assert (kept["env"], kept["preset"], kept["seed"], kept["steps"]) == ("CartPole-v1", "dqn", 7, 64)
    assert kept["best_step"] == run.best().step
    (configuration,) = tree["configurations"]
    assert kept["config"] == configuration["sha256"]
    assert config.from_dict(tomllib.loads(configuration["config"])).replace(seed=7) == run.config
    about = tree["environments"]["CartPole-v1"]
    assert about["goal"] == 475.0
    assert 8.0 <= about["random"] < 100.0
    (session,) = tree["sessions"]
    assert session["command"] == "rlplatform benchmark returns ..."
    assert {"rlplatform", "tensorflow", "gymnasium"} <= set(session["versions"])
    assert session["machine"]["python"] == platform.python_version()
    assert session["machine"]["cores"] >= 1


def test_the_same_command_trains_only_what_is_missing(invented, tmp_path):
    out = tmp_path / "returns.json"
    tree = measure(out, presets=["dqn", "qrdqn"])
    assert invented.trained == [(ENV, "dqn", 0), (ENV, "qrdqn", 0), (ENV, "dqn", 1), (ENV, "qrdqn", 1)]
    before = out.read_bytes()
    invented.trained.clear()
    assert measure(out, presets=["dqn", "qrdqn"]) == tree
    assert invented.trained == []
    assert out.read_bytes() == before
    tree["runs"] = tree["runs"][:3]
    results.write(out, tree)
    measure(out, presets=["dqn", "qrdqn"], seeds=3)
    assert invented.trained == [(ENV, "qrdqn", 1), (ENV, "dqn", 2), (ENV, "qrdqn", 2)]


def test_every_run_is_written_as_it_ends(invented, tmp_path, monkeypatch):
    out = tmp_path / "returns.json"
    seen = []

    def watched(jobs, processes, logs, answer):
        for done in run_here(jobs, processes, logs, answer):
            yield done
            seen.append(len(json.loads(out.read_text())["runs"]))

    monkeypatch.setattr(workers, "run", watched)
    measure(out)
    assert seen == [0, 1, 2]  # after random actions, after seed 0, after seed 1


def test_a_run_that_fails_is_recorded_stops_no_other_and_is_tried_again(invented, tmp_path, capsys):
    out = tmp_path / "returns.json"
    invented.fails = {0}
    tree = measure(out)
    assert [run["seed"] for run in tree["runs"]] == [1]
    (failed,) = tree["failed"]
    assert (failed["env"], failed["preset"], failed["seed"]) == (ENV, "dqn", 0)
    assert failed["error"] == "training has diverged"
    assert f"{ENV} dqn seed 0: failed: training has diverged" in capsys.readouterr().err
    invented.fails = set()
    tree = measure(out)
    assert sorted(run["seed"] for run in tree["runs"]) == [0, 1]
    assert tree["failed"] == []


def test_rows_that_were_made_otherwise_are_refused_or_replaced(invented, tmp_path):
    out = tmp_path / "returns.json"
    measure(out, presets=["dqn", "qrdqn"])
    before = out.read_bytes()
    other = [*QUICK, "agent.gamma=0.5"]
    with pytest.raises(UserError, match=r"runs of .*TwoSteps with dqn that were made otherwise \(agent.gamma would"):
        measure(out, overrides=other)
    with pytest.raises(UserError, match="3 episodes, not 4"):
        measure(out, episodes=4)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["returns.json"]
    invented.trained.clear()
    tree = measure(out, overrides=other, overwrite=True)
    assert invented.trained == [(ENV, "dqn", 0), (ENV, "dqn", 1)]
    gammas = {it["preset"]: "gamma = 0.5" in it["config"] for it in tree["configurations"]}
    assert gammas == {"dqn": True, "qrdqn": False}
    assert len(tree["runs"]) == 4
    measure(out, overrides=[*other, "logging.interval=7", "threads=2"])  # what is learned is the same


@pytest.mark.parametrize("content", ["", "[]", '{"format": "another"}', '{"environment": "CartPole-v1", "runs": []}'])
def test_another_file_is_refused_and_left_alone(invented, tmp_path, content):
    out = tmp_path / "returns.json"
    out.write_text(content)
    with pytest.raises(UserError, match=r"returns\.json"):
        measure(out)
    assert out.read_text() == content
    assert invented.trained == []


def test_what_is_wrong_is_found_before_anything_is_trained(invented, tmp_path):
    for options, sentence in (
        ({"env_ids": [ENV, "CartPol-v1"]}, "did you mean 'CartPole-v1'"),
        ({"presets": ["dqn", "qrdnq"]}, "did you mean 'qrdqn'"),
        ({"overrides": ["agent.gama=1"]}, "did you mean 'agent.gamma'"),
    ):
        with pytest.raises(UserError, match=sentence):
            measure(tmp_path / "new" / "returns.json", **options)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("value", "kept"),
    [(500.0, 500), (-123_456.0, -123_456), (-123.456789, -123.46), (0.955, 0.955), (0.12345678, 0.12346), (0.0, 0)],
)
def test_whole_returns_are_kept_exactly_and_others_to_five_digits(value, kept):
    assert runs.compact([value]) == [kept]
    assert len(json.dumps(runs.compact([value]))) <= 10


def test_a_return_that_is_no_number_is_an_error_of_its_run():
    with pytest.raises(RunError, match="nan"):
        runs.compact([1.0, float("nan")])


def test_the_command_shows_the_table_of_a_file_and_ends_with_1_where_a_run_has_failed(invented, tmp_path, capsys):
    out = str(tmp_path / "returns.json")
    words = ["benchmark", "returns", "--envs", ENV, "--presets", "dqn,qrdqn", "--seeds", "3", "--episodes", "2"]
    for setting in QUICK:
        words += ["--set", setting]
    invented.fails = {2}
    assert cli.main([*words, "--out", out, "--json"]) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["runs"], len(result["failed"])) == (4, 2)
    assert [(row["preset"], row["best"]["estimate"]) for row in result["rows"]] == [("dqn", 1.0), ("qrdqn", 1.0)]
    assert json.loads(pathlib.Path(out).read_text())["sessions"][0]["command"].startswith("rlplatform benchmark ret")
    invented.trained.clear()
    assert cli.main(["benchmark", "returns", "--table", out]) == 0
    table = capsys.readouterr().out
    assert "dqn" in table.splitlines()[1]
    assert "failed: " in table
    assert cli.main(["benchmark", "returns", "--table", out, "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("| environment | preset |")
    assert invented.trained == []


@pytest.mark.exhaustive
@pytest.mark.slow
def test_after_kill_9_the_same_command_ends_with_the_returns_of_one_that_was_never_killed(tmp_path):
    def command(name):
        words = [sys.executable, "-m", "rlplatform", "benchmark", "returns", "--envs", "CartPole-v1"]
        words += ["--presets", "dqn", "--seeds", "2", "--episodes", "3", "--steps", "1500", "--out", name]
        for setting in (*QUICK, "checkpoint.interval=256", "evaluation.interval=512"):
            words += ["--set", setting]
        return words

    def kept():
        return json.loads(killed.read_text())["runs"] if killed.exists() else []

    killed, undisturbed = tmp_path / "killed.json", tmp_path / "undisturbed.json"
    process = subprocess.Popen(command(killed), cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while not list(tmp_path.glob("killed.runs/*/checkpoints/step_*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(kept()) < 2
    for name in (killed, undisturbed):
        done = subprocess.run(command(name), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    trees = [json.loads(path.read_text()) for path in (killed, undisturbed)]
    for tree in trees:
        tree["runs"].sort(key=lambda run: run["seed"])
        for run in tree["runs"]:
            del run["training_seconds"], run["session"]
    assert trees[0]["runs"] == trees[1]["runs"]
    assert not list(tmp_path.glob("*.runs"))
