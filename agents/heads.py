"""Value heads: from a network's output to greedy values, targets and per-item losses. Pure functions of tensors."""

import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf


class ItemLoss(NamedTuple):
    """The loss of each item, before any weights, so that importance weights are exact under every loss."""

    loss: tf.Tensor  # [B] float32, gradients flow
    td_error: tf.Tensor  # [B] float32, no gradient: target minus prediction


class Head(NamedTuple):
    """What a head is: three functions."""

    q_values: Callable[[tf.Tensor], tf.Tensor]  # output [B, ...] -> [B, A]
    target: Callable[
        [tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor
    ]  # reward, discount, next output, next action
    loss: Callable[[tf.Tensor, tf.Tensor, tf.Tensor, float], ItemLoss]  # output, action, target, delta


def take(values: tf.Tensor, action: tf.Tensor) -> tf.Tensor:
    """Traced: `values[b, action[b]]` for `[B, A]` and `[B]`.

    A product with a mask, since the gradient of a gather is a scatter, which XLA on CPU runs as a loop.
    """
    return tf.reduce_sum(values * tf.one_hot(action, values.shape[1], dtype=values.dtype), axis=1)


def huber(error: tf.Tensor, delta: float) -> tf.Tensor:
    """Traced: 0.5 e^2 up to |e| = delta, then linear with slope delta (Huber 1964); delta = inf is the squared loss."""
    if math.isinf(delta):
        return 0.5 * tf.square(error)
    bounded = tf.clip_by_value(error, -delta, delta)
    return bounded * (error - 0.5 * bounded)


def scalar_q_values(output: tf.Tensor) -> tf.Tensor:
    """Traced: the output is the values, `[B, A]`."""
    return output


def scalar_target(reward: tf.Tensor, discount: tf.Tensor, next_output: tf.Tensor, next_action: tf.Tensor) -> tf.Tensor:
    """Traced: r + discount * Q(s', a') (Mnih et al. 2015, eq. 2).

    It is double Q-learning where a' is the online network's choice (van Hasselt et al. 2016, eq. 4).

    Args:
        reward: [B] float32.
        discount: [B] float32, 0 after a termination.
        next_output: [B, A] float32, of the target network.
        next_action: [B] int32.

    Returns:
        [B] float32, without a gradient.
    """
    return tf.stop_gradient(reward + discount * take(next_output, next_action))


def scalar_loss(output: tf.Tensor, action: tf.Tensor, target: tf.Tensor, delta: float) -> ItemLoss:
    """Traced: Huber loss of the TD error, per item.

    Args:
        output: [B, A] float32, of the online network.
        action: [B] int32, what was done.
        target: [B] float32.
        delta: Huber threshold, in units of return.
    """
    error = target - take(output, action)
    return ItemLoss(huber(error, delta), tf.stop_gradient(error))


HEADS = {"scalar": Head(scalar_q_values, scalar_target, scalar_loss)}
