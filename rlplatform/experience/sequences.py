"""Sequences: rows of slots that a recurrent network is unrolled over, with the state in which it once met them."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from rlplatform.experience.block import Block
from rlplatform.experience.priorities import Priorities
from rlplatform.experience.replay import Replay, load_state_of, state_of
from rlplatform.experience.returns import n_step_return


class RecurrentBlock(NamedTuple):
    """A `Block`, and the states in which the actor's recurrent network met its first row."""

    observation: Any  # as in Block, as all fields up to `state`
    action: Any
    reward: Any
    terminated: Any
    first: Any
    dead: Any
    action_mask: Any
    state: Any  # [N, H] float32, before row 0, and before it is forgotten where that row begins an episode

    @property
    def slots(self) -> Block:
        """The block without the states."""
        return Block(*self[:-1])


class Sequences(NamedTuple):
    """B sequences for one update: tensors as below, or with U in front of all for U updates.

    A sequence has R rows: `burn_in` rows that only bring the state up to date, L rows that are learned from, and n more
    that the n-step targets of the last of them reach.
    """

    observation: Any  # [R, B, S...] frames stacked along the last axis
    first: Any  # [R, B] bool, the row begins an episode
    state: Any  # [B, H] float32, before the first row
    action: Any  # [L, B] int32
    reward: Any  # [L, B] float32, the discounted sum of up to n rewards
    discount: Any  # [L, B] float32, gamma ** steps taken, 0 after a termination
    steps: Any  # [L, B] int32, how many rows later the value is bootstrapped from, from 1 to n
    weight: Any  # [L, B] float32, of the row in the loss: 0 where its slot is dead, else the sequence's importance
    action_mask: Any  # [L, B, A] bool, the actions allowed there; [L, B, 0] where all always are
    next_action_mask: Any  # [L, B, A] bool, where the value is bootstrapped from; or [L, B, 0]
    slot: Any  # [B] int32, which stored state the sequence begins with


