"""Value heads: from a network's output to greedy values, targets and per-item losses. Pure functions of tensors.

A head is what a network learns of the return: its mean, or its distribution in one of three forms. All share the
letters B (items of the batch), A (actions) and K (atoms or quantiles), and what follows in the next state is described
once for all of them by `Following`, so that double, Munchausen, n-step and masks work under every head.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from rlplatform.config import AgentConfig


class Following(NamedTuple):
    """What comes after a transition, before the head sees it."""

    reward: tf.Tensor  # [B] float32
    discount: tf.Tensor  # [B] float32, 0 after a termination
    output: tf.Tensor  # [B, A] or [B, A, K] float32, the target network's for the next observation
    policy: tf.Tensor  # [B, A] float32, the next action's chances: one-hot for a greedy choice
    bonus: tf.Tensor | None  # [B, A] float32, added to the next action's value (-temperature * log policy), or none


class ItemLoss(NamedTuple):
    """The loss of each item, before any weights, so that importance weights are exact under every loss."""

    loss: tf.Tensor  # [B] float32, gradients flow
    td_error: tf.Tensor  # [B] float32, no gradient: expected target minus expected prediction
    priority: tf.Tensor  # [B] float32, no gradient, at least 0: how surprising the item was


class Head(NamedTuple):
    """What a head is: three functions."""

    q_values: Callable[[tf.Tensor], tf.Tensor]  # output -> [B, A]
    target: Callable[[Following], tf.Tensor]  # -> [B] or [B, K]
    loss: Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor | None], ItemLoss]  # output, action, target, tau


def take(values: tf.Tensor, action: tf.Tensor) -> tf.Tensor:
    """Traced: `values[b, action[b]]` for `[B, A]` or `[B, A, K]`, and `[B]`.

    A product with a mask, since the gradient of a gather is a scatter, which XLA on CPU runs as a loop.
    """
    return mix(values, tf.one_hot(action, values.shape[1], dtype=values.dtype))


def mix(values: tf.Tensor, policy: tf.Tensor) -> tf.Tensor:
    """Traced: the sum over actions of `policy[b, a] * values[b, a]`: `[B, A]` to `[B]`, `[B, A, K]` to `[B, K]`."""
    return tf.reduce_sum(values * (policy if values.shape.rank == 2 else policy[..., None]), axis=1)


def huber(error: tf.Tensor, delta: float) -> tf.Tensor:
    """Traced: 0.5 e^2 up to |e| = delta, then linear with slope delta (Huber 1964); delta = inf is the squared loss."""
    if math.isinf(delta):
        return 0.5 * tf.square(error)
    bounded = tf.clip_by_value(error, -delta, delta)
    return bounded * (error - 0.5 * bounded)


# --- what follows: the next state's policy ----------------------------------------------------------------------------


def allowed(values: tf.Tensor, action_mask: tf.Tensor) -> tf.Tensor:
    """Traced: `values [B, A]` where `action_mask [B, A]` is true, the least float elsewhere; `[B, 0]` allows all."""
    return values if action_mask.shape[1] == 0 else tf.where(action_mask, values, values.dtype.min)


def greedy_policy(q: tf.Tensor, action_mask: tf.Tensor) -> tf.Tensor:
    """Traced: `[B, A]`, 1 at the greatest allowed value.

    It makes `target` double Q-learning where `q` is the online network's (van Hasselt et al. 2016, eq. 4), and plain
    Q-learning where it is the target network's (Mnih et al. 2015, eq. 2).
    """
    return tf.one_hot(tf.argmax(allowed(q, action_mask), axis=1), q.shape[1], dtype=q.dtype)


def log_soft_policy(q: tf.Tensor, temperature: float, action_mask: tf.Tensor) -> tf.Tensor:
    """Traced: `temperature * log softmax(q / temperature)`, `[B, A]`, stably (Vieillard et al. 2020, app. B.1).

    0 where an action is not allowed: its chance there is 0 too.
    """
    legal = allowed(q, action_mask)
    advantage = legal - tf.reduce_max(legal, axis=1, keepdims=True)
    log_policy = advantage - temperature * tf.reduce_logsumexp(advantage / temperature, axis=1, keepdims=True)
    return log_policy if action_mask.shape[1] == 0 else tf.where(action_mask, log_policy, 0.0)


def soft_policy(q: tf.Tensor, temperature: float, action_mask: tf.Tensor) -> tf.Tensor:
    """Traced: `softmax(q / temperature)` over the allowed actions, `[B, A]`."""
    return tf.nn.softmax(allowed(q, action_mask) / temperature)


# --- scalar -----------------------------------------------------------------------------------------------------------


def scalar_q_values(output: tf.Tensor) -> tf.Tensor:
    """Traced: the output is the values, `[B, A]`."""
    return output


def scalar_target(following: Following) -> tf.Tensor:
    """Traced: r + discount * sum over a' of policy(a') (Q(s', a') + bonus(a')), `[B]`, without a gradient.

    Mnih et al. 2015, eq. 2, where the policy is greedy; Vieillard et al. 2020, eq. 1, where it is soft.
    """
    values = following.output if following.bonus is None else following.output + following.bonus
    return tf.stop_gradient(following.reward + following.discount * mix(values, following.policy))


def scalar_loss(output: tf.Tensor, action: tf.Tensor, target: tf.Tensor, delta: float) -> ItemLoss:
    """Traced: Huber loss of the TD error, per item.

    Args:
        output: [B, A] float32, of the online network.
        action: [B] int32, what was done.
        target: [B] float32.
        delta: Huber threshold, in units of return.
    """
    error = target - take(output, action)
    fixed = tf.stop_gradient(error)
    return ItemLoss(huber(error, delta), fixed, tf.abs(fixed))


# --- categorical: C51 -------------------------------------------------------------------------------------------------


def atoms(low: float, high: float, count: int) -> tf.Tensor:
    """Traced: the support z of a categorical distribution, `[K]` from `low` to `high` (Bellemare et al. 2017)."""
    return tf.linspace(tf.constant(low, tf.float32), high, count)


def categorical_q_values(logits: tf.Tensor, low: float, high: float) -> tf.Tensor:
    """Traced: the expectation of each action's distribution, `[B, A, K]` to `[B, A]`."""
    return tf.reduce_sum(tf.nn.softmax(logits) * atoms(low, high, logits.shape[-1]), axis=-1)


def project(positions: tf.Tensor, probabilities: tf.Tensor, low: float, high: float) -> tf.Tensor:
    """Traced: a distribution on the atoms for one on any positions (Bellemare et al. 2017, eq. 7).

    Each mass goes to the two atoms beside it, in proportion to its nearness; beyond the ends it goes to the end.

    Args:
        positions: [..., K] float32, where the masses lie.
        probabilities: [..., K] float32.
        low: v_min.
        high: v_max.

    Returns:
        [..., K] float32.
    """
    count = positions.shape[-1]
    step = (high - low) / (count - 1)
    clipped = tf.clip_by_value(positions, low, high)
    distance = tf.abs(clipped[..., None, :] - atoms(low, high, count)[:, None])  # [..., K (atom), K (mass)]
    share = tf.clip_by_value(1.0 - distance / step, 0.0, 1.0)
    return tf.reduce_sum(share * probabilities[..., None, :], axis=-1)


def categorical_target(following: Following, low: float, high: float) -> tf.Tensor:
    """Traced: the projected distribution of r + discount * Z(s', a'), `[B, K]`, without a gradient.

    Bellemare et al. 2017, algorithm 1. Under a soft policy it is the mixture over a' of the distributions that each a'
    gives, its value's bonus included, whose expectation is Vieillard et al. 2020, eq. 1.
    """
    probabilities = tf.nn.softmax(following.output)  # [B, A, K]
    support = atoms(low, high, probabilities.shape[-1])
    reward, discount = following.reward[:, None], following.discount[:, None]
    if following.bonus is None:
        target = project(reward + discount * support, mix(probabilities, following.policy), low, high)
    else:
        positions = reward[..., None] + discount[..., None] * (support + following.bonus[..., None])  # [B, A, K]
        target = mix(project(positions, probabilities, low, high), following.policy)
    return tf.stop_gradient(target)


def categorical_loss(logits: tf.Tensor, action: tf.Tensor, target: tf.Tensor, low: float, high: float) -> ItemLoss:
    """Traced: cross entropy with the target distribution (Bellemare et al. 2017, algorithm 1); priority: KL divergence.

    Priorities are the divergence, not the TD error, as in Hessel et al. 2018.

    Args:
        logits: [B, A, K] float32.
        action: [B] int32.
        target: [B, K] float32.
        low: v_min.
        high: v_max.
    """
    log_probabilities = tf.nn.log_softmax(take(logits, action))  # [B, K]
    loss = -tf.reduce_sum(target * log_probabilities, axis=1)
    support = atoms(low, high, target.shape[1])
    error = tf.reduce_sum((target - tf.exp(log_probabilities)) * support, axis=1)
    entropy = -tf.reduce_sum(tf.math.xlogy(target, target), axis=1)
    return ItemLoss(loss, tf.stop_gradient(error), tf.maximum(tf.stop_gradient(loss - entropy), 0.0))


# --- quantile: QR-DQN and IQN -----------------------------------------------------------------------------------------


def quantile_q_values(quantiles: tf.Tensor) -> tf.Tensor:
    """Traced: the mean of the quantiles, `[B, A, K]` to `[B, A]` (Dabney et al. 2018a, eq. 4; 2018b, eq. 3)."""
    return tf.reduce_mean(quantiles, axis=-1)


def quantile_target(following: Following) -> tf.Tensor:
    """Traced: r + discount * sum over a' of policy(a') (theta_k(s', a') + bonus(a')), `[B, K]`, without a gradient.

    Dabney et al. 2018a, algorithm 1; Vieillard et al. 2020, app. B.2 (M-IQN), where the policy is soft.
    """
    quantiles = following.output if following.bonus is None else following.output + following.bonus[..., None]
    following_value = mix(quantiles, following.policy)
    return tf.stop_gradient(following.reward[:, None] + following.discount[:, None] * following_value)


def quantile_loss(output: tf.Tensor, action: tf.Tensor, target: tf.Tensor, tau: tf.Tensor, delta: float) -> ItemLoss:
    """Traced: quantile Huber regression (Dabney et al. 2018a, eq. 10; 2018b, eq. 3): mean over targets, sum over K.

    The priority is the mean absolute error over all pairs of quantiles, since the loss itself shrinks below kappa.

    Args:
        output: [B, A, K] float32, quantiles at the levels tau.
        action: [B] int32.
        target: [B, M] float32, no gradient flows into them.
        tau: [K] float32, the levels.
        delta: Huber threshold kappa, in units of return; inf is the squared loss, asymmetric all the same.
    """
    quantiles = take(output, action)  # [B, K]
    error = target[:, None, :] - quantiles[:, :, None]  # [B, K, M]
    weight = tf.abs(tau[:, None] - tf.cast(error < 0.0, tf.float32))
    scale = 1.0 if math.isinf(delta) else delta
    loss = tf.reduce_sum(tf.reduce_mean(weight * huber(error, delta) / scale, axis=2), axis=1)
    mean_error = tf.stop_gradient(tf.reduce_mean(target, axis=1) - tf.reduce_mean(quantiles, axis=1))
    return ItemLoss(loss, mean_error, tf.stop_gradient(tf.reduce_mean(tf.abs(error), axis=[1, 2])))


# --- the table --------------------------------------------------------------------------------------------------------


def head_of(config: AgentConfig) -> Head:
    """The head that a configuration names."""
    return HEADS[config.head](config)


def _scalar(config: AgentConfig) -> Head:
    return Head(
        scalar_q_values,
        scalar_target,
        lambda output, action, target, tau: scalar_loss(output, action, target, config.huber_delta),
    )


def _categorical(config: AgentConfig) -> Head:
    low, high = config.v_min, config.v_max
    return Head(
        lambda output: categorical_q_values(output, low, high),
        lambda following: categorical_target(following, low, high),
        lambda output, action, target, tau: categorical_loss(output, action, target, low, high),
    )


def _quantile(config: AgentConfig) -> Head:
    return Head(
        quantile_q_values,
        quantile_target,
        lambda output, action, target, tau: quantile_loss(output, action, target, tau, config.huber_delta),
    )


HEADS: dict[str, Callable[[AgentConfig], Head]] = {
    "scalar": _scalar,
    "categorical": _categorical,
    "quantile": _quantile,
    "implicit_quantile": _quantile,  # its levels are drawn, not fixed
}
