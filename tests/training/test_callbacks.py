"""Callbacks: the same decisions as Keras's own, a state that survives a stop, and arguments out of range."""

import errno
import math
import os
import pickle
from typing import NamedTuple

import numpy as np
import pytest
import tf_keras as keras
from hypothesis import given
from hypothesis import strategies as st

from rlplatform.config import CallbacksConfig
from rlplatform.errors import RunError, UserError
from rlplatform.training import callbacks
from rlplatform.training.callbacks import (
    Callback,
    EarlyStopping,
    LearningRateScheduler,
    ModelCheckpoint,
    ReduceLROnPlateau,
    StopOnReward,
)


class Evaluation(NamedTuple):
    returns: np.ndarray


class Run:
    """What callbacks see of a run, and what they did to it."""

    def __init__(self, scheduled_learning_rate=1e-3):
        self.step, self.updates, self.log = 0, 0, None
        self.scheduled_learning_rate, self.learning_rate_scale = scheduled_learning_rate, 1.0
        self.stopped, self.saved = None, []

    @property
    def learning_rate(self):
        return self.scheduled_learning_rate * self.learning_rate_scale

    def stop(self, reason):
        self.stopped = self.stopped or (self.step, reason)

    def save_network(self, path):
        path.write_text(f"network of step {self.step}")
        self.saved.append(self.step)

    def evaluated(self, means, *called):
        """One evaluation of two episodes every 10 steps, until a callback stops the run."""
        for mean in means:
            if self.stopped:
                return
            self.step += 10
            self.updates += 5
            for callback in called:
                callback.on_evaluation(self, Evaluation(np.array([mean - 1.0, mean + 1.0])))


def begun(*called, **kwargs):
    run = Run(**kwargs)
    for callback in called:
        callback.on_train_begin(run)
    return run


# Whole numbers, so that no comparison hangs on how a difference is rounded.
MEANS = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=25)
PATIENCE, DELTA = st.integers(1, 4), st.integers(0, 2).map(float)


class KerasModel:
    """As much of a model as Keras's callbacks ask for."""

    class Optimizer:
        def __init__(self):
            self.learning_rate = self.lr = keras.backend.variable(1.0, "float64")

    def __init__(self):
        self.stop_training, self.optimizer = False, self.Optimizer()


# --- against Keras --------------------------------------------------------------------------------------------------


@given(means=MEANS, patience=PATIENCE, min_delta=DELTA)
def test_early_stopping_stops_where_that_of_keras_does(means, patience, min_delta):
    theirs = keras.callbacks.EarlyStopping("return", mode="max", patience=patience, min_delta=min_delta)
    theirs.set_model(KerasModel())
    theirs.on_train_begin()
    expected = None
    for epoch, mean in enumerate(means):
        theirs.on_epoch_end(epoch, {"return": mean})
        if theirs.model.stop_training:
            expected = 10 * (epoch + 1)
            break
    ours = EarlyStopping(patience, min_delta)
    run = begun(ours)
    run.evaluated(means, ours)
    assert (run.stopped and run.stopped[0]) == expected


@given(
    means=MEANS,
    patience=PATIENCE,
    min_delta=DELTA,
    factor=st.sampled_from([0.25, 0.5]),
    least=st.sampled_from([0, 0.1]),
)
def test_reduce_lr_on_plateau_reduces_as_that_of_keras_does(means, patience, min_delta, factor, least):
    theirs = keras.callbacks.ReduceLROnPlateau(
        "return", mode="max", factor=factor, patience=patience, min_delta=min_delta, min_lr=least
    )
    theirs.set_model(KerasModel())
    theirs.on_train_begin()
    ours = ReduceLROnPlateau(factor, patience, min_delta, least)
    run = begun(ours, scheduled_learning_rate=1.0)
    for epoch, mean in enumerate(means):
        theirs.on_epoch_end(epoch, {"return": mean})
        run.evaluated([mean], ours)
        assert run.learning_rate == pytest.approx(keras.backend.get_value(theirs.model.optimizer.lr), rel=1e-6)


# --- by hand --------------------------------------------------------------------------------------------------------


def test_early_stopping_says_what_the_best_was():
    ours = EarlyStopping(patience=2)
    run = begun(ours)
    run.evaluated([1.0, 3.0, 3.0, 2.0, 9.0], ours)
    assert run.stopped == (40, "EarlyStopping: no better mean return in 2 evaluations (the best is 3, of step 20)")


def test_a_nan_is_never_an_improvement_nor_a_reward_reached():
    early, reward, plateau = EarlyStopping(3), StopOnReward(-1e9), ReduceLROnPlateau(0.5, 2)
    run = begun(early, reward, plateau)
    run.evaluated([math.nan] * 5, early, reward, plateau)
    assert run.stopped == (30, "EarlyStopping: no better mean return in 3 evaluations (none was a number)")
    assert run.learning_rate_scale == 0.5
    run = begun(early)
    run.evaluated([5.0, math.nan, 6.0, math.nan, math.nan], early)
    assert run.stopped is None


