"""The ring gives back the transitions that a list of slots gives, each live one equally often, and no other."""

import collections
import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.experience import Batch, Block, Replay

GAMMA = 0.5  # sums of small whole numbers times powers of a half are exact in float32
SHAPES = {"float32": [(2,), (2, 3)], "uint8": [(2, 2, 2), (3, 2)]}


def block_of(steps, num_envs, shape, dtype, rng, ends=0.25, num_actions=0):
    """Slots of random content: flags too, so that they come in combinations that no environment makes."""
    rows = (steps, num_envs)
    return Block(
        observation=rng.integers(0, 256, (*rows, *shape)).astype(dtype),
        action=rng.integers(0, 5, rows, np.int32),
        reward=rng.integers(-32, 32, rows).astype(np.float32),
        terminated=rng.random(rows) < ends,
        first=rng.random(rows) < ends,
        dead=rng.random(rows) < ends,
        action_mask=rng.random((*rows, num_actions)) < 0.5,
    )


def ring(capacity=20, num_envs=2, shape=(2,), dtype="float32", n_step=1, frame_stack=1, num_actions=0, alpha=None):
    return Replay(
        capacity,
        num_envs,
        shape,
        dtype,
        n_step=n_step,
        frame_stack=frame_stack,
        gamma=GAMMA,
        num_masked_actions=num_actions,
        priority_exponent=alpha,
    )


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
        """The transition that starts at a slot."""
        start, total, discount = self.slot(row, env), 0.0, 1.0
        for step in range(self.n_step):
            slot, following = self.slot(row + step, env), self.slot(row + step + 1, env)
            total, discount = total + discount * slot.reward, discount * GAMMA
            if slot.terminated:
                discount = 0.0
            if slot.terminated or following.dead:
                break
        last = row + step + 1
        return Batch(
            observation=self.stack(row, env),
            action=start.action,
            reward=total,
            discount=discount,
            next_observation=self.stack(last, env),
            weight=float(not start.dead),
            action_mask=start.action_mask,
            next_action_mask=self.slot(last, env).action_mask,
            slot=row % self.rows * self.num_envs + env,
        )


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
        num_actions=st.sampled_from([0, 3]),
        kind=st.sampled_from([(dtype, shape) for dtype, shapes in SHAPES.items() for shape in shapes]),
        seed=st.integers(0, 2**16),
    )
    def build(self, rows, spare, num_envs, n_step, frame_stack, num_actions, kind, seed):
        dtype, shape = kind
        capacity = rows * num_envs - spare * (num_envs - 1)  # rounded up to the same rows
        self.new = lambda: ring(capacity, num_envs, shape, dtype, n_step, frame_stack, num_actions)
        self.make = lambda steps, rng: block_of(steps, num_envs, shape, dtype, rng, num_actions=num_actions)
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
        batch = self.replay.uniform(16, tf.constant([seed, 1]))
        known = [self.listed.transition(row, env) for row in rows for env in range(self.listed.num_envs)]
        keys = {b"".join(np.asarray(part, np.float32).tobytes() for part in transition) for transition in known}
        for item in zip(*(np.asarray(field, np.float32) for field in batch), strict=True):
            assert b"".join(part.tobytes() for part in item) in keys

    @invariant()
    def transitions_are_the_same(self):
        if hasattr(self, "replay"):
            assert_same(self.replay, self.listed)
            assert not self.replay.can_sample() or len(self.listed.sampleable())


