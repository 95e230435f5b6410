"""R2D2: Q-learning with a network that remembers, from sequences, on every head and flag of DQN."""

import tensorflow as tf

from rlplatform.agents.dqn import DQN, UpdateMetrics
from rlplatform.experience import Batch, Sequences

ETA = 0.9  # share of the greatest error in a sequence's priority (Kapturowski et al. 2019, section 2.3)


def sequence_priority(priority: tf.Tensor, live: tf.Tensor) -> tf.Tensor:
    """Traced: `eta * max + (1 - eta) * mean` over the rows of each sequence (Kapturowski et al. 2019, section 2.3).

    Args:
        priority: [L, B] float32, of each row, at least 0.
        live: [L, B] float32, 1 where a row counts, else 0.

    Returns:
        [B] float32; 0 where no row counts.
    """
    counted = priority * live
    mean = tf.math.divide_no_nan(tf.reduce_sum(counted, axis=0), tf.reduce_sum(live, axis=0))
    return ETA * tf.reduce_max(counted, axis=0) + (1.0 - ETA) * mean


class RecurrentDQN(DQN):
    """DQN whose items are the rows of sequences, over which a recurrent network is unrolled (Kapturowski et al. 2019).

    A sequence starts from the state in which the actor met it. Its first `burn_in` rows only bring that state up to
    date, in the online and in the target network each, without a gradient. Then the networks are unrolled over the rows
    that are learned from and the n rows after them; where an episode begins the state is forgotten.

    Deviates from the paper: sequences go on over the ends of episodes; the last action and reward are no inputs; values
    are not rescaled; batches are drawn uniformly unless `replay.prioritized` asks for priorities.

    Args:
        config: the run's.
        observation_shape: what the networks see, `[S...]`, frames stacked.
        observation_dtype: `uint8` or `float32`.
        num_actions: A.
    """

    def update(self, batch: Sequences, learning_rate: tf.Tensor) -> UpdateMetrics:  # type: ignore[override]
        """Traced: one optimiser step on B sequences, then the target update when it is due.

        Returns:
            Metrics whose `td_error` and `q` are those of all rows, [L * B], and whose `priority` is [B].
        """
        variables, items, following = self.online.trainable_variables, _items(batch), _following_rows(batch)
        tau, count = self._levels(0), self._config.replay.sequence_length * batch.slot.shape[0]
        state = self._burned_in(self.online, batch)
        target = self._unrolled(self.target, batch, self._burned_in(self.target, batch), self._levels(1), noise=1)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            unrolled = self._unrolled(self.online, batch, state, tau, noise=0)
            output = unrolled[:count]
            chooser = tf.stop_gradient(unrolled) if self._config.agent.double else target
            followed = self._followed(
                items, tf.gather(target, following), tf.gather(chooser, following), target[:count]
            )
            item = self._head.loss(output, items.action, self._head.target(followed), tau)
            loss = tf.reduce_mean(items.weight * item.loss)
        norm = self._step(tape.gradient(loss, variables), learning_rate)
        live = tf.sign(items.weight)
        priority = sequence_priority(
            tf.reshape(item.priority, batch.weight.shape), tf.reshape(live, batch.weight.shape)
        )
        q = tf.reduce_max(self._head.q_values(output), axis=1)
        return UpdateMetrics(loss, norm, live * item.td_error, q, priority)

    def _burned_in(self, network: object, batch: Sequences) -> tf.Tensor:
        """Traced: [B, H], the state before the first row that is learned from; no gradient flows through it."""
        if self._config.replay.burn_in == 0:
            return batch.state
        rows = slice(0, self._config.replay.burn_in)
        _, states = self._over(network, batch, rows, batch.state, self._levels(0), noise=0)
        return tf.stop_gradient(states[-batch.slot.shape[0] :])

    def _unrolled(
        self, network: object, batch: Sequences, state: tf.Tensor, tau: tf.Tensor | None, noise: int
    ) -> tf.Tensor:
        """Traced: the head's raw output for the rows that are learned from and the n after them, [(L + n) * B, ...]."""
        output, _ = self._over(network, batch, slice(self._config.replay.burn_in, None), state, tau, noise)
        return output

    def _over(
        self, network: object, batch: Sequences, rows: slice, state: tf.Tensor, tau: tf.Tensor | None, noise: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Traced: what a network gives for some rows of the sequences, and its states after each."""
        observation, first = batch.observation[rows], batch.first[rows]
        flat = tf.reshape(observation, [-1, *observation.shape[2:]])
        output, states = self._output(network, flat, tau, noise, (state, first))
        return output, states


def _items(batch: Sequences) -> Batch:
    """Traced: the rows that are learned from as [L * B] transitions without observations."""

    def flat(field: tf.Tensor) -> tf.Tensor:
        return tf.reshape(field, [-1, *field.shape[2:]])

    return Batch(
        observation=None,
        action=flat(batch.action),
        reward=flat(batch.reward),
        discount=flat(batch.discount),
        next_observation=None,
        weight=flat(batch.weight),
        action_mask=flat(batch.action_mask),
        next_action_mask=flat(batch.next_action_mask),
        slot=None,
    )


def _following_rows(batch: Sequences) -> tf.Tensor:
    """Traced: [L * B] int32, where among the [(L + n) * B] unrolled rows each item's value is bootstrapped from."""
    length, size = batch.steps.shape
    row = tf.range(length)[:, None] + batch.steps
    return tf.reshape(row * size + tf.range(size), [-1])
