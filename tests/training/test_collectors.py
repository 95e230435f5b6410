"""Every transition that training can see is one that the environment made, in each autoreset mode, to the last one.

`Counting` says in each observation which environment, episode and step it is, so the slots that a collector should have
written, and the transitions that a replay should give, can be worked out from the environment's rule alone: here, with
Python lists.
"""

import collections
import itertools
import pickle

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform import devices, envs
from rlplatform.config import Config, EnvironmentConfig
from rlplatform.envs.probes import Counting, Masked
from rlplatform.envs.serial import SerialVectorEnv
from rlplatform.experience import Replay
from rlplatform.training import HostCollector, Learner

MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)
GAMMA, ACTIONS, START = 0.5, 3, 2  # powers of a half are exact; the environment's first action is called 2
LENGTHS, ENDS = (3, 5, 1, 2), ("terminated", "truncated", "both")

each_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


class Choosing:
    """An actor whose greedy action is a function of the whole stack, so that a wrong stack acts wrongly."""

    def __init__(self):
        self.seen, self.weights = [], []

    def load(self, weights, draw=None):
        self.weights.append(weights)

    def q_values(self, observation):
        self.seen.append(observation.copy())
        return np.eye(ACTIONS, dtype=np.float32)[chosen(observation)]


def chosen(observation):
    """[n] for [n, d]: which action `Choosing` likes best."""
    return (observation * np.arange(1, observation.shape[1] + 1)).sum(axis=1).astype(np.int64) % ACTIONS


def configured(num_envs=1, steps=4, capacity=40, n_step=1, frame_stack=1, epsilon=1.0, seed=0):
    """`capacity` and `steps` in rows."""
    return Config().replace(
        seed=seed,
        environment={"num_envs": num_envs, "frame_stack": frame_stack},
        network={"hidden_units": [4]},
        replay={"capacity": capacity * num_envs},
        agent={"gamma": GAMMA, "n_step": n_step},
        exploration={"epsilon": epsilon},
        training={"train_interval": steps * num_envs, "batch_size": 8},
    )


def vector(mode, num_envs, lengths=LENGTHS, ends=ENDS):
    makers = [lambda: Counting(lengths, ends, ACTIONS, START)] * num_envs
    if mode is AutoresetMode.NEXT_STEP:
        return SerialVectorEnv(makers)
    return gym.vector.SyncVectorEnv(makers, autoreset_mode=mode)


def collector_for(config, mode, lengths=LENGTHS, ends=ENDS):
    env = vector(mode, config.environment.num_envs, lengths, ends)
    return HostCollector(config, env, envs.spec_of(env), Choosing())


def empty_replay(config):
    return Replay(
        config.replay.capacity,
        config.environment.num_envs,
        (3,),
        "float32",
        n_step=config.agent.n_step,
        frame_stack=config.environment.frame_stack,
        gamma=GAMMA,
    )


# --- what should have been lived through, by the rule of Counting alone ----------------------------------------------

Slot = collections.namedtuple("Slot", "identity episode step length bootstraps dead")


def lived(seed, rows, mode, lengths, ends):
    """One environment's slots, the newest last, under the platform's reading of an autoreset mode.

    `length` is the number of live steps of the slot's episode, and `bootstraps` whether there is value after them.
    """
    slots, episode = [], 0
    while len(slots) < rows:
        length = lengths[(seed + episode) % len(lengths)]
        bootstraps = ends[(seed + episode) % len(ends)] == "truncated"
        if mode is AutoresetMode.NEXT_STEP:
            shown = length + 1  # the final observation has a slot of its own
        else:
            shown = length
            length -= bootstraps  # the last step of a truncated episode has no observation after it
        slots.extend(Slot(seed, episode, step, length, bootstraps, step >= length) for step in range(shown))
        episode += 1
    return slots[:rows]


def lived_by_all(config, rows, mode, lengths=LENGTHS, ends=ENDS):
    """[N][rows] slots."""
    seeds = envs.seeds(config.seed, config.environment.num_envs, "train")
    return [lived(seed % 2**24, rows, mode, lengths, ends) for seed in seeds]


def stacked(slot, step, frame_stack):
    """The frames that end at a step of the slot's episode, the first one repeated."""
    return [number for back in reversed(range(frame_stack)) for number in (*slot[:2], max(step - back, 0))]