class PrioritizedRing(RuleBasedStateMachine):
    """Priorities are those of a dictionary that follows the rules by the letter, slot by slot.

    A slot can be drawn as long as it is in the ring, its action was taken, its n-step future is complete and every
    frame of its stack is known. From when it first can be, it has the greatest priority so far, until it is given one.
    """

    @initialize(
        rows=st.integers(10, 16),
        num_envs=st.integers(1, 3),
        n_step=st.integers(1, 5),
        frame_stack=st.integers(1, 4),
        alpha=st.sampled_from([0.0, 0.5, 1.0]),
        seed=st.integers(0, 2**16),
    )
    def build(self, rows, num_envs, n_step, frame_stack, alpha, seed):
        self.new = lambda: ring(rows * num_envs, num_envs, (1,), "float32", n_step, frame_stack, alpha=alpha)
        self.alpha, self.rng = alpha, np.random.default_rng(seed)
        self.replay, self.listed = self.new(), Listed(rows, num_envs, n_step, frame_stack)
        self.known, self.greatest = {}, 1.0  # priority by (row, environment), of those that can be drawn

    def priority(self, error):
        return (error + 1e-6) ** self.alpha

    @rule(share=st.floats(0.0, 1.0), first=st.booleans())
    def insert(self, share, first):
        block = block_of(max(1, round(share * self.listed.rows)), self.listed.num_envs, (1,), "float32", self.rng)
        block.first[0] |= first
        self.replay.insert(block)
        self.listed.insert(block)
        slots = itertools.product(self.listed.sampleable(), range(self.listed.num_envs))
        live = [place for place in slots if not self.listed.slot(*place).dead]
        self.known = {place: self.known.get(place, self.priority(self.greatest)) for place in live}

    @rule(seed=st.integers(0, 2**16), size=st.sampled_from([0.1, 3.0]))
    def learn_from_a_batch(self, seed, size):
        if not self.known:
            return
        exponent = 0.4
        batch = self.replay.sample(2, 8, tf.constant([seed, 1]), tf.constant(exponent))
        places = {self.place(row, env): (row, env) for row, env in self.known}
        slots = batch.slot.numpy()
        assert set(slots.ravel()) <= set(places)  # a dead, an incomplete or a lost one is never drawn
        for update in range(2):
            chances = [self.known[places[slot]] / sum(self.known.values()) for slot in slots[update]]
            weights = [(len(self.known) * chance) ** -exponent for chance in chances]
            expected = [weight / max(weights) for weight in weights]
            assert_allclose(batch.weight[update], expected, rtol=1e-4)
        errors = {slot: np.float32(size * self.rng.random()) for slot in set(slots.ravel())}
        self.give(slots.ravel(), [errors[slot] for slot in slots.ravel()])

    @rule(size=st.sampled_from([0.1, 3.0]))
    def give_priorities_to_any_slots(self, size):
        count = self.listed.rows * self.listed.num_envs
        slots = self.rng.choice(count, 5, replace=False)
        self.give(slots, (size * self.rng.random(5)).astype(np.float32))

    def give(self, slots, errors):
        self.replay.priorities.set_errors(tf.constant(slots, tf.int32), tf.constant(errors, tf.float32))
        places = {self.place(row, env): (row, env) for row, env in self.known}
        for slot, error in zip(slots, errors, strict=True):
            if slot in places:
                self.known[places[slot]] = self.priority(float(error))
                self.greatest = max(self.greatest, float(error))

    @rule()
    def save_and_restore(self):
        state = self.replay.state()
        self.replay = self.new()
        self.replay.load_state(state)

    def place(self, row, env):
        return row % self.listed.rows * self.listed.num_envs + env

    @invariant()
    def priorities_are_the_same(self):
        if not hasattr(self, "replay"):
            return
        expected = np.zeros(self.listed.rows * self.listed.num_envs)
        for (row, env), priority in self.known.items():
            expected[self.place(row, env)] = priority
        got = self.replay.priorities.tree.get(tf.range(len(expected))).numpy()
        assert_array_equal(got > 0.0, expected > 0.0)
        assert_allclose(got, expected, rtol=1e-5)
        assert_allclose(self.replay.priorities.tree.total(), expected.sum(), rtol=1e-5)
        assert_allclose(self.replay.priorities.greatest, self.greatest, rtol=1e-6)


TestPrioritiesAgainstADictionary = PrioritizedRing.TestCase
TestPrioritiesAgainstADictionary.settings = settings(max_examples=15, stateful_step_count=12, phases=list(Phase)[:3])
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
    batch = replay.uniform(draws, tf.constant([3, 0]))
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
    first, again, other, later = (replay.uniform(64, tf.constant(seed)) for seed in ([7, 1], [7, 1], [8, 1], [7, 2]))
    assert_array_equal(first.observation, again.observation)
    assert not np.array_equal(first.observation, other.observation)
    assert not np.array_equal(first.observation, later.observation)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [None, 0.6])
