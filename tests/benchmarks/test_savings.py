"""The benchmark of transfer: what is compared, what is kept and gone on with, what is refused."""

import json
import os

import pytest
from quick import QUICK

from rlplatform import api, cli
from rlplatform.benchmarks import savings
from rlplatform.errors import RunError, UserError
from rlplatform.presets import resolve

ENV = "rlplatform.envs.probes:Counting"
ONES = "environment.kwargs.lengths=[4]"  # the same observations and actions, in other episodes


@pytest.fixture
def invented(here, monkeypatch):
    """Runs whose steps are invented, and a list of what was trained. Seeds in `fails` fail."""

    class Invented:
        trained, fails = [], set()

    def train_one(folder, pair, arm, seed, ask):
        Invented.trained.append((arm, seed))
        if seed in Invented.fails:
            raise RunError("training has\ndiverged")
        ask(10)
        about = {"source_steps": 64, "source_return": 1, "frozen_layers": 1} if arm == "transfer" else {}
        steps = {"scratch": 60, "transfer": 30}[arm]
        return about | {"steps": steps, "trained_steps": steps, "evaluations": [], "training_seconds": 1.0}

    Invented.trained = []
    Invented.fails = set()
    monkeypatch.setattr(savings, "train_one", train_one)
    return Invented


def measure(out, source=ENV, target=ENV, seeds=2, overrides=QUICK, changes=(ONES,), threshold=5.0, **options):
    return savings.measure(
        source,
        target,
        seeds=seeds,
        out=out,
        threshold=threshold,
        steps=64,
        overrides=overrides,
        changes=changes,
        **options,
    )


def test_the_same_command_trains_only_what_is_missing(invented, tmp_path):
    out = tmp_path / "made" / "transfer.json"
    tree = measure(out, command="rlplatform benchmark transfer ...")
    assert invented.trained == [("scratch", 0), ("transfer", 0), ("scratch", 1), ("transfer", 1)]
    assert json.loads(out.read_text()) == tree
    assert [path.name for path in out.parent.iterdir()] == ["transfer.json"]
    assert tree["sessions"][0]["command"] == "rlplatform benchmark transfer ..."
    before = out.read_bytes()
    invented.trained.clear()
    assert measure(out, command="rlplatform benchmark transfer ...") == tree
    assert (invented.trained, out.read_bytes()) == ([], before)
    measure(out, seeds=3)
    assert invented.trained == [("scratch", 2), ("transfer", 2)]
    invented.trained.clear()
    measure(out, freeze=0)  # another row
    assert len(invented.trained) == 4
    tree = measure(out, transfer_changes=["exploration.epsilon=0.05"])  # and another
    assert len(invented.trained) == 8
    assert [pair["transfer_changes"] for pair in tree["configurations"]] == [[], [], ["exploration.epsilon=0.05"]]


def test_a_run_that_fails_is_recorded_stops_no_other_and_is_tried_again(invented, tmp_path):
    out = tmp_path / "transfer.json"
    invented.fails = {0}
    tree = measure(out)
    assert [(run["arm"], run["seed"]) for run in tree["runs"]] == [("scratch", 1), ("transfer", 1)]
    assert {run["error"] for run in tree["failed"]} == {"training has diverged"}
    invented.fails = set()
    tree = measure(out)
    assert (len(tree["runs"]), tree["failed"]) == (4, [])


