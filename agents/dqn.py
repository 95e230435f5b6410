"""DQN: an online network, a slower target network, and one gradient update. Parts are flags of `AgentConfig`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from rlplatform.agents import networks
from rlplatform.agents.agent import Agent
from rlplatform.agents.heads import (
    Following,
    greedy_policy,
    head_of,
    log_soft_policy,
    soft_policy,
    take,
)
from rlplatform.agents.layers import fresh_noise, midpoints
from rlplatform.config import Config
from rlplatform.experience import Batch
from rlplatform.experience.draws import random_uniform


class UpdateMetrics(NamedTuple):
    """What one update tells."""

    loss: tf.Tensor  # [] float32, mean over the batch
    gradient_norm: tf.Tensor  # [] float32, before clipping
    td_error: tf.Tensor  # [B] float32
    q: tf.Tensor  # [B] float32, of the actions taken in the batch's states by the greedy policy
    priority: tf.Tensor  # [B] float32, how surprising each item was


class DQN(Agent):
    """Deep Q-learning (Mnih et al. 2015), whose extensions are flags that go together in every combination.

    Double (van Hasselt et al. 2016), dueling (Wang et al. 2016), n-step and prioritised replay (by the batches that it
    is given), noisy networks (Fortunato et al. 2018), Munchausen (Vieillard et al. 2020), soft or hard targets, and
    four value heads.

    Deviates from Mnih et al. 2015: Adam instead of RMSProp, gradients clipped by their global norm, and
    `target_update_interval` counts gradient updates.

    Args:
        config: the run's.
        observation_shape: what the networks see, `[S...]`, frames stacked.
        observation_dtype: `uint8` or `float32`.
        num_actions: A.
    """

    streams = 4  # noise and quantile levels, of the online and the target network

    def __init__(
        self, config: Config, observation_shape: tuple[int, ...], observation_dtype: str, num_actions: int
    ) -> None:
        super().__init__("dqn", config, observation_shape, observation_dtype, num_actions)
        self._head = head_of(config.agent)
        self.target = networks.build(*self._build, training=True)
        self.target.set_weights(self.online.get_weights())

    def begin_with(self, weights: list[np.ndarray]) -> None:
        """See `Agent`; the target network begins with them too."""
        super().begin_with(weights)
        self.target.set_weights(weights)

    def update(self, batch: Batch, learning_rate: tf.Tensor) -> UpdateMetrics:
        """Traced: one optimiser step on B transitions, then the target update when it is due."""
        target = self._head.target(self._following(batch))
        variables = self.online.trainable_variables
        tau = self._levels(0)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            output = self._output(self.online, batch.observation, tau, noise=0)
            item = self._head.loss(output, batch.action, target, tau)
            loss = tf.reduce_mean(batch.weight * item.loss)
        norm = self._step(tape.gradient(loss, variables), learning_rate)
        q = tf.reduce_max(self._head.q_values(output), axis=1)
        return UpdateMetrics(loss, norm, tf.sign(batch.weight) * item.td_error, q, item.priority)

    def _step(self, gradients: list[tf.Tensor], learning_rate: tf.Tensor) -> tf.Tensor:
        """Traced: one optimiser step, then the target update when it is due; the gradients' global norm."""
        norm = self.optimizer.apply(gradients, self.online.trainable_variables, learning_rate)
        self.updates.assign_add(1)
        self._update_target()
        return norm

    def _following(self, batch: Batch) -> Following:
        """Traced: what comes next, under the target network.

        The online and the target network each have noise and quantile levels of their own, the online network the same
        ones that it is updated with.
        """
        output = self._output(self.target, batch.next_observation, self._levels(1), noise=1)
        chooser = here = output
        if self._config.agent.double:
            chooser = self._output(self.online, batch.next_observation, self._levels(0), noise=0)
        if self._config.agent.munchausen:
            here = self._output(self.target, batch.observation, self._levels(1), noise=1)
        return self._followed(batch, output, chooser, here)

    def _followed(self, batch: Batch, output: tf.Tensor, chooser: tf.Tensor, here: tf.Tensor) -> Following:
        """Traced: reward, discount, and a network's view of what comes next under the policy that is learned.

        Args:
            batch: the transitions; its observations are not looked at.
            output: the target network's, for the next observations.
            chooser: that of the network whose policy is followed there.
            here: the target network's for the observations, which Munchausen needs.
        """
        config, mask = self._config.agent, batch.next_action_mask
        reward = self.normalization.scaled(batch.reward)
        q = self._head.q_values(chooser)
        if not config.munchausen:
            return Following(reward, batch.discount, output, greedy_policy(q, mask), None)
        temperature = config.munchausen_temperature
        log_policy = take(log_soft_policy(self._head.q_values(here), temperature, batch.action_mask), batch.action)
        reward += config.munchausen_alpha * tf.clip_by_value(log_policy, config.munchausen_clip, 0.0)
        bonus = -log_soft_policy(q, temperature, mask)
        return Following(reward, batch.discount, output, soft_policy(q, temperature, mask), bonus)

    def _output(
        self, network: Any, observation: tf.Tensor, tau: tf.Tensor | None, noise: int, memory: Sequence[tf.Tensor] = ()
    ) -> Any:
        """Traced: what the network gives, with the noise of this update's stream `noise` where it is noisy.

        Args:
            network: the online or the target network.
            observation: [B, S...].
            tau: the quantile levels, where there are any.
            noise: which stream of noise.
            memory: what a recurrent network takes besides.
        """
        inputs = [observation, *memory]
        if tau is not None and self._config.agent.head == "implicit_quantile":
            inputs.append(tau[None])
        inputs = inputs if len(inputs) > 1 else observation
        if not self._config.network.noisy:
            return network(inputs)
        with fresh_noise(network, self._stream(noise)):
            return network(inputs)

    def _levels(self, stream: int) -> tf.Tensor | None:
        """Traced: the quantile levels `[K]`: fixed midpoints, or drawn for this update's stream.

        Dabney et al. 2018b draw levels for each item; here all items of a batch share them, which leaves the expected
        gradient as it is, and the work of the output layer that of one product for all levels.
        """
        if self._config.agent.head == "quantile":
            return tf.constant(midpoints(self._config.agent.num_quantiles))
        if self._config.agent.head == "implicit_quantile":
            return random_uniform([self._config.agent.num_quantiles], self._stream(2 + stream))
        return None

    def _update_target(self) -> None:
        """Traced: target <- tau * online + (1 - tau) * target, every `target_update_interval` updates."""
        tau, interval = self._config.agent.tau, self._config.agent.target_update_interval

        def move() -> tf.Tensor:
            for slow, fast in zip(self.target.variables, self.online.variables, strict=True):
                slow.assign(fast if tau == 1.0 else slow + tau * (fast - slow))
            return tf.constant(True)

        if interval == 1:
            move()
        else:
            tf.cond(tf.equal(self.updates % interval, 0), move, lambda: tf.constant(False))

    def _networks(self) -> list[Any]:
        return [*super()._networks(), self.target]

    def _groups(self) -> dict[str, Any]:
        return {**super()._groups(), "target": self.target.variables}