def transition(slots, row, actions, n_step, frame_stack):
    """Observation, action, reward, discount and next observation of the transition that starts at a live slot."""
    slot, total = slots[row], 0.0
    taken = min(n_step, slot.length - slot.step)
    for k in range(taken):
        action = actions[row + k] + START
        total += GAMMA**k * Counting.reward_of(slot.identity, slot.episode, slot.step + k, action)
    over = slot.step + taken == slot.length
    discount = 0.0 if over and not slot.bootstraps else GAMMA**taken
    following = stacked(slot, slot.step + taken, frame_stack)
    return stacked(slot, slot.step, frame_stack), actions[row], total, discount, following


def assert_replay_gives_exactly_what_was_lived(replay, config, every, actions, rows, sample=None):
    """Every live slot with a complete future and past, each with the transition worked out by hand, and no other."""
    n_step, frame_stack = config.agent.n_step, config.environment.frame_stack
    low = rows - replay.rows + frame_stack - 1 if rows > replay.rows else 0
    expected = {
        (slots[row].identity, slots[row].episode, slots[row].step): transition(
            slots, row, [step[env] for step in actions], n_step, frame_stack
        )
        for env, slots in enumerate(every)
        for row in range(low, rows - n_step)
        if not slots[row].dead
    }
    # All of them one by one: a start is drawn as `sample` draws it.
    starts = [(row, env) for row in range(low, rows - n_step) for env in range(len(every))]
    row, env = (tf.constant([start[part] for start in starts], tf.int32) for part in range(2))
    given = [replay.transitions(row, env)] if starts else []
    # As training gets them: so many that none of these few is left out.
    if starts:
        given.append((sample or replay.uniform)(20 * len(starts), tf.constant([1, rows], tf.int32)))
    # The stream may show a final observation also where nothing is bootstrapped from it.
    shown = {slot[:2] for slots in every for slot in slots if slot.dead and slot.step == slot.length}
    for batch in given:
        drawn = {}
        for observation, *right, weight in zip(*(field.numpy().tolist() for field in batch[:6]), strict=True):
            if weight > 0.0:
                drawn.setdefault(tuple(map(int, observation[-3:])), set()).add((*observation, *flat(right)))
        assert drawn.keys() == expected.keys()  # nothing dead, lost or incomplete, and nothing left out
        for key, known in expected.items():
            (found,) = drawn[key]  # the same at every draw
            compared = len(found) if known[3] > 0.0 or key[:2] in shown else -len(known[4])
            assert found[:compared] == tuple(flat(known))[:compared], key


def flat(parts):
    return [number for part in parts for number in (part if isinstance(part, list) else [part])]


def lived_through(config, mode, blocks, lengths=LENGTHS, ends=ENDS, replay=None, insert=None):
    """A replay after some blocks, and the actions of every row."""
    collector = collector_for(config, mode, lengths, ends)
    replay = replay or empty_replay(config)
    actions = []
    for _ in range(blocks):
        block, _ = collector.collect(np.zeros(1, np.float32))
        actions.extend(block.action.tolist())
        (insert or replay.insert)(block)
    collector.close()
    return replay, actions


# --- the tests --------------------------------------------------------------------------------------------------------


@each_mode
@pytest.mark.parametrize("num_envs", [1, 7])
@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("frame_stack", [1, 3])
def test_every_transition_equals_the_one_worked_out_by_hand(mode, num_envs, n_step, frame_stack):
    config = configured(num_envs, 9, 25, n_step, frame_stack)
    every = lived_by_all(config, 9 * 7, mode)
    collector, replay, actions = collector_for(config, mode), empty_replay(config), []
    for blocks in range(1, 8):  # the ring of 25 rows is full after the third, and written round more than twice
        block, _ = collector.collect(np.zeros(1, np.float32))
        actions.extend(block.action.tolist())
        replay.insert(block)
        if blocks % 2 == 1:
            assert_replay_gives_exactly_what_was_lived(replay, config, every, actions, 9 * blocks)
    collector.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "num_envs"), [(MODES[0], 1), *(pytest.param(mode, 7, marks=pytest.mark.slow) for mode in MODES[1:])]
)
def test_the_compiled_programs_give_the_same_transitions(mode, num_envs):
    """The insertion that training compiles, and its sampling compiled by XLA as in training."""
    config = configured(num_envs, 9, 25, 3, 3)
    learner = Learner(config, envs.Spec((3,), "float32", ACTIONS, START), devices.strategy("cpu"))
    replay, actions = lived_through(config, mode, 7, replay=learner.replay, insert=learner.insert_block)
    compiled = tf.function(replay.uniform, jit_compile=True, autograph=False)
    every = lived_by_all(config, 63, mode)
    assert_replay_gives_exactly_what_was_lived(replay, config, every, actions, 63, compiled)


