"""What small policies keep, with returns that are made up so that the answers are known."""

import numpy as np
import pytest

from rlplatform.analysis import contests, nested_bootstrap, retention
from rlplatform.analysis.retained import as_table, rows, scratch_of
from rlplatform.analysis.statistics import mean

EPISODES = 8
KEY = {"env": "Pole", "preset": "dqn"}


def teacher(seed, returns=100.0, random=0.0):
    played = {"returns": [returns] * EPISODES, "random_returns": [random] * EPISODES}
    return KEY | {"seed": seed} | played


def cell(method, seed, returns, bytes=1_000, architecture="64-64", **more):
    made = {
        "variant": "int8",
        "quantisation": "static",
        "distilled": False,
        "gzip_bytes": bytes // 2,
        "microseconds": 2.0,
        "golden": 0.9,
    }
    made |= {"visited": 0.8, "clear": 1.0, "passed": True, "failures": [], "seconds": 3.0}
    played = {"returns": [returns] * EPISODES}
    return KEY | {"seed": seed, "method": method, "bytes": bytes, "architecture": architecture} | made | played | more


def tree(cells, teachers=5, failed=()):
    return {"teachers": [teacher(seed) for seed in range(teachers)], "cells": cells, "failed": list(failed)}


def both(distilled, scratch, bytes=1_000):
    """Students and their rivals from scratch, one return for each teacher."""
    cells = [
        cell("auto", seed, kept, bytes, "16-16", distilled=True, golden=0.7) for seed, kept in enumerate(distilled)
    ]
    rivals = [
        cell("scratch", seed, kept, bytes + 8, "16-16", golden=None, visited=None, clear=None)
        for seed, kept in enumerate(scratch)
    ]
    return tree([*cells, *rivals])


def test_half_of_what_a_teacher_gains_is_half_in_every_resample():
    random = np.random.default_rng(0).normal(-300.0, 80.0, (4, 30))
    found = retention(random + 100.0, random + 200.0, random)
    assert (found.estimate, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5)), "only pairs cancel so"


def test_the_bootstrap_draws_teachers_and_then_their_episodes():
    rng = np.random.default_rng(1)
    values = rng.normal(9.0, 1.0, (2, 4, 6)) + np.array([0.0, 1.0, 2.0, 5.0])[:, None]
    drawn = []
    for _ in range(3_000):
        picked = []
        for run in rng.integers(0, 4, 4):
            picked += [values[:, run, episode] for episode in rng.integers(0, 6, 6)]
        picked = np.array(picked)
        drawn.append(picked[:, 0].mean() / picked[:, 1].mean())
    found = nested_bootstrap(values, lambda samples: mean(samples[:, 0]) / mean(samples[:, 1]), resamples=3_000)
    assert found.estimate == pytest.approx(values[0].mean() / values[1].mean())
    assert (found.low, found.high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.02)


def test_the_chunks_of_the_bootstrap_do_not_show(monkeypatch):
    values = np.random.default_rng(2).normal(1.0, 0.1, (3, 3, 5))
    first = nested_bootstrap(values, lambda samples: mean(samples[:, 0]), resamples=200)
    assert first.low < first.estimate < first.high
    monkeypatch.setattr("rlplatform.analysis.statistics._CHUNK", 1_000)
    assert nested_bootstrap(values, lambda samples: mean(samples[:, 0]), resamples=200) == first
    with pytest.raises(ValueError, match="at least one run with one episode"):
        nested_bootstrap(values[:, :0], lambda samples: mean(samples[:, 0]))


def test_one_broken_student_of_five_is_no_policy_that_keeps_its_return():
    (row,) = rows(tree([cell("auto", seed, 0.0 if seed == 3 else 100.0) for seed in range(5)]))
    assert row.retention.estimate == 1.0, "the interquartile mean leaves it out"
    assert row.kept is False, "but teachers are drawn, and it is drawn twice often enough"
    assert (row.mean_retention, row.worst) == pytest.approx((0.8, 0.0))


@pytest.mark.parametrize(("returns", "kept"), [(100.0, True), (95.0, True), (94.9, False), (130.0, True)])
def test_kept_means_that_the_lower_end_reaches_95_percent(returns, kept):
    (row,) = rows(tree([cell("auto", seed, returns) for seed in range(5)]))
    assert row.retention.low == pytest.approx(returns / 100.0)
    assert row.kept is kept


def test_two_teachers_are_too_few_for_a_claim():
    (row,) = rows(tree([cell("auto", seed, 100.0) for seed in range(2)], teachers=2))
    assert row.kept is None
    assert "[" not in as_table(tree([cell("auto", seed, 100.0) for seed in range(2)], teachers=2)).splitlines()[1]


