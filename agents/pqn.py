"""PQN: Q(lambda) on the newest block, without replay and without a target network (Gallici et al. 2024)."""

import tensorflow as tf

from rlplatform.agents.agent import Agent
from rlplatform.agents.dqn import UpdateMetrics
from rlplatform.agents.heads import allowed, scalar_loss
from rlplatform.agents.layers import fresh_noise
from rlplatform.config import Config
from rlplatform.experience import Batch


def lambda_returns(
    reward: tf.Tensor, discount: tf.Tensor, following_value: tf.Tensor, goes_on: tf.Tensor, trace_decay: float
) -> tf.Tensor:
    """Traced: R_t = r_t + discount_t * ((1 - lambda) * max_a Q(s_{t+1}, a) + lambda * R_{t+1}), from the last row back.

    Gallici et al. 2024, eq. 5: the return of Peng & Williams (1996), which is not cut where the action was not greedy.
    The last row bootstraps from its value alone, and so does every row after which the return cannot go on.

    Args:
        reward: [T, N] float32.
        discount: [T, N] float32, 0 after a termination.
        following_value: [T, N] float32, max_a Q(s_{t+1}, a), of the state that each step arrived at.
        goes_on: [T, N] bool, whether the next row is the same episode's next step; the last row's does not matter.
        trace_decay: lambda; 0 gives one-step returns, 1 the sum of all rewards up to the last value.

    Returns:
        [T, N] float32.
    """

    def step(following: tf.Tensor, row: tuple[tf.Tensor, ...]) -> tf.Tensor:
        reward_t, discount_t, value_tp1, goes_on_t = row
        mixed = (1.0 - trace_decay) * value_tp1 + trace_decay * following
        return reward_t + discount_t * tf.where(goes_on_t, mixed, value_tp1)

    rows = (reward, discount, following_value, goes_on)
    return tf.scan(step, rows, initializer=following_value[-1], reverse=True)


def shuffles(count: int, length: int, seed: tf.Tensor) -> tf.Tensor:
    """Traced: `[count, length]` int32, each row the numbers from 0 to `length - 1` in an order of its own.

    Args:
        count: how many orders.
        length: of each.
        seed: [2] int32; the same seed gives the same orders on every device.
    """
    keys = tf.random.stateless_uniform([count, length], seed, minval=None, maxval=None, dtype=tf.int32, alg="philox")
    return tf.argsort(keys, axis=1, stable=True)


class PQN(Agent):
    """Parallelised Q-network (Gallici et al. 2024, algorithm 1): learns from each block of experience and forgets it.

    The returns of a block are computed once, with the network as it was before the block, and are then regressed on in
    minibatches of the shuffled block: LayerNorm (`network.layer_norm`) keeps that stable without a target network.
    Dueling, noisy networks, Huber loss, frame stacks, action masks and normalisation work as they do for DQN.

    Deviates from the paper's code: Adam instead of RAdam, and the returns bootstrap where an episode was truncated,
    where that code takes a truncation for a termination.

    Args:
        config: the run's.
        observation_shape: what the networks see, `[S...]`, frames stacked.
        observation_dtype: `uint8` or `float32`.
        num_actions: A.
    """

    streams = 2  # the noise of the returns, and that of the step towards them

    def __init__(
        self, config: Config, observation_shape: tuple[int, ...], observation_dtype: str, num_actions: int
    ) -> None:
        super().__init__("pqn", config, observation_shape, observation_dtype, num_actions)

    def batches(self, items: Batch, seed: tf.Tensor) -> Batch:
        """Traced: the batches of all updates, `[U, B, ...]`: shuffles of the newest block, one after the other.

        The block's last row has no successor yet and takes part with the next block, so that every step
        is learned from.

        Args:
            items: [T * N, ...] one-step transitions by rows, the last of which arrive at the block's last row.
            seed: [2] int32, of the shuffles.

        Returns:
            Transitions whose reward is the whole return and whose discount is 0; weight 0 for dead slots, and for the
            row before the block where there is none.
        """
        training = self._config.training
        slots, drawn = training.train_interval, training.gradient_steps * training.batch_size
        order = tf.reshape(shuffles(-(-drawn // slots), slots, seed), [-1])[:drawn]
        order = tf.reshape(order, [training.gradient_steps, training.batch_size])
        return Batch(*(tf.gather(field, order) for field in self._with_returns(items)))

    def _with_returns(self, items: Batch) -> Batch:
        """Traced: the transitions `[T * N]`, each with its return for a reward and nothing after it."""

        def rows(flat: tf.Tensor) -> tf.Tensor:
            return tf.reshape(flat, [self._config.block_steps, -1])

        q = self._output(items.next_observation, 0)
        value = tf.reduce_max(allowed(q, items.next_action_mask), axis=1)
        live = rows(items.weight) > 0.0
        returns = lambda_returns(
            rows(self.normalization.scaled(items.reward)),
            rows(items.discount),
            rows(value),
            tf.concat([live[1:], live[-1:]], axis=0),  # arriving at a dead slot ends the sum: an episode was cut there
            self._config.agent.trace_decay,
        )
        nothing = tf.zeros_like(items.reward)
        return items._replace(reward=tf.stop_gradient(tf.reshape(returns, [-1])), discount=nothing)

    def update(self, batch: Batch, learning_rate: tf.Tensor) -> UpdateMetrics:
        """Traced: one optimiser step towards the returns of B steps."""
        variables = self.online.trainable_variables
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            q = self._output(batch.observation, 1)
            item = scalar_loss(q, batch.action, batch.reward, self._config.agent.huber_delta)
            loss = tf.reduce_mean(batch.weight * item.loss)
        norm = self.optimizer.apply(tape.gradient(loss, variables), variables, learning_rate)
        self.updates.assign_add(1)
        return UpdateMetrics(loss, norm, tf.sign(batch.weight) * item.td_error, tf.reduce_max(q, axis=1), item.priority)

    def _output(self, observation: tf.Tensor, stream: int) -> tf.Tensor:
        """Traced: Q-values `[B, A]`, with the noise of this update's stream `stream` where the network is noisy."""
        if not self._config.network.noisy:
            return self.online(observation)
        with fresh_noise(self.online, self._stream(stream)):
            return self.online(observation)
