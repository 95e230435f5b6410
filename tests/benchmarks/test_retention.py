"""The benchmark of compression: what is kept, what is made again, what is refused, and one cell as it really is."""

import json
import os
import pathlib

import numpy as np
import pytest
import tf_keras as keras
from known import RULE, cartpole_run
from quick import QUICK, run_here

from rlplatform import api, cli, workers
from rlplatform.agents import networks
from rlplatform.benchmarks import methods, results, retention, runs
from rlplatform.benchmarks.methods import Method, Teacher
from rlplatform.compression import canonical, search, students
from rlplatform.errors import RunError, UserError

ENV = "rlplatform.envs.probes:TwoSteps"


@pytest.fixture
def invented(here, monkeypatch):
    """Teachers, bundles and agents from scratch that are invented, and a list of what was made.

    Methods in `fails` fail, a method's students have the architecture that `students` names, and `policy` is what every
    teacher's weights are.
    """

    class Invented:
        made, fails, students, policy = [], set(), {"auto": "16-16", "2kB": "16-16", "3kB": "8x3s1 16"}, "abc"

    def teach(folder, name, teacher, known, ask):
        Invented.made.append(("teacher", teacher.seed))
        if "teacher" in Invented.fails:
            raise RunError("training has\ndiverged")
        if known is not None and known["policy"] != Invented.policy:
            raise RunError("another policy")
        (folder / name).mkdir(parents=True, exist_ok=True)
        ask("step 64")
        played = {"returns": [10] * teacher.episodes, "random_returns": [0] * teacher.episodes}
        return folder / name, {"policy": Invented.policy, "architecture": "8", "training_seconds": 1.0, **played}

    def cells(texts, teacher, **about):
        figures = {
            "variant": "int8",
            "quantisation": "static",
            "bytes": 1_000,
            "gzip_bytes": 500,
            "microseconds": 2.0,
            "golden": 0.9,
        }
        figures |= {
            "visited": 0.9,
            "clear": 1.0,
            "passed": True,
            "failures": [],
            "seconds": 1.0,
            "returns": [9] * teacher.episodes,
        }
        return [{"method": text} | figures | about for text in texts]

    def shrink(run, texts, teacher, own, ask):
        Invented.made.append((", ".join(texts), teacher.seed))
        assert run.is_dir(), "the teacher's run is there until all is made of it"
        if Invented.fails & set(texts):
            raise RunError("the converter fails")
        student = Invented.students.get(texts[0])
        return cells(texts, teacher, architecture=student or own, distilled=student is not None)

    def train_small(folder, architecture, variant, quantisation, teacher, ask):
        Invented.made.append((f"scratch {architecture}", teacher.seed))
        return cells(["scratch"], teacher, architecture=architecture, distilled=False)

    Invented.made, Invented.fails = [], set()
    for function in (teach, shrink, train_small):
        monkeypatch.setattr(methods, function.__name__, function)
    return Invented


def measure(out, env_ids=(ENV,), texts=("int8", "auto"), teachers=1, overrides=QUICK, **options):
    options = {"episodes": 3, "steps": 64, "methods": texts, "teachers": teachers, "overrides": overrides} | options
    return retention.measure(env_ids, "dqn", out=out, **options)


def test_a_teacher_comes_before_its_methods_and_they_before_their_rivals_and_equals_are_made_once(invented, tmp_path):
    out = tmp_path / "made" / "compression.json"
    tree = measure(out, texts=("int8", "auto", "2kB", "3kB"), command="rlplatform benchmark compression ...")
    assert invented.made[:3] == [("teacher", 0), ("folds, int8", 0), ("auto", 0)]
    assert sorted(invented.made[3:]) == [("2kB", 0), ("3kB", 0), ("scratch 16-16", 0), ("scratch 8x3s1 16", 0)]
    assert json.loads(out.read_text()) == tree
    assert [path.name for path in out.parent.iterdir()] == ["compression.json"], "the runs' folders are gone"
    assert sorted(cell["method"] for cell in tree["cells"]) == sorted(
        ["folds", "int8", "auto", "2kB", "3kB", "scratch", "scratch"]
    )
    (kept,) = tree["configurations"]
    (teacher,) = tree["teachers"]
    assert teacher["config"] == kept["sha256"]
    assert (kept["episodes"], kept["compress_episodes"], kept["target"]) == (3, 100, "cpu")
    assert tree["sessions"][0]["command"] == "rlplatform benchmark compression ..."


