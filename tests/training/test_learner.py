"""One compiled call inserts, draws and updates: it compiles once, repeats bit for bit, goes on where it was saved."""

import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from numpy.testing import assert_allclose, assert_array_equal

import rlplatform
from rlplatform import devices, envs
from rlplatform.agents import DQN
from rlplatform.config import Config
from rlplatform.experience import Batch, Block
from rlplatform.training import Learner

VECTOR = envs.Spec((3,), "float32", 3)
IMAGE = envs.Spec((36, 36, 1), "uint8", 3)
SMALL = {
    "environment": {"num_envs": 2},
    "network": {"hidden_units": [8, 7]},
    "replay": {"capacity": 60},
    "agent": {"n_step": 2, "target_update_interval": 4},
    "training": {"train_interval": 10, "gradient_steps": 3, "batch_size": 16},
}


def configured(**sections):
    return Config().replace(**SMALL).replace(**sections)


def new(config=None, spec=VECTOR, seed=0):
    keras.utils.set_random_seed(seed)
    return Learner(config or configured(), spec, devices.strategy("cpu"))


def blocks_of(count, config=None, spec=VECTOR, seed=0):
    """Random content; rows of one dead slot in five."""
    config, rng = config or configured(), np.random.default_rng(seed)
    blocks = []
    for _ in range(count):
        block = Block.empty(
            config.block_steps,
            config.environment.num_envs,
            spec.observation_shape,
            spec.observation_dtype,
            spec.num_actions if spec.action_mask else 0,
        )
        block.action_mask[:] = rng.random(block.action_mask.shape) < 0.6
        low, high = (0, 256) if spec.observation_dtype == "uint8" else (-3, 4)
        block.observation[:] = rng.integers(low, high, block.observation.shape)
        block.action[:] = rng.integers(0, spec.num_actions, block.action.shape)
        block.reward[:] = rng.normal(size=block.reward.shape)
        if spec.action_mask:  # what was done was allowed
            np.put_along_axis(block.action_mask, block.action[..., None], True, axis=2)
        for field in (block.terminated, block.first, block.dead):
            field[:] = rng.random(field.shape) < 0.2
        blocks.append(block)
    return blocks


def assert_same_state(one, other, tolerance=0.0):
    one, other = one.state(), other.state()
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert_allclose(value, other[name], rtol=tolerance, atol=tolerance, err_msg=name)


class Pair(NamedTuple):
    """Two learners of one configuration and seed, and each that Python has gone through the `learn` of."""

    one: Learner
    other: Learner
    traced: list[Learner]


@pytest.fixture(scope="module")
def built():
    """Compiling takes seconds: the learners are shared."""
    traced, learn = [], Learner.learn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "learn", lambda self, *args: traced.append(self) or learn(self, *args))
        pair = Pair(new(), new(), traced)
    return pair, pair.one.state(), pair.other.state()


@pytest.fixture
def pair(built):
    pair, one, other = built
    pair.one.load_state(one)
    pair.other.load_state(other)
    return pair


# --- compiled once ----------------------------------------------------------------------------------------------------


def test_python_runs_through_learn_once_however_often_it_is_called(pair):
    for block in blocks_of(5):
        pair.one.learn_block(block, 1e-3)
    assert pair.traced == [pair.one, pair.other]


def test_a_block_of_another_shape_is_an_error_and_not_another_program(pair):
    with pytest.raises(tf.errors.InvalidArgumentError):
        pair.one.learn_block(blocks_of(1, configured(training={"train_interval": 12}))[0], 1e-3)
    pair.one.learn_block(blocks_of(1)[0], 1e-3)


WATCHED = """
import pathlib, sys
import numpy as np
import tensorflow as tf
from rlplatform import devices, envs
from rlplatform.config import Config
from rlplatform.experience import Block
from rlplatform.training import Learner

folder = pathlib.Path(sys.argv[1])

def compiled(name):
    return len(list(folder.glob(f"*inference_{name}_*before_optimizations.txt")))

config = Config().replace(
    environment={"num_envs": 2, "frame_stack": 2},
    network={"hidden_units": [8, 7]},
    replay={"capacity": 400_000},
    agent={"n_step": 3},
    training={"train_interval": 10, "gradient_steps": 3, "batch_size": 16},
)
learner = Learner(config, envs.Spec((8,), "float32", 3), devices.strategy("cpu"))
block = Block.empty(5, 2, (8,), "float32")
for call in range(20):
    if call % 3 == 0:
        learner.insert_block(block)
    learner.learn_block(block, 1e-3 / (call + 1))
    if call == 0:
        print("first:", compiled("learn"), compiled("store"))
learner.replay.rows_written.assign(199_990)  # and around the end of the ring
for call in range(5):
    learner.learn_block(block, 1e-3)
    learner.insert_block(block)
print("later:", compiled("learn"), compiled("store"))

@tf.function(jit_compile=True)
def watched(x):  # what a recompilation would look like
    return x + 1.0

for size in (1, 2):
    watched(tf.zeros(size))
print("watched:", compiled("watched"))
print("ring:", sum(np.prod(part.shape) * part.dtype.size for part in learner.replay.trainable_variables
      + tuple(part for part in learner.replay.variables if part.shape.rank)))
"""


