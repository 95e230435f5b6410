"""Normalisation of observations and rewards by running statistics, which are part of the agent's state."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from rlplatform import devices
from rlplatform.agents.layers import Standardize
from rlplatform.config import Config
from rlplatform.experience import Block

EPSILON = 1e-8


class Normalization(tf.Module):
    """Keeps the statistics of what was lived through, and scales rewards.

    Observations are standardised inside the network, by its own layer `Standardize`, so that whoever has the network
    has its statistics. Rewards are divided by the standard deviation of the discounted return (Engstrom et al. 2020),
    when they are learned from and not when they are stored, so that all of the replay is in the newest units.

    Args:
        config: the run's.
        network: the online network, whose `Standardize` layer is kept up to date where there is one.
    """

    def __init__(self, config: Config, network: Any) -> None:
        super().__init__(name="normalization")
        self._gamma, self._rewards = config.agent.gamma, config.agent.normalize_rewards
        self._frame_stack = config.environment.frame_stack
        self._layer = next((layer for layer in network.layers if isinstance(layer, Standardize)), None)
        if self._layer is not None:
            self.observations = tf.Variable(0.0, trainable=False, name="observations")  # how many were counted
        if self._rewards:
            num_envs = config.environment.num_envs * devices.num_replicas()
            self.running = tf.Variable(tf.zeros([num_envs]), trainable=False, name="running")  # returns of the episodes
            self.returns = tf.Variable(0.0, trainable=False, name="returns")
            self.mean = tf.Variable(0.0, trainable=False, name="mean")
            self.variance = tf.Variable(1.0, trainable=False, name="variance")

    @property
    def own_variables(self) -> list[tf.Variable]:
        """All variables but those of the network's layer."""
        of_layer = {id(variable) for variable in (self._layer.variables if self._layer is not None else ())}
        return [variable for variable in self.variables if id(variable) not in of_layer]

    def statistics(self) -> dict[str, tf.Variable]:
        """What is kept of the past, by name, as far as this run keeps it; not of episodes that still go on."""
        names = ("observations", "returns", "mean", "variance")
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def begin_with(self, statistics: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Goes on from the `statistics()` of another run, as far as both keep them."""
        for name, variable in self.statistics().items():
            if name in statistics:
                variable.assign(statistics[name])

    def update(self, block: Block) -> None:
        """Traced: takes a block's slots into account; dead slots count as observations, not as rewards.

        The statistics are those of all replicas' blocks together, and the same on each.
        """
        if self._layer is not None:
            frames = tf.cast(block.observation, tf.float32)
            if block.observation.dtype == tf.uint8:
                frames *= 1.0 / 255.0  # as the network scales bytes before it standardises them
            frames = tf.reshape(frames, [-1, *frames.shape[2:]])
            frames = frames[..., None] if frames.shape.rank == 3 else frames  # [H, W] is one channel
            stacked = tf.concat([frames] * self._frame_stack, axis=-1)  # every frame of a stack has the same statistics
            count = tf.constant(float(stacked.shape[0] * devices.num_replicas()))
            mean, variance = devices.moments(*tf.nn.moments(stacked, axes=[0]))
            total, mean, variance = _merged(
                (self.observations, self._layer.mean, self._layer.variance), count, mean, variance
            )
            self.observations.assign(total)
            self._layer.mean.assign(mean)
            self._layer.variance.assign(variance)
        if self._rewards:
            self._update_returns(block)

    def _update_returns(self, block: Block) -> None:
        def step(running: tf.Tensor, slot: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tf.Tensor:
            reward, first, dead = slot
            return tf.where(first | dead, 0.0, self._gamma * running) + tf.where(dead, 0.0, reward)

        reward, first, dead = (devices.gathered(field, axis=1) for field in (block.reward, block.first, block.dead))
        values = tf.scan(step, (reward, first, dead), self.running + 0.0)  # [T, N]
        self.running.assign(values[-1])
        live = 1.0 - tf.cast(dead, tf.float32)
        count = tf.reduce_sum(live)
        mean = tf.math.divide_no_nan(tf.reduce_sum(live * values), count)
        variance = tf.math.divide_no_nan(tf.reduce_sum(live * tf.square(values - mean)), count)
        total, mean, variance = _merged((self.returns, self.mean, self.variance), count, mean, variance)
        self.returns.assign(total)
        self.mean.assign(mean)
        self.variance.assign(variance)

    def scaled(self, reward: tf.Tensor) -> tf.Tensor:
        """Traced: `[B]` rewards in units of the return's deviation, or as they are."""
        return reward * tf.math.rsqrt(self.variance + EPSILON) if self._rewards else reward


def _merged(
    known: tuple[tf.Tensor, tf.Tensor, tf.Tensor], count: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Traced: count, mean and variance of two samples together (Chan et al. 1979, eq. 2.1)."""
    known_count, known_mean, known_variance = known
    total = known_count + count
    share = tf.math.divide_no_nan(count, total)
    delta = mean - known_mean
    merged = known_variance + share * (variance - known_variance) + share * (1.0 - share) * tf.square(delta)
    return total, known_mean + share * delta, merged
