"""The ring gives back the transitions that a list of slots gives, each live one equally often, and no other."""

import collections
import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.testing import assert_array_equal

from rlplatform.experience import Block, Replay

GAMMA = 0.5  # sums of small whole numbers times powers of a half are exact in float32
SHAPES = {"float32": [(2,), (2, 3)], "uint8": [(2, 2, 2), (3, 2)]}


def block_of(steps, num_envs, shape, dtype, rng, ends=0.25):
    """Slots of random content: flags too, so that they come in combinations that no environment makes."""
    rows = (steps, num_envs)
    return Block(
        observation=rng.integers(0, 256, (*rows, *shape)).astype(dtype),
        action=rng.integers(0, 5, rows, np.int32),
        reward=rng.integers(-32, 32, rows).astype(np.float32),
        terminated=rng.random(rows) < ends,
        first=rng.random(rows) < ends,
        dead=rng.random(rows) < ends,
    )


def ring(capacity=20, num_envs=2, shape=(2,), dtype="float32", n_step=1, frame_stack=1):
    return Replay(capacity, num_envs, shape, dtype, n_step=n_step, frame_stack=frame_stack, gamma=GAMMA)


def everything(replay, rows):
    """The transitions of all slots of some rows, in order, and which slot each starts at."""
    starts = list(itertools.product(rows, range(replay.num_envs)))
    row, env = (np.array(part, np.int32) for part in zip(*starts, strict=True))
    return starts, replay.transitions(tf.constant(row), tf.constant(env))


class Listed:
    """The replay as a list: one slot after the other, row by row."""

    def __init__(self, rows, num_envs, n_step, frame_stack):
        self.rows, self.num_envs, self.n_step, self.frame_stack = rows, num_envs, n_step, frame_stack
        self.slots = collections.deque(maxlen=rows)  # of rows: [N] slots each
        self.written = 0

    def insert(self, block):
        for row in zip(*block, strict=True):
            self.slots.append([Block(*slot) for slot in zip(*row, strict=True)])
            self.written += 1

    def slot(self, row, env):
        return self.slots[row - max(self.written - self.rows, 0)][env]

    def sampleable(self):
        """The rows with a complete future, and a complete past where a stack needs one."""
        oldest = max(self.written - self.rows, 0)
        complete = oldest == 0 and self.slots and all(slot.first for slot in self.slots[0])
        return range(oldest if complete else oldest + self.frame_stack - 1, self.written - self.n_step)

    def stack(self, row, env):
        frames = [self.slot(row, env)]
        while len(frames) < self.frame_stack:
            frames.insert(0, frames[0] if frames[0].first else self.slot(row - 1, env))
            row -= not frames[1].first
        arrays = [slot.observation[..., None] if slot.observation.ndim == 2 else slot.observation for slot in frames]
        return np.concatenate(arrays, axis=-1)

    def transition(self, row, env):
        """The transition that starts at a slot, as `Batch` has it: observation, action, reward, discount, ..."""
        start, total, discount = self.slot(row, env), 0.0, 1.0
        for step in range(self.n_step):
            slot, following = self.slot(row + step, env), self.slot(row + step + 1, env)
            total, discount = total + discount * slot.reward, discount * GAMMA
            if slot.terminated:
                discount = 0.0
            if slot.terminated or following.dead:
                break
        last = row + step + 1
        return self.stack(row, env), start.action, total, discount, self.stack(last, env), float(not start.dead)


def assert_same(replay, listed):
    assert replay.fill == len(listed.slots) / listed.rows
    if not len(listed.sampleable()):
        return
    starts, batch = everything(replay, listed.sampleable())
    for index, (row, env) in enumerate(starts):
        expected = listed.transition(row, env)
        for field, value in zip(batch._fields, expected, strict=True):
            assert_array_equal(getattr(batch, field)[index], value, err_msg=f"{field} of row {row}, environment {env}")


