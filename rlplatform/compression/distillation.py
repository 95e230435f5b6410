"""Distillation: a small network learns a teacher's choices by ordinary Keras training on labelled states.

The loss is the Kullback-Leibler divergence from the softmax of the teacher's values to that of the student's (Rusu et
al. 2016, eq. 3). Its temperature is a share of the teacher's own median action gap, so that one number fits rewards of
any size; states weigh as much as a mistake costs there (Bastani et al. 2018, section 3.1).
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras

from rlplatform.compression.labels import FORBIDDEN, Labels
from rlplatform.errors import RunError

Array = np.ndarray[Any, Any]

STEPS_PER_CALL = 16  # updates that one compiled program makes: a small student's update takes less than its call
LIGHTEST, HEAVIEST = 0.1, 4.0  # of the weights, before their mean is made 1


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a student is trained.

    Attributes:
        epochs: passes over the labelled states, at most.
        epoch_states: of one pass, at most: of more states, each pass takes the next ones.
        batch_size: states of one update.
        learning_rate: at first; None takes one by the student's size, see `learning_rate_of`.
        decay: what the learning rate is multiplied by after each epoch.
        patience: epochs without a better loss on the held-out episodes, after which training stops.
        temperature: of the teacher's softmax, in units of its median action gap.
    """

    epochs: int = 60
    epoch_states: int = 40_000
    batch_size: int = 256
    learning_rate: float | None = None
    decay: float = 0.95
    patience: int = 12
    temperature: float = 0.5

    def updates(self, states: int) -> int:
        """Of one epoch, with so many labelled states."""
        return max(1, min(states, self.epoch_states) // self.batch_size)


class Distilled(NamedTuple):
    """What training has come to.

    Attributes:
        loss: on the held-out episodes, of the weights that were kept.
        epochs: that were trained.
        history: by name, one number for each epoch.
    """

    loss: float
    epochs: int
    history: dict[str, list[float]]


def distil(
    student: Any,
    labels: Labels,
    held_out: Labels,
    recipe: Recipe = Recipe(),
    seed: int = 0,
    *,
    teacher_parameters: int | None = None,
    log_dir: pathlib.Path | None = None,
    callbacks: Sequence[Any] = (),
    keep_last: bool = False,
    compiled: bool = True,
) -> Distilled:
    """Trains a student on the teacher's labels; it ends with the weights that were best on the held-out episodes.

    Args:
        student: `[B, O...]` float32 to `[B, A]`, from `students.build`; changed in place.
        labels: what to learn from.
        held_out: states of other episodes.
        recipe: how.
        seed: of the order of the states.
        teacher_parameters: the teacher's number of weights, for the learning rate by size.
        log_dir: where TensorBoard finds the losses; nothing is written if None.
        callbacks: further Keras callbacks.
        keep_last: train for all epochs and keep the last weights instead: for what changes weights by a schedule.
        compiled: several updates in one call, compiled by XLA but for convolutions, whose gradients it is slow
            at on a CPU; tfmot's wrappers need updates one by one.

    Raises:
        RunError: the loss is no number.
    """
    temperature = softening(labels, recipe.temperature)
    rate = recipe.learning_rate or learning_rate_of(int(student.count_params()), teacher_parameters)
    student.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss=cross_entropy,
        weighted_metrics=[],
        steps_per_execution=STEPS_PER_CALL if compiled else 1,
        jit_compile=compiled and not any(isinstance(layer, keras.layers.Conv2D) for layer in student.layers),
    )
    typical = _typical(labels.gaps())
    early = keras.callbacks.EarlyStopping("val_loss", patience=recipe.patience, restore_best_weights=True)
    watching = [
        *([] if keep_last else [early]),
        keras.callbacks.LearningRateScheduler(lambda epoch, _: rate * recipe.decay**epoch),
        keras.callbacks.TerminateOnNaN(),
        *([] if log_dir is None else [keras.callbacks.TensorBoard(str(log_dir), write_graph=False)]),
        *callbacks,
    ]
    history = student.fit(
        data_of(labels, temperature, typical, recipe.batch_size, seed).repeat(),
        validation_data=data_of(held_out, temperature, typical, recipe.batch_size, None),
        epochs=recipe.epochs,
        steps_per_epoch=recipe.updates(len(labels.values)),
        callbacks=watching,
        verbose=0,
    ).history
    losses = np.array(history["val_loss"])
    if not np.isfinite(losses).all():
        raise RunError(f"distillation has diverged at a learning rate of {rate:g}; try a smaller one")
    rows = {name: list(map(float, row)) for name, row in history.items()}
    return Distilled(float(losses[-1] if keep_last else losses.min()), len(losses), rows)


