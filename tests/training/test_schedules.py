"""Schedules: exact ends, the shape between them, and one step or many."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlplatform.config import Schedule, constant
from rlplatform.training import schedules

MOVING = ("linear", "exponential", "cosine")
positive = st.floats(1e-6, 1e3)


@st.composite
def any_schedule(draw):
    kind = draw(st.sampled_from((*MOVING, "constant", "piecewise")))
    if kind == "constant":
        return constant(draw(positive))
    if kind == "piecewise":
        boundaries = tuple(sorted(draw(st.lists(st.floats(0.0, 1.0), max_size=4))))
        count = len(boundaries) + 1
        return Schedule(
            kind=kind, boundaries=boundaries, values=tuple(draw(st.lists(positive, min_size=count, max_size=count)))
        )
    return Schedule(kind=kind, start=draw(positive), end=draw(positive), fraction=draw(st.floats(0.0, 1.0)))


def test_a_constant_is_the_same_at_every_step():
    assert [schedules.value(constant(0.3), step, 100) for step in (0, 50, 100, 1000)] == [0.3] * 4


@pytest.mark.parametrize("kind", MOVING)
def test_a_moving_schedule_starts_and_ends_exactly(kind):
    schedule = Schedule(kind=kind, start=0.9, end=0.07, fraction=0.3)
    assert schedules.value(schedule, 0, 1000) == 0.9
    assert schedules.value(schedule, 299, 1000) != 0.07
    assert [schedules.value(schedule, step, 1000) for step in (300, 301, 1000, 5000)] == [0.07] * 4


@pytest.mark.parametrize("kind", MOVING)
def test_fraction_zero_is_the_end_at_once(kind):
    schedule = Schedule(kind=kind, start=0.9, end=0.1, fraction=0.0)
    assert schedules.value(schedule, 0, 1000) == 0.1
    assert schedules.values(schedule, np.array([0, 7]), 1000).tolist() == [np.float32(0.1)] * 2


def test_values_between_the_ends_are_those_of_a_hand_made_table():
    """A quarter and a half of the way from 1.0 to 0.01."""
    expected = {
        "linear": (0.7525, 0.505),
        "exponential": (0.1**0.5, 0.1),
        "cosine": (0.01 + 0.99 * (0.5 + 0.5**1.5), 0.505),
    }
    for kind, (quarter, half) in expected.items():
        schedule = Schedule(kind=kind, start=1.0, end=0.01, fraction=0.5)
        assert math.isclose(schedules.value(schedule, 250, 2000), quarter, rel_tol=1e-12)
        assert math.isclose(schedules.value(schedule, 500, 2000), half, rel_tol=1e-12)


def test_a_piecewise_value_holds_from_its_boundary_on():
    schedule = Schedule(kind="piecewise", boundaries=(0.07, 0.5), values=(3.0, 2.0, 1.0))
    steps = [0, 6, 7, 49, 50, 100, 200]
    assert [schedules.value(schedule, step, 100) for step in steps] == [3.0, 3.0, 2.0, 2.0, 1.0, 1.0, 1.0]
    assert schedules.values(schedule, np.array(steps), 100).tolist() == [3.0, 3.0, 2.0, 2.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", MOVING)
@given(start=positive, end=positive, fraction=st.floats(0.0, 1.0), steps=st.lists(st.integers(0, 2000), min_size=2))
def test_a_moving_schedule_goes_one_way_and_stays_between_its_ends(kind, start, end, fraction, steps):
    schedule = Schedule(kind=kind, start=start, end=end, fraction=fraction)
    found = [schedules.value(schedule, step, 1000) for step in sorted(steps)]
    slack = 1e-12 * max(start, end)
    assert all(min(start, end) - slack <= item <= max(start, end) + slack for item in found)
    rises = np.diff(found) * (1 if end >= start else -1)
    assert (rises >= -slack).all()


@given(schedule=any_schedule(), steps=st.lists(st.integers(0, 10**7), min_size=1), total_steps=st.integers(1, 10**7))
def test_many_steps_at_once_equal_one_at_a_time(schedule, steps, total_steps):
    expected = np.array([schedules.value(schedule, step, total_steps) for step in steps], np.float32)
    found = schedules.values(schedule, np.array(steps), total_steps)
    assert found.dtype == np.float32
    assert found.shape == (len(steps),)
    if schedule.kind in ("exponential", "cosine"):  # numpy's cos and power may round the last bit of float64 otherwise
        np.testing.assert_array_max_ulp(found, expected, maxulp=1)
    else:
        np.testing.assert_array_equal(found, expected)


def test_the_shape_of_the_steps_is_kept():
    steps = np.arange(6).reshape(2, 3)
    for schedule in (constant(1.0), Schedule(kind="linear", start=1.0, end=0.0)):
        assert schedules.values(schedule, steps, 5).shape == (2, 3)