def test_the_same_command_makes_only_what_is_missing(invented, tmp_path):
    out = tmp_path / "compression.json"
    tree = measure(out, teachers=2)
    before = out.read_bytes()
    invented.made.clear()
    assert measure(out, teachers=2) == tree
    assert invented.made == []
    assert out.read_bytes() == before
    tree["cells"] = [
        cell for cell in tree["cells"] if (cell["method"], cell["seed"]) not in {("auto", 1), ("folds", 0)}
    ]
    results.write(out, tree)
    measure(out, teachers=2)
    assert invented.made == [("teacher", 0), ("folds", 0), ("teacher", 1), ("auto", 1)]
    assert len(json.loads(out.read_text())["teachers"]) == 2


def test_teachers_stay_in_the_folder_that_was_given_for_them(invented, tmp_path):
    measure(tmp_path / "compression.json", kept_runs=tmp_path / "mine")
    assert len(list((tmp_path / "mine").iterdir())) == 1
    assert sorted(os.listdir(tmp_path)) == ["compression.json", "mine"]


def test_every_part_is_written_as_it_ends(invented, tmp_path, monkeypatch):
    out = tmp_path / "compression.json"
    seen = []

    def watched(jobs, processes, logs, answer):
        for done in run_here(jobs, processes, logs, answer):
            yield done
            tree = json.loads(out.read_text())
            seen.append((len(tree["teachers"]), len(tree["cells"])))

    monkeypatch.setattr(workers, "run", watched)
    measure(out)
    assert seen == [(1, 0), (1, 2), (1, 3), (1, 4)]


@pytest.mark.parametrize(("quiet_seconds", "told"), [(0.0, True), (60.0, False)])
def test_a_log_file_is_told_now_and_then_what_a_job_is_at(invented, tmp_path, capsys, monkeypatch, quiet_seconds, told):
    monkeypatch.setattr(retention, "QUIET_SECONDS", quiet_seconds)
    measure(tmp_path / "compression.json")
    assert ("seed0: step 64" in capsys.readouterr().err) is told


def test_what_fails_is_recorded_stops_nothing_else_keeps_its_teacher_and_is_tried_again(invented, tmp_path, capsys):
    out = tmp_path / "compression.json"
    invented.fails = {"auto"}
    tree = measure(out, teachers=2)
    assert [(it["seed"], it["method"], it["error"]) for it in tree["failed"]] == [
        (seed, "auto", "the converter fails") for seed in (0, 1)
    ]
    assert len(tree["cells"]) == 4
    assert f"{ENV} dqn seed 1 auto: failed: the converter fails" in capsys.readouterr().err
    assert len(list((tmp_path / "compression.runs").glob("*-seed?"))) == 2
    invented.fails = set()
    invented.made.clear()
    tree = measure(out, teachers=2)
    assert tree["failed"] == []
    assert len(tree["cells"]) == 8
    assert not any(made.startswith("folds") for made, _ in invented.made)
    assert os.listdir(tmp_path) == ["compression.json"]


def test_a_teacher_that_fails_takes_its_methods_along_and_is_one_failure(invented, tmp_path):
    invented.fails = {"teacher"}
    tree = measure(tmp_path / "compression.json")
    assert [it["error"] for it in tree["failed"]] == ["training has diverged"]
    assert invented.made == [("teacher", 0)]


def test_figures_of_two_policies_never_come_together(invented, tmp_path):
    out = tmp_path / "compression.json"
    measure(out)
    invented.policy = "def"
    tree = measure(out, texts=("int8", "auto", "2kB"))
    assert [it["error"] for it in tree["failed"]] == ["another policy"]
    assert {cell["method"] for cell in tree["cells"]} == {"folds", "int8", "auto", "scratch"}