@pytest.mark.parametrize(("dtype", "shape", "frame_stack"), [("float32", (2,), 1), ("uint8", (3, 2), 3)])
def test_the_compiled_program_draws_what_the_eager_one_draws(dtype, shape, frame_stack, alpha):
    rng = np.random.default_rng(1)
    blocks = [block_of(7, 3, shape, dtype, rng, num_actions=2) for _ in range(5)]
    eager, compiled = (ring(60, 3, shape, dtype, 3, frame_stack, num_actions=2, alpha=alpha) for _ in range(2))
    exponent = tf.constant(0.4)

    def step(replay, block, error, seed):
        replay.insert(block)
        batch = replay.sample(2, 25, seed, exponent)
        if alpha is not None:
            replay.priorities.set_errors(tf.reshape(batch.slot, [-1]), error)
        return batch

    @tf.function(jit_compile=True, autograph=False)
    def compiled_step(block, error, seed):
        return step(compiled, block, error, seed)

    for index, block in enumerate(blocks):
        error, seed = tf.fill([50], 0.5 + index), tf.constant([4, index])  # of a slot drawn twice, either may count
        got = compiled_step(Block(*map(tf.constant, block)), error, seed)
        for field, value in zip(got._fields, step(eager, block, error, seed), strict=True):
            assert_allclose(getattr(got, field), value, rtol=1e-5, err_msg=field)
    assert compiled_step.experimental_get_tracing_count() == 1


def test_a_stack_never_reaches_before_the_oldest_row():
    """A ring that was emptied fills again in the middle of an episode: what was before is not known."""
    replay = ring(capacity=40, num_envs=2, n_step=1, frame_stack=3)
    block = block_of(10, 2, (2,), "float32", np.random.default_rng(2), ends=0.0)
    block.observation[:] = np.arange(1.0, 11.0)[:, None, None]
    block.first[0, 0] = True  # one environment begins there, the other does not
    replay.insert(block)
    drawn = replay.uniform(2_000, tf.constant([0, 0]))
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
    drawn = replay.uniform(500, tf.constant([0, 0]))
    assert set(drawn.action.numpy().tolist()) == actions
    assert np.isfinite(drawn.reward).all()
    assert replay.can_sample()
    assert replay.fill == 1.0


@pytest.mark.parametrize(("n_step", "frame_stack"), [(1, 1), (1, 3), (3, 2)])
def test_the_newest_rows_are_given_by_rows_and_weigh_nothing_where_they_are_not_whole(n_step, frame_stack):
    """From an empty ring until it has come round twice: rows before the first, or without their frames, weigh 0."""
    steps, rng = 4, np.random.default_rng(5)
    rows = steps + n_step + frame_stack - 1
    replay, listed = ring(2 * rows, n_step=n_step, frame_stack=frame_stack), Listed(rows, 2, n_step, frame_stack)
    for number in range(5):
        block = block_of(steps, 2, (2,), "float32", rng)
        block.first[0] |= number == 0
        replay.insert(block)
        listed.insert(block)
        batch = replay.newest(steps)
        end = listed.written - n_step
        for index, (row, env) in enumerate(itertools.product(range(end - steps, end), range(2))):
            if row not in listed.sampleable():
                assert batch.weight[index] == 0.0
                continue
            for field, value in zip(batch._fields, listed.transition(row, env), strict=True):
                assert_array_equal(getattr(batch, field)[index], value, err_msg=f"{field} of row {row}")
    with pytest.raises(ValueError, match=f"a ring of {rows} rows does not hold {steps + 1} rows"):
        replay.newest(steps + 1)


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
    batch = replay.uniform(5, tf.constant([0, 0]))
    assert batch.observation.dtype == batch.next_observation.dtype == tf.uint8
    assert batch.observation.shape == (5, 4, 4, 2)