@pytest.mark.slow
def test_learning_compiles_once_and_writes_the_ring_in_place(tmp_path):
    """XLA itself writes down what it compiles, and the memory that each program uses."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, tmp_path],
        cwd=pathlib.Path(rlplatform.__file__).parents[1],
        env={"XLA_FLAGS": f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split(": ") for line in done.stdout.splitlines())
    assert said["watched"] == "2", "a recompilation would not be noticed"
    assert said["first"] == "1 1"
    assert said["later"] == "1 1"
    ring = int(said["ring"])
    assert ring > 15_000_000
    for name in ("learn", "store"):
        (report,) = tmp_path.glob(f"*inference_{name}_*memory-usage-report.txt")
        used = int(re.search(r"Total bytes used: (\d+)", report.read_text())[1])
        assert ring <= used < 1.01 * ring, f"{name} needs more memory than the ring: it makes a copy"


# --- the same every time ----------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_bit_for_bit(built, pair):
    _, *at_first = built
    assert all(np.array_equal(at_first[0][name], at_first[1][name]) for name in at_first[0])
    one, other, _ = pair
    for block in blocks_of(6):
        first, second = one.learn_block(block, 1e-2), other.learn_block(block, 1e-2)
        for a, b in zip((*first.metrics, first.weights), (*second.metrics, second.weights), strict=True):
            assert_array_equal(a, b)
    assert_same_state(one, other)
    another = new(configured(seed=1))  # the same first weights, but other draws
    for block in blocks_of(6):
        another.learn(Block(*map(tf.constant, block)), tf.constant(1e-2), tf.constant(1.0))
    assert np.abs(another.weights() - one.weights()).max() > 1e-3


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_bit_for_bit_with_convolutions():
    config = configured(training={"batch_size": 8, "gradient_steps": 2})
    one, other = new(config, IMAGE), new(config, IMAGE)
    for block in blocks_of(3, config, IMAGE):
        one.learn_block(block, 1e-3)
        other.learn_block(block, 1e-3)
    assert_same_state(one, other)


@pytest.mark.parametrize("unrolled", [False, True])
def test_the_compiled_loop_agrees_with_the_same_lines_run_eagerly(pair, monkeypatch, unrolled):
    """The loop of the program, the uncompiled one and the unrolled updates differ in rounding alone."""
    monkeypatch.setattr(DQN, "has_convolutions", unrolled)
    eager = new()
    for block in blocks_of(4):
        compiled = pair.one.learn_block(block, 1e-2)
        metrics, weights = eager.learn(Block(*map(tf.constant, block)), tf.constant(1e-2), tf.constant(1.0))
        for name, value in compiled.metrics._asdict().items():
            assert_allclose(value, getattr(metrics, name), rtol=2e-3, atol=1e-4, err_msg=name)
        assert_allclose(compiled.weights, weights, rtol=1e-3, atol=1e-4)
    assert_same_state(pair.one, eager, 1e-3)
    assert int(pair.one.agent.updates) == 4 * 3


@pytest.mark.slow
def test_the_compiled_program_agrees_with_the_eager_one_with_convolutions():
    config = configured(training={"batch_size": 8, "gradient_steps": 2})
    compiled, uncompiled = new(config, IMAGE), new(config, IMAGE)
    for block in blocks_of(3, config, IMAGE):
        one = compiled.learn_block(block, 1e-3)
        _, weights = uncompiled.learn(Block(*map(tf.constant, block)), tf.constant(1e-3), tf.constant(1.0))
        assert_allclose(one.weights, weights, rtol=1e-2, atol=2e-3)


# --- what one call does -----------------------------------------------------------------------------------------------


def test_an_update_learns_from_transitions_that_the_replay_gives(pair):
    """With a rate of 0 nothing moves, and the TD errors can be worked out from the draws and the network's values."""
    seen = []
    for number, block in enumerate(blocks_of(4)):
        metrics = pair.one.learn_block(block, 0.0).metrics
        batch = pair.one.replay.sample(3, 16, tf.constant([0, number]), tf.constant(1.0))  # of the updates of this call
        batch = Batch(*(field.numpy()[-1] for field in batch))  # the last one's, whose metrics come back
        q, following = (pair.one.agent.online(part).numpy() for part in (batch.observation, batch.next_observation))
        target = batch.reward + batch.discount * following.max(axis=1)  # the target network is still the same
        error = (target - q[np.arange(16), batch.action]) * batch.weight
        assert_allclose(metrics.td_error, error, rtol=1e-4, atol=1e-5)
        assert_allclose(metrics.q, q.max(axis=1), rtol=1e-4, atol=1e-5)
        loss = np.where(np.abs(error) <= 1.0, 0.5 * error**2, np.abs(error) - 0.5)
        assert_allclose(metrics.loss, loss.mean(), rtol=1e-4)
        seen.append(tuple(metrics.td_error.numpy()))
    assert len(set(seen)) == 4