class Ring(RuleBasedStateMachine):
    """Whatever is inserted, saved and put back, the ring and the list hold the same transitions."""

    @initialize(
        rows=st.integers(8, 16),
        spare=st.integers(0, 1),
        num_envs=st.integers(1, 3),
        n_step=st.integers(1, 3),
        frame_stack=st.integers(1, 3),
        kind=st.sampled_from([(dtype, shape) for dtype, shapes in SHAPES.items() for shape in shapes]),
        seed=st.integers(0, 2**16),
    )
    def build(self, rows, spare, num_envs, n_step, frame_stack, kind, seed):
        dtype, shape = kind
        capacity = rows * num_envs - spare * (num_envs - 1)  # rounded up to the same rows
        self.new = lambda: ring(capacity, num_envs, shape, dtype, n_step, frame_stack)
        self.make = lambda steps, rng: block_of(steps, num_envs, shape, dtype, rng)
        self.rng = np.random.default_rng(seed)
        self.replay, self.listed = self.new(), Listed(rows, num_envs, n_step, frame_stack)

    @rule(share=st.floats(0.0, 1.0), first=st.booleans())
    def insert(self, share, first):
        block = self.make(max(1, round(share * self.listed.rows)), self.rng)
        block.first[0] |= first
        self.replay.insert(block)
        self.listed.insert(block)

    @rule()
    def save_and_restore(self):
        state = self.replay.state()
        self.replay = self.new()
        self.replay.load_state(state)

    @rule(seed=st.integers(0, 2**16))
    def draw(self, seed):
        rows = self.listed.sampleable()
        if not len(rows):
            return
        batch = self.replay.sample(16, tf.constant([seed, 1]))
        known = [self.listed.transition(row, env) for row in rows for env in range(self.listed.num_envs)]
        keys = {b"".join(np.asarray(part, np.float32).tobytes() for part in transition) for transition in known}
        for item in zip(*(np.asarray(field, np.float32) for field in batch), strict=True):
            assert b"".join(part.tobytes() for part in item) in keys

    @invariant()
    def transitions_are_the_same(self):
        if hasattr(self, "replay"):
            assert_same(self.replay, self.listed)
            assert not self.replay.can_sample() or len(self.listed.sampleable())


TestTheRingAgainstAListOfSlots = Ring.TestCase
TestTheRingAgainstAListOfSlots.settings = settings(max_examples=10, stateful_step_count=10)


@pytest.mark.parametrize(("n_step", "frame_stack"), [(1, 1), (3, 2)])
def test_every_live_slot_is_drawn_equally_often(n_step, frame_stack):
    replay = ring(capacity=60, num_envs=2, n_step=n_step, frame_stack=frame_stack)
    listed = Listed(30, 2, n_step, frame_stack)
    rng = np.random.default_rng(5)
    for steps in (17, 30):  # around the ring's end
        block = block_of(steps, 2, (2,), "float32", rng)
        block.action[:] = np.arange(listed.written * 2, (listed.written + steps) * 2).reshape(steps, 2)  # who is who
        replay.insert(block)
        listed.insert(block)
    slots = [listed.slot(row, env) for row in listed.sampleable() for env in range(2)]
    live = {int(slot.action): 0 for slot in slots if not slot.dead}
    draws = 200_000
    batch = replay.sample(draws, tf.constant([3, 0]))
    drawn = collections.Counter(batch.action.numpy()[batch.weight.numpy() > 0.0].tolist())
    assert drawn.keys() == live.keys()
    expected = draws / len(slots)  # of all draws, dead slots' included
    assert abs(sum(drawn.values()) / (expected * len(live)) - 1.0) < 0.01
    share = sum(drawn.values()) / len(live)
    chi_square = sum((count - share) ** 2 / share for count in drawn.values())
    freedom = len(live) - 1
    # Wilson and Hilferty (1931): the 99.9 % point of chi-square.
    assert chi_square < freedom * (1.0 - 2.0 / (9.0 * freedom) + 3.09 * (2.0 / (9.0 * freedom)) ** 0.5) ** 3


def test_the_same_seed_draws_the_same_slots_and_another_others():
    replay = ring(capacity=400)
    replay.insert(block_of(200, 2, (2,), "float32", np.random.default_rng(0)))
    first, again, other, later = (replay.sample(64, tf.constant(seed)) for seed in ([7, 1], [7, 1], [8, 1], [7, 2]))
    assert_array_equal(first.observation, again.observation)
    assert not np.array_equal(first.observation, other.observation)
    assert not np.array_equal(first.observation, later.observation)