def test_rows_that_were_made_otherwise_are_refused_or_replaced(invented, tmp_path):
    out = tmp_path / "compression.json"
    measure(out)
    before = out.read_bytes()
    for options, reason in (
        ({"overrides": [*QUICK, "agent.gamma=0.5"]}, "agent.gamma would change"),
        ({"episodes": 4}, "episodes 3, not 4"),
        ({"target": "mcu"}, "target cpu, not mcu"),
    ):
        with pytest.raises(UserError, match=rf"runs of .*TwoSteps with dqn that were made otherwise \({reason}"):
            measure(out, **options)
    assert out.read_bytes() == before
    invented.made.clear()
    tree = measure(out, target="mcu", overwrite=True)
    assert invented.made[0] == ("teacher", 0)
    assert [it["target"] for it in tree["configurations"]] == ["mcu"]
    assert (len(tree["teachers"]), len(tree["cells"])) == (1, 4)


def test_what_is_wrong_is_found_before_anything_is_trained(invented, tmp_path):
    out = tmp_path / "new" / "compression.json"
    for options, sentence in (
        ({"env_ids": ["CartPol-v1"]}, "did you mean 'CartPole-v1'"),
        (
            {"texts": ["int8", "tiny"]},
            "unknown method 'tiny'; methods are folds, int8, int16x8, auto, a size like 2.7kB",
        ),
        ({"overrides": [*QUICK, "network.recurrent=lstm"]}, "recurrent network, of which no students are made"),
    ):
        with pytest.raises(UserError, match=sentence):
            measure(out, **options)
    assert os.listdir(tmp_path) == []
    returns = pathlib.Path(__file__).resolve().parent.parent.parent / "benchmarks" / "returns.json"
    with pytest.raises(UserError, match="is no file of `rlplatform benchmark compression`"):
        retention.read(returns)


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("folds", Method(variant="float")),
        ("int8", Method(variant="int8")),
        ("auto", Method(budget="auto")),
        ("2.7kB", Method(budget="2.7kB")),
        ("prune=0.9", Method(prune=0.9)),
        ("auto+prune=0.5+clusters=16", Method(budget="auto", prune=0.5, clusters=16)),
    ],
)
def test_a_method_says_what_compress_is_given_and_which_file_is_measured(text, method):
    assert methods.parse(text) == method


