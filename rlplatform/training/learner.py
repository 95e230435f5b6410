"""The learner: replay, agent and random counter on one device, and the compiled program that joins them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from rlplatform.agents import DQN, PQN, RecurrentDQN, UpdateMetrics
from rlplatform.agents.acting import flat_weights
from rlplatform.agents.recurrent import state_size
from rlplatform.config import Config
from rlplatform.envs import Spec
from rlplatform.experience import Batch, Block, RecurrentBlock, Replay, SequenceReplay, Sequences

Array = np.ndarray[Any, Any]
AnyBlock = Block | RecurrentBlock


def _nothing() -> None:
    pass


class Learned(NamedTuple):
    """What comes back from `learn`: metrics of the last update, and the weights to act with."""

    metrics: UpdateMetrics
    weights: Array  # [P] float32, all of the online network's, flat


class Learner(tf.Module):
    """Owns every variable of training. `learn(block)` is the only compiled boundary: insert, sample, update.

    Args:
        config: the run's.
        spec: the environment's spaces.
        strategy: where the variables live and the program runs.
    """

    def __init__(self, config: Config, spec: Spec, strategy: tf.distribute.Strategy) -> None:
        super().__init__(name="learner")
        self._config = config
        self._observation_shape = spec.stacked_shape(config.environment.frame_stack)
        self._observation_dtype = spec.observation_dtype
        self._device = strategy.extended.worker_devices[0]
        environment = config.environment
        masked = spec.num_actions if spec.action_mask else 0
        with strategy.scope():
            agent = PQN if config.agent.algorithm == "pqn" else RecurrentDQN if config.is_recurrent else DQN
            self.agent: DQN | PQN = agent(
                config, spec.stacked_shape(environment.frame_stack), spec.observation_dtype, spec.num_actions
            )
            capacity, exponent = config.replay.capacity, config.replay.priority_exponent
            if config.is_recurrent:  # whole blocks
                capacity = -(-capacity // config.training.train_interval) * config.training.train_interval
            if config.agent.algorithm == "pqn":  # the newest block, a row before it, and its stacks' frames
                capacity = environment.num_envs * (config.block_steps + environment.frame_stack)
            self.replay = Replay(
                capacity,
                environment.num_envs,
                spec.observation_shape,
                spec.stored_dtype,
                n_step=config.agent.n_step,
                frame_stack=environment.frame_stack,
                gamma=config.agent.gamma,
                num_masked_actions=masked,
                priority_exponent=exponent if config.replay.prioritized and not config.is_recurrent else None,
            )
            self._drawn: Replay | SequenceReplay = self.replay
            if config.is_recurrent:
                self._drawn = self.sequences = SequenceReplay(
                    self.replay,
                    config.block_steps,
                    config.replay.burn_in,
                    config.replay.sequence_length,
                    state_size(config.network),
                    priority_exponent=exponent if config.replay.prioritized else None,
                )
            # All randomness of training is a function of these two numbers.
            self._seed = tf.constant(config.seed, tf.int32)
            self._draws = tf.Variable(0, dtype=tf.int32, trainable=False, name="draws")
        # XLA on CPU runs a convolution in a while loop 12 times slower than outside: unroll the updates there.
        self._unroll = self.agent.has_convolutions and "CPU" in self._device
        slots = Block.empty(config.block_steps, environment.num_envs, spec.observation_shape, spec.stored_dtype, masked)
        states = np.zeros((environment.num_envs, state_size(config.network)), np.float32)
        block: AnyBlock = RecurrentBlock(*slots, states) if config.is_recurrent else slots
        signature = type(block)(*(tf.TensorSpec(field.shape, field.dtype) for field in block))
        rate = tf.TensorSpec([], tf.float32)
        with tf.device(self._device):
            self._insert = _compile(self.store, signature)
            self._learn = _compile(self.learn, signature, rate, rate)

    # --- the compiled program -------------------------------------------------------------------------------------

    def store(self, block: AnyBlock) -> None:
        """Traced: takes a block into the replay and into the statistics of the agent."""
        slots = block.slots if isinstance(block, RecurrentBlock) else block
        self.replay.insert(slots)
        if isinstance(block, RecurrentBlock):
            self.sequences.insert(block.state)
        self.agent.observe(slots)

    def learn(
        self, block: AnyBlock, learning_rate: tf.Tensor, importance_exponent: tf.Tensor
    ) -> tuple[UpdateMetrics, tf.Tensor]:
        """Traced: inserts the block, then makes `gradient_steps` updates on batches of their own.

        All batches are drawn before the first update: read inside the loop, the ring would be copied at every call. So
        all of them follow the priorities from before the call, and what they found is written after it.
        """
        self.store(block)
        training = self._config.training
        seed = tf.stack([self._seed, self._draws])
        batches: Batch | Sequences
        if isinstance(self.agent, PQN):
            batches = self.agent.batches(self.replay.newest(self._config.block_steps), seed)
        else:
            batches = self._drawn.sample(training.gradient_steps, training.batch_size, seed, importance_exponent)
        self._draws.assign_add(1)
        if training.gradient_steps == 1 or self._unroll:
            found = []
            for index in range(training.gradient_steps):
                batch: Any = type(batches)(*(field[index] for field in batches))
                metrics = self.agent.update(batch, learning_rate)
                found.append(metrics.priority)
            priorities = tf.stack(found)
        else:
            metrics, priorities = self._loop(batches, learning_rate)
        if self._drawn.priorities is not None:
            self._drawn.priorities.set_errors(tf.reshape(batches.slot, [-1]), tf.reshape(priorities, [-1]))
        return metrics, flat_weights(self.agent.online)

    def _loop(self, batches: Batch | Sequences, learning_rate: tf.Tensor) -> tuple[UpdateMetrics, tf.Tensor]:
        """Traced: the updates in one loop of the program, so that it compiles once whatever their number.

        Returns:
            The metrics of the last update, and the priorities `[U, B]` that all of them found, where they are used.
        """
        updates, size = self._config.training.gradient_steps, self._config.training.batch_size
        kept = updates if self._config.replay.prioritized else 0

        def body(index: tf.Tensor, _: UpdateMetrics, found: tf.Tensor) -> tuple[tf.Tensor, UpdateMetrics, tf.Tensor]:
            batch: Any = type(batches)(*(tf.gather(field, index) for field in batches))
            metrics = self.agent.update(batch, learning_rate)
            found = tf.where(tf.range(kept)[:, None] == index, metrics.priority[None], found)
            return index + 1, metrics, found

        items = tf.zeros([size * (self._config.replay.sequence_length if self._config.is_recurrent else 1)])
        nothing = UpdateMetrics(tf.zeros([]), tf.zeros([]), items, items, tf.zeros([size]))
        start = (tf.constant(0), nothing, tf.zeros([kept, size]))
        _, metrics, found = tf.while_loop(lambda index, *_: index < updates, body, start)
        return metrics, found

    # --- from the host --------------------------------------------------------------------------------------------

    def insert_block(self, block: AnyBlock, entering: Callable[[], object] = _nothing) -> None:
        """Writes a block of numpy arrays into the replay, without learning; `entering` is as in `learn_block`."""
        with tf.device(self._device):
            tensors = [tf.constant(field) for field in block]
            entering()
            self._insert(*tensors)

    def learn_block(
        self,
        block: AnyBlock,
        learning_rate: float,
        importance_exponent: float = 1.0,
        entering: Callable[[], object] = _nothing,
        done: float = 0.0,
    ) -> Learned:
        """Inserts a block of numpy arrays and learns; then prunes, if that is due.

        Args:
            block: T steps of N environments.
            learning_rate: of all updates in this call.
            importance_exponent: beta of prioritised replay, of all updates in this call.
            entering: called right before the compiled program is entered, which runs without Python's global lock.
            done: share of the run's env steps, this block's included.
        """
        with tf.device(self._device):
            tensors = [tf.constant(field) for field in block]
            rates = tf.constant(learning_rate, tf.float32), tf.constant(importance_exponent, tf.float32)
            entering()
            metrics, weights = self._learn(*tensors, *rates)
            if self.agent.prune(done):
                weights = flat_weights(self.agent.online)
        return Learned(metrics, weights.numpy())

    def weights(self) -> Array:
        """[P] float32: the online network's weights now."""
        return flat_weights(self.agent.online).numpy()  # type: ignore[no-any-return]

    def observations(self, count: int) -> Array:
        """[M, S...] observations of `count` slots drawn from the replay, less the dead ones; none at first."""
        if not self.replay.can_sample():
            return np.zeros((0, *self._observation_shape), self._observation_dtype)
        # A seed apart from training's: looking must not change what is drawn later.
        batch = self.replay.uniform(count, tf.stack([self._seed, -1]))
        return batch.observation.numpy()[batch.weight.numpy() > 0.0]  # type: ignore[no-any-return]

    # --- state, for checkpoints -----------------------------------------------------------------------------------

    def state(self, replay: bool = True) -> dict[str, Array]:
        """Every variable by name; without the ring where `replay` is false."""
        parts: dict[str, dict[str, Array]] = {"agent": self.agent.state(), "learner": {"draws": self._draws.numpy()}}
        if replay:
            parts["replay"] = self.replay.state()
            if self._config.is_recurrent:
                parts["sequences"] = self.sequences.state()
        return {f"{part}/{name}": array for part, arrays in parts.items() for name, array in arrays.items()}

    def load_state(self, state: dict[str, Array]) -> None:
        """Puts back what `state` gave; the ring stays empty where it was not saved."""

        def part(name: str) -> dict[str, Array]:
            return {key.removeprefix(f"{name}/"): array for key, array in state.items() if key.startswith(f"{name}/")}

        self.agent.load_state(part("agent"))
        self._draws.assign(state["learner/draws"])
        if part("replay"):
            self.replay.load_state(part("replay"))
            if self._config.is_recurrent:
                self.sequences.load_state(part("sequences"))


def _compile(function: Any, *signature: Any) -> Callable[..., Any]:
    """The function as one XLA program for one signature: called with other shapes it raises, it never retraces.

    The program takes its tensors flat and gives back what `function` returns. It is called below ConcreteFunction's own
    `__call__`, which spends more time on sorting arguments (150 us) than a small program takes to run.
    """
    concrete = tf.function(function, jit_compile=True, autograph=False).get_concrete_function(*signature)
    captured, structure = concrete.captured_inputs, concrete.structured_outputs

    def call(*tensors: tf.Tensor) -> Any:
        outputs = concrete.inference_fn.call_flat(*tensors, *captured)
        return tf.nest.pack_sequence_as(structure, outputs) if structure is not None else None

    return call
