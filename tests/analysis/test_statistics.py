import math

import numpy as np
import pytest

from rlplatform.analysis import bootstrap, compare, interquartile_mean, stratified_bootstrap
from rlplatform.analysis.statistics import mean


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 2.0, 3.0], 2.0),  # fewer than four: nothing is left out
        ([100.0, 1.0, 2.0, -50.0], 1.5),
        ([0.0, 1.0, 2.0, 3.0, 4.0], 2.0),  # 5 // 4 = 1 at each end
        ([0.0, 0.0, 1.0, 2.0, 3.0, 10.0, 99.0, -99.0], 1.5),
        (list(range(100)), 49.5),
        ([500.0] * 90 + [20.0] * 10, 500.0),  # a tenth of failures is not seen: why the mean is compared too
    ],
)
def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end(values, expected):
    assert interquartile_mean(np.array(values)) == pytest.approx(expected)
    assert interquartile_mean(np.array([values, values])) == pytest.approx([expected] * 2)


def test_the_bootstrap_of_a_mean_agrees_with_the_normal_approximation():
    values = np.random.default_rng(3).normal(5.0, 2.0, 400)
    interval = bootstrap(values, mean, resamples=4_000, seed=1)
    half_width = 1.96 * values.std() / math.sqrt(400)
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half_width, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + half_width, abs=0.02)


def test_the_bootstrap_of_three_values_has_the_quantiles_of_all_27_resamples():
    values = np.array([0.0, 1.0, 5.0])
    means = sorted((a + b + c) / 3 for a in values for b in values for c in values)
    interval = bootstrap(values, mean, confidence=0.5, resamples=20_000)
    low, high = np.percentile(np.repeat(means, 1_000), [25, 75])
    assert (interval.low, interval.high) == pytest.approx((low, high))


def test_every_group_keeps_its_share_of_a_resample():
    values = np.array([0.0] * 50 + [10.0] * 50)
    groups = ["easy"] * 50 + ["hard"] * 50
    stratified = bootstrap(values, mean, groups=groups)
    assert (stratified.low, stratified.estimate, stratified.high) == (5.0, 5.0, 5.0)
    assert bootstrap(values, mean).low < 4.5


def test_the_same_seed_gives_the_same_interval_whatever_the_chunks(monkeypatch):
    values = np.random.default_rng(0).normal(size=30)
    first = bootstrap(values, seed=7)
    assert bootstrap(values, seed=7) == first
    assert bootstrap(values, seed=8) != first
    monkeypatch.setattr("rlplatform.analysis.statistics._CHUNK", 1_000)
    assert bootstrap(values, seed=7) == first


def test_pairs_are_resampled_together():
    reference = np.random.default_rng(0).normal(100.0, 50.0, 40)
    comparison = compare(reference - 1.0, reference, margin=2.0, statistic=mean)
    assert comparison.difference.low == pytest.approx(-1.0)
    assert comparison.difference.high == pytest.approx(-1.0)
    assert comparison.not_inferior
    assert not comparison.inferior


def test_equal_returns_are_not_inferior_without_any_margin():
    returns = np.array([-500.0] * 10)
    assert compare(returns, returns, margin=0.0).not_inferior


def test_a_real_loss_beyond_the_margin_is_inferior():
    reference = np.full(100, 500.0)
    candidate = np.array([500.0] * 90 + [20.0] * 10)
    assert compare(candidate, reference, margin=24.0).not_inferior  # the interquartile mean does not see it
    by_mean = compare(candidate, reference, margin=24.0, statistic=mean)
    assert by_mean.difference.estimate == pytest.approx(-48.0)
    assert by_mean.inferior


def test_too_few_episodes_show_neither():
    rng = np.random.default_rng(5)
    reference, candidate = rng.normal(-80, 30, 10), rng.normal(-80, 30, 10)
    comparison = compare(candidate, reference, margin=5.0)
    assert not comparison.not_inferior
    assert not comparison.inferior


def test_unpaired_returns_and_negative_margins_are_refused():
    with pytest.raises(ValueError, match="paired returns are needed"):
        compare(np.zeros(3), np.zeros(4), margin=1.0)
    with pytest.raises(ValueError, match="at least 0"):
        compare(np.zeros(3), np.zeros(3), margin=-1.0)
    with pytest.raises(ValueError, match="at least one episode"):
        bootstrap(np.zeros(0))


def test_the_stratified_bootstrap_agrees_with_a_plain_loop():
    rng = np.random.default_rng(2)
    scores = [rng.normal(0.3, 0.2, 5), rng.normal(0.9, 0.4, 8), np.array([0.1, 0.7])]
    drawn = []
    for _ in range(10_000):
        picked = []
        for task in scores:
            picked += [task[rng.integers(len(task))] for _ in range(len(task))]
        picked.sort()
        drawn.append(sum(picked[3:-3]) / 9)  # 15 scores, of which 15 // 4 are left out at each end
    interval = stratified_bootstrap(scores, resamples=10_000, seed=3)
    together = sorted(np.concatenate(scores))
    assert interval.estimate == pytest.approx(sum(together[3:-3]) / 9)
    assert (interval.low, interval.high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.01)


def test_runs_of_one_task_never_stand_for_those_of_another():
    scores = [np.zeros(3), np.ones(9)]  # drawn from all together, the mean would vary
    interval = stratified_bootstrap(scores, mean)
    assert (interval.low, interval.estimate, interval.high) == (0.75, 0.75, 0.75)


def test_the_stratified_bootstrap_of_one_task_is_the_ordinary_one():
    scores = np.random.default_rng(0).normal(size=10)
    assert stratified_bootstrap([scores], seed=4) == bootstrap(scores, seed=4)


def test_a_task_without_scores_is_refused():
    for scores in ([], [np.ones(3), np.zeros(0)]):
        with pytest.raises(ValueError, match="at least one score for each task"):
            stratified_bootstrap(scores)