@given(
    mode=st.sampled_from(MODES),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    ends=st.lists(st.sampled_from(("terminated", "truncated", "both")), min_size=1, max_size=3),
    num_envs=st.integers(1, 4),
    steps=st.integers(1, 8),
    spare=st.integers(0, 20),
    blocks=st.integers(1, 8),
    n_step=st.integers(1, 5),
    frame_stack=st.integers(1, 4),
    seed=st.integers(0, 2**31 - 1),
)
@settings(max_examples=60)
def test_any_episodes_in_any_ring_are_given_back_exactly(
    mode, lengths, ends, num_envs, steps, spare, blocks, n_step, frame_stack, seed
):
    config = configured(num_envs, steps, n_step + frame_stack + steps + spare, n_step, frame_stack, seed=seed)
    replay, actions = lived_through(config, mode, blocks, lengths, ends)
    every = lived_by_all(config, steps * blocks, mode, lengths, ends)
    assert_replay_gives_exactly_what_was_lived(replay, config, every, actions, steps * blocks)


def only(replay, observation):
    """The one transition that starts at an observation."""
    row, env = np.mgrid[0 : int(replay.rows_written) - 1, 0 : replay.num_envs].reshape(2, -1).astype(np.int32)
    batch = replay.transitions(tf.constant(row), tf.constant(env))
    live = (batch.weight.numpy() > 0.0) & (batch.observation.numpy()[:, 1:] == observation).all(axis=1)
    assert live.sum() == 1
    return [np.asarray(field)[live][0].tolist() for field in batch[:6]]


def test_truncation_bootstraps_from_the_final_observation_and_termination_does_not():
    replay, _ = lived_through(configured(steps=10), MODES[0], 1, lengths=[3], ends=["truncated"])
    *_, discount, following, _ = only(replay, [0, 2])
    assert (discount, following[1:]) == (GAMMA, [0, 3])
    replay, _ = lived_through(configured(steps=10), MODES[0], 1, lengths=[3], ends=["terminated"])
    assert only(replay, [0, 2])[3] == 0.0


@pytest.mark.parametrize("mode", MODES[1:], ids=lambda mode: mode.name)
def test_without_a_final_observation_a_truncated_episode_counts_as_cut_one_step_earlier(mode):
    replay, _ = lived_through(configured(steps=10), mode, 1, lengths=[3], ends=["truncated"])
    *_, discount, following, _ = only(replay, [0, 1])
    assert (discount, following[1:]) == (GAMMA, [0, 2])
    with pytest.raises(AssertionError):
        only(replay, [0, 2])
    replay, _ = lived_through(configured(steps=10), mode, 1, lengths=[3], ends=["terminated"])
    assert only(replay, [0, 2])[3] == 0.0


@each_mode
def test_greedy_actions_are_chosen_on_the_stack_that_the_replay_gives(mode):
    config = configured(7, 9, 40, 1, 3, epsilon=0.0)
    replay, _ = lived_through(config, mode, 4)
    batch = replay.uniform(2_000, tf.constant([0, 0]))
    live = batch.weight.numpy() > 0.0
    assert_array_equal(batch.action.numpy()[live], chosen(batch.observation.numpy()[live]))


