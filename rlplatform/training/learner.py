"""The learner: replay, agent and random counter on one device or on several, and the program that joins them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from rlplatform import devices
from rlplatform.agents import DQN, PQN, RecurrentDQN, UpdateMetrics
from rlplatform.agents.acting import flat_weights
from rlplatform.agents.recurrent import state_size
from rlplatform.config import Config
from rlplatform.envs import Spec
from rlplatform.experience import Batch, Block, RecurrentBlock, Replay, SequenceReplay, Sequences
from rlplatform.training import shards
from rlplatform.training.replicas import Replicas

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

    With several replicas, each runs the same lines on its share of the environments: it has a replay of its own, draws
    its share of every batch from it, and meets the others where gradients and statistics do (`devices.mean`). Networks
    and optimiser are the same on all of them. XLA cannot compile that program whole, since it cannot join devices.

    Args:
        config: the run's; its numbers are those of all replicas together.
        spec: the environment's spaces.
        strategy: where the variables live and the program runs.

    Raises:
        UserError: environments, batch or capacity do not divide among the replicas.
    """

    def __init__(self, config: Config, spec: Spec, strategy: tf.distribute.Strategy) -> None:
        super().__init__(name="learner")
        self._config = config.divided(strategy.num_replicas_in_sync)
        self._observation_shape = spec.stacked_shape(config.environment.frame_stack)
        self._observation_dtype = spec.observation_dtype
        self.replicas = Replicas(strategy)
        self._device = strategy.extended.worker_devices[0]
        with strategy.scope():
            agent = PQN if config.agent.algorithm == "pqn" else RecurrentDQN if config.is_recurrent else DQN
            self.agent: DQN | PQN = agent(
                self._config, self._observation_shape, spec.observation_dtype, spec.num_actions
            )
            # All randomness of training is a function of these two numbers.
            self._seed = tf.constant(config.seed, tf.int32)
            self._draws = tf.Variable(0, dtype=tf.int32, trainable=False, name="draws")
        self._replays = self.replicas.each(lambda: self._new_replay(spec))
        self._sequences: list[SequenceReplay] = []
        if config.is_recurrent:
            replays = iter(self._replays)
            self._sequences = self.replicas.each(lambda: self._new_sequences(next(replays)))
        # XLA on CPU runs a convolution in a while loop 12 times slower than outside: unroll the updates there.
        self._unroll = self.agent.has_convolutions and "CPU" in self._device
        if self.replicas.count > 1:
            self._insert = tf.function(self._store_on_all, autograph=False)
            self._learn = tf.function(self._learn_on_all, autograph=False)
            return
        masked = spec.num_actions if spec.action_mask else 0
        num_envs, states = (
            config.environment.num_envs,
            np.zeros((config.environment.num_envs, state_size(config.network)), np.float32),
        )
        slots = Block.empty(config.block_steps, num_envs, spec.observation_shape, spec.stored_dtype, masked)
        block: AnyBlock = RecurrentBlock(*slots, states) if config.is_recurrent else slots
        signature = type(block)(*(tf.TensorSpec(field.shape, field.dtype) for field in block))
        rate = tf.TensorSpec([], tf.float32)
        self.signature = (signature, rate, rate)  # what `learn` takes
        with tf.device(self._device):
            self._insert = _compile(self.store, signature)
            self._learn = _compile(self.learn, *self.signature)

    def _new_replay(self, spec: Spec) -> Replay:
        """The ring of one replica."""
        config, environment = self._config, self._config.environment
        capacity, interval = config.replay.capacity, config.training.train_interval
        if config.is_recurrent:  # whole blocks
            capacity = -(-capacity // interval) * interval
        if config.agent.algorithm == "pqn":  # the newest block, a row before it, and its stacks' frames
            capacity = environment.num_envs * (config.block_steps + environment.frame_stack)
        by_slots = config.replay.prioritized and not config.is_recurrent
        return Replay(
            capacity,
            environment.num_envs,
            spec.observation_shape,
            spec.stored_dtype,
            n_step=config.agent.n_step,
            frame_stack=environment.frame_stack,
            gamma=config.agent.gamma,
            num_masked_actions=spec.num_actions if spec.action_mask else 0,
            priority_exponent=config.replay.priority_exponent if by_slots else None,
        )

    def _new_sequences(self, replay: Replay) -> SequenceReplay:
        """The sequences of one replica's ring."""
        config = self._config
        return SequenceReplay(
            replay,
            config.block_steps,
            config.replay.burn_in,
            config.replay.sequence_length,
            state_size(config.network),
            priority_exponent=config.replay.priority_exponent if config.replay.prioritized else None,
        )

    @property
    def replay(self) -> Replay:
        """The ring; with several replicas, that of the one for which a program is traced, and else the first one's."""
        return self.replicas.mine(self._replays)

    @property
    def sequences(self) -> SequenceReplay:
        """The sequences in it, of a recurrent network."""
        return self.replicas.mine(self._sequences)

    @property
    def _drawn(self) -> Replay | SequenceReplay:
        return self.sequences if self._config.is_recurrent else self.replay

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
        training, batches = self._config.training, self._draw(importance_exponent)
        if training.gradient_steps == 1 or self._unroll:
            found = []
            for index in range(training.gradient_steps):
                metrics = self.agent.update(_batch(batches, index), learning_rate)
                found.append(metrics.priority)
            priorities = tf.stack(found)
        else:
            metrics, priorities = self._loop(batches, learning_rate)
        self._set_errors(batches, priorities)
        return metrics, flat_weights(self.agent.online)

    def _draw(self, importance_exponent: tf.Tensor) -> Batch | Sequences:
        """Traced: the batches of all updates; with several replicas, this one's share of each."""
        training = self._config.training
        seed = tf.stack([self._seed, self._draws])
        if self.replicas.count > 1:  # each draws from its own environments, and by numbers of its own
            seed = tf.random.experimental.stateless_fold_in(seed, devices.replica(), alg="philox")
        self._draws.assign_add(1)
        if isinstance(self.agent, PQN):
            return self.agent.batches(self.replay.newest(self._config.block_steps), seed)
        return self._drawn.sample(training.gradient_steps, training.batch_size, seed, importance_exponent)

    def _set_errors(self, batches: Batch | Sequences, priorities: tf.Tensor) -> None:
        """Traced: writes what updates have found into the priorities, where there are any."""
        if self._drawn.priorities is not None:
            self._drawn.priorities.set_errors(tf.reshape(batches.slot, [-1]), tf.reshape(priorities, [-1]))

    def _loop(self, batches: Batch | Sequences, learning_rate: tf.Tensor) -> tuple[UpdateMetrics, tf.Tensor]:
        """Traced: the updates in one loop of the program, so that it compiles once whatever their number.

        Returns:
            The metrics of the last update, and the priorities `[U, B]` that all of them found, where they are used.
        """
        updates, size = self._config.training.gradient_steps, self._config.training.batch_size
        kept = updates if self._config.replay.prioritized else 0

        def body(index: tf.Tensor, _: UpdateMetrics, found: tf.Tensor) -> tuple[tf.Tensor, UpdateMetrics, tf.Tensor]:
            metrics = self.agent.update(_batch(batches, index), learning_rate)
            found = tf.where(tf.range(kept)[:, None] == index, metrics.priority[None], found)
            return index + 1, metrics, found

        items = tf.zeros([size * (self._config.replay.sequence_length if self._config.is_recurrent else 1)])
        nothing = UpdateMetrics(tf.zeros([]), tf.zeros([]), items, items, tf.zeros([size]))
        start = (tf.constant(0), nothing, tf.zeros([kept, size]))
        _, metrics, found = tf.while_loop(lambda index, *_: index < updates, body, start)
        return metrics, found

    # --- on several replicas --------------------------------------------------------------------------------------

    def _store_on_all(self, block: AnyBlock) -> None:
        """Traced: `store` on every replica."""
        self.replicas.run(self.store, block)

    def _learn_on_all(
        self, block: AnyBlock, learning_rate: tf.Tensor, importance_exponent: tf.Tensor
    ) -> tuple[UpdateMetrics, tf.Tensor]:
        """Traced: `learn` on every replica, each with its part of the block.

        Replicas meet in every update, which they cannot do inside a loop of their own: the loop stands around them.
        The metrics are those of this process; loss and norm are those of all.
        """

        def draw(block: AnyBlock, importance_exponent: tf.Tensor) -> Batch | Sequences:
            self.store(block)
            return self._draw(importance_exponent)

        def update(batches: Batch | Sequences, index: tf.Tensor, learning_rate: tf.Tensor) -> UpdateMetrics:
            batch = _batch(batches, index)
            metrics = self.agent.update(batch, learning_rate)
            self._set_errors(batch, metrics.priority)
            return metrics

        batches, last = self.replicas.run(draw, block, importance_exponent), self._config.training.gradient_steps - 1
        self.replicas.repeat(last, lambda index: self.replicas.run(update, batches, index, learning_rate))
        metrics = self.replicas.run(update, batches, tf.constant(last), learning_rate)
        items = [self.replicas.joined(field) for field in metrics[2:]]
        found = UpdateMetrics(self.replicas.mean(metrics.loss), self.replicas.one(metrics.gradient_norm), *items)
        return found, flat_weights(self.agent.online)

    # --- from the host --------------------------------------------------------------------------------------------

    def insert_block(self, block: AnyBlock, entering: Callable[[], object] = _nothing) -> None:
        """Writes a block of numpy arrays into the replay, without learning; `entering` is as in `learn_block`."""
        with self._ready(block) as arguments:
            entering()
            self._insert(*arguments)

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
        with self._ready(block) as arguments:
            rates = tf.constant(learning_rate, tf.float32), tf.constant(importance_exponent, tf.float32)
            entering()
            metrics, weights = self._learn(*arguments, *rates)
            if self.agent.prune(done):
                weights = flat_weights(self.agent.online)
        return Learned(metrics, weights.numpy())

    @contextlib.contextmanager
    def _ready(self, block: AnyBlock) -> Iterator[list[Any]]:
        """The block as the programs take it: one copy, in tensors; or in parts, one for each replica."""
        if self.replicas.count == 1:
            with tf.device(self._device):
                yield [tf.constant(field) for field in block]
            return
        axes = [0 if name == "state" else 1 for name in block._fields]
        with self.replicas.together():
            yield [type(block)(*map(self.replicas.split, block, axes))]

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

    def is_finite(self) -> bool:
        """Whether every observation and reward in the rings of this process is a finite number."""
        return all(replay.is_finite() for replay in self._replays)

    # --- state, for checkpoints -----------------------------------------------------------------------------------

    def state(self, replay: bool = True) -> dict[str, Array]:
        """Every variable by name; without the ring where `replay` is false.

        The rings of other replicas come with it, from other workers too, all of which must call this.
        """
        state = shards.flat({"agent": self.agent.state(), "learner": {"draws": self._draws.numpy()}})
        if replay:
            for name, made in self._rings().items():
                told = self.replicas.tell(self.replicas.states(made))
                state |= shards.named(name, [own for worker in told for own in worker])
        return state

    def load_state(self, state: dict[str, Array]) -> None:
        """Puts back what `state` gave, on any number of replicas; the ring stays empty where it was not saved."""
        self.agent.load_state(shards.part(state, "agent"))
        self._draws.assign(state["learner/draws"])
        num_envs = self._config.environment.num_envs * self.replicas.count
        for name, made in self._rings().items():
            if found := shards.found(name, state):
                self.replicas.load_states(made, shards.redistributed(found, self.replicas.count, num_envs))

    def _rings(self) -> dict[str, list[Any]]:
        return {"replay": self._replays} | ({"sequences": self._sequences} if self._sequences else {})


def _batch(batches: Any, index: tf.Tensor | int) -> Any:
    """Traced: the batch of one update."""
    return type(batches)(*(field[index] if isinstance(index, int) else tf.gather(field, index) for field in batches))


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
