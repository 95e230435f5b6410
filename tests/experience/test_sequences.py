"""Sequences from the ring are the rows that were lived through, with the state before them, and no others are drawn."""

import collections

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.experience import Block, RecurrentBlock, Replay, SequenceReplay, Sequences

GAMMA = 0.5
STATE = 3
KINDS = st.fixed_dictionaries(
    {
        "num_envs": st.integers(1, 3),
        "steps": st.integers(1, 4),
        "burn_in": st.integers(0, 5),
        "length": st.integers(4, 6),
        "n_step": st.integers(1, 3),
        "frame_stack": st.integers(1, 3),
        "spare": st.integers(0, 3),
        "blocks": st.integers(0, 24),
        "prioritized": st.booleans(),
    }
)


class Lived:
    """Rings of sequences beside a list of all rows and all states that ever were."""

    def __init__(self, num_envs, steps, burn_in, length, n_step, frame_stack, spare, prioritized=False, masks=0):
        self.num_envs, self.steps, self.burn_in, self.length = num_envs, steps, burn_in, length
        self.n_step, self.frame_stack, self.masks = n_step, frame_stack, masks
        self.rows = burn_in + length + n_step
        self.blocks = -(-self.rows // steps) + -(-(frame_stack - 1) // steps) + 1 + spare
        self.replay = Replay(
            self.blocks * steps * num_envs,
            num_envs,
            (2,),
            "float32",
            n_step=n_step,
            frame_stack=frame_stack,
            gamma=GAMMA,
            num_masked_actions=masks,
        )
        alpha = 1.0 if prioritized else None
        self.sequences = SequenceReplay(self.replay, steps, burn_in, length, STATE, priority_exponent=alpha)
        self.rng = np.random.default_rng(0)
        self.slots, self.states = [], []  # of all rows: [N] slots each; of all blocks: [N, H]

    def block(self):
        rows = (self.steps, self.num_envs)
        return RecurrentBlock(
            observation=self.rng.integers(0, 256, (*rows, 2)).astype(np.float32),
            action=self.rng.integers(0, 2**30, rows, np.int32),  # who is who
            reward=self.rng.integers(-32, 32, rows).astype(np.float32),
            terminated=self.rng.random(rows) < 0.2,
            first=self.rng.random(rows) < 0.2,
            dead=self.rng.random(rows) < 0.2,
            action_mask=self.rng.random((*rows, self.masks)) < 0.5,
            state=self.rng.normal(size=(self.num_envs, STATE)).astype(np.float32),
        )

    def live(self, count):
        for _ in range(count):
            block = self.block()
            if not self.slots:
                block.first[0] = True
            self.replay.insert(block.slots)
            self.sequences.insert(tf.constant(block.state))
            self.states.append(block.state)
            for row in zip(*block.slots, strict=True):
                self.slots.append([Block(*slot) for slot in zip(*row, strict=True)])

    def starts(self):
        """The blocks that a sequence can begin with, counted from the first: all rows are there, and all frames."""
        oldest = max(0, len(self.states) - self.blocks) * self.steps
        reaches = 0 if oldest == 0 else self.frame_stack - 1  # the first row ever begins all episodes
        rows = range(0, len(self.slots), self.steps)
        return [row // self.steps for row in rows if row - reaches >= oldest and row + self.rows <= len(self.slots)]

    def frames(self, row, env):
        frames = [self.slots[row][env]]
        while len(frames) < self.frame_stack:
            frames.insert(0, frames[0] if frames[0].first else self.slots[row - 1][env])
            row -= not frames[1].first
        return np.concatenate([slot.observation for slot in frames])

    def transition(self, row, env):
        """Reward, discount, steps and what may be done where it bootstraps from."""
        total, discount = 0.0, 1.0
        for step in range(self.n_step):
            slot, following = self.slots[row + step][env], self.slots[row + step + 1][env]
            total, discount = total + discount * slot.reward, discount * GAMMA
            if slot.terminated:
                discount = 0.0
            if slot.terminated or following.dead:
                break
        return total, discount, step + 1, self.slots[row + step + 1][env].action_mask

    def assert_is(self, item, block, env):
        """One sequence, without the axis of the batch, is that of a block and an environment."""
        begin = block * self.steps
        assert_array_equal(item.state, self.states[block][env])
        for row in range(self.rows):
            assert_array_equal(item.observation[row], self.frames(begin + row, env))
            assert item.first[row] == self.slots[begin + row][env].first
        for row in range(self.length):
            slot = self.slots[begin + self.burn_in + row][env]
            reward, discount, steps, following_mask = self.transition(begin + self.burn_in + row, env)
            got = (item.action[row], item.reward[row], item.discount[row], item.steps[row])
            assert got == (slot.action, reward, discount, steps)
            assert (item.weight[row] > 0.0) == (not slot.dead)
            assert_array_equal(item.action_mask[row], slot.action_mask)
            assert_array_equal(item.next_action_mask[row], following_mask)

    def drawn(self, updates=2, size=8, seed=(0, 0)):
        """The items of some batches, each without the axes of updates and batch."""
        batches = self.sequences.sample(updates, size, tf.constant(seed), tf.constant(1.0))
        assert batches.observation.shape[:3] == (updates, self.rows, size)
        assert batches.reward.shape == (updates, self.length, size)
        early = {"state", "slot"}
        parts = {name: getattr(batches, name).numpy() for name in Sequences._fields}
        return [
            Sequences(**{name: part[u, b] if name in early else part[u, :, b] for name, part in parts.items()})
            for u in range(updates)
            for b in range(size)
        ]

    def who(self, item):
        """Which block and environment a sequence begins with: actions are all different."""
        for block in range(len(self.states)):
            for env in range(self.num_envs):
                row = block * self.steps + self.burn_in
                if row < len(self.slots) and self.slots[row][env].action == item.action[0]:
                    return block, env
        raise AssertionError("a sequence that never was")


@pytest.mark.slow
@given(KINDS)
@settings(max_examples=30)
def test_every_sequence_is_what_was_lived_through(kind):
    blocks = kind.pop("blocks")
    lived = Lived(**kind, masks=2)
    lived.live(blocks)
    starts = lived.starts()
    if not starts:
        return
    for item in lived.drawn():
        block, env = lived.who(item)
        assert block in starts
        assert item.slot == (block % lived.blocks) * lived.num_envs + env
        lived.assert_is(item, block, env)


@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("frame_stack", [1, 2])
@pytest.mark.parametrize("blocks", [5, 9, 23])
def test_every_start_is_drawn_equally_often(prioritized, frame_stack, blocks):
    lived = Lived(2, 3, 2, 5, 2, frame_stack, spare=4, prioritized=prioritized)
    lived.live(blocks)
    if prioritized:
        lived.sequences.priorities.set_errors(tf.range(lived.blocks * 2), tf.ones(lived.blocks * 2))
    draws = 40_000
    slots = lived.sequences.sample(1, draws, tf.constant([1, 2]), tf.constant(1.0)).slot.numpy().ravel()
    counts = collections.Counter(slots.tolist())
    expected = {(block % lived.blocks) * 2 + env for block in lived.starts() for env in range(2)}
    assert counts.keys() == expected
    share = draws / len(expected)
    assert max(abs(count - share) for count in counts.values()) < 5.0 * share**0.5


def test_sequences_are_drawn_in_proportion_to_their_priority():
    lived = Lived(2, 3, 2, 5, 2, 1, spare=4, prioritized=True)
    lived.live(9)
    slots = [(block % lived.blocks) * 2 + env for block in lived.starts() for env in range(2)]
    priority = np.arange(1.0, len(slots) + 1.0, dtype=np.float32)
    lived.sequences.priorities.set_errors(tf.constant(slots), tf.constant(priority))
    draws = 40_000
    batches = lived.sequences.sample(1, draws, tf.constant([1, 2]), tf.constant(1.0))
    counts = collections.Counter(batches.slot.numpy().ravel().tolist())
    for slot, chance in zip(slots, priority / priority.sum(), strict=True):
        assert abs(counts[slot] / draws - chance) < 0.01
    # beta = 1: the weight of a sequence is in inverse proportion, 1 for the least.
    weight, live = batches.weight.numpy()[0].max(axis=0), batches.weight.numpy()[0] > 0.0
    by_slot = dict(zip(slots, priority, strict=True))
    expected = np.array([1.0 / by_slot[slot] for slot in batches.slot.numpy().ravel()])
    assert_allclose(weight[live.any(axis=0)], expected[live.any(axis=0)], rtol=1e-4)


def test_new_sequences_get_the_greatest_priority_so_far():
    lived = Lived(1, 2, 1, 3, 1, 1, spare=3, prioritized=True)
    lived.live(4)
    slots = [block % lived.blocks for block in lived.starts()]
    lived.sequences.priorities.set_errors(tf.constant(slots[:1]), tf.constant([7.0]))
    lived.live(1)
    newest = lived.starts()[-1] % lived.blocks
    assert_allclose(lived.sequences.priorities.tree.get(tf.constant([newest])), [7.0], rtol=1e-5)
    lived.sequences.priorities.set_errors(tf.constant([newest]), tf.constant([float("nan")]))
    assert_allclose(lived.sequences.priorities.tree.get(tf.constant([newest])), [1e-6], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("prioritized", [False, True])
def test_the_compiled_program_draws_what_the_eager_one_draws(prioritized):
    eager, compiled = (Lived(2, 3, 2, 5, 2, 2, spare=1, prioritized=prioritized) for _ in range(2))

    @tf.function(jit_compile=True, autograph=False)
    def insert_and_sample(block, seed):
        compiled.replay.insert(block.slots)
        compiled.sequences.insert(block.state)
        return compiled.sequences.sample(2, 4, seed, tf.constant(0.5))

    for number in range(12):
        block = compiled.block()
        eager.live(1)
        if number == 0:
            block.first[0] = True
        got = insert_and_sample(RecurrentBlock(*map(tf.constant, block)), tf.constant([5, number]))
        if eager.starts():
            expected = eager.sequences.sample(2, 4, tf.constant([5, number]), tf.constant(0.5))
            for field, value in zip(Sequences._fields, got, strict=True):
                assert_array_equal(value, getattr(expected, field), err_msg=field)
    assert len(eager.starts()) > 1


def test_rows_are_counted_beyond_the_32_bits_of_a_slot():
    lived = Lived(2, 2, 1, 3, 1, 1, spare=2)
    past = 2**33 - 2**33 % (lived.blocks * 2)
    lived.replay.rows_written.assign(past)
    lived.live(lived.blocks + 1)
    starts = lived.starts()
    for item in lived.drawn():
        block, env = lived.who(item)
        assert block in starts
        lived.assert_is(item, block, env)


def test_what_is_saved_goes_on_as_it_was():
    one, other = (Lived(2, 2, 1, 3, 1, 1, spare=2, prioritized=True) for _ in range(2))
    one.live(5)
    slots = tf.constant([block % one.blocks for block in one.starts()])
    one.sequences.priorities.set_errors(slots, tf.range(1.0, len(one.starts()) + 1.0))
    other.replay.load_state(one.replay.state())
    other.sequences.load_state(one.sequences.state())
    first, second = (part.sequences.sample(1, 6, tf.constant([3, 4]), tf.constant(0.5)) for part in (one, other))
    for field in Sequences._fields:
        assert_array_equal(getattr(first, field), getattr(second, field), err_msg=field)


@pytest.mark.parametrize(
    ("capacity", "steps", "length", "message"),
    [
        (20, 3, 5, "a ring of 20 rows does not hold whole blocks of 3"),
        (20, 5, 4, "of blocks of 5 rows, sequences that learn from 4 pass some over"),
        (8, 4, 5, "a ring of 8 rows is too short for sequences of 8"),
    ],
)
def test_what_does_not_fit_together_is_refused(capacity, steps, length, message):
    replay = Replay(capacity, 1, (2,), "float32", n_step=1, frame_stack=1, gamma=GAMMA)
    with pytest.raises(ValueError, match=message):
        SequenceReplay(replay, steps, 2, length, STATE)