class SequenceReplay(tf.Module):
    """Draws sequences from a ring of slots, and keeps the states that they begin with.

    A state is stored for each environment at the start of each block, not for each slot, so sequences begin where
    blocks do. Rows after an episode's end belong to the next episode: `first` says where the state is forgotten.

    Stored states were computed with older weights. Burning in, which brings them up to date, is the learner's part
    (Kapturowski et al. 2019, section 3).

    Args:
        replay: the ring, whose rows are a whole number of blocks.
        block_steps: T, rows of a block.
        burn_in: rows before those that are learned from.
        length: L, rows that are learned from.
        state_size: H.
        priority_exponent: alpha of prioritised sampling, over sequences; None samples uniformly.
    """

    def __init__(
        self,
        replay: Replay,
        block_steps: int,
        burn_in: int,
        length: int,
        state_size: int,
        priority_exponent: float | None = None,
    ) -> None:
        super().__init__(name="sequences")
        if replay.rows % block_steps:
            raise ValueError(f"a ring of {replay.rows} rows does not hold whole blocks of {block_steps}")
        self._replay, self._steps, self._burn_in, self._length = replay, block_steps, burn_in, length
        self.rows = burn_in + length + replay.n_step  # R
        self.blocks = replay.rows // block_steps
        self._spanned = -(-self.rows // block_steps)  # blocks that a sequence reaches into
        if block_steps > length:
            raise ValueError(f"of blocks of {block_steps} rows, sequences that learn from {length} pass some over")
        self._lost = -(-(replay.frame_stack - 1) // block_steps)  # oldest blocks that lack frames of their stacks
        if self.blocks <= self._spanned + self._lost:
            raise ValueError(f"a ring of {replay.rows} rows is too short for sequences of {self.rows}")
        starts = self.blocks * replay.num_envs
        self.state_before = tf.Variable(tf.zeros([starts, state_size]), trainable=False, name="state_before")
        self.priorities = None if priority_exponent is None else Priorities(starts, priority_exponent)

    def insert(self, state: tf.Tensor) -> None:
        """Traced: takes the states `[N, H]` before the block that the ring has just taken in."""
        newest = self._block(-1)
        envs = tf.range(self._replay.num_envs)
        self.state_before.scatter_update(tf.IndexedSlices(state, newest * self._replay.num_envs + envs))
        if self.priorities is not None:
            self.priorities.renew(*self._renewed(newest))

    def sample(self, updates: int, batch_size: int, seed: tf.Tensor, importance_exponent: tf.Tensor) -> Sequences:
        """Traced: the batches of `updates` updates, `[U, ...]`, of sequences whose rows are all there.

        Uniformly, or in proportion to the priorities, which are those of before the call.

        Args:
            updates: U.
            batch_size: B, sequences in one update.
            seed: [2] int32 for `tf.random.stateless_uniform`.
            importance_exponent: [] float32, beta of the importance weights; without priorities it is not used.
        """
        num_envs, count = self._replay.num_envs, updates * batch_size
        if self.priorities is None:
            complete = self._complete()
            draw = tf.random.stateless_uniform(
                [count], seed, minval=0, maxval=complete * num_envs, dtype=tf.int32, alg="philox"
            )
            block = (self._block(-self._spanned) - draw // num_envs) % self.blocks  # the newest complete one, backwards
            slot, weight = block * num_envs + draw % num_envs, tf.ones([updates, batch_size])
        else:
            slot, weight = self.priorities.sample(updates, batch_size, seed, importance_exponent)
        return self._sequences(tf.reshape(slot, [updates, batch_size]), weight)

    def _sequences(self, slot: tf.Tensor, weight: tf.Tensor) -> Sequences:
        """Traced: the sequences `[U, ...]` that begin with the stored states `slot` `[U, B]`."""
        replay, n = self._replay, self._replay.n_step
        env = (slot % replay.num_envs)[:, None]  # [U, 1, B]
        row = (slot // replay.num_envs * self._steps)[:, None] + tf.range(self.rows)[:, None]  # [U, R, B]
        ring = (row % replay.rows) * replay.num_envs + env
        learned = slice(self._burn_in, self._burn_in + self._length)
        # [n + 1, U, L, B]: the slots that the return of each learned row may reach
        reach = tf.stack([ring[:, self._burn_in + k : self._burn_in + k + self._length] for k in range(n + 1)])
        flat = tf.reshape(reach, [n + 1, -1])
        terminated, dead = tf.gather(replay.terminated, flat[:-1]), tf.gather(replay.dead, flat)
        result = n_step_return(tf.gather(replay.reward, flat[:-1]), terminated, dead[1:], replay.gamma)
        here = ring[:, learned]  # [U, L, B]
        steps = tf.reshape(result.steps, here.shape)
        following = ((row[:, learned] + steps) % replay.rows) * replay.num_envs + env
        live = 1.0 - tf.cast(tf.gather(replay.dead, here), tf.float32)
        observation = replay.stacked(tf.reshape(row, [-1]), tf.reshape(tf.broadcast_to(env, row.shape), [-1]))
        return Sequences(
            observation=tf.reshape(observation, [*row.shape, *observation.shape[1:]]),
            first=tf.gather(replay.first, ring),
            state=tf.gather(self.state_before, slot),
            action=tf.gather(replay.action, here),
            reward=tf.reshape(result.reward, here.shape),
            discount=tf.reshape(result.discount, here.shape),
            steps=steps,
            weight=live * weight[:, None],
            action_mask=tf.gather(replay.action_mask, here),
            next_action_mask=tf.gather(replay.action_mask, following),
            slot=slot,
        )

    def _renewed(self, newest: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Traced: the slots `[M]` whose priority begins anew, and `[M]` bool, which of them can be drawn from now on.

        Those are the sequences that the newest block has completed. Its own cannot be drawn yet, and those of the
        oldest blocks no longer, whose frames' stacks reach into what the newest block has overwritten.
        """
        written = self._replay.rows_written // self._steps
        completed = (newest - (self._spanned - 1)) % self.blocks
        whole = written - self._spanned >= self._first_whole(written)
        lost = [tf.where(written > self.blocks, (newest + 1 + k) % self.blocks, newest) for k in range(self._lost)]
        blocks = tf.stack([completed, newest, *lost])
        live = tf.stack([whole, *[tf.constant(False)] * (1 + self._lost)])
        num_envs = self._replay.num_envs
        return tf.reshape(blocks[:, None] * num_envs + tf.range(num_envs), [-1]), tf.repeat(live, num_envs)

    def _complete(self) -> tf.Tensor:
        """Traced: [] int32, how many blocks a sequence can begin with."""
        written = self._replay.rows_written // self._steps
        return tf.cast(written - (self._spanned - 1) - self._first_whole(written), tf.int32)

    def _first_whole(self, written: tf.Tensor) -> tf.Tensor:
        """Traced: [] int64, the oldest block in the ring with all frames of its stacks, counted from the first ever.

        The first ever needs none from before itself where it begins every environment's episode; a ring that was
        emptied in the middle of a run fills again in the middle of episodes.
        """
        never_lost = tf.zeros([], tf.int64)
        if self._lost:
            begins = tf.reduce_all(tf.gather(self._replay.first, tf.range(self._replay.num_envs)))
            never_lost = tf.where(begins, never_lost, self._lost)
        return tf.where(written > self.blocks, written - self.blocks + self._lost, never_lost)

    def _block(self, offset: int) -> tf.Tensor:
        """Traced: [] int32, where in the ring the block lies that comes `offset` after the one that is written next."""
        return tf.cast((self._replay.rows_written // self._steps + offset) % self.blocks, tf.int32)

    # --- state, for checkpoints -----------------------------------------------------------------------------------

    def _variables(self) -> list[tf.Variable]:
        """Its own, without the ring's."""
        return [self.state_before, *(() if self.priorities is None else self.priorities.variables)]

    def state(self, replica: int = 0) -> dict[str, np.ndarray]:
        """Every variable by name; of those that are distributed, the replica's."""
        return state_of(self._variables(), replica)

    def load_state(self, state: dict[str, np.ndarray], replica: int = 0) -> None:
        """Puts back what `state` gave."""
        load_state_of(self._variables(), state, replica)