def test_stop_on_reward_stops_at_the_threshold_itself():
    ours = StopOnReward(475.0)
    run = begun(ours)
    run.evaluated([474.9, 475.0, 500.0], ours)
    assert run.stopped == (20, "StopOnReward: the mean return 475 has reached 475")


def test_a_floor_that_lies_above_the_rate_does_not_raise_it():
    ours = ReduceLROnPlateau(0.5, 1, min_learning_rate=1.0)
    run = begun(ours, scheduled_learning_rate=0.25)
    run.evaluated([1.0, 1.0, 1.0], ours)
    assert run.learning_rate == 0.25
    run = begun(ours, scheduled_learning_rate=0.0)
    run.evaluated([1.0, 1.0], ours)
    assert run.learning_rate == 0.0


def test_a_scheduler_sets_the_rate_that_its_function_returns():
    """A warm-up from 0, over a schedule that falls underneath."""
    ours = LearningRateScheduler(lambda step, rate: min(step, 20) * 1e-4)
    run = begun(ours)
    assert run.learning_rate == 0.0
    for step, scheduled in ((10, 8e-4), (20, 6e-4), (30, 4e-4)):
        run.step, run.scheduled_learning_rate = step, scheduled
        ours.on_log(run, {})
        assert run.learning_rate == pytest.approx(min(step, 20) * 1e-4)


def test_a_scheduler_gets_the_rate_in_force_and_does_not_apply_twice_after_a_resume():
    ours = LearningRateScheduler(lambda step, rate: rate * 0.5)
    run = begun(ours)
    run.step = 10
    ours.on_log(run, {})
    assert run.learning_rate == pytest.approx(0.25e-3)
    LearningRateScheduler(lambda step, rate: rate * 0.5).on_train_begin(run)
    assert run.learning_rate == pytest.approx(0.25e-3)


@pytest.mark.parametrize("returned", [-1.0, math.nan, math.inf, None, "fast"])
def test_a_scheduler_whose_function_returns_no_rate_is_refused(returned):
    with pytest.raises(UserError, match=r"must return a learning rate of at least 0; got .* for step 0"):
        LearningRateScheduler(lambda step, rate: returned).on_train_begin(Run())


def test_a_scheduler_cannot_scale_a_rate_of_zero():
    with pytest.raises(UserError, match=r"optimizer\.learning_rate, which is 0 at step 0"):
        begun(LearningRateScheduler(lambda step, rate: 1e-3), scheduled_learning_rate=0.0)
    run = begun(LearningRateScheduler(lambda step, rate: 0.0), scheduled_learning_rate=0.0)
    assert run.learning_rate == 0.0


# --- networks on the disk -------------------------------------------------------------------------------------------


def test_a_model_checkpoint_writes_after_every_evaluation(tmp_path):
    ours = ModelCheckpoint(tmp_path / "networks" / "{step:04d}-{updates}-{mean_return:.1f}.keras")
    run = begun(ours)
    run.evaluated([2.0, 1.0], ours)
    assert sorted(path.name for path in (tmp_path / "networks").iterdir()) == ["0010-5-2.0.keras", "0020-10-1.0.keras"]


def test_a_model_checkpoint_of_the_best_only_skips_the_others(tmp_path):
    ours = ModelCheckpoint(tmp_path / "best.keras", save_best_only=True)
    run = begun(ours)
    run.evaluated([2.0, 1.0, math.nan, 2.0, 3.0], ours)
    assert run.saved == [10, 50]
    assert (tmp_path / "best.keras").read_text() == "network of step 50"
    assert [path.name for path in tmp_path.iterdir()] == ["best.keras"]


@pytest.mark.parametrize("name", ["network.keras", "network"])
def test_a_real_network_is_written_over_the_last_one_and_read_back(tmp_path, name):
    """As a `.keras` file and as a SavedModel."""
    inputs = keras.Input((3,))
    network = keras.Model(inputs, keras.layers.Dense(2)(inputs))

    class Real(Run):
        def save_network(self, path):
            network.save(path)

    ours = ModelCheckpoint(tmp_path / name)
    run = Real()
    for value in (1.0, 2.0):
        network.set_weights([np.full_like(weight, value) for weight in network.get_weights()])
        run.evaluated([value], ours)
    read = keras.models.load_model(tmp_path / name, compile=False)
    np.testing.assert_array_equal(read.get_weights()[0], np.full((3, 2), 2.0))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_network_that_finds_no_room_leaves_the_one_before(tmp_path):
    ours = ModelCheckpoint(tmp_path / "best.keras")
    run = begun(ours)
    run.evaluated([1.0], ours)

    def fill(path):
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run.save_network = fill
    with pytest.raises(
        RunError, match=r"^the disk of .* is full, so the network best\.keras could not be written; the "
    ):
        run.evaluated([2.0], ours)
    assert (tmp_path / "best.keras").read_text() == "network of step 10"
    assert [path.name for path in tmp_path.iterdir()] == ["best.keras"]


