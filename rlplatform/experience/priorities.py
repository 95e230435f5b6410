"""Priorities: a wide sum tree that draws slots in proportion to their priority, in a few fat operations."""

import numpy as np
import tensorflow as tf

from rlplatform import devices
from rlplatform.experience.draws import random_uniform

WIDTH = 32
"""Children of a node. XLA on CPU scatters one element after the other and gathers whole rows fast, so few levels of
wide rows win over many of narrow ones: four levels hold a million slots."""

OFFSET = 1e-6  # what was learned without an error can still be drawn


class SumTree(tf.Module):
    """Non-negative numbers, and their sums over `WIDTH`, `WIDTH ** 2`, ... of them.

    Every sum is computed anew from its children when one of them changes, never by adding a difference: errors do not
    add up, however long a run is.

    Args:
        size: how many numbers, all 0 at first.
    """

    def __init__(self, size: int) -> None:
        super().__init__(name="priorities")
        self.size = size
        self.levels: list[tf.Variable] = []  # [rows, WIDTH] each, the numbers themselves first, one row last
        while not self.levels or size > 1:
            size = -(-size // WIDTH)
            name = f"level_{len(self.levels)}"
            self.levels.append(tf.Variable(tf.zeros([size, WIDTH]), trainable=False, name=name))

    def set(self, index: tf.Tensor, value: tf.Tensor) -> None:
        """Traced: writes `value [M]` float32 at `index [M]` int32; where an index comes twice, one of its values."""
        for level in self.levels:
            row, column = index // WIDTH, index % WIDTH
            _write(level, tf.stack([row, column], axis=1), value)
            value = tf.reduce_sum(tf.gather(level, row), axis=1)
            index = row

    def get(self, index: tf.Tensor) -> tf.Tensor:
        """Traced: the numbers `[M]` at `index [M]` int32."""
        rows = tf.gather(self.levels[0], index // WIDTH)
        return tf.reduce_sum(rows * tf.one_hot(index % WIDTH, WIDTH), axis=1)

    def total(self) -> tf.Tensor:
        """Traced: the sum of all numbers, [] float32."""
        return tf.reduce_sum(self.levels[-1])

    def find(self, mass: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Traced: for each `mass [M]` in [0, total), the first index at which the sum of the numbers exceeds it.

        Returns:
            The indices `[M]` int32, and the numbers there `[M]`. A number is greater than 0 wherever the total is.
        """
        before = tf.constant(np.triu(np.ones([WIDTH, WIDTH], np.float32)))
        index = tf.zeros_like(mass, tf.int32)
        for level in reversed(self.levels):
            children = tf.gather(level, index)  # [M, WIDTH]
            sums = tf.matmul(children, before)
            passed = sums <= mass[:, None]
            # Rounding may leave a mass at or beyond the end of its row: the last child that has any is meant then.
            last = tf.reduce_max(tf.where(children > 0.0, tf.range(WIDTH), 0), axis=1)
            child = tf.minimum(tf.reduce_sum(tf.cast(passed, tf.int32), axis=1), last)
            chosen = tf.one_hot(child, WIDTH)
            mass -= tf.reduce_sum(tf.where(tf.range(WIDTH) < child[:, None], children, 0.0), axis=1)
            mass = tf.maximum(mass, 0.0)  # this sum and that of the product may differ in rounding
            index = index * WIDTH + child
        return index, tf.reduce_sum(children * chosen, axis=1)


def _write(level: tf.Variable, place: tf.Tensor, value: tf.Tensor) -> None:
    """Traced: writes `value [M]` at `place [M, 2]`. What is distributed over a TPU's cores cannot scatter."""
    if isinstance(level, tf.distribute.DistributedValues):
        level.assign(tf.tensor_scatter_nd_update(level, place, value))
    else:
        level.scatter_nd_update(place, value)


def sums(numbers: np.ndarray) -> list[np.ndarray]:
    """The levels of the tree that holds `numbers [size]` float32: `[rows, WIDTH]` each, the numbers first."""
    levels: list[np.ndarray] = []
    while not levels or len(numbers) > 1:
        rows = -(-len(numbers) // WIDTH)
        levels.append(np.pad(numbers, (0, rows * WIDTH - len(numbers))).reshape(rows, WIDTH))
        numbers = levels[-1].sum(axis=1)
    return levels


class Priorities(tf.Module):
    """Which of a ring's places are drawn: in proportion to their last error, to a power (Schaul et al. 2016, eq. 1).

    Args:
        size: how many places, none of which can be drawn at first.
        exponent: alpha.
    """

    def __init__(self, size: int, exponent: float) -> None:
        super().__init__(name="priorities")
        self.tree = SumTree(size)
        self.greatest = tf.Variable(1.0, trainable=False, name="greatest")  # error so far, what new places get
        self._exponent = exponent

    def renew(self, place: tf.Tensor, live: tf.Tensor) -> None:
        """Traced: gives `place [M]` int32 the greatest priority so far where `live [M]` bool, and none elsewhere."""
        self.tree.set(place, tf.where(live, self._of(self.greatest), 0.0))

    def sample(
        self, updates: int, batch_size: int, seed: tf.Tensor, importance_exponent: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Traced: the places `[U * B]` int32 of all batches, and their importance weights `[U, B]` float32.

        Args:
            updates: U.
            batch_size: B.
            seed: [2] int32.
            importance_exponent: [] float32, beta.
        """
        total = self.tree.total()
        place, priority = self.tree.find(stratified(batch_size, updates, total, seed))
        if devices.num_replicas() > 1:  # each draws from its own places: only shares of their total compare
            priority = tf.math.divide_no_nan(priority, total)
        return place, importance(tf.reshape(priority, [updates, batch_size]), importance_exponent)

    def set_errors(self, place: tf.Tensor, error: tf.Tensor) -> None:
        """Traced: what was drawn gets the priority `(error + 1e-6) ** alpha` (Schaul et al. 2016, section 3.3).

        Args:
            place: [M] int32, of a batch; where one comes twice, one of its errors counts.
            error: [M] float32, at least 0.
        """
        drawn = self.tree.get(place) > 0.0  # where no place is live, the draws fall on dead ones
        error = tf.where(drawn & tf.math.is_finite(error), error, 0.0)  # a run that diverges is stopped by its loss
        self.greatest.assign(tf.maximum(self.greatest, tf.reduce_max(error)))
        self.tree.set(place, tf.where(drawn, self._of(error), 0.0))

    def _of(self, error: tf.Tensor) -> tf.Tensor:
        return tf.pow(error + OFFSET, self._exponent)


def stratified(count: int, groups: int, total: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Traced: `[groups * count]` masses in [0, total): in each group one from each `count`-th part of the total.

    Schaul et al. 2016, appendix B.2.1: a batch then covers the whole range of priorities.
    """
    draw = random_uniform([groups, count], seed)
    return tf.reshape((tf.range(count, dtype=tf.float32) + draw) / count * total, [-1])


def importance(priority: tf.Tensor, exponent: tf.Tensor) -> tf.Tensor:
    """Traced: weights `(N P(i)) ** -beta` over the greatest of their batch (Schaul et al. 2016, eq. 2 and section 3.4).

    Number and total cancel in the ratio to the greatest weight, which is that of the least priority. Where replicas
    draw parts of one batch, that is the least of all of them.

    Args:
        priority: [U, B] float32, of the drawn slots, before they are divided by their sum.
        exponent: [] float32, beta.

    Returns:
        [U, B] float32, from 0 to 1; 0 where the priority is 0.
    """
    drawn = priority > 0.0
    least = devices.least(tf.reduce_min(tf.where(drawn, priority, priority.dtype.max), axis=1, keepdims=True))
    return tf.where(drawn, tf.pow(least / tf.where(drawn, priority, 1.0), exponent), 0.0)