def learning_rate_of(parameters: int, teacher_parameters: int | None) -> float:
    """Small students take large steps (Livne & Cohen 2020): 1e-2 below a fifth of the teacher, 3e-3 below 40 %."""
    share = 1.0 if teacher_parameters is None else parameters / teacher_parameters
    return 1e-3 if share > 0.4 else 3e-3 if share > 0.2 else 1e-2


def softening(labels: Labels, share: float) -> float:
    """The temperature in units of value: `share` of the teacher's median gap."""
    return max(share * _typical(labels.gaps()), float(np.finfo(np.float32).tiny))


def data_of(labels: Labels, temperature: float, typical: float, batch_size: int, seed: int | None) -> tf.data.Dataset:
    """`(observation [B, O...], target [B, 2 A], weight [B])` in batches of one size, shuffled anew in each pass.

    A target holds the teacher's softmax, then 1 where an action is allowed and 0 elsewhere.

    Args:
        labels: N states.
        temperature: of the softmax, in units of value.
        typical: the gap that weighs 1.
        batch_size: B; the last N mod B states of a pass are left out where N is at least B.
        seed: of the order; None keeps it.
    """
    targets, weights = targets_of(labels, temperature), weights_of(labels.gaps(), typical)
    count = len(weights)
    size = min(batch_size, count)
    indices = tf.data.Dataset.range(count)
    if seed is not None:
        indices = indices.shuffle(count, seed=seed, reshuffle_each_iteration=True)
    observations = tf.constant(labels.observations)
    target, weight = tf.constant(targets), tf.constant(weights)

    def take(rows: Any) -> tuple[Any, Any, Any]:
        return tf.cast(tf.gather(observations, rows), tf.float32), tf.gather(target, rows), tf.gather(weight, rows)

    return indices.batch(size, drop_remainder=True).map(take).prefetch(4)


def targets_of(labels: Labels, temperature: float) -> Array:
    """`[N, 2 A]` float32: the teacher's softmax at a temperature, among the allowed actions, and which those are."""
    allowed = np.ones(labels.values.shape, np.bool_) if labels.masks is None else labels.masks
    scaled = np.where(allowed, labels.values.astype(np.float64) / temperature, FORBIDDEN)
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    chances = exponentials / exponentials.sum(axis=1, keepdims=True)
    return np.concatenate([chances, allowed], axis=1).astype(np.float32)


def weights_of(gaps: Array, typical: float) -> Array:
    """`[N]` float32 with a mean of 1: the gap in units of the typical one, between a tenth and four."""
    weights = np.clip(np.nan_to_num(gaps / typical, posinf=HEAVIEST), LIGHTEST, HEAVIEST)
    return (weights / weights.mean()).astype(np.float32)  # type: ignore[no-any-return]


def cross_entropy(target: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Traced: `[B]`, the divergence from the teacher's softmax to the student's, but for the teacher's own entropy.

    Args:
        target: `[B, 2 A]`, see `targets_of`.
        logits: `[B, A]`, what the student gives.
    """
    chances, allowed = tf.split(target, 2, axis=1)
    return -tf.reduce_sum(chances * tf.nn.log_softmax(tf.where(allowed > 0.5, logits, FORBIDDEN)), axis=1)


def _typical(gaps: Array) -> float:
    """The median of the gaps that decide something; 1 where there is none."""
    deciding = gaps[np.isfinite(gaps) & (gaps > 0)]
    return float(np.median(deciding)) if len(deciding) else 1.0