@each_mode
@pytest.mark.parametrize("steps", [1, 5])
def test_returns_and_lengths_of_episodes_are_counted_across_blocks(mode, steps):
    config = configured(3, steps, 40)
    collector = collector_for(config, mode)
    blocks, episodes = zip(*(collector.collect(np.zeros(1, np.float32)) for _ in range(60 // steps)), strict=True)
    actions = np.concatenate([block.action for block in blocks])
    expected = collections.Counter()
    for env, seed in enumerate(envs.seeds(0, 3, "train")):
        seed %= 2**24
        row = episode = 0
        while True:
            length = LENGTHS[(seed + episode) % len(LENGTHS)]
            if row + length > 60:
                break
            rewards = [Counting.reward_of(seed, episode, k, actions[row + k, env] + START) for k in range(length)]
            expected[sum(rewards), length] += 1
            row, episode = row + length + (mode is AutoresetMode.NEXT_STEP), episode + 1
    assert collections.Counter(tuple(episode) for ended in episodes for episode in ended) == expected


@each_mode
def test_each_environment_explores_by_draws_of_its_own(mode):
    config = configured(7, 500, 1000, epsilon=0.3)
    collector = collector_for(config, mode, lengths=[20])
    block, _ = collector.collect(np.zeros(1, np.float32))
    frames = block.observation.reshape(-1, 3)
    differs = (block.action.ravel() != chosen(frames)).reshape(500, 7)
    # An exploring step takes one of three actions, and one of them is the greedy one: 0.3 * 2 / 3 of the steps differ.
    assert np.all(np.abs(differs.mean(axis=0) - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 500))
    together = np.corrcoef(differs.T.astype(float))[np.triu_indices(7, 1)]
    assert np.abs(together).max() < 4 / np.sqrt(500)
    counts = np.bincount(block.action[differs], minlength=ACTIONS)
    assert counts.min() > 0.25 * counts.sum()


def test_epsilon_moves_with_env_steps_within_a_block():
    schedule = {"kind": "piecewise", "boundaries": [0.5], "values": [0.0, 1.0]}
    config = configured(2, 100, 200).replace(exploration={"epsilon": schedule}, training={"total_steps": 200})
    collector = collector_for(config, MODES[0], lengths=[20])
    block, _ = collector.collect(np.zeros(1, np.float32))
    differs = block.action != chosen(block.observation.reshape(-1, 3)).reshape(100, 2)
    assert not differs[:50].any()
    assert 0.5 < differs[50:].mean() < 0.8


def test_the_actor_acts_with_the_weights_it_is_given():
    config = configured(2, 3, epsilon=0.5)
    env = vector(MODES[0], 2)
    actor = Choosing()
    collector = HostCollector(config, env, envs.spec_of(env), actor)
    for number in range(3):
        collector.collect(np.full(1, number, np.float32))
    assert [float(weights[0]) for weights in actor.weights] == [0.0, 1.0, 2.0]
    assert collector.steps == 18
    collector.close()


@each_mode
def test_the_same_seed_lives_through_the_same_and_another_seed_does_not(mode):
    configs = [configured(3, 30, seed=seed, epsilon=0.5) for seed in (4, 4, 5)]
    blocks = [collector_for(config, mode).collect(np.zeros(1))[0] for config in configs]
    for field in blocks[0]._fields:
        assert_array_equal(getattr(blocks[0], field), getattr(blocks[1], field), err_msg=field)
    assert not np.array_equal(blocks[0].action, blocks[2].action)
    assert not np.array_equal(blocks[0].observation, blocks[2].observation)


@each_mode
def test_a_block_is_not_touched_by_what_comes_after_it(mode):
    collector = collector_for(configured(3, 8), mode)
    block, _ = collector.collect(np.zeros(1))
    before = [field.copy() for field in block]
    for _ in range(3):
        collector.collect(np.zeros(1))
    for field, old, new in zip(block._fields, before, block, strict=True):
        assert_array_equal(old, new, err_msg=field)


@each_mode
def test_environments_may_hand_out_the_same_arrays_at_every_step(mode):
    config, blocks = configured(3, 20), []
    for copy in (True, False):
        env = gym.vector.SyncVectorEnv([Counting] * 3, copy=copy, autoreset_mode=mode)
        blocks.append(HostCollector(config, env, envs.spec_of(env), Choosing()).collect(np.zeros(1))[0])
    for field, one, other in zip(blocks[0]._fields, *blocks, strict=True):
        assert_array_equal(one, other, err_msg=field)


@each_mode
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_collector_that_is_saved_goes_on_exactly(mode, blocks):
    """In the middle of episodes, of stacks and of the exploration's random numbers."""
    config = configured(3, 7, frame_stack=3, epsilon=0.5)
    collector = collector_for(config, mode)
    for _ in range(blocks):
        collector.collect(np.zeros(1))
    state = pickle.loads(pickle.dumps(collector.state()))
    other = collector_for(config, mode)
    assert other.load_state(state)
    for _ in range(3):
        (one, ended), (two, also_ended) = collector.collect(np.zeros(1)), other.collect(np.zeros(1))
        for field in one._fields:
            assert_array_equal(getattr(one, field), getattr(two, field), err_msg=field)
        assert ended == also_ended


@each_mode
@pytest.mark.parametrize("steps", [1, 4, 5, 6])
@pytest.mark.parametrize("n_step", [1, 3])
def test_where_environments_cannot_be_saved_the_cut_episodes_end_as_if_truncated(mode, steps, n_step):
    """Cuts at every step of an episode of 5; no transition joins what was before the cut and what comes after it."""
    config = configured(2, steps, 60, n_step, 2)
    collector, replay = collector_for(config, mode, lengths=[5]), empty_replay(config)
    for _ in range(2):
        replay.insert(collector.collect(np.zeros(1))[0])
    state = collector.state()
    assert state["env"] is not None
    other = collector_for(config, mode, lengths=[5])
    assert not other.load_state(state | {"env": None})
    episodes = []
    for _ in range(-(-16 // steps)):
        block, ended = other.collect(np.zeros(1))
        replay.insert(block)
        episodes.extend(ended)
    assert {episode.length for episode in episodes} == {5}
    rows = int(replay.rows_written)
    before = {seed % 2**24 for seed in envs.seeds(0, 2, "train")}
    row, env = np.mgrid[0 : rows - n_step, 0:2].reshape(2, -1).astype(np.int32)
    batch = replay.transitions(tf.constant(row), tf.constant(env))
    old_steps = collections.Counter()
    fields = (field.numpy().tolist() for field in batch[:6])
    for start, old, _, reward, discount, new, weight in zip(row, *fields, strict=True):
        if weight == 0.0:
            continue
        *_, identity, episode, step = old
        assert (identity in before) == (start < 2 * steps)
        old_steps[identity in before] += 1
        if discount > 0.0:
            taken = round(np.log(discount) / np.log(GAMMA))
            assert new[3:] == [identity, episode, step + taken]
            assert new[2] == max(step + taken - 1, 0)
        else:
            taken = int(5 - step)
        parts = [GAMMA**k * Counting.reward_of(int(identity), int(episode), int(step) + k, 0) for k in range(taken)]
        assert 0.0 <= reward - sum(parts) < 2 * (ACTIONS + START) / 256
    assert all(old_steps.values())
    assert not block.dead.all()


def test_images_of_two_axes_are_stacked_in_acting_as_in_learning():
    class Picture(Counting):
        """Counting as an image [2, 3] of uint8."""

        def __init__(self):
            super().__init__([4], ["truncated"], ACTIONS, 0)
            self.observation_space = gym.spaces.Box(0, 255, (2, 3), np.uint8)

        def _observation(self):
            return np.array([[self.identity % 256, self.episode, self.step_in_episode]] * 2, np.uint8)

    config = configured(3, 15, 30, 1, 2, epsilon=0.0)
    env = SerialVectorEnv([Picture] * 3)
    spec = envs.spec_of(env)

    class Seeing(Choosing):
        def q_values(self, observation):
            assert observation.shape == (3, *spec.stacked_shape(2)) == (3, 2, 3, 2)
            return super().q_values(observation.reshape(3, -1).astype(np.float32))

    collector = HostCollector(config, env, spec, Seeing())
    replay = Replay(90, 3, (2, 3), "uint8", n_step=1, frame_stack=2, gamma=GAMMA)
    for _ in range(2):
        replay.insert(collector.collect(np.zeros(1))[0])
    batch = replay.uniform(1_000, tf.constant([0, 0]))
    live = batch.weight.numpy() > 0.0
    seen = batch.observation.numpy()[live]
    assert seen.dtype == np.uint8
    assert_array_equal(batch.action.numpy()[live], chosen(seen.reshape(len(seen), -1).astype(np.float32)))
    assert_array_equal(seen[:, 0, 2, 0], np.maximum(seen[:, 0, 2, 1].astype(int) - 1, 0))


# --- action masks -----------------------------------------------------------------------------------------------------


class Listing(Masked):
    """`Masked` that keeps what it shows and takes, episode by episode: [value, mask, action or None] each."""

    def __init__(self, by="info", ending=0.2):
        super().__init__(by, ACTIONS, ending, START)
        self.episodes = []

    def reset(self, **kwargs):
        self.episodes.append([])
        return super().reset(**kwargs)

    def step(self, action):
        self.episodes[-1][-1][2] = int(action) - START
        return super().step(action)

    def _drawn(self):
        shown = super()._drawn()
        self.episodes[-1].append([self.value, self.mask.tolist(), None])
        return shown


def listing(mode, num_envs, by, ending=0.2):
    """Environments that list what they live through, and the vector of them."""
    made = []

    def one():
        made.append(Listing(by, ending))
        return made[-1]

    def whole(num_envs):
        return gym.vector.SyncVectorEnv([one] * num_envs, autoreset_mode=mode)

    config = EnvironmentConfig(id="mine", num_envs=num_envs)
    env = envs.make(config, factory=one if mode is AutoresetMode.NEXT_STEP else whole)
    for each in made:
        each.episodes = []  # without what looking for masks has shown
    return made, env


class Liking(Choosing):
    """Likes the last action best, then the one before it, and so on; or the first, where the observation is -1."""

    def __init__(self, num_actions=ACTIONS):
        super().__init__()
        self.num_actions = num_actions

    def q_values(self, observation):
        return observation[:, -1:] * np.arange(self.num_actions)


def masked_collector(mode, num_envs, steps, by, epsilon=0.5, ending=0.2):
    made, env = listing(mode, num_envs, by, ending)
    config = configured(num_envs, steps, 2 * steps, epsilon=epsilon)
    return made, HostCollector(config, env, envs.spec_of(env), Liking())


@each_mode
@pytest.mark.parametrize("by", ["info", "observation"])
def test_each_slot_has_the_mask_that_belongs_to_its_observation(mode, by):
    made, collector = masked_collector(mode, 3, 11, by)
    blocks = [collector.collect(np.zeros(1))[0] for _ in range(6)]
    for index, env in enumerate(made):
        expected = []
        for episode in env.episodes:
            final = mode is AutoresetMode.NEXT_STEP  # has a slot of its own
            expected.extend(episode if final or episode[-1][2] is not None else episode[:-1])
        given = [
            [float(block.observation[t, index, 0]), block.action_mask[t, index].tolist(), int(block.action[t, index])]
            for block in blocks
            for t in range(11)
        ]
        assert len(given) == 66
        assert len(env.episodes) > 5
        for (value, mask, action), (shown, allowed, taken) in zip(given, expected, strict=False):
            assert (value, mask) == (shown, allowed)
            assert taken in (None, action)


@each_mode
@pytest.mark.parametrize("by", ["info", "observation"])
def test_a_collector_with_masks_that_is_saved_goes_on_exactly(mode, by):
    _, collector = masked_collector(mode, 3, 7, by)
    for _ in range(2):
        collector.collect(np.zeros(1))
    state = pickle.loads(pickle.dumps(collector.state()))
    _, other = masked_collector(mode, 3, 7, by)
    assert other.load_state(state)
    for _ in range(3):
        (one, ended), (two, also_ended) = collector.collect(np.zeros(1)), other.collect(np.zeros(1))
        for field in one._fields:
            assert_array_equal(getattr(one, field), getattr(two, field), err_msg=field)
        assert ended == also_ended


@each_mode
def test_where_masked_environments_cannot_be_saved_the_cut_row_keeps_its_mask(mode):
    _, collector = masked_collector(mode, 3, 4, "info")
    collector.collect(np.zeros(1))
    state = collector.state()
    made, other = masked_collector(mode, 3, 4, "info")
    assert not other.load_state(state | {"env": None})
    for env in made:
        env.episodes = []
    block, _ = other.collect(np.zeros(1))
    assert_array_equal(block.action_mask[0], state["mask"])
    for index, env in enumerate(made):
        assert block.action_mask[1, index].tolist() == env.episodes[0][0][1]


@each_mode
def test_random_actions_are_uniform_among_the_allowed(mode):
    _, collector = masked_collector(mode, 8, 2_000, "info", epsilon=1.0)
    block, _ = collector.collect(np.zeros(1))
    masks, actions = block.action_mask.reshape(-1, ACTIONS), block.action.ravel()
    assert masks[np.arange(len(masks)), actions].all()
    for mask in itertools.product([False, True], repeat=ACTIONS):
        taken = actions[(masks == mask).all(axis=1)]
        if not any(mask):
            assert len(taken) == 0
            continue
        share = np.bincount(taken, minlength=ACTIONS) / len(taken)
        assert_allclose(share, np.array(mask) / sum(mask), atol=4 * 0.5 / np.sqrt(len(taken)))


@each_mode
def test_the_greedy_action_is_the_best_of_the_allowed(mode):
    _, collector = masked_collector(mode, 8, 200, "info", epsilon=0.0)
    block, _ = collector.collect(np.zeros(1))
    for value, mask, action in zip(
        block.observation.ravel(), block.action_mask.reshape(-1, ACTIONS), block.action.ravel(), strict=True
    ):
        assert action == np.flatnonzero(mask)[-1 if value > 0 else 0]


@each_mode
@pytest.mark.parametrize("by", ["info", "observation"])
@pytest.mark.parametrize("steps", [6_400, pytest.param(102_400, marks=pytest.mark.slow)])
def test_no_forbidden_action_is_ever_taken(mode, by, steps):
    """The environment itself raises at one; a third of the steps explore."""

    def whole(num_envs):
        return gym.vector.SyncVectorEnv([lambda: Masked(by, 5, 0.05, 2)] * num_envs, autoreset_mode=mode)

    made = EnvironmentConfig(id="mine", num_envs=32)
    single = mode is AutoresetMode.NEXT_STEP
    env = envs.make(made, factory=(lambda: Masked(by, 5, 0.05, 2)) if single else whole)
    config = configured(32, 100, 200, epsilon=1 / 3)
    collector = HostCollector(config, env, envs.spec_of(env), Liking(5))
    seen = np.zeros(5)
    while collector.steps < steps:
        block, _ = collector.collect(np.zeros(1))
        seen += np.bincount(block.action[~block.dead], minlength=5)
        assert block.action_mask.shape == (100, 32, 5)
    assert seen.sum() > 0.9 * steps
    assert seen.min() > 0.02 * steps


@each_mode
def test_without_masks_the_draws_are_those_of_before(mode):
    """Written down before there were masks: saved runs go on with them."""
    config = configured(2, 6, epsilon=1.0, seed=9)
    collector = collector_for(config, mode)
    block, _ = collector.collect(np.zeros(1))
    assert block.action_mask.shape == (6, 2, 0)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([9, 0], spawn_key=(1,))))
    at_once = 4_096 // 12
    rng.random((at_once, 6, 2), np.float32)
    assert_array_equal(block.action, rng.integers(ACTIONS, size=(at_once, 6, 2), dtype=np.int32)[0])


@each_mode
def test_an_environment_that_gives_masks_only_at_times_leaves_the_rest_free(mode):
    class Sometimes(Counting):
        def step(self, action):
            observation, reward, terminated, truncated, _ = super().step(action)
            assert self.step_in_episode != 2 or action == START + 1
            info = {"action_mask": [0, 1, 0]} if self.step_in_episode == 1 else {}
            return observation, reward, terminated, truncated, info

        def reset(self, **kwargs):
            observation, _ = super().reset(**kwargs)
            return observation, {"action_mask": [1, 1, 0]}

    def vector(num_envs):
        return gym.vector.SyncVectorEnv(
            [lambda: Sometimes((4, 3), ENDS, ACTIONS, START)] * num_envs, autoreset_mode=mode
        )

    env = envs.make(EnvironmentConfig(id="mine", num_envs=3), factory=vector)
    collector = HostCollector(configured(3, 60, 120), env, envs.spec_of(env), Choosing())
    block, _ = collector.collect(np.zeros(1))
    expected = {0: [True, True, False], 1: [False, True, False]}
    for frame, mask in zip(block.observation.reshape(-1, 3), block.action_mask.reshape(-1, ACTIONS), strict=True):
        assert mask.tolist() == expected.get(int(frame[2]), [True] * 3)