def test_all_updates_of_a_call_draw_different_batches():
    config = configured(training={"gradient_steps": 2, "batch_size": 64}, replay={"capacity": 4_000})
    learner = new(config)
    long = config.replace(training={"train_interval": 3_000})
    learner.replay.insert(blocks_of(1, long)[0])
    first, second = learner.replay.sample(2, 64, tf.constant([0, 0]), tf.constant(1.0)).slot.numpy()
    assert not np.array_equal(first, second)


def test_the_weights_that_come_back_are_those_after_the_last_update(pair):
    for block in blocks_of(3):
        weights = pair.one.learn_block(block, 1e-2).weights
        network = pair.one.agent.online
        assert_array_equal(weights, np.concatenate([part.ravel() for part in network.get_weights()]))
        assert_array_equal(weights, pair.one.weights())


def test_a_block_that_is_only_inserted_changes_no_weight_and_draws_nothing(pair):
    learner = pair.one
    before = learner.state()
    (block,) = blocks_of(1)
    learner.insert_block(block)
    after = learner.state()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {f"replay/{name}" for name in (*Block._fields, "rows_written")} - {"replay/action_mask"}  # empty
    assert_array_equal(after["replay/action"][:10].reshape(5, 2), block.action)


# --- every flag -----------------------------------------------------------------------------------------------------

