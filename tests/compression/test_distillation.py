"""Distillation: the loss by hand, and students that learn a teacher whose choices are known."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from numpy.testing import assert_allclose

from rlplatform.compression import students
from rlplatform.compression.distillation import (
    Recipe,
    cross_entropy,
    data_of,
    distil,
    learning_rate_of,
    softening,
    targets_of,
    weights_of,
)
from rlplatform.compression.labels import Labels, explorer, together
from rlplatform.errors import RunError

RNG = np.random.default_rng(0)


def labels(count, masked=False, seed=0, scale=1.0):
    """Three actions, whose values are linear in two features; with masks, at least one action is allowed."""
    rng = np.random.default_rng(seed)
    observations = rng.normal(size=(count, 2)).astype(np.float32)
    values = scale * observations @ np.array([[1.0, -1.0, 0.2], [0.5, 0.5, -1.0]], np.float32) + 100.0
    masks = rng.random((count, 3)) < 0.6
    masks[np.arange(count), rng.integers(0, 3, count)] = True
    return Labels(observations, values.astype(np.float32), masks if masked else None)


def test_the_loss_is_the_cross_entropy_of_two_softmaxes_among_what_is_allowed():
    seen, temperature = labels(40, masked=True), 0.3
    logits = RNG.normal(size=(40, 3)).astype(np.float32)
    found = cross_entropy(tf.constant(targets_of(seen, temperature)), tf.constant(logits)).numpy()
    for row in range(40):
        allowed = np.flatnonzero(seen.masks[row])
        teacher = np.exp((seen.values[row, allowed] - seen.values[row, allowed].max()) / temperature)
        student = np.exp(logits[row, allowed] - logits[row, allowed].max())
        expected = -(teacher / teacher.sum() * np.log(student / student.sum())).sum()
        assert_allclose(found[row], expected, rtol=1e-4, atol=1e-5)


def test_an_offset_and_the_scale_of_the_values_change_nothing():
    one, other = labels(200), labels(200, scale=1_000.0)
    assert_allclose(
        targets_of(one, softening(one, 0.25)), targets_of(other, softening(other, 0.25)), atol=2e-2
    )  # float32 keeps few digits of gaps beside the offset of 100
    assert_allclose(softening(other, 0.25) / softening(one, 0.25), 1_000.0, rtol=1e-2)


def test_states_weigh_as_much_as_a_mistake_costs():
    weights = weights_of(np.array([0.0, 1.0, 2.0, 100.0, np.inf]), 1.0)
    assert_allclose(weights / weights[1], [0.1, 1.0, 2.0, 4.0, 4.0], rtol=1e-6)
    assert_allclose(weights.mean(), 1.0, rtol=1e-6)


def test_small_students_take_large_steps():
    assert learning_rate_of(100, 100) < learning_rate_of(30, 100) < learning_rate_of(5, 100)


def test_every_state_comes_once_in_each_pass_in_another_order():
    seen = labels(64)
    data = data_of(seen, 1.0, 1.0, 16, seed=3)
    first, second = (np.concatenate([batch[0].numpy() for batch in data]) for _ in range(2))
    assert not np.array_equal(first, second)
    for found in (first, second):
        assert_allclose(np.sort(found[:, 0]), np.sort(seen.observations[:, 0]))


@pytest.mark.slow
@pytest.mark.parametrize("masked", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_student_learns_its_teachers_choices(masked, tmp_path):
    keras.utils.set_random_seed(0)
    seen, held_out = labels(4_000, masked), labels(500, masked, seed=1)
    student = students.build(students.parse("linear"), seen.observations, 3)
    found = distil(student, seen, held_out, Recipe(epochs=15, learning_rate=3e-2, decay=0.9), log_dir=tmp_path / "log")
    given = Labels(held_out.observations, student(held_out.observations).numpy(), held_out.masks)
    assert (given.actions() == held_out.actions()).mean() > 0.95
    assert found.loss == min(found.history["val_loss"])
    assert found.epochs <= 15
    rates = np.array(found.history["lr"])
    assert_allclose(rates[1:] / rates[:-1], 0.9, rtol=1e-5)
    assert list((tmp_path / "log").rglob("events.*"))


@pytest.mark.slow
def test_training_stops_early_and_keeps_its_best_weights():
    keras.utils.set_random_seed(0)
    seen, held_out = labels(32), labels(200, seed=1)
    student = students.build(students.parse("64-64"), seen.observations, 3)
    found = distil(
        student, seen, held_out, Recipe(epochs=400, patience=3, learning_rate=1e-2, decay=1.0, temperature=0.1)
    )
    assert found.epochs < 400
    targets = targets_of(held_out, softening(seen, 0.1))
    weights = weights_of(held_out.gaps(), softening(seen, 1.0))
    kept = (cross_entropy(targets, student(held_out.observations)).numpy() * weights)[:192].mean()
    assert_allclose(kept, found.loss, rtol=0.1)


@pytest.mark.slow
def test_of_many_states_an_epoch_takes_a_part_and_the_next_one_the_next_part():
    seen = labels(120, seed=0)
    student = students.build(students.parse("4"), seen.observations, seen.values.shape[1])
    updates = []
    counting = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: updates.append(int(student.optimizer.iterations)))
    recipe = Recipe(epochs=4, epoch_states=60, batch_size=20, patience=99)
    distil(student, seen, labels(50, seed=1), recipe, callbacks=[counting])
    assert updates == [3, 6, 9, 12]
    rows = data_of(seen, 1.0, 1.0, 20, seed=0).repeat().take(6)
    assert len({row.tobytes() for observations, _, _ in rows for row in observations.numpy()}) == 120


def test_a_rate_that_is_too_large_is_said_in_a_sentence():
    seen = labels(200)
    student = students.build(students.parse("8-8"), seen.observations, 3)
    with pytest.raises(RunError, match="distillation has diverged"):
        distil(student, seen, labels(50, seed=1), Recipe(epochs=3, learning_rate=1e30))


def test_an_explorer_takes_a_share_of_allowed_actions_at_random():
    act = explorer(lambda observations, masks: masks.argmax(axis=1), 0.3, 4, seed=0)
    masks = np.zeros((20_000, 4), np.bool_)
    masks[:, [1, 3]] = True
    actions = act(np.zeros((20_000, 2)), masks)
    assert set(actions) == {1, 3}
    assert abs((actions == 3).mean() - 0.15) < 0.01


def test_labels_are_joined_with_their_masks():
    one, other = labels(5, masked=True), labels(7, masked=True, seed=1)
    both = together(one, other)
    assert [len(part) for part in both] == [12, 12, 12]
    assert together(labels(5), labels(7)).masks is None
