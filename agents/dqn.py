"""DQN: an online network, a slower target network, and one gradient update. Parts are flags of `AgentConfig`."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras

from rlplatform.agents import networks
from rlplatform.agents.heads import HEADS
from rlplatform.agents.optimizer import Adam
from rlplatform.config import Config
from rlplatform.experience import Batch


class UpdateMetrics(NamedTuple):
    """What one update tells."""

    loss: tf.Tensor  # [] float32, mean over the batch
    gradient_norm: tf.Tensor  # [] float32, before clipping
    td_error: tf.Tensor  # [B] float32
    q: tf.Tensor  # [B] float32, of the actions taken in the batch's states by the greedy policy


class DQN(tf.Module):
    """Deep Q-learning (Mnih et al. 2015) with double, dueling, n-step and soft targets as flags.

    Deviates from Mnih et al. 2015: Adam instead of RMSProp, gradients clipped by their global norm, and
    `target_update_interval` counts gradient updates.

    Args:
        config: the run's.
        observation_shape: what the networks see, `[S...]`, frames stacked.
        observation_dtype: `uint8` or `float32`.
        num_actions: A.
    """

    def __init__(
        self, config: Config, observation_shape: tuple[int, ...], observation_dtype: str, num_actions: int
    ) -> None:
        super().__init__(name="dqn")
        self._config = config.agent
        self._head = HEADS["scalar"]
        self.online = networks.build(config.network, observation_shape, observation_dtype, num_actions)
        self.target = networks.build(config.network, observation_shape, observation_dtype, num_actions)
        self.target.set_weights(self.online.get_weights())
        self.optimizer = Adam(
            self.online.trainable_variables, config.optimizer.epsilon, config.optimizer.max_gradient_norm
        )
        self.updates = tf.Variable(0, dtype=tf.int64, trainable=False, name="updates")

    @property
    def has_convolutions(self) -> bool:
        """Whether the network convolves: XLA on CPU runs a convolution many times slower inside a while loop."""
        return any(isinstance(layer, keras.layers.Conv2D) for layer in self.online.layers)

    def update(self, batch: Batch, learning_rate: tf.Tensor) -> UpdateMetrics:
        """Traced: one optimiser step on B transitions, then the target update when it is due."""
        next_output = self._head.q_values(self.target(batch.next_observation))
        chooser = self._head.q_values(self.online(batch.next_observation)) if self._config.double else next_output
        next_action = tf.argmax(chooser, axis=1, output_type=tf.int32)
        target = self._head.target(batch.reward, batch.discount, next_output, next_action)
        variables = self.online.trainable_variables
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            output = self.online(batch.observation)
            item = self._head.loss(output, batch.action, target, self._config.huber_delta)
            loss = tf.reduce_mean(batch.weight * item.loss)
        norm = self.optimizer.apply(tape.gradient(loss, variables), variables, learning_rate)
        self.updates.assign_add(1)
        self._update_target()
        q = tf.reduce_max(self._head.q_values(output), axis=1)
        return UpdateMetrics(loss, norm, item.td_error * batch.weight, q)

    def _update_target(self) -> None:
        """Traced: target <- tau * online + (1 - tau) * target, every `target_update_interval` updates."""
        tau, interval = self._config.tau, self._config.target_update_interval

        def move() -> tf.Tensor:
            for slow, fast in zip(self.target.variables, self.online.variables, strict=True):
                slow.assign(fast if tau == 1.0 else slow + tau * (fast - slow))
            return tf.constant(True)

        if interval == 1:
            move()
        else:
            tf.cond(tf.equal(self.updates % interval, 0), move, lambda: tf.constant(False))

    # --- state, for checkpoints -----------------------------------------------------------------------------------

    def _named_variables(self) -> dict[str, Any]:
        groups = {
            "online": self.online.variables,
            "target": self.target.variables,
            "optimizer": self.optimizer.variables,
        }
        named = {
            f"{group}/{index}": variable
            for group, variables in groups.items()
            for index, variable in enumerate(variables)
        }
        return named | {"updates": self.updates}

    def state(self) -> dict[str, np.ndarray]:
        """Every variable by name."""
        return {name: variable.numpy() for name, variable in self._named_variables().items()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Puts back what `state` gave."""
        for name, variable in self._named_variables().items():
            variable.assign(state[name])