# --- state ----------------------------------------------------------------------------------------------------------


def all_of_them(folder):
    return [
        ReduceLROnPlateau(0.5, 2),
        EarlyStopping(5),
        StopOnReward(5.0),
        ModelCheckpoint(folder / "best.keras", save_best_only=True),
        EarlyStopping(6, 1.0),
    ]


@pytest.mark.parametrize("stop_after", range(13))
def test_callbacks_of_a_resumed_run_decide_as_if_it_had_not_stopped(tmp_path, stop_after):
    means = [1.0, 2.0, 0.0, 1.0, 2.0, 3.0, 3.0, 1.0, 2.0, 3.0, 1.0, 1.0]
    first = all_of_them(tmp_path)
    whole = begun(*first)
    whole.evaluated(means, *first)

    before, after = all_of_them(tmp_path), all_of_them(tmp_path)
    run = begun(*before)
    run.evaluated(means[:stop_after], *before)
    callbacks.load_states(after, pickle.loads(pickle.dumps(callbacks.states(before))))
    for callback in after:
        callback.on_train_begin(run)
    run.evaluated(means[stop_after:], *after)
    assert (run.stopped, run.learning_rate_scale, run.saved) == (whole.stopped, whole.learning_rate_scale, whole.saved)
    assert callbacks.states(after) == callbacks.states(first)
    assert whole.stopped[0] == 110


def test_a_callback_that_a_resumed_run_adds_begins_afresh(tmp_path):
    before, after = [EarlyStopping(5)], [StopOnReward(1.0), EarlyStopping(5), EarlyStopping(7)]
    run = begun(*before)
    run.evaluated([4.0, 3.0], *before)
    callbacks.load_states(after, callbacks.states(before))
    assert after[1].state() == before[0].state()
    assert after[2].state() == EarlyStopping(7).state()


def test_a_callback_that_served_another_run_forgets_it(tmp_path):
    for callback in all_of_them(tmp_path):
        fresh = callback.state()
        run = begun(callback)
        run.evaluated([1.0, 0.0], callback)
        begun(callback)
        assert callback.state() == fresh


def test_a_callback_of_ones_own_overrides_only_what_it_needs():
    class Mine(Callback):
        seen = None

        def on_log(self, run, row):
            self.seen = row["train/loss"]

    mine, run = Mine(), Run()
    mine.on_train_begin(run)
    mine.on_log(run, {"train/loss": 0.5})
    mine.on_evaluation(run, Evaluation(np.zeros(1)))
    mine.on_train_end(run)
    mine.load_state(mine.state())
    assert mine.seen == 0.5


# --- arguments ------------------------------------------------------------------------------------------------------


def test_the_default_configuration_turns_nothing_on():
    assert callbacks.from_config(CallbacksConfig()) == []
    assert callbacks.from_config(CallbacksConfig(stop_on_reward=math.nan)) == []


def test_the_configuration_turns_on_what_it_names():
    config = CallbacksConfig(
        early_stopping_patience=3, stop_on_reward=475.0, reduce_lr_patience=2, reduce_lr_factor=0.1, min_delta=1.5
    )
    reduce, early, reward = callbacks.from_config(config)
    assert (reduce.factor, reduce.patience, reduce.min_delta) == (0.1, 2, 1.5)
    assert (early.patience, early.min_delta) == (3, 1.5)
    assert reward.threshold == 475.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EarlyStopping(0), "EarlyStopping needs a patience of at least 1 evaluation; got 0"),
        (lambda: EarlyStopping(1, -1.0), "EarlyStopping needs a min_delta of at least 0; got -1.0"),
        (lambda: EarlyStopping(1, math.inf), "EarlyStopping needs a min_delta of at least 0; got inf"),
        (lambda: StopOnReward(math.nan), "StopOnReward needs a number as its threshold; got nan"),
        (lambda: ReduceLROnPlateau(1.0), "ReduceLROnPlateau needs a factor above 0 and below 1; got 1.0"),
        (lambda: ReduceLROnPlateau(0.5, 0), "ReduceLROnPlateau needs a patience of at least 1 evaluation; got 0"),
        (lambda: ReduceLROnPlateau(0.5, 1, math.nan), "ReduceLROnPlateau needs a min_delta of at least 0; got nan"),
        (lambda: ReduceLROnPlateau(0.5, 1, 0.0, -1.0), "needs a min_learning_rate of at least 0; got -1.0"),
        (lambda: ModelCheckpoint("{epoch}.keras"), r"filepath may hold \{step\}, .*; got '\{epoch\}\.keras'"),
        (lambda: ModelCheckpoint("{step:q}.keras"), r"filepath may hold \{step\}, .*; got '\{step:q\}\.keras'"),
        (lambda: callbacks.from_config(CallbacksConfig(reduce_lr_patience=1, reduce_lr_factor=0.0)), "got 0.0"),
    ],
)
def test_an_argument_out_of_range_is_refused_by_a_sentence(make, message):
    with pytest.raises(UserError, match=message):
        make()
