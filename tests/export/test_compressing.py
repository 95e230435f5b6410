"""From a run to the smallest bundle that plays as well, or to the best one within a budget."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from known import cartpole_run

from rlplatform import compression
from rlplatform.agents import networks
from rlplatform.agents.pruning import layer_sparsities
from rlplatform.analysis import compare
from rlplatform.compression import search, students
from rlplatform.config import Config
from rlplatform.errors import RunError, UserError
from rlplatform.export import compress, compressing, read, verify
from rlplatform.export.exporting import Refused, TooLarge
from rlplatform.runtime import Policy


@pytest.fixture
def fewer_states(monkeypatch):
    """Enough for a pole, in a tenth of the time."""
    monkeypatch.setattr(search, "STATES", 5_000)
    monkeypatch.setattr(search, "ROUND_STATES", 2_000)
    monkeypatch.setattr(search, "STAGES", ((1, search.ROUNDS),))


@pytest.mark.slow
def test_the_smallest_policy_that_plays_as_well_is_found_and_verified(tmp_path, fewer_states):
    run = cartpole_run(tmp_path / "run")
    said = []
    verification = compress(
        run, tmp_path / "small", "auto", target="mcu", episodes=6, log_dir=tmp_path / "log", progress=said.append
    )
    assert verification.passed
    manifest = read(tmp_path / "small")
    report = manifest["compression"]
    sizes = [students.parameters(students.parse(each["architecture"]), (4,), 2) for each in report["candidates"]]
    chosen = students.parameters(students.parse(report["architecture"]), (4,), 2)
    assert [each["parameters"] for each in report["candidates"]] == sizes
    assert manifest["network"]["canonical_parameters"] == chosen
    assert chosen == min(size for size, each in zip(sizes, report["candidates"], strict=True) if each["passed"])
    assert manifest["files"]["policy_int8.tflite"]["bytes"] < 1_300
    assert any(words.startswith("distilling") for words in said)
    assert list((tmp_path / "log").rglob("events.*"))
    taken = next(each for each in report["candidates"] if each["architecture"] == report["architecture"])
    assert taken["bytes"] == manifest["files"]["policy_int8.tflite"]["bytes"], "measured on files, not foreseen"
    page = (tmp_path / "small" / "report.html").read_text()
    assert page.count("<circle") == len(sizes)
    assert page.count("<polyline") == 1
    assert all(f"{each['bytes']:,} bytes" in page for each in report["candidates"])
    assert all(f"<td>{each['architecture']}<td>" in page for each in report["candidates"])
    again = verify(tmp_path / "small", episodes=4)  # from the bundle alone
    assert again.passed
    assert [row.interquartile_mean.estimate for row in again.rows] == [500.0] * 3
    shown = again.rows[-1].visited.overall
    assert 0.5 < shown < 1.0, "the agreement that is shown is the one with the network that was trained"
    policy = Policy(tmp_path / "small")
    assert policy.act([0.0, 0.0, 0.2, 1.0]) == 1


@pytest.mark.slow
def test_a_budget_is_kept_and_what_does_not_fit_is_refused(tmp_path, fewer_states):
    run = cartpole_run(tmp_path / "run")
    verification = compress(run, tmp_path / "small", "1.5kB", episodes=4)
    assert verification.passed
    assert min(row.bytes for row in verification.rows[1:]) <= 1_500
    with pytest.raises(UserError, match=r"no policy fits into 500 bytes: the smallest here takes about [67]\d\d"):
        compress(run, tmp_path / "none", 500, episodes=4)
    assert not (tmp_path / "none").exists()


class Untrained:
    """In place of a distillery: every student plays as well as its teacher, without having learned."""

    def __init__(self, *_, **__):
        self.candidates, self.labels = [], SimpleNamespace(values=[])
        self.teacher_interquartile_mean = 500.0

    def try_out(self, architecture, rounds=0):
        comparison = compare(np.ones(2), np.ones(2), 0.1)
        parameters = students.parameters(architecture, (4,), 2)
        found = search.Candidate(architecture, parameters, 0, 1.0, 1.0, 500.0, comparison, comparison, True)
        if found not in self.candidates:
            self.candidates.append(found)
        return found

    def model(self, architecture):
        return None

    def improve(self, candidate):
        return candidate


def one_byte(sizes, distillery, *_):
    sizes |= {candidate.architecture: 1 for candidate in distillery.candidates}


def test_a_student_that_has_died_is_not_exported(tmp_path, monkeypatch):
    monkeypatch.setattr(compressing, "Distillery", Untrained)
    monkeypatch.setattr(compressing, "_measure", lambda *_: None)
    with pytest.raises(RunError, match="gives the same values everywhere: its units have died; a larger budget"):
        compress(cartpole_run(tmp_path / "run"), tmp_path / "small", "1.5kB", target="mcu")


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_front_holds_every_point_that_no_other_one_beats(points):
    front = {point for point, best in zip(points, compressing.pareto(points), strict=True) if best}
    assert min(points) in front
    for x, y in points:
        beaten = any(a <= x and b <= y and (a, b) != (x, y) for a, b in front)
        assert beaten != ((x, y) in front), "what is not on the front is beaten by a point on it"


def test_a_student_that_has_died_is_shown_without_a_size(monkeypatch):
    """All weights of its hidden layer are zero, so LiteRT would not run its int8 file."""
    alive, dead = (students.build(students.parse(text), np.ones((4, 4), np.float32), 2, 0) for text in ("4", "3"))
    dead.set_weights([np.zeros_like(weight) for weight in dead.get_weights()])
    distillery = Untrained()
    models = {students.parse("4"): alive, students.parse("3"): dead}
    for architecture in models:
        distillery.try_out(architecture)
    observations = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    distillery.labels = compression.Labels(observations, np.zeros((20, 2), np.float32), None)
    distillery.model = models.get
    monkeypatch.setattr(
        compression, "convert_all", lambda made, *_: [SimpleNamespace(float_file=b"12", int8_file=b"1") for _ in made]
    )
    sizes = {}
    compressing._measure(sizes, distillery, "float32", "mcu", "auto", None)
    assert sizes == {students.parse("4"): 1}
    found = compressing._report(distillery, None, sizes, alive)["candidates"]
    assert [(each["bytes"], each["on_front"]) for each in found] == [(1, True), (None, False)]


def test_a_student_whose_files_are_larger_than_foreseen_makes_room_for_a_smaller_one(tmp_path, monkeypatch):
    tried = []

    def export(run, out, *, student, **options):
        tried.append(student.report["architecture"])
        if tried[-1] != "linear":
            raise TooLarge(f"{tried[-1]} takes too many bytes")
        return "verified"

    monkeypatch.setattr(compressing, "export", export)
    monkeypatch.setattr(compressing, "Distillery", Untrained)
    monkeypatch.setattr(compressing, "_measure", one_byte)
    monkeypatch.setattr(search, "STAGES", ((1, search.ROUNDS),))
    run = cartpole_run(tmp_path / "run")
    assert compress(run, tmp_path / "small", "1.1kB", target="mcu") == "verified"
    sizes = [students.parameters(students.parse(architecture), (4,), 2) for architecture in tried]
    assert len(tried) > 1
    assert sizes == sorted(set(sizes), reverse=True), "each is smaller than the one before"
    assert tried[-1] == "linear"


def test_where_none_of_the_best_few_passes_on_other_episodes_smaller_students_are_tried(tmp_path, monkeypatch):
    tried = []

    def export(run, out, *, student, **options):
        tried.append(student.report["architecture"])
        if len(tried) <= 4:
            raise Refused("a gate failed")
        return "verified"

    monkeypatch.setattr(compressing, "export", export)
    monkeypatch.setattr(compressing, "Distillery", Untrained)
    monkeypatch.setattr(compressing, "_measure", one_byte)
    run = cartpole_run(tmp_path / "run")
    assert compress(run, tmp_path / "small", "1.5kB", target="mcu") == "verified"
    assert len(set(tried)) == len(tried) == 5
    sizes = [students.parameters(students.parse(architecture), (4,), 2) for architecture in tried]
    assert sizes[4] < min(sizes[:4])


def test_where_none_passes_even_where_students_are_chosen_no_smaller_ones_are_trained(tmp_path, monkeypatch):
    tried, distilleries = [], []

    class Failing(Untrained):
        def try_out(self, architecture, rounds=0):
            found = dataclasses.replace(super().try_out(architecture, rounds), passed=False)
            self.candidates[:] = [each if each.architecture != architecture else found for each in self.candidates]
            distilleries.append(self)
            return found

    def export(run, out, *, student, **options):
        tried.append(student.report["architecture"])
        raise Refused("a gate failed")

    monkeypatch.setattr(compressing, "export", export)
    monkeypatch.setattr(compressing, "Distillery", Failing)
    monkeypatch.setattr(compressing, "_measure", one_byte)
    with pytest.raises(Refused):
        compress(cartpole_run(tmp_path / "run"), tmp_path / "small", "1.5kB", target="mcu")
    assert len(tried) == 1
    assert len({candidate.architecture for candidate in distilleries[0].candidates}) == 4


@pytest.mark.parametrize("wide", [Refused("a gate failed"), TooLarge("int16 activations take more bytes")])
def test_int16_activations_are_tried_before_another_student_which_begins_with_int8(tmp_path, monkeypatch, wide):
    tried = []

    def export(run, out, *, student, quantisation, **options):
        tried.append((student.report["architecture"], quantisation))
        if quantisation == "int16x8":
            raise wide
        if len(tried) == 1:
            raise Refused("a gate failed", narrow=True)
        return "verified"

    monkeypatch.setattr(compressing, "export", export)
    monkeypatch.setattr(compressing, "Distillery", Untrained)
    monkeypatch.setattr(compressing, "_measure", one_byte)
    run = cartpole_run(tmp_path / "run")
    assert compress(run, tmp_path / "small", "1.5kB", target="mcu") == "verified"
    assert [quantisation for _, quantisation in tried] == ["auto", "int16x8", "auto"]
    assert tried[0][0] == tried[1][0] != tried[2][0]


@pytest.mark.parametrize(
    ("narrow", "force", "expected"),
    [
        (True, False, [("auto", False), ("int16x8", False)]),
        (False, False, [("auto", False)]),
        (True, True, [("auto", False), ("int16x8", True)]),
        (False, True, [("auto", False), ("auto", True)]),
    ],
)
def test_a_network_itself_gets_int16_activations_where_int8_ones_lose_too_much(
    tmp_path, monkeypatch, narrow, force, expected
):
    tried = []

    def export(run, out, *, quantisation, force=False, **options):
        tried.append((quantisation, force))
        if quantisation == "auto" and not force:
            raise Refused("a gate failed", narrow=narrow)
        return "verified"

    monkeypatch.setattr(compressing, "export", export)
    run = cartpole_run(tmp_path / "run")
    if narrow or force:
        assert compress(run, tmp_path / "small", target="mcu", force=force) == "verified"
    else:
        with pytest.raises(Refused):
            compress(run, tmp_path / "small", target="mcu")
    assert tried == expected


def test_where_nothing_passes_the_first_choice_is_what_is_forced(tmp_path, monkeypatch):
    tried = []

    def export(run, out, *, student, quantisation, force=False, **options):
        tried.append((student.report["architecture"], quantisation, force))
        if not force:
            raise Refused("a gate failed", narrow=len(tried) == 1)
        return "forced"

    monkeypatch.setattr(compressing, "export", export)
    monkeypatch.setattr(compressing, "Distillery", Untrained)
    monkeypatch.setattr(compressing, "_measure", one_byte)
    run = cartpole_run(tmp_path / "run")
    assert compress(run, tmp_path / "small", "1.5kB", target="mcu", force=True) == "forced"
    assert [force for *_, force in tried] == [False] * (len(tried) - 1) + [True]
    assert tried[-1][:2] == tried[1][:2] == (tried[0][0], "int16x8")
    assert len({architecture for architecture, *_ in tried}) > 1
    with pytest.raises(Refused):
        compress(run, tmp_path / "small", "1.5kB", target="mcu")


@pytest.mark.parametrize("layer_norm", [False, True])
def test_without_its_layer_norm_the_teachers_own_shape_is_the_largest_student(layer_norm):
    config = Config().replace(network={"hidden_units": (64, 64), "layer_norm": layer_norm})
    folded = compression.canonical(networks.build(config, (4,), "float32", 2)).model
    run = SimpleNamespace(path="run", observation_shape=(4,), spec=SimpleNamespace(num_actions=2))
    ladder = compressing._ladder(run, folded, "mcu", None)
    assert (str(ladder[0]) == "64-64") == layer_norm
    assert str(ladder[-1]) == "linear"


@pytest.mark.slow
def test_a_student_whose_int8_file_falls_short_gets_int16_activations(tmp_path, fewer_states, monkeypatch):
    monkeypatch.setattr(compression, "falls_short", lambda *_: True)
    verification = compress(cartpole_run(tmp_path / "run"), tmp_path / "small", "1.5kB", target="mcu", episodes=4)
    assert verification.passed
    manifest = read(tmp_path / "small")
    assert manifest["files"]["policy_int8.tflite"]["quantisation"]["method"] == "int16x8"
    assert manifest["files"]["policy_int8.tflite"]["bytes"] <= 1_500


@pytest.mark.parametrize(
    ("text", "shape", "target", "bytes"),
    [
        ("linear", (8,), "mcu", 720),
        ("16", (8,), "mcu", 1_232),
        ("24-24", (8,), "mcu", 2_096),
        ("64-64", (8,), "mcu", 6_576),
        ("4x3s1", (10, 10, 4), "mcu", 2_176),
        ("16x3s1", (10, 10, 4), "mcu", 5_152),
        ("4x3s1 24", (10, 10, 4), "mcu", 7_856),
        ("linear", (8,), "cpu", 816),
        ("16", (8,), "cpu", 1_712),
        ("24-24", (8,), "cpu", 2_448),
        ("64-64", (8,), "cpu", 6_608),
        ("4x3s1 24", (10, 10, 4), "cpu", 8_672),
    ],
)
def test_sizes_are_foreseen(text, shape, target, bytes):
    """Files that the converter has made, to 4 actions of vectors and 3 of images."""
    foreseen = compressing.predicted_bytes(students.parse(text), shape, 4 if len(shape) == 1 else 3, target)
    assert abs(np.log(foreseen / bytes)) < np.log(1.25)


def test_a_budget_that_is_none_is_refused_before_anything_is_done(tmp_path):
    run = cartpole_run(tmp_path / "run")
    with pytest.raises(UserError, match="a budget is a size like 4kB"):
        compress(run, tmp_path / "small", "tiny")


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_network_is_pruned_and_clustered_as_asked_for(tmp_path, fewer_states):
    run = cartpole_run(tmp_path / "run")
    verification = compress(run, tmp_path / "small", prune=0.9, clusters=8, episodes=4)
    assert verification.passed
    manifest = read(tmp_path / "small")
    assert manifest["network"]["parameters"] == 4_610
    assert manifest["network"]["canonical_parameters"] < 3_500  # what pruning left without inputs or outputs is gone
    assert max(manifest["compression"]["clustering"]["values"].values()) <= 9
    sparsities = manifest["compression"]["pruning"]["layers"]
    shapes = {"dense_0": (4, 64), "dense_1": (64, 64), "q": (64, 2)}
    assert sparsities == pytest.approx(layer_sparsities(shapes, 0.9), abs=0.01)
    assert verification.rows[1].gzip_bytes < 0.6 * verification.rows[1].bytes


@pytest.mark.parametrize(
    ("options", "sentence"), [({"prune": 1.0}, "lies between 0 and 1"), ({"clusters": 1}, "at least 2 values")]
)
def test_what_cannot_be_done_is_refused_at_once(tmp_path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        compress(cartpole_run(tmp_path / "run"), tmp_path / "small", **options)
