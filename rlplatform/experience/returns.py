"""From rows of slots to transitions: n-step returns forwards, frame stacks backwards. Pure functions of tensors."""

from typing import NamedTuple

import tensorflow as tf


class Return(NamedTuple):
    """An n-step return and where it bootstraps from."""

    reward: tf.Tensor  # [B] float32, sum of gamma ** k * reward_k over the steps taken
    discount: tf.Tensor  # [B] float32, gamma ** steps, 0 where the episode terminated
    steps: tf.Tensor  # [B] int32, steps taken, from 1 to n; the bootstrap slot lies that many rows later


def n_step_return(reward: tf.Tensor, terminated: tf.Tensor, dead: tf.Tensor, gamma: float) -> Return:
    """Traced: sums rewards until a termination, a dead slot or n steps, whichever comes first.

    The n-step return of Sutton & Barto (2018), eq. 7.1. Arriving at a dead slot, a truncated episode's final
    observation, stops the sum but still bootstraps from there.

    Args:
        reward: [n, B] float32, of the start slot and the n - 1 slots after it.
        terminated: [n, B] bool, of the same slots.
        dead: [n, B] bool, of the n slots after the start.
        gamma: discount per step.
    """
    n = reward.shape[0]
    stops = tf.cast(tf.logical_or(terminated, dead), tf.float32)  # [n, B]: nothing is added after this step
    going = tf.math.cumprod(1.0 - stops, axis=0, exclusive=True)  # [n, B]: 1 while the step is still the episode's
    gammas = tf.constant([gamma**k for k in range(n)], tf.float32)[:, None]
    steps = tf.reduce_sum(going, axis=0)
    ended = tf.reduce_max(going * tf.cast(terminated, tf.float32), axis=0)
    # gamma ** steps from a table, since steps is one of 1..n: exact, and cheaper than a power
    powers = tf.constant([gamma**k for k in range(n + 1)], tf.float32)
    steps = tf.cast(steps, tf.int32)
    total = tf.reduce_sum(tf.where(going > 0.0, gammas * reward, 0.0), axis=0)
    return Return(total, tf.gather(powers, steps) * (1.0 - ended), steps)


def stack_rows(row: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
    """Traced: the rows whose frames make up the stack that ends at `row`, oldest first.

    Args:
        row: [B] int32.
        first: [K - 1, B] bool, of the slots `row`, `row - 1`, ...: going back stops at an episode's first slot.

    Returns:
        [K, B] int32. Where the episode is younger than K frames, its first frame is repeated.
    """
    back = tf.math.cumsum(tf.math.cumprod(1 - tf.cast(first, tf.int32), axis=0), axis=0)  # [K - 1, B]: rows gone back
    return tf.concat([tf.reverse(row[None] - back, axis=[0]), row[None]], axis=0)
