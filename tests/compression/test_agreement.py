import numpy as np
import pytest

from rlplatform.compression import agreement

EXPECTED = np.array([[0.0, 1.0], [3.0, 0.0], [0.0, 20.0], [0.5, 0.0], [0.0, 9.0]])  # gaps 1, 3, 20, 0.5, 9


def test_agreement_is_counted_by_gap_in_steps():
    given = EXPECTED.copy()
    given[0] = [1.0, 0.0]  # another action where the gap is one step
    given[2] = [20.0, 0.0]  # and where it is 20
    measured = agreement.measure(EXPECTED, given, step=1.0)
    assert measured.states == 5
    assert measured.overall == pytest.approx(3 / 5)
    assert measured.clear_states == 3
    assert measured.clear == pytest.approx(2 / 3)
    found = [(bin.low, bin.high, bin.states, bin.agreement) for bin in measured.bins]
    assert found == [(0, 1, 1, 1.0), (1, 2, 1, 0.0), (2, 4, 1, 1.0), (4, 8, 0, None), (8, None, 2, 0.5)]


def test_values_that_end_at_the_same_number_are_tied():
    given = np.minimum(EXPECTED, 0.0)
    assert agreement.measure(EXPECTED, given, step=1.0, q_range=(-20.0, 0.0)).tied == 1.0
    assert agreement.measure(EXPECTED, given, step=1.0, q_range=(0.0, 20.0)).tied == 1.0
    assert agreement.measure(EXPECTED, given, step=1.0, q_range=(-20.0, 20.0)).tied == 0.0, "not at an end"
    assert agreement.measure(EXPECTED, EXPECTED, step=1.0).tied == 0.0


@pytest.mark.parametrize("factor", [1.0, -1.0, 0.1, 10.0])
def test_the_slope_tells_the_scale_of_the_values_and_ignores_their_offset(factor):
    measured = agreement.measure(EXPECTED, factor * EXPECTED + 5.0, step=1.0)
    assert measured.slope == pytest.approx(factor)


def test_without_any_clear_state_nothing_is_said_of_clear_states():
    measured = agreement.measure(EXPECTED, EXPECTED[:, ::-1], step=100.0)
    assert (measured.clear_states, measured.clear, measured.slope) == (0, None, None)
    assert measured.overall == 0.0


def test_the_slope_takes_no_offence_at_values_beyond_the_files_range():
    given = np.clip(agreement.centred(EXPECTED), -2.0, 2.0)
    assert agreement.measure(EXPECTED, given, 1.0, (-2.0, 2.0)).slope == pytest.approx(1.0)
    assert agreement.measure(EXPECTED, given, 1.0).slope < 0.5


def test_a_step_is_a_255th_of_the_centred_range_or_the_files_own_if_that_is_coarser():
    q = np.array([[100.0, 101.0], [100.0, 151.0]])  # centred: from -25.5 to 25.5
    assert agreement.step_of(q, 0.0) == pytest.approx(51.0 / 255.0)
    assert agreement.step_of(q, 0.01) == pytest.approx(51.0 / 255.0)
    assert agreement.step_of(q, 0.25) == 0.25


def test_one_action_is_always_agreed_on():
    q = np.zeros((3, 1))
    measured = agreement.measure(q, q, step=agreement.step_of(q, 0.0))
    assert measured.overall == 1.0


# --- among what a mask allows ---------------------------------------------------------------------------------------

MASKED_Q = np.array([[9.0, 1.0, 0.0], [0.0, 5.0, 9.0], [2.0, 1.0, 9.0]])
MASKS = np.array([[False, True, True], [True, True, False], [False, True, False]])  # gaps 1, 5 and none


def test_gaps_are_those_between_allowed_actions():
    np.testing.assert_array_equal(agreement.gaps(np.where(MASKS, MASKED_Q, -np.inf)), [1.0, 5.0, np.inf])


def test_only_allowed_actions_are_compared():
    given = MASKED_Q.copy()
    given[:, 0] -= 100.0 * ~MASKS[:, 0]  # what is forbidden may be anything
    given[1, 2] = np.float32(3e38)
    measured = agreement.measure(MASKED_Q, given, 2.0, masks=MASKS)
    assert (measured.overall, measured.clear_states, measured.clear, measured.tied) == (1.0, 2, 1.0, 0.0)
    given[1] = [6.0, 5.0, 0.0]
    measured = agreement.measure(MASKED_Q, given, 2.0, masks=MASKS)
    assert (measured.overall, measured.clear) == (pytest.approx(2 / 3), 0.5)
    given[1] = [5.0, 5.0, 0.0]
    assert agreement.measure(MASKED_Q, given, 2.0, (-10.0, 5.0), MASKS).tied == 0.5


@pytest.mark.parametrize("factor", [1.0, -1.0, 0.1])
def test_the_slope_is_that_of_allowed_values(factor):
    rng = np.random.default_rng(0)
    q, masks = rng.normal(0, 1, (100, 5)), rng.random((100, 5)) < 0.5
    masks[:, 0] = True
    given = np.where(masks, factor * q + 7.0, rng.normal(0, 50, q.shape))
    assert agreement.measure(q, given, 0.01, masks=masks).slope == pytest.approx(factor)


def test_the_step_is_that_of_allowed_values():
    q = np.array([[-30.0, 0.0, 30.0], [-1.0, 1.0, 0.0]])  # rows with mean zero
    masks = np.array([[False, True, False], [True, True, True]])
    assert agreement.step_of(q, 0.0, masks) == pytest.approx(2.0 / 255.0)
    assert agreement.step_of(q, 0.0) == pytest.approx(60.0 / 255.0)