@pytest.mark.parametrize(("dtype", "shape", "frame_stack"), [("float32", (2,), 1), ("uint8", (3, 2), 3)])
def test_the_compiled_program_draws_what_the_eager_one_draws(dtype, shape, frame_stack):
    rng = np.random.default_rng(1)
    blocks = [block_of(7, 3, shape, dtype, rng) for _ in range(5)]
    eager, compiled = (ring(60, 3, shape, dtype, n_step=3, frame_stack=frame_stack) for _ in range(2))

    @tf.function(jit_compile=True, autograph=False)
    def insert_and_sample(block, seed):
        compiled.insert(block)
        return compiled.sample(50, seed)

    for index, block in enumerate(blocks):
        eager.insert(block)
        seed = tf.constant([4, index])
        got = insert_and_sample(Block(*map(tf.constant, block)), seed)
        for field, value in zip(got._fields, eager.sample(50, seed), strict=True):
            assert_array_equal(getattr(got, field), value, err_msg=field)
    assert insert_and_sample.experimental_get_tracing_count() == 1


def test_a_stack_never_reaches_before_the_oldest_row():
    """A ring that was emptied fills again in the middle of an episode: what was before is not known."""
    replay = ring(capacity=40, num_envs=2, n_step=1, frame_stack=3)
    block = block_of(10, 2, (2,), "float32", np.random.default_rng(2), ends=0.0)
    block.observation[:] = np.arange(1.0, 11.0)[:, None, None]
    block.first[0, 0] = True  # one environment begins there, the other does not
    replay.insert(block)
    drawn = replay.sample(2_000, tf.constant([0, 0]))
    assert np.all(drawn.observation.numpy() > 0.0)  # 0 is what rows hold that were never written
    assert set(drawn.observation.numpy()[:, -1]) == {3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0}


def test_rows_are_counted_beyond_the_32_bits_of_a_slot():
    replay, listed = ring(capacity=16, frame_stack=2), Listed(8, 2, 1, 2)
    past = 2**31 - 3
    past -= past % 8
    replay.rows_written.assign(past)
    rng = np.random.default_rng(3)
    for _ in range(3):
        block = block_of(6, 2, (2,), "float32", rng)
        replay.insert(block)
        listed.insert(block)
    assert_same(replay, listed)  # 2 ** 31 - 8 is a multiple of 8: the rows lie where they would without a past
    actions = {int(listed.slot(row, env).action) for row in listed.sampleable() for env in range(2)}
    drawn = replay.sample(500, tf.constant([0, 0]))
    assert set(drawn.action.numpy().tolist()) == actions
    assert np.isfinite(drawn.reward).all()
    assert replay.can_sample()
    assert replay.fill == 1.0


@given(st.integers(1, 40), st.integers(1, 7))
@settings(max_examples=20)
def test_capacity_is_rounded_up_to_whole_rows(capacity, num_envs):
    replay = ring(capacity, num_envs)
    assert capacity <= replay.rows * num_envs < capacity + num_envs
    assert replay.reward.shape == (replay.rows * num_envs,)


def test_a_block_longer_than_the_ring_is_refused():
    replay = ring(capacity=10, num_envs=2)
    with pytest.raises(ValueError, match="a block of 6 rows does not fit a ring of 5"):
        replay.insert(block_of(6, 2, (2,), "float32", np.random.default_rng(0)))
    assert replay.fill == 0.0


def test_frames_are_kept_in_the_dtype_they_come_in():
    replay = ring(shape=(4, 4, 1), dtype="uint8", frame_stack=2)
    assert replay.observation.dtype == tf.uint8
    replay.insert(block_of(8, 2, (4, 4, 1), "uint8", np.random.default_rng(0)))
    batch = replay.sample(5, tf.constant([0, 0]))
    assert batch.observation.dtype == batch.next_observation.dtype == tf.uint8
    assert batch.observation.shape == (5, 4, 4, 2)


def test_nothing_can_be_sampled_before_the_first_future_is_complete():
    replay = ring(capacity=40, n_step=3, frame_stack=2)
    for rows in range(1, 8):
        replay.insert(block_of(1, 2, (2,), "float32", np.random.default_rng(rows)))
        assert replay.can_sample() == (rows >= 5)