def test_nothing_is_said_of_what_is_kept_where_teachers_have_learned_nothing():
    lazy = tree([cell("auto", seed, 5.0) for seed in range(4)])
    lazy["teachers"] = [teacher(seed, returns=-1.0) for seed in range(4)]
    (row,) = rows(lazy)
    assert (row.retention, row.mean_retention, row.worst, row.kept) == (None, None, None, False)
    lines = as_table(lazy).splitlines()
    assert " - " in lines[1]
    assert contests(lazy) == []


def test_a_teacher_that_has_learned_nothing_weighs_as_it_should():
    """All resamples of it alone would be infinite; they are too rare to reach the interval."""
    one = tree([cell("auto", seed, 100.0 if seed else 0.0) for seed in range(5)])
    one["teachers"][0] = teacher(0, returns=0.0)
    (row,) = rows(one)
    assert row.retention.low == pytest.approx(1.0), "a policy that does as badly as its teacher has lost nothing"
    assert row.worst is None


def test_a_row_has_medians_over_teachers_and_ratios_to_each_ones_own_file():
    cells = [cell("folds", seed, 100.0, size) for seed, size in enumerate((40_000, 20_000, 90_000))]
    sizes, shapes = (1_000, 1_000, 3_000), ("16", "32", "16")
    cells += [
        cell(
            "auto",
            seed,
            100.0,
            size,
            shape,
            microseconds=time,
            seconds=10.0 * seed,
            passed=seed != 2,
            clear=(0.7, 0.9, None)[seed],
        )
        for seed, (size, shape, time) in enumerate(zip(sizes, shapes, (1.0, 5.0, 2.0), strict=True))
    ]
    folds, auto = rows(tree(cells, teachers=3))
    assert (folds.method, folds.ratio, folds.networks) == ("folds", 1.0, {"64-64": 3})
    assert (auto.ratio, auto.bytes, auto.gzip_bytes) == (30.0, 1_000, 500)
    assert auto.networks == {"16": 2, "32": 1}
    assert (auto.microseconds, auto.seconds, auto.golden, auto.visited) == (2.0, 10.0, 0.9, 0.8)
    assert (auto.clear, folds.clear) == (0.8, 1.0), "of those that have clear states"
    assert (auto.teachers, auto.refused) == (3, 1)
    assert "16 ×2, 32 ×1" in as_table(tree(cells, teachers=3))


def test_an_agent_from_scratch_stands_under_the_students_of_its_architecture_and_file():
    found = both([99.0] * 5, [90.0] * 5)
    found["cells"].append(cell("scratch", 0, 1.0, architecture="16-16", variant="float"))
    found["cells"].append(cell("int8", 0, 100.0))
    auto, scratch, int8 = rows(found)
    assert [row.method for row in (auto, scratch, int8)] == ["auto", "scratch as auto", "int8"]
    assert (auto.retention.estimate, scratch.retention.estimate) == pytest.approx((0.99, 0.9))
    assert (scratch.golden, scratch.visited, scratch.clear) == (None, None, None)
    assert scratch_of(found, found["cells"][-1]) is None
    assert scratch_of(found, found["cells"][1])["seed"] == 1


@pytest.mark.parametrize(
    ("distilled", "scratch", "winner", "words"),
    [
        ([99.0] * 5, [90.0] * 5, "distilled", "keeps 0.990 and the same network trained from scratch 0.900; distilled"),
        ([80.0] * 5, [97.0] * 5, "scratch", "rather than compress, train a network 16-16 from scratch"),
        ([99.0] * 5, [99.0] * 5, None, "no difference is shown (0.00"),
        ([99.0, 50.0, 99.0], [50.0, 99.0, 99.0], None, "no difference is shown"),
        ([99.0] * 2, [50.0] * 2, None, "2 of both are too few to tell"),
    ],
)
def test_who_wins_at_the_same_bytes_is_said_and_scratch_is_recommended_where_it_does(distilled, scratch, winner, words):
    (contest,) = contests(both(distilled, scratch, bytes=1_504))
    assert contest.winner == winner
    assert contest.sentence().startswith("Pole, dqn, auto: at 1,504 bytes the distilled network keeps ")
    assert words in contest.sentence()
    assert ("rather than compress" in contest.sentence()) == (winner == "scratch")


def test_only_teachers_that_have_both_are_compared():
    (contest,) = contests(both([99.0, 99.0, 99.0, 0.0], [50.0] * 3))
    assert (contest.teachers, contest.distilled, contest.scratch) == pytest.approx((3, 0.99, 0.5))


def test_markdown_has_a_cell_for_each_column_and_what_has_failed_is_named():
    found = both([99.0] * 3, [90.0] * 3)
    found["failed"] = [KEY | {"seed": 7, "method": "auto", "error": "the disk is full"}]
    text = as_table(found, markdown=True)
    cells = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(cells) == 1
    assert text.endswith("failed: Pole dqn seed 7 auto: the disk is full")
    assert as_table(tree([])) == "no method has finished"
