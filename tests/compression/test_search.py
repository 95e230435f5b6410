"""The search for the smallest student: which are tried, which is taken."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlplatform.agents import networks
from rlplatform.analysis import Comparison, Interval
from rlplatform.compression import search, students
from rlplatform.compression.distillation import Recipe
from rlplatform.compression.labels import Labels
from rlplatform.compression.search import Candidate, Distillery, Teacher, best_of, parse_budget, smallest
from rlplatform.config import Config
from rlplatform.errors import UserError

LADDER = students.ladder(students.parse("64-64"), (4,), 2)


class Pretended:
    """A distillery whose students pass or fail as they are told, and which counts."""

    def __init__(self, passes):
        self.passes, self.tried, self.rounds = passes, [], {}

    def try_out(self, architecture, rounds=search.ROUNDS):
        if architecture not in self.tried:
            self.tried.append(architecture)
        self.rounds[architecture] = rounds
        size = students.parameters(architecture, (4,), 2)
        passed = self.passes(architecture)
        lost = Comparison(Interval(0.0, -0.1 if passed else -50.0 + size / 1e4, 0.1), 1.0)
        return Candidate(architecture, size, 0, 0.9, 0.9, 0.0, lost, lost, passed)


@given(last=st.integers(-1, len(LADDER) - 1))
def test_the_smallest_student_that_passes_is_found_with_few_trials(last):
    distillery = Pretended(lambda architecture: LADDER.index(architecture) <= last)
    found = smallest(distillery, LADDER)
    assert (found and found.architecture) == (LADDER[last] if last >= 0 else None)
    assert len(distillery.tried) <= np.ceil(np.log2(len(LADDER) + 1)) + 2


def test_a_student_that_passes_below_one_that_fails_is_found_if_it_is_near():
    distillery = Pretended(lambda architecture: LADDER.index(architecture) in (0, 1, 2, 3, 5))
    assert smallest(distillery, LADDER).architecture == LADDER[5]


def test_within_a_budget_the_smallest_of_those_that_pass_is_taken_and_else_the_one_that_loses_least():
    assert best_of(Pretended(lambda architecture: True), LADDER[3:]).architecture == LADDER[6]
    assert best_of(Pretended(lambda architecture: architecture == LADDER[4]), LADDER[3:]).architecture == LADDER[4]
    assert best_of(Pretended(lambda architecture: False), LADDER[3:]).architecture == LADDER[3]
    assert best_of(Pretended(lambda architecture: True), []) is None


def test_within_a_budget_most_rounds_are_for_the_students_that_lose_least():
    distillery = Pretended(lambda architecture: False)
    best_of(distillery, LADDER)
    assert [distillery.rounds[architecture] for architecture in LADDER[:4]] == [search.ROUNDS, 2, 0, 0]
    assert distillery.tried == LADDER[3::-1], "the largest learns last, from what the others have met"


def test_of_two_students_the_better_one_loses_less_by_the_measure_that_loses_more():
    def candidate(by_interquartile_mean, by_mean):
        measures = [Comparison(Interval(low + 1, low, low + 2), 5.0) for low in (by_interquartile_mean, by_mean)]
        return Candidate(LADDER[0], 9, 0, 0.9, 0.9, 0.0, *measures, True)

    assert search.of_budget(candidate(-1.0, -2.0)) > search.of_budget(candidate(3.0, -3.0))
    assert search.of_budget(candidate(-2.0, 3.0)) > search.of_budget(candidate(-2.5, -1.0))
    assert candidate(3.0, -3.0).change == Interval(-2.0, -3.0, -1.0)


class Table:
    """Labels of a teacher that prefers action 0 exactly where the only feature is positive."""

    def __init__(self, monkeypatch, returns):
        self.streams, self.returns, self.trained, self.recipes = [], iter(returns), [], []
        monkeypatch.setattr(Distillery, "_gather", lambda _, act, count, stream: self.gather(count, stream))
        monkeypatch.setattr(Distillery, "_play", lambda _, act: np.full(20, next(self.returns)))
        monkeypatch.setattr(search, "distil", self.distil)

    def distil(self, model, labels, held_out, recipe, *_, **__):
        self.trained.append(labels)
        self.recipes.append(recipe)

    def gather(self, count, stream):
        self.streams.append(stream)
        observations = np.full((count, 1), len(self.streams), np.float32)
        return Labels(observations, np.concatenate([observations, -observations], axis=1), None)

    def distillery(self):
        network = networks.build(Config(), (1,), "float32", 2)
        return Distillery(Teacher(network, None, Config().environment))


def test_a_student_goes_on_where_it_was_with_all_states_that_were_met_and_ends_with_its_best_round(monkeypatch):
    table = Table(monkeypatch, [500.0, 10.0, 200.0, 300.0, 250.0, 499.0])
    distillery = table.distillery()
    architecture = students.parse("3")
    found = [distillery.try_out(architecture, rounds) for rounds in (0, 1, 2)]
    assert [(each.rounds, each.interquartile_mean) for each in found] == [(0, 200.0), (1, 300.0), (1, 300.0)]
    assert [len(labels.values) for labels in table.trained] == [40_000, 50_000, 60_000]
    assert distillery.try_out(architecture).passed
    assert [each.rounds for each in distillery.candidates] == [3]
    assert distillery.try_out(architecture).rounds == 3, "it plays as well: nothing is left to do"
    assert len(table.trained) == 4


@pytest.mark.slow
def test_the_same_seed_trains_the_same_student_and_another_one_another(monkeypatch):
    distil = search.distil
    monkeypatch.setattr(search, "STATES", 400)
    found = []
    for seed in (1, 1, 2):
        table = Table(monkeypatch, [500.0, 10.0, 500.0])
        monkeypatch.setattr(search, "distil", distil)
        network = networks.build(Config(), (1,), "float32", 2)
        distillery = Distillery(Teacher(network, None, Config().environment), seed, Recipe(epochs=2))
        distillery.try_out(students.parse("4"))
        assert table.streams[:2] == ["distillation", "held-out"]
        found.append(np.concatenate([weight.ravel() for weight in distillery.model(students.parse("4")).get_weights()]))
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_labelled_states_do_not_grow_without_end_and_the_newest_are_among_them(monkeypatch):
    monkeypatch.setattr(search, "STATES", 1_000)
    table = Table(monkeypatch, [500.0, 10.0, *[100.0] * 10])
    distillery = table.distillery()
    for text in ("3", "4"):
        distillery.try_out(students.parse(text))
    sizes = [len(labels.values) for labels in table.trained]
    assert sizes == [1_000, 2_000, 3_000, *[4_000] * 7]
    last = distillery.labels
    assert (last.observations == len(table.streams)).any()
    assert np.array_equal(last.values[:, :1], last.observations), "values stay beside their states"
    updates = {recipe.updates(size) for recipe, size in zip(table.recipes, sizes, strict=True)}
    assert updates == {1_000 // 256}, "a later round takes no longer than the first"


@pytest.mark.parametrize(("dtype", "count"), [("uint8", 9_510), ("float32", 2_377)])
def test_of_large_images_as_many_are_labelled_as_memory_is_meant_for(monkeypatch, dtype, count):
    asked = []
    monkeypatch.setattr(Distillery, "_gather", lambda self, act, count, stream: asked.append(count))
    monkeypatch.setattr(Distillery, "_play", lambda self, act: np.zeros(4))
    network = networks.build(Config(), (84, 84, 4), dtype, 6)
    Distillery(Teacher(network, None, Config().environment, dtype))
    assert asked == [count, 1_000]


def test_labelled_states_are_kept_as_bytes_where_those_hold_them(monkeypatch):
    seen = Labels(np.eye(8, dtype=np.float32).reshape(8, 2, 2, 2), np.zeros((8, 3), np.float32), None)
    monkeypatch.setattr(search, "gather", lambda *_, **__: seen)
    monkeypatch.setattr(Distillery, "_play", lambda self, act: np.zeros(4))
    network = networks.build(Config(), (2, 2, 2), "float32", 3)
    kept = Distillery(Teacher(network, None, Config().environment, "uint8")).labels
    assert kept.observations.dtype == np.uint8
    assert np.array_equal(kept.observations, seen.observations)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4kB", 4_000),
        ("1.5 KiB", 1_536),
        ("900", 900),
        ("900 b", 900),
        (2_048, 2_048),
        ("2M", 2_000_000),
        ("auto", None),
    ],
)
def test_a_budget_is_a_size_or_auto(text, size):
    assert parse_budget(text) == size


@pytest.mark.parametrize("text", ["", "kB", "-3kB", "0", "4 apples", "4iB", 0, True])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UserError, match="a budget is a size like 4kB"):
        parse_budget(text)