def test_nothing_can_be_sampled_before_the_first_future_is_complete():
    replay = ring(capacity=40, n_step=3, frame_stack=2)
    for rows in range(1, 8):
        replay.insert(block_of(1, 2, (2,), "float32", np.random.default_rng(rows)))
        assert replay.can_sample() == (rows >= 5)


# --- prioritised ----------------------------------------------------------------------------------------------------


def test_slots_are_drawn_in_proportion_to_their_priority():
    rng = np.random.default_rng(2)
    replay = ring(capacity=80, num_envs=2, n_step=2, alpha=0.7)
    replay.insert(block_of(40, 2, (2,), "float32", rng))
    replay.priorities.set_errors(tf.range(80), tf.constant(rng.exponential(size=80), tf.float32))
    priorities = replay.priorities.tree.get(tf.range(80)).numpy().astype(np.float64)
    draws = 4_000 * 32
    batch = replay.sample(4_000, 32, tf.constant([5, 0]), tf.constant(0.5))
    drawn = np.bincount(batch.slot.numpy().ravel(), minlength=80)
    live = priorities > 0.0
    assert 40 < live.sum() < 78
    assert not drawn[~live].any()
    expected = draws * priorities[live] / priorities.sum()
    chi_square = ((drawn[live] - expected) ** 2 / expected).sum()
    freedom = live.sum() - 1
    # Wilson and Hilferty (1931): the 99.9 % point of chi-square. Strata only make the counts more even.
    assert chi_square < freedom * (1.0 - 2.0 / (9.0 * freedom) + 3.09 * (2.0 / (9.0 * freedom)) ** 0.5) ** 3


def test_a_mean_with_importance_weights_is_that_of_a_uniform_draw():
    """Each item weighs (N P)^-1, so the weighted mean of anything is its plain mean over the slots."""
    rng = np.random.default_rng(2)
    replay = ring(capacity=80, num_envs=2, alpha=1.0)
    replay.insert(block_of(40, 2, (2,), "float32", rng, ends=0.1))
    replay.priorities.set_errors(tf.range(80), tf.constant(0.2 + rng.exponential(size=80), tf.float32))
    live = replay.priorities.tree.get(tf.range(80)).numpy() > 0.0
    batch = replay.sample(1, 100_000, tf.constant([5, 0]), tf.constant(1.0))
    weighted = np.average(batch.reward.numpy()[0], weights=batch.weight.numpy()[0])
    _, everything = replay.sample(1, 1, tf.constant([0, 0]), tf.constant(1.0)), everything_of(replay, live)
    assert_allclose(weighted, everything.mean(), atol=0.2)  # of rewards from -32 to 32
    assert abs(batch.reward.numpy().mean() - everything.mean()) > 1.0


def everything_of(replay, live):
    slots = np.flatnonzero(live)
    row, env = (tf.constant(part, tf.int32) for part in divmod(slots, replay.num_envs))
    return replay.transitions(row, env).reward.numpy()


def test_an_error_that_is_no_number_is_taken_for_0():
    replay = ring(capacity=40, alpha=1.0)
    replay.insert(block_of(10, 2, (2,), "float32", np.random.default_rng(0), ends=0.0))
    replay.priorities.set_errors(tf.constant([0, 1, 2]), tf.constant([np.nan, np.inf, 0.5]))
    assert_allclose(replay.priorities.tree.get(tf.constant([0, 1, 2])), [1e-6, 1e-6, 0.5], rtol=1e-5)
    assert float(replay.priorities.greatest) == 1.0
    assert np.isfinite(replay.priorities.tree.total())


def test_rows_are_counted_beyond_the_32_bits_of_a_slot_with_priorities_too():
    replay = ring(capacity=16, num_envs=2, frame_stack=2, alpha=0.5)
    replay.rows_written.assign(2**31 - 8)
    for seed in range(3):
        replay.insert(block_of(6, 2, (2,), "float32", np.random.default_rng(seed), ends=0.0))
    # Rows 10 to 17 of those written here are in the ring; 10 has lost a frame and 17 its future.
    live = [(row % 8) * 2 + env for row in range(11, 17) for env in range(2)]
    assert_array_equal(np.flatnonzero(replay.priorities.tree.get(tf.range(16))), sorted(live))