def test_rows_that_were_made_otherwise_are_refused_or_replaced(invented, tmp_path):
    out = tmp_path / "transfer.json"
    measure(out)
    before = out.read_bytes()
    with pytest.raises(UserError, match=r"were made otherwise \(callbacks.stop_on_reward would change\)"):
        measure(out, threshold=6.0)
    with pytest.raises(UserError, match=r"\(of the source, training.total_steps would change\)"):
        measure(out, source_steps=77)
    assert out.read_bytes() == before
    tree = measure(out, threshold=6.0, overwrite=True)
    assert [pair["threshold"] for pair in tree["configurations"]] == [6.0]
    assert len(tree["runs"]) == 4
    (tmp_path / "other.json").write_text('{"format": "rlplatform-returns", "version": 1}')
    with pytest.raises(UserError, match=r"other\.json is no file of `rlplatform benchmark transfer`"):
        measure(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"source": "CartPol-v1"}, "did you mean 'CartPole-v1'"),
        ({"source": None}, "say what the network learns first, as --from ENV_ID"),
        ({"changes": ()}, "is what the network has learned"),
        ({"threshold": None}, "names no return from which it counts as solved"),
        ({"overrides": [*QUICK, "evaluation.interval=0"]}, "evaluation.interval must be above 0 here"),
        ({"changes": ["agent.gama=1"]}, "did you mean 'agent.gamma'"),
        ({"transfer_changes": ["agent.gama=1"]}, "did you mean 'agent.gamma'"),
        ({"transfer_changes": [ONES.replace("4", "5")]}, "of a seed must have the same environment.kwargs.lengths"),
        ({"transfer_changes": ["training.total_steps=9"]}, "must have the same training.total_steps; change it with"),
        ({"given": ["nowhere"], "source": None}, "there is no run folder nowhere"),
        ({"given": ["nowhere"], "preset": "dqn"}, "have settings and steps of their own"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_trained(invented, tmp_path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        measure(tmp_path / "new" / "transfer.json", **options)
    assert os.listdir(tmp_path) == []
    assert invented.trained == []


def test_the_threshold_is_where_the_target_counts_as_solved_and_both_have_the_sources_preset(here):
    options = {"given": (), "threshold": None, "preset": None, "steps": 500, "source_steps": 900}
    options |= {"freeze": None, "fine_tune": 0, "overrides": ["agent.gamma=0.9"], "changes": []}
    options |= {"transfer_changes": ["agent.gamma=0.8"]}
    pair = savings.plan("CartPole-v1", "rlplatform.envs.variants:HeavyCartPole", **options)
    assert pair.config.callbacks.stop_on_reward == 475.0
    assert (pair.source.training.total_steps, pair.config.training.total_steps) == (900, 500)
    assert pair.source.network == pair.config.network
    assert pair.source.agent == pair.config.agent
    assert (pair.config.agent.gamma, pair.transfer_config.agent.gamma) == (0.9, 0.8)
    own = resolve("rlplatform.envs.variants:HeavyCartPole")
    assert pair.config.exploration == resolve("CartPole-v1").exploration != own.exploration


def test_the_command_shows_the_table_of_a_file_and_ends_with_1_where_a_run_has_failed(invented, tmp_path, capsys):
    out = str(tmp_path / "transfer.json")
    words = ["benchmark", "transfer", "--from", ENV, "--to", ENV, "--set-to", ONES, "--threshold", "5", "--seeds", "4"]
    for setting in QUICK:
        words += ["--set", setting]
    invented.fails = {2}
    assert cli.main([*words, "--out", out, "--json"]) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["runs"], len(result["failed"])) == (6, 2)
    assert [(row["seeds"], row["ratio"]["estimate"]) for row in result["rows"]] == [(3, 0.5)]
    assert cli.main(["benchmark", "transfer", "--table", out, "--markdown"]) == 0
    table = capsys.readouterr().out
    assert table.startswith("| from | to |")
    assert f"{ENV} {ONES}" in table
    for wrong, sentence in (
        (["--from", ENV], "--to is missing"),
        (["--to", ENV, "--out", out], "say what the network learns first, as --from ENV_ID"),
        (["--table", out, "--to", ENV], "--table shows a file that is there"),
        (["--table", out, "--source", "runs/pole"], "--table shows a file that is there"),
    ):
        assert cli.main(["benchmark", "transfer", *wrong]) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.exhaustive
@pytest.mark.slow
def test_each_seed_is_trained_twice_and_with_transfer_it_begins_with_what_its_source_has_learned(here, tmp_path):
    out = tmp_path / "transfer.json"
    tree = measure(out, seeds=1, source_steps=96, threshold=1e9)
    scratch, transfer = tree["runs"]
    assert (scratch["arm"], transfer["arm"]) == ("scratch", "transfer")
    assert scratch["steps"] is transfer["steps"] is None
    assert [step for step, _ in scratch["evaluations"]] == [64]
    assert transfer["source_steps"] == 96
    assert transfer["frozen_layers"] == 1
    reached = measure(out, seeds=1, threshold=0.0, overwrite=True)
    assert [run["steps"] for run in reached["runs"]] == [64, 64]
    run = api.train(ENV, preset="dqn", seed=5, steps=64, out=tmp_path / "own", overrides=QUICK, progress=False)
    given = measure(out, source=None, given=[str(run.path)], freeze=0, seeds=1)
    row = given["runs"][-1]
    assert row["source_return"] == pytest.approx(run.best().mean_return, rel=1e-4)
    assert row["frozen_layers"] == 0
    assert not list(tmp_path.glob("*.runs"))