@pytest.mark.parametrize("text", ["", "prune=1.5", "prune=x", "clusters=1", "folds+prune=0.5", "auto+tiny"])
def test_what_is_no_method_is_refused(text):
    with pytest.raises(UserError, match="unknown method"):
        methods.parse(text)


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [
        ("16-8", (4,)),
        ("linear", (4,)),
        ("16-8", (6, 5, 2)),
        ("16x3s1 32", (10, 10, 4)),
        ("6x5s2-8x3s1", (12, 14, 2)),
        ("4x8s8-6x2s2-8x1s1 12-10", (36, 36, 1)),
    ],
)
def test_the_rival_of_a_student_has_its_layers_and_as_many_weights_whatever_its_teacher_has(architecture, shape):
    flags = [f"network.{flag}=true" for flag in ("dueling", "layer_norm", "noisy", "normalize_observations")]
    overrides = [*flags, "network.convolutions=[[5, 4, 3]]", *methods.from_scratch(architecture)]
    keras.utils.set_random_seed(0)
    network = networks.build(runs.config_of("CartPole-v1", "dqn", 0, None, overrides), shape, "float32", 3)
    folded = canonical(network).model
    assert str(students.of_teacher(folded)) == architecture
    assert folded.count_params() == students.parameters(students.parse(architecture), shape, 3)
    sample = np.random.default_rng(0).normal(size=(50, *shape)).astype(np.float32)
    student = canonical(students.build(students.parse(architecture), sample, 3)).model
    rival, own = ([type(layer) for layer in each.layers] for each in (folded, student))
    assert rival == [kind for kind in own if kind is not keras.layers.Rescaling], "the same but for an image's shift"


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_rival_of_a_student_with_convolutions_is_trained_and_its_file_measured(here, tmp_path):
    teacher = Teacher("rlplatform.envs.probes:Catch", "dqn", 7, 64, QUICK, "cpu", 3, 3)
    (cell,) = methods.train_small(tmp_path / "small", "4x8s4-6x3s2 12", "int8", "dynamic", teacher, lambda words: None)
    assert (cell["method"], cell["architecture"], cell["variant"]) == ("scratch", "4x8s4-6x3s2 12", "int8")
    assert cell["parameters"] == students.parameters(students.parse("4x8s4-6x3s2 12"), (36, 36, 1), 3)
    assert len(cell["returns"]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("quantisation", ["static", "int16x8"])
def test_the_file_of_a_rival_is_made_as_the_students_is(tmp_path, quantisation):
    teacher = Teacher("CartPole-v1", "dqn", 7, 64, QUICK, "mcu", 3, 3)
    (cell,) = methods.train_small(tmp_path / "small", "4", "int8", quantisation, teacher, lambda words: None)
    assert (cell["variant"], cell["quantisation"], cell["distilled"]) == ("int8", quantisation, False)
    assert len(cell["returns"]) == 3


@pytest.mark.parametrize(
    ("failed", "limit", "expected"),
    [
        ((), None, "int8"),
        (("int8",), None, "float"),
        (("int8", "float"), None, "int8"),
        (("int8",), 900, "int8"),
        (("int8",), 4_000, "float"),
    ],
)
def test_the_file_that_is_measured_keeps_to_the_budget_and_then_to_the_gates(failed, limit, expected):
    failures = {variant: ["no"] * (variant in failed) for variant in ("float", "int8")}
    assert methods.best_file({"float": 3_000, "int8": 800}, failures, limit) == expected


def test_only_a_finished_run_of_the_same_configuration_and_seed_is_taken_for_a_teacher(tmp_path):
    (tmp_path / "runs").mkdir()
    run = cartpole_run(tmp_path / "runs" / "any-name")
    config = run.config
    metrics = run.path / "metrics.jsonl"
    assert methods.finished(tmp_path / "runs", config) is None, "it has no metrics"
    total = config.training.total_steps
    for row, found in (
        ({"step": total - 1, "seconds": 1.0, "eval/return": 9.0}, None),
        ({"step": total, "seconds": 1.0}, None),
        ({"step": total, "seconds": 1.0, "eval/return": 9.0}, run.path),
    ):
        metrics.write_text(json.dumps(row) + "\n")
        assert methods.finished(tmp_path / "runs", config) == found
    apart = config.replace(threads=3, checkpoint={"interval": 7})
    assert methods.finished(tmp_path / "runs", apart) == run.path
    for other in (config.replace(seed=1), config.replace(agent={"gamma": 0.5})):
        assert methods.finished(tmp_path / "runs", other) is None
    metrics.write_text('{"step": 12')
    assert methods.finished(tmp_path / "runs", config) is None, "half a line"


@pytest.mark.slow
def test_a_file_is_measured_on_its_teachers_episodes_and_a_refused_one_is_marked(tmp_path, monkeypatch):
    """Of a policy that always earns 500: by its own bundle, and by a linear student that was taught the opposite."""
    monkeypatch.setattr(search, "STATES", 2_000)
    monkeypatch.setattr(search, "ROUND_STATES", 1_000)
    monkeypatch.setattr(search, "STAGES", ((1, search.ROUNDS),))
    run = cartpole_run(tmp_path / "run")
    said = []
    teacher = Teacher("CartPole-v1", "dqn", 3, 64, QUICK, "cpu", 5, 4)
    folds, int8 = methods.shrink(run.path, ["folds", "int8"], teacher, "64-64", said.append)
    expected = api.evaluate(run, episodes=5, seed=3).evaluation.returns
    assert folds["returns"] == int8["returns"] == expected.tolist() == [500.0] * 5
    assert (folds["variant"], int8["variant"]) == ("float", "int8")
    assert folds["bytes"] > 2 * int8["bytes"]
    assert folds["clear"] == 1.0
    assert {"agreement", "return", "runtime reference"} <= set(int8["gates"])
    assert (folds["golden"], folds["passed"], folds["architecture"], folds["distilled"]) == (1.0, True, "64-64", False)
    assert any(words.startswith("playing") for words in said)
    against = np.stack([RULE, -RULE], axis=1).astype(np.float32)
    monkeypatch.setattr(
        search, "distil", lambda model, *_, **__: model.layers[-1].set_weights([against, np.zeros(2, np.float32)])
    )
    (cell,) = methods.shrink(run.path, ["0.9kB"], teacher, "64-64", said.append)
    assert cell["distilled"]
    assert cell["bytes"] <= 900
    assert not cell["passed"]
    assert any(sentence.startswith("gate 'return' failed for") for sentence in cell["failures"])
    assert max(cell["returns"]) < 50.0


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_teacher_is_trained_once_and_its_rival_as_it_was(here, tmp_path):
    overrides = (*QUICK, "network.dueling=true")
    teacher = Teacher("CartPole-v1", "dqn", 7, 64, overrides, "cpu", 3, 3)
    path, record = methods.teach(tmp_path, "first", teacher, None, lambda words: None)
    trained = api.train(
        "CartPole-v1", preset="dqn", steps=64, seed=7, out=tmp_path / "b", overrides=overrides, progress=False
    )
    assert record["returns"] == api.evaluate(trained, episodes=3, seed=7).evaluation.returns.tolist()
    assert path == tmp_path / "first"
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    again = methods.teach(tmp_path, "second", teacher, record, lambda words: None)
    assert again == (tmp_path / "b", record), "a finished run of the same configuration, in the order of names"
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before
    with pytest.raises(RunError, match="plays another policy than the teacher in the file"):
        methods.teach(tmp_path, "first", teacher, record | {"policy": "another"}, lambda words: None)
    (cell,) = methods.train_small(tmp_path / "small", "4", "float", "none", teacher, lambda words: None)
    small = api.train(
        "CartPole-v1",
        preset="dqn",
        steps=64,
        seed=7,
        out=tmp_path / "c",
        overrides=[*QUICK, "network.hidden_units=[4]"],
        progress=False,
    )
    assert cell["returns"] == api.evaluate(small, episodes=3, seed=7).evaluation.returns.tolist()
    assert (cell["method"], cell["architecture"], cell["variant"]) == ("scratch", "4", "float")
    assert cell["parameters"] <= 4 * 5 + 5 * 2


def test_the_command_shows_the_table_of_a_file_and_ends_with_1_where_something_has_failed(invented, tmp_path, capsys):
    out = str(tmp_path / "compression.json")
    words = ["benchmark", "compression", "--envs", ENV, "--preset", "dqn", "--teachers", "3", "--methods", "auto,3kB"]
    words += ["--episodes", "2", "--steps", "64"]
    for setting in QUICK:
        words += ["--set", setting]
    invented.fails = {"3kB"}
    assert cli.main([*words, "--out", out, "--json"]) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["teachers"], len(result["failed"])) == (3, 3)
    assert [(row["method"], row["kept"]) for row in result["rows"]] == [
        ("folds", False),
        ("auto", False),
        ("scratch as auto", False),
    ]
    assert [row["retention"]["estimate"] for row in result["rows"]] == [0.9] * 3
    assert [(it["method"], it["winner"]) for it in result["contests"]] == [("auto", None)]
    assert json.loads(pathlib.Path(out).read_text())["sessions"][0]["command"].startswith("rlplatform benchmark comp")
    invented.made.clear()
    assert cli.main(["benchmark", "compression", "--table", out, "--markdown"]) == 0
    table = capsys.readouterr().out
    assert table.startswith("| environment | preset | method |")
    assert "failed: " in table
    assert cli.main(["benchmark", "compression", "--envs", ENV]) == 2
    assert "--preset is missing" in capsys.readouterr().err
    assert cli.main(["benchmark", "compression", "--table", out, "--preset", "dqn"]) == 2
    assert invented.made == []