MASKED = envs.Spec((3,), "float32", 3, action_mask=True)
NORMALIZED = {"normalize_observations": True}
REWARDS = {"normalize_rewards": True}
FLAGS = {
    "prioritized": {"replay": {"prioritized": True}},
    "noisy": {"network": {"noisy": True}},
    "dueling": {"network": {"dueling": True}},
    "layer_norm": {"network": {"layer_norm": True}},
    "normalized": {"network": NORMALIZED, "agent": REWARDS},
    "munchausen": {"agent": {"munchausen": True}},
    "single": {"agent": {"double": False}},
    "soft": {"agent": {"tau": 0.1, "target_update_interval": 1}},
    "categorical": {"agent": {"head": "categorical", "num_atoms": 11, "v_min": -5.0, "v_max": 5.0}},
    "quantile": {"agent": {"head": "quantile", "num_quantiles": 5}},
    "implicit_quantile": {"agent": {"head": "implicit_quantile", "num_quantiles": 5}},
    "stacked": {"environment": {"frame_stack": 3}, "replay": {"prioritized": True}},
    "one update": {"training": {"gradient_steps": 1}, "network": {"noisy": True}, "replay": {"prioritized": True}},
    "everything, with quantiles": {
        "environment": {"frame_stack": 2},
        "network": {"noisy": True, "dueling": True, "layer_norm": True} | NORMALIZED,
        "agent": {"head": "implicit_quantile", "num_quantiles": 5, "munchausen": True} | REWARDS,
        "replay": {"prioritized": True},
    },
    "everything, with atoms": {
        "network": {"noisy": True, "dueling": True, "layer_norm": True} | NORMALIZED,
        "agent": {"head": "categorical", "num_atoms": 11, "munchausen": True, "n_step": 3} | REWARDS,
        "replay": {"prioritized": True},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "flag", [pytest.param(flag, marks=() if flag == "one update" else pytest.mark.exhaustive) for flag in FLAGS]
)
def test_every_flag_compiles_once_and_does_what_the_same_lines_do_eagerly(flag, monkeypatch):
    """Random numbers included: noise, levels and draws are the same. Masks are on in half of all."""
    config, spec = configured(**FLAGS[flag]), MASKED if len(flag) % 2 else VECTOR
    traced, learn = [], Learner.learn
    monkeypatch.setattr(Learner, "learn", lambda self, *args: traced.append(self) or learn(self, *args))
    compiled, eager = new(config, spec), new(config, spec)
    assert len(traced) == 2
    for number, block in enumerate(blocks_of(4, config, spec)):
        rate, exponent = 1e-3 / (number + 1), 0.4 + 0.1 * number
        got = compiled.learn_block(block, rate, exponent)
        tensors = Block(*map(tf.constant, block))
        metrics, weights = learn(eager, tensors, tf.constant(rate), tf.constant(exponent))
        for name, value in got.metrics._asdict().items():
            assert np.isfinite(value).all()
            assert_allclose(value, getattr(metrics, name), rtol=1e-2, atol=1e-3, err_msg=f"{name} of block {number}")
        assert_allclose(got.weights, weights, rtol=1e-2, atol=1e-3)
    assert len(traced) == 2
    assert int(compiled.agent.updates) == 4 * config.training.gradient_steps


@pytest.mark.parametrize("steps", [1, 3])
def test_what_updates_found_becomes_the_priority_of_what_was_drawn(steps):
    config = configured(replay={"prioritized": True, "priority_exponent": 0.7}, training={"gradient_steps": steps})
    learner = new(config)
    for number, block in enumerate(blocks_of(3, config)):
        learner.replay.insert(block)
        state = learner.replay.state()
        drawn = learner.replay.sample(steps, 16, tf.constant([0, number]), tf.constant(0.5))  # as `learn` will
        found = []
        update = learner.agent.update
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(learner.agent, "update", lambda *args: found.append(update(*args)) or found[-1])  # noqa: B023
            patch.setattr(learner, "_unroll", True)
            patch.setattr(learner, "store", lambda block: None)
            learner.learn(block, tf.constant(1e-3), tf.constant(0.5))
        slots, errors = drawn.slot.numpy().ravel(), np.concatenate([metrics.priority for metrics in found])
        now = learner.replay.priorities.tree.get(tf.constant(slots)).numpy()
        for slot, priority in zip(slots, now, strict=True):
            assert min(abs((errors[slots == slot] + 1e-6) ** 0.7 - priority)) < 1e-5  # of one of its draws
        others = np.setdiff1d(np.arange(60), slots)
        before = state["level_0"].ravel()[others]
        assert_array_equal(learner.replay.priorities.tree.get(tf.constant(others, tf.int32)), before)
        assert float(learner.replay.priorities.greatest) == max(state["greatest"], errors.max())


# --- saved and put back -----------------------------------------------------------------------------------------------


def test_what_is_saved_goes_on_bit_for_bit(pair):
    blocks, (learner, other, _) = blocks_of(8), pair
    for block in blocks[:5]:
        learner.learn_block(block, 1e-2)
    state = learner.state()
    copies = {name: value.copy() for name, value in state.items()}
    other.learn_block(blocks[7], 1e-2)  # it has a past of its own, which is forgotten
    other.load_state(state)
    for block in blocks[5:]:
        learner.learn_block(block, 1e-2)
        other.learn_block(block, 1e-2)
    assert_same_state(learner, other)
    for name, value in copies.items():
        assert_array_equal(state[name], value, err_msg=f"{name}: the saved array is not a copy")


def test_a_state_without_the_ring_leaves_the_ring_empty(pair):
    learner, other = pair.one, new(seed=9)
    for block in blocks_of(3):
        learner.learn_block(block, 1e-2)
    state = learner.state(replay=False)
    assert not any(name.startswith("replay/") for name in state)
    other.load_state(state)
    assert other.replay.fill == 0.0
    assert_array_equal(other.weights(), learner.weights())


# --- a look at the replay ---------------------------------------------------------------------------------------------


def test_observations_are_of_live_slots_and_looking_changes_nothing(pair):
    learner = pair.one
    assert learner.observations(5).shape == (0, 3)
    (block,) = blocks_of(1)
    learner.insert_block(block)
    before = learner.state()
    seen = learner.observations(200)
    after = learner.state()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    live = {tuple(row) for row in block.observation[:-2][~block.dead[:-2]].tolist()}
    assert {tuple(row) for row in seen.tolist()} == live
    assert 0 < len(seen) <= 200
    assert seen.dtype == np.float32


def test_observations_are_stacked_as_the_network_sees_them():
    config = configured(environment={"frame_stack": 3})
    spec = envs.Spec((4, 5), "uint8", 2)
    learner = new(config, spec)
    assert learner.observations(5).shape == (0, 4, 5, 3)
    learner.insert_block(blocks_of(1, config, spec)[0])
    seen = learner.observations(5)
    assert seen.shape[1:] == learner.agent.online.input_shape[1:] == (4, 5, 3)
    assert seen.dtype == np.uint8
