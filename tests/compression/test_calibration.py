import numpy as np
import pytest

from rlplatform.compression import calibration
from rlplatform.config import EnvironmentConfig

CARTPOLE = EnvironmentConfig(id="CartPole-v1")


def balance(observation):
    return (observation @ np.array([1.0, 3.0, 9.0, 7.0]) > 0).astype(int)


def test_a_reservoir_keeps_everything_while_it_fits():
    reservoir = calibration.Reservoir(10, seed=0)
    reservoir.add(np.arange(4))
    reservoir.add(np.arange(4, 8))
    assert sorted(reservoir.states().observations) == list(range(8))


def test_a_reservoir_draws_early_and_late_rows_alike():
    counts = np.zeros(100)
    for seed in range(300):
        reservoir = calibration.Reservoir(20, seed)
        for start in range(0, 100, 7):
            reservoir.add(np.arange(start, min(start + 7, 100)))
        rows = reservoir.states().observations
        assert len(set(rows)) == 20
        counts[rows] += 1
    share = counts / 300  # binomial with p = 0.2: standard deviation 0.023 for each, 0.0033 for half of them
    assert share[:50].mean() == pytest.approx(0.2, abs=0.012)
    assert share.max() < 0.31


def test_an_empty_reservoir_says_so():
    with pytest.raises(ValueError, match="nothing was added"):
        calibration.Reservoir(3, seed=0).states()


def test_a_policy_is_followed_until_there_are_enough_observations():
    seen = calibration.visited(lambda observation: np.ones(len(observation), int), CARTPOLE, 300, seed=0).observations
    assert seen.shape == (300, 4)
    assert seen.dtype == np.float32
    assert len(np.unique(seen, axis=0)) == 300


def test_the_same_seed_sees_the_same_and_another_seed_does_not():
    first, again, other = (calibration.visited(balance, CARTPOLE, 50, seed).observations for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_mixture_takes_a_fifth_from_the_replay():
    mixed = calibration.mixture(np.zeros((500, 2)), np.ones((500, 2)), 100, seed=0)
    assert mixed.shape == (100, 2)
    assert mixed[:, 0].sum() == 20


@pytest.mark.parametrize(
    ("visited", "replayed", "expected"), [(30, 500, (30, 70)), (500, 5, (95, 5)), (10, 20, (10, 20))]
)
def test_where_one_part_has_too_few_the_other_fills_up(visited, replayed, expected):
    mixed = calibration.mixture(np.zeros((visited, 1)), np.ones((replayed, 1)), 100, seed=0)
    assert (int((mixed == 0).sum()), int((mixed == 1).sum())) == expected


def test_masks_stay_beside_their_observations():
    reservoir = calibration.Reservoir(20, seed=0)
    for start in range(0, 100, 7):
        rows = np.arange(start, min(start + 7, 100))
        reservoir.add(rows, rows[:, None] % 3 == np.arange(3))
    observations, masks = reservoir.states()
    np.testing.assert_array_equal(masks, observations[:, None] % 3 == np.arange(3))
    assert len(observations) == 20


def test_without_masks_there_are_none():
    assert calibration.visited(balance, CARTPOLE, 10, seed=0).masks is None
