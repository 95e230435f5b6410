"""The replay: a ring of slots on the device, written in place and drawn from inside the compiled program."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from rlplatform.experience.block import Batch, Block
from rlplatform.experience.priorities import Priorities
from rlplatform.experience.returns import n_step_return, stack_rows


class Replay(tf.Module):
    """A ring of slots `[rows, N]`: one slot per environment and step, the next observation is the next slot's.

    Variables are flat, `[rows * N, ...]`, and indexed with one integer, since XLA gathers from a variable in place only
    along its first axis. Row r, counted from the first ever written, lies at ring row `r % rows`.

    Args:
        capacity: slots over all environments; rounded up to whole rows.
        num_envs: N.
        observation_shape: of one frame, `[O...]`.
        observation_dtype: what is stored: images stay uint8, and `bool` takes a byte where float32 takes four; batches
            show it as float32.
        n_step: rewards in a return.
        frame_stack: frames joined along the last axis, K.
        gamma: discount per step.
        num_masked_actions: A where the environment masks actions, else 0.
        priority_exponent: alpha of prioritised sampling (Schaul et al. 2016); None samples uniformly.
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
        num_masked_actions: int = 0,
        priority_exponent: float | None = None,
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
        self.action_mask = ring("action_mask", "bool", (num_masked_actions,))
        self.rows_written = tf.Variable(0, dtype=tf.int64, trainable=False, name="rows_written")
        self.priorities = None if priority_exponent is None else Priorities(slots, priority_exponent)

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
        if self.priorities is not None:
            self.priorities.renew(*self._renewed(steps))
        self.rows_written.assign_add(steps)

    def sample(self, updates: int, batch_size: int, seed: tf.Tensor, importance_exponent: tf.Tensor) -> Batch:
        """Traced: the batches of `updates` updates, `[U, B, ...]`, of slots whose n-step future is complete.

        Uniformly, or in proportion to the priorities. All batches are drawn from the priorities as they are now.

        Args:
            updates: U.
            batch_size: B.
            seed: [2] int32 for `tf.random.stateless_uniform`; the same seed draws the same slots on every device.
            importance_exponent: [] float32, beta of the importance weights; without priorities it is not used.
        """
        if self.priorities is None:
            flat = self.uniform(updates * batch_size, seed)
        else:
            slot, weight = self.priorities.sample(updates, batch_size, seed, importance_exponent)
            flat = self.transitions(slot // self.num_envs, slot % self.num_envs)
            flat = flat._replace(weight=tf.reshape(weight, [-1]))
        return Batch(*(tf.reshape(field, [updates, batch_size, *field.shape[1:]]) for field in flat))

    def _renewed(self, steps: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Traced: after `steps` rows were written, before they are counted: the slots `[M]` whose priority begins anew.

        And `[M]` bool, which of them can be drawn from now on; the others no longer can, or not yet.

        With the new rows, `n_step` rows before them become complete and the last `n_step` of them are not yet. The
        oldest rows that are left have lost frames of their stacks to the new ones.
        """
        newest = self.rows_written + steps
        row = newest - steps - self.n_step + tf.range(steps + self.n_step + self.frame_stack - 1, dtype=tf.int64)
        lost = tf.cast(self._lost(newest), tf.int64)
        oldest = tf.maximum(newest - self.rows, 0) + lost
        whole = tf.logical_and(row >= oldest, row < newest - self.n_step)
        # Rows from the newest on are the ring's oldest. While none of those is lost, they stay as they are.
        row = tf.where((row >= newest) & (lost == 0), newest - 1, row)
        ring_row = tf.cast(row % self.rows, tf.int32)
        slots = tf.reshape(ring_row[:, None] * self.num_envs + tf.range(self.num_envs)[None], [-1])
        return slots, tf.repeat(whole, self.num_envs) & ~tf.gather(self.dead, slots)

    def uniform(self, count: int, seed: tf.Tensor) -> Batch:
        """Traced: `count` transitions, drawn uniformly from the slots whose n-step future is complete.

        A draw that falls on a dead slot has weight 0, so that every live slot is equally likely.

        Args:
            count: how many.
            seed: as for `sample`.
        """
        low, high = self._complete()
        draw = tf.random.stateless_uniform(
            [count], seed, minval=0, maxval=(high - low) * self.num_envs, dtype=tf.int32, alg="philox"
        )
        return self.transitions(low + draw // self.num_envs, draw % self.num_envs)

    def newest(self, steps: int) -> Batch:
        """Traced: the transitions of the `steps` newest rows whose n-step future is complete, `[steps * N]` by rows.

        Their weight is 0 where the slot is dead, and in rows that were never written or lack a frame of their stack.

        Raises:
            ValueError: the ring holds fewer rows.
        """
        if steps + self.n_step + self.frame_stack - 1 > self.rows:
            raise ValueError(f"a ring of {self.rows} rows does not hold {steps} rows with their stacks and futures")
        low, high = self._complete()
        row = tf.repeat(high - steps + tf.range(steps), self.num_envs)
        batch = self.transitions(row, tf.tile(tf.range(self.num_envs), [steps]))
        return batch._replace(weight=tf.where(row >= low, batch.weight, 0.0))

    def _complete(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Traced: the first ring row that can be drawn, and the one after the last; below 0: the ring came round."""
        end = self._next_row()
        start = end - tf.cast(tf.minimum(self.rows_written, self.rows), tf.int32)
        return start + self._lost(self.rows_written), end - self.n_step

    def transitions(self, row: tf.Tensor, env: tf.Tensor) -> Batch:
        """Traced: the transitions that start at the slots `(row, env)`, both [B] int32; their futures must be complete.

        Rows are taken modulo the ring's.
        """
        rows = row[None] + tf.range(self.n_step + 1)[:, None]  # [n + 1, B]
        slots = self._slot(rows, env)
        terminated, dead = tf.gather(self.terminated, slots[:-1]), tf.gather(self.dead, slots)
        result = n_step_return(tf.gather(self.reward, slots[:-1]), terminated, dead[1:], self.gamma)
        return Batch(
            observation=self.stacked(row, env),
            action=tf.gather(self.action, slots[0]),
            reward=result.reward,
            discount=result.discount,
            next_observation=self.stacked(row + result.steps, env),
            weight=1.0 - tf.cast(dead[0], tf.float32),
            action_mask=tf.gather(self.action_mask, slots[0]),
            next_action_mask=tf.gather(self.action_mask, self._slot(row + result.steps, env)),
            slot=slots[0],
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
        return (
            self.observation,
            self.action,
            self.reward,
            self.terminated,
            self.first,
            self.dead,
            self.action_mask,
        )

    def _next_row(self) -> tf.Tensor:
        """Traced: [] int32, the ring row that is written next. The count itself outgrows 32 bits in a long run."""
        return tf.cast(self.rows_written % self.rows, tf.int32)

    def _lost(self, written: tf.Tensor) -> tf.Tensor | int:
        """Traced: how many of the oldest rows lack a frame of their stack, when `written` rows have been written.

        None where the oldest row is the first of all and begins every environment's episode; a ring that was emptied in
        the middle of a run fills again in the middle of episodes.
        """
        if self.frame_stack == 1:
            return 0
        begins = tf.reduce_all(tf.gather(self.first, tf.range(self.num_envs)))
        return tf.where((written <= self.rows) & begins, 0, self.frame_stack - 1)

    def _slot(self, row: tf.Tensor, env: tf.Tensor) -> tf.Tensor:
        return (row % self.rows) * self.num_envs + env

    def stacked(self, row: tf.Tensor, env: tf.Tensor) -> tf.Tensor:
        """Traced: [B, S...], the frames that end at `row`, oldest first along the last axis."""
        if self.frame_stack == 1:
            frames = self._frames(self._slot(row, env))
            return frames[..., None] if len(self._frame_shape) == 2 else frames
        back = row[None] - tf.range(self.frame_stack - 1)[:, None]
        rows = stack_rows(row, tf.gather(self.first, self._slot(back, env)))  # [K, B]
        frames = self._frames(self._slot(rows, env))  # [K, B, O...]
        if len(self._frame_shape) == 2:
            frames = frames[..., None]
        return tf.concat(tf.unstack(frames), axis=-1)

    def _frames(self, slots: tf.Tensor) -> tf.Tensor:
        frames = tf.gather(self.observation, slots)
        return tf.cast(frames, tf.float32) if frames.dtype == tf.bool else frames

    # --- state, for checkpoints -----------------------------------------------------------------------------------

    def state(self, replica: int = 0) -> dict[str, np.ndarray]:
        """Every variable by name; of those that are distributed, the replica's."""
        return state_of(self.variables, replica)

    def load_state(self, state: dict[str, np.ndarray], replica: int = 0) -> None:
        """Puts back what `state` gave."""
        load_state_of(self.variables, state, replica)


def state_of(variables: Iterable[tf.Variable], replica: int = 0) -> dict[str, np.ndarray]:
    """The values of variables, each of which has a name of its own; of those that are distributed, the replica's."""
    return {_name(variable): _own(variable, replica).numpy() for variable in variables}


def load_state_of(variables: Iterable[tf.Variable], state: dict[str, np.ndarray], replica: int = 0) -> None:
    """Puts back what `state_of` gave."""
    for variable in variables:
        _own(variable, replica).assign(state[_name(variable)])


def _name(variable: tf.Variable) -> str:
    return str(variable.name.partition(":")[0])


def _own(variable: Any, replica: int) -> tf.Variable:
    """One replica's part of a variable; the variable itself where it is not distributed."""
    return getattr(variable, "values", (variable,))[replica]
