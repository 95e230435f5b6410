"""The replay: a ring of slots on the device, written in place and drawn from inside the compiled program."""

import numpy as np
import tensorflow as tf

from rlplatform.experience.block import Batch, Block
from rlplatform.experience.returns import n_step_return, stack_rows


class Replay(tf.Module):
    """A ring of slots `[rows, N]`: one slot per environment and step, the next observation is the next slot's.

    Variables are flat, `[rows * N, ...]`, and indexed with one integer, since XLA gathers from a variable in place only
    along its first axis. Row r, counted from the first ever written, lies at ring row `r % rows`.

    Args:
        capacity: slots over all environments; rounded up to whole rows.
        num_envs: N.
        observation_shape: of one frame, `[O...]`.
        observation_dtype: as the environment's, so that images stay uint8.
        n_step: rewards in a return.
        frame_stack: frames joined along the last axis, K.
        gamma: discount per step.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        observation_shape: tuple[int, ...],
        observation_dtype: str,
        *,
        n_step: int,
        frame_stack: int,
        gamma: float,
    ) -> None:
        super().__init__(name="replay")
        self.num_envs, self.rows = num_envs, -(-capacity // num_envs)
        self.n_step, self.frame_stack, self.gamma = n_step, frame_stack, gamma
        self._frame_shape = observation_shape
        slots = self.rows * num_envs

        def ring(name: str, dtype: str, shape: tuple[int, ...] = ()) -> tf.Variable:
            return tf.Variable(tf.zeros((slots, *shape), dtype), trainable=False, name=name)

        self.observation = ring("observation", observation_dtype, observation_shape)
        self.action = ring("action", "int32")
        self.reward = ring("reward", "float32")
        self.terminated = ring("terminated", "bool")
        self.first = ring("first", "bool")
        self.dead = ring("dead", "bool")
        self.rows_written = tf.Variable(0, dtype=tf.int64, trainable=False, name="rows_written")

    def insert(self, block: Block) -> None:
        """Traced: writes the block's T rows after the newest one, over the oldest.

        Raises:
            ValueError: the block is longer than the ring.
        """
        steps = block.reward.shape[0]
        if steps > self.rows:
            raise ValueError(f"a block of {steps} rows does not fit a ring of {self.rows}")
        rows = (self._next_row() + tf.range(steps)) % self.rows
        slots = tf.reshape(rows[:, None] * self.num_envs + tf.range(self.num_envs)[None], [-1])
        for field, ring in zip(Block._fields, self._rings(), strict=True):
            values = tf.reshape(getattr(block, field), [steps * self.num_envs, *ring.shape[1:]])
            ring.scatter_update(tf.IndexedSlices(values, slots))
        self.rows_written.assign_add(steps)

    def sample(self, count: int, seed: tf.Tensor) -> Batch:
        """Traced: `count` transitions, drawn uniformly from the slots whose n-step future is complete.

        A draw that falls on a dead slot has weight 0, so that every live slot is equally likely.

        Args:
            count: how many.
            seed: [2] int32 for `tf.random.stateless_uniform`; the same seed draws the same slots on every device.
        """
        end = self._next_row()
        start = end - tf.cast(tf.minimum(self.rows_written, self.rows), tf.int32)  # below 0: the ring has come round
        low, high = start + self._lost(), end - self.n_step
        draw = tf.random.stateless_uniform(
            [count], seed, minval=0, maxval=(high - low) * self.num_envs, dtype=tf.int32, alg="philox"
        )
        return self.transitions(low + draw // self.num_envs, draw % self.num_envs)

    def transitions(self, row: tf.Tensor, env: tf.Tensor) -> Batch:
        """Traced: the transitions that start at the slots `(row, env)`, both [B] int32; their futures must be complete.

        Rows are taken modulo the ring's.
        """
        rows = row[None] + tf.range(self.n_step + 1)[:, None]  # [n + 1, B]
        slots = self._slot(rows, env)
        terminated, dead = tf.gather(self.terminated, slots[:-1]), tf.gather(self.dead, slots)
        result = n_step_return(tf.gather(self.reward, slots[:-1]), terminated, dead[1:], self.gamma)
        return Batch(
            observation=self._stacked(row, env),
            action=tf.gather(self.action, slots[0]),
            reward=result.reward,
            discount=result.discount,
            next_observation=self._stacked(row + result.steps, env),
            weight=1.0 - tf.cast(dead[0], tf.float32),
        )

    def can_sample(self) -> bool:
        """Whether any slot's n-step future is complete. Not traced."""
        return int(self.rows_written) >= self.n_step + self.frame_stack

    @property
    def fill(self) -> float:
        """Share of the ring that is written, from 0 to 1. Not traced."""
        return min(int(self.rows_written), self.rows) / self.rows

    def is_finite(self) -> bool:
        """Whether every observation and reward in the ring is a finite number. Not traced."""
        return bool(np.isfinite(self.reward.numpy()).all() and np.isfinite(self.observation.numpy()).all())

    def _rings(self) -> tuple[tf.Variable, ...]:
        return self.observation, self.action, self.reward, self.terminated, self.first, self.dead

    def _next_row(self) -> tf.Tensor:
        """Traced: [] int32, the ring row that is written next. The count itself outgrows 32 bits in a long run."""
        return tf.cast(self.rows_written % self.rows, tf.int32)

    def _lost(self) -> tf.Tensor | int:
        """Traced: how many of the oldest rows lack a frame of their stack.

        None where the oldest row is the first of all and begins every environment's episode; a ring that was emptied in
        the middle of a run fills again in the middle of episodes.
        """
        if self.frame_stack == 1:
            return 0
        begins = tf.reduce_all(tf.gather(self.first, tf.range(self.num_envs)))
        return tf.where((self.rows_written <= self.rows) & begins, 0, self.frame_stack - 1)

    def _slot(self, row: tf.Tensor, env: tf.Tensor) -> tf.Tensor:
        return (row % self.rows) * self.num_envs + env

    def _stacked(self, row: tf.Tensor, env: tf.Tensor) -> tf.Tensor:
        """Traced: [B, S...], the frames that end at `row`, oldest first along the last axis."""
        if self.frame_stack == 1:
            frames = tf.gather(self.observation, self._slot(row, env))
            return frames[..., None] if len(self._frame_shape) == 2 else frames
        back = row[None] - tf.range(self.frame_stack - 1)[:, None]
        rows = stack_rows(row, tf.gather(self.first, self._slot(back, env)))  # [K, B]
        frames = tf.gather(self.observation, self._slot(rows, env))  # [K, B, O...]
        if len(self._frame_shape) == 2:
            frames = frames[..., None]
        return tf.concat(tf.unstack(frames), axis=-1)

    # --- state, for checkpoints -----------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        """Every variable by name."""
        return {variable.name.partition(":")[0]: variable.numpy() for variable in (*self._rings(), self.rows_written)}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Puts back what `state` gave."""
        for variable in (*self._rings(), self.rows_written):
            variable.assign(state[variable.name.partition(":")[0]])
