"""Action masks in the forms in which environments give them."""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rlplatform.envs import mask_of, mask_row
from rlplatform.errors import UserError

TRUE = [True, True, True]
ROWS = np.array([[1, 0, 1], [0, 0, 0]], np.int8)


def objects(*rows: Any) -> Any:
    array = np.full(len(rows), None, object)
    for index, row in enumerate(rows):
        array[index] = row
    return array


@pytest.mark.parametrize(
    ("infos", "expected"),
    [
        ({}, [TRUE, TRUE]),
        ({"action_mask": ROWS}, [[True, False, True], TRUE]),
        ({"action_mask": ROWS.astype(bool)}, [[True, False, True], TRUE]),
        ({"action_mask": ROWS.tolist()}, [[True, False, True], TRUE]),
        ({"action_mask": ROWS[::-1], "_action_mask": np.array([True, False])}, [TRUE, TRUE]),
        ({"action_mask": objects([0, 1, 0], None)}, [[False, True, False], TRUE]),
        (
            {"action_mask": objects([0, 1, 0], [0, 1, 1]), "_action_mask": np.array([False, True])},
            [TRUE, [False, True, True]],
        ),
    ],
)
def test_a_row_without_a_mask_and_one_that_forbids_all_are_free(infos: Any, expected: Any) -> None:
    masks = mask_of(infos, 2, 3)
    assert masks.dtype == np.bool_
    assert_array_equal(masks, expected)


def test_masks_are_new_arrays() -> None:
    given = np.array([[True, False], [False, False]])
    masks = mask_of({"action_mask": given}, 2, 2)
    assert not np.shares_memory(masks, given)
    assert_array_equal(given, [[True, False], [False, False]])
    row = np.array([True, False])
    assert not np.shares_memory(mask_row(row, 2), row)


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (3,), (2, 3, 1)])
def test_masks_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"2 environments with 3 actions need \[2, 3\]"):
        mask_of({"action_mask": np.ones(shape, bool)}, 2, 3)
    with pytest.raises(UserError, match="has 4 numbers; it needs one for each of the 3 actions"):
        mask_row(np.ones(4), 3)


FIRST, SECOND = [True, False, True], [False, True, True, False]
JOINT = [[one and other for other in SECOND] for one in FIRST]


@pytest.mark.parametrize(
    "given",
    [
        (np.array(FIRST), np.array(SECOND)),
        [FIRST, SECOND],
        np.array(FIRST + SECOND, np.int8),
        np.array(JOINT),
        np.array(JOINT).reshape(-1),
        np.array(JOINT).reshape(-1).tolist(),
    ],
)
def test_masks_of_components_are_joined(given: Any) -> None:
    assert_array_equal(mask_row(given, 12, [3, 4]), np.array(JOINT).reshape(-1))


def test_components_that_forbid_all_together_leave_all_free() -> None:
    assert mask_row(([0, 0, 0], SECOND), 12, [3, 4]).all()
    assert mask_row(None, 12, [3, 4]).all()


def test_a_mask_that_can_mean_two_things_is_refused() -> None:
    with pytest.raises(UserError, match="can mean the joint actions or the components"):
        mask_row([1, 0, 0, 1], 4, [2, 2])
    assert_array_equal(mask_row(([1, 0], [0, 1]), 4, [2, 2]), [False, True, False, False])
    assert_array_equal(mask_row(np.array([[1, 0], [0, 1]]), 4, [2, 2]), [True, False, False, True])
    assert_array_equal(mask_row([1, 0], 2, [2]), [True, False])


def test_a_mask_of_components_of_another_size_is_refused() -> None:
    with pytest.raises(UserError, match=r"one for each of the 12 actions, or of its components, which have \[3, 4\]"):
        mask_row(np.ones(5), 12, [3, 4])
