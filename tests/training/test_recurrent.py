"""A network that remembers: what is collected, learned from, evaluated and resumed is what it lived through."""

import json
import pickle

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from gymnasium.vector import AutoresetMode
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform import api, devices, envs
from rlplatform.agents import make_actor, networks
from rlplatform.agents.acting import flatten
from rlplatform.agents.recurrent import state_size
from rlplatform.config import Config, EnvironmentConfig
from rlplatform.envs.memory import TMaze
from rlplatform.envs.probes import Counting
from rlplatform.envs.serial import SerialVectorEnv
from rlplatform.experience import RecurrentBlock
from rlplatform.training import Callback, HostCollector, Learner, evaluate, evaluation, greedy

MAZE = "rlplatform.envs.memory:TMaze"
MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)
ACTIONS = 3


def configured(kind="gru", num_envs=2, steps=5, **sections):
    config = Config().replace(
        environment={"num_envs": num_envs},
        network={"recurrent": kind, "recurrent_units": 6, "hidden_units": [5]},
        replay={"capacity": 80, "burn_in": 3, "sequence_length": max(6, steps)},
        agent={"n_step": 2, "target_update_interval": 3},
        exploration={"epsilon": 0.0},
        training={"train_interval": steps * num_envs, "batch_size": 4, "gradient_steps": 2},
    )
    return config.replace(**sections)


class Seen(Counting):
    """Counting in small numbers, so that a network can tell its observations apart."""

    def _observation(self):
        return (super()._observation() % 8.0) / 4.0 - 1.0


def vector(mode, num_envs):
    makers = [lambda: Seen((3, 5, 1, 9), ("terminated", "truncated", "both"), ACTIONS)] * num_envs
    if mode is AutoresetMode.NEXT_STEP:
        return SerialVectorEnv(makers)
    return gym.vector.SyncVectorEnv(makers, autoreset_mode=mode)


def collector_for(config, mode=AutoresetMode.NEXT_STEP, seed=0):
    """A collector, the weights to act with, and the network that learns, with the same weights."""
    env = vector(mode, config.environment.num_envs)
    spec = envs.spec_of(env)
    shape = spec.stacked_shape(config.environment.frame_stack)
    training, policy = (networks.build(config, shape, "float32", ACTIONS, training=part) for part in (True, False))
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=weight.shape) for weight in policy.weights]
    training.set_weights(weights)
    actor = make_actor(policy)
    return HostCollector(config, env, spec, actor), flatten(training.get_weights()), training


# --- collected --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("steps", [1, 7])
def test_a_block_begins_with_the_state_that_all_rows_before_it_leave(mode, kind, steps):
    """Unrolled over what the blocks recorded, from nothing, the network comes to the same states and actions."""
    config = configured(kind, 3, steps, replay={"capacity": 300})
    collector, weights, network = collector_for(config, mode)
    carried = np.zeros((3, state_size(config.network)), np.float32)
    ends = 0
    for _ in range(42 // steps):
        block, _ = collector.collect(weights)
        assert isinstance(block, RecurrentBlock)
        assert_allclose(block.state, carried, rtol=1e-3, atol=1e-4)
        flat = tf.constant(block.observation.reshape(-1, 3))
        q, states = network([flat, tf.constant(carried), tf.constant(block.first)])
        q = q.numpy().reshape(steps, 3, ACTIONS)
        top = np.sort(q, axis=2)
        sure = top[..., -1] - top[..., -2] > 1e-3
        assert_array_equal(block.action[sure], q.argmax(axis=2)[sure])
        carried = states.numpy().reshape(steps, 3, -1)[-1]
        ends += block.first.sum()
    assert ends > 10
    collector.close()


def test_stacked_frames_are_remembered_as_they_are_learned_from():
    config = configured(steps=4, environment={"frame_stack": 2})
    collector, weights, network = collector_for(config)
    learner_rows, carried = [], np.zeros((2, 6), np.float32)
    before = None
    for _ in range(6):
        block, _ = collector.collect(weights)
        assert_allclose(block.state, carried, rtol=1e-3, atol=1e-4)
        for row, first in zip(block.observation, block.first, strict=True):
            before = row if before is None else np.where(first[:, None], row, before)
            learner_rows.append(np.concatenate((before, row), axis=1))
            _, state = network([tf.constant(learner_rows[-1]), tf.constant(carried), tf.constant(first[None])])
            carried, before = state.numpy(), row
    collector.close()


def test_rows_in_which_all_explore_are_remembered_too():
    config = configured(exploration={"epsilon": 1.0})
    collector, weights, network = collector_for(config)
    first, _ = collector.collect(weights)
    second, _ = collector.collect(weights)
    flat = tf.constant(first.observation.reshape(-1, 3))
    _, states = network([flat, tf.constant(first.state), tf.constant(first.first)])
    assert_allclose(second.state, states.numpy()[-2:], rtol=1e-3, atol=1e-4)
    collector.close()


def test_a_collector_that_is_saved_goes_on_with_what_it_remembers():
    config = configured()
    one, weights, _ = collector_for(config)
    for _ in range(3):
        one.collect(weights)
    saved = pickle.loads(pickle.dumps(one.state()))
    other, _, _ = collector_for(config)
    other.collect(weights)
    other.load_state(saved)
    expected = [one.collect(weights)[0] for _ in range(3)]
    for block in expected:
        for field, value in zip(RecurrentBlock._fields, other.collect(weights)[0], strict=True):
            assert_array_equal(value, getattr(block, field), err_msg=field)
    assert np.abs(expected[0].state).max() > 0.0
    one.close()
    other.close()


# --- learned from -----------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("prioritized", [False, True])
def test_the_compiled_program_learns_what_the_eager_one_learns_and_goes_on_where_it_was_saved(prioritized):
    config = configured(replay={"prioritized": prioritized})
    keras.utils.set_random_seed(0)
    collector, _, _ = collector_for(config)
    learner = Learner(config, envs.Spec((3,), "float32", ACTIONS), devices.strategy("cpu"))
    blocks = [collector.collect(learner.weights())[0] for _ in range(9)]
    collector.close()
    for block in blocks[:4]:
        learner.insert_block(block)
    start = learner.state()
    metrics = [learner.learn_block(block, 1e-2).metrics for block in blocks[4:]]
    end = learner.state()
    assert metrics[0].td_error.shape == (6 * 4,)
    assert metrics[0].priority.shape == (4,)

    learner.load_state(start)
    for block, expected in zip(blocks[4:], metrics, strict=True):
        tensors = RecurrentBlock(*map(tf.constant, block))
        found, _ = learner.learn(tensors, tf.constant(1e-2), tf.constant(1.0))
        for name, value in expected._asdict().items():
            assert_allclose(value, getattr(found, name), rtol=5e-3, atol=5e-4, err_msg=name)
    for name, value in learner.state().items():
        assert_allclose(value, end[name], rtol=5e-3, atol=5e-4, err_msg=name)

    learner.load_state(start)
    for block in blocks[4:6]:
        learner.learn_block(block, 1e-2)
    between = learner.state()
    learner.learn_block(blocks[0], 1e-2)  # a past that is forgotten
    learner.load_state(between)
    for block in blocks[6:]:
        learner.learn_block(block, 1e-2)
    for name, value in learner.state().items():
        assert_array_equal(value, end[name], err_msg=name)


# --- evaluated --------------------------------------------------------------------------------------------------------


def test_evaluation_says_where_episodes_begin_and_asks_about_the_same_environments_each_time(monkeypatch):
    monkeypatch.setattr(evaluation, "SIDE_BY_SIDE", 2)
    told, seen, played = [], [], []

    def act(observation):
        seen.append(observation.copy())
        return np.zeros(len(observation), np.int64)

    def begin(first, live):
        told.append(first.copy())
        played.append(live.copy())

    act.begin = begin
    environment = EnvironmentConfig(
        id="rlplatform.envs.probes:Counting", kwargs={"lengths": [2, 4, 3], "ends": ["terminated"]}
    )
    result = evaluate(act, environment, [0, 1, 2])
    assert_array_equal(result.lengths, [2, 4, 3])
    assert [len(first) for first in told] == [2] * 5  # the first two environments: 2 + 3 steps, and 4
    assert [len(observation) for observation in seen] == [2] * 5
    assert_array_equal([first[0] for first in told], [True, False, True, False, False])
    assert_array_equal([first[1] for first in told], [True, False, False, False, False])
    assert_array_equal([live[0] for live in played], [True] * 5)
    assert_array_equal([live[1] for live in played], [True] * 4 + [False])
    assert_array_equal([observation[0, 2] for observation in seen], [0, 1, 0, 1, 2])


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_episodes_side_by_side_are_those_that_are_played_alone(kind, monkeypatch):
    config = configured(kind)
    policy = networks.build(config, (2,), "float32", 3)
    rng = np.random.default_rng(4)
    policy.set_weights([rng.normal(size=weight.shape) for weight in policy.weights])
    actor = make_actor(policy)
    actor.load(flatten(policy.get_weights()))
    environment, seeds = EnvironmentConfig(id=MAZE, kwargs={"length": 4}), list(range(7))
    together = evaluate(greedy(actor), environment, seeds)
    monkeypatch.setattr(evaluation, "SIDE_BY_SIDE", 1)
    alone = evaluate(greedy(actor), environment, seeds)
    assert_array_equal(together.returns, alone.returns)
    assert_array_equal(together.lengths, alone.lengths)


# --- whole runs -------------------------------------------------------------------------------------------------------

SMALL = (
    "device=cpu",
    "environment.num_envs=2",
    "environment.kwargs.length=3",
    "network.recurrent_units=6",
    "network.hidden_units=[5]",
    "training.train_interval=16",
    "training.learning_starts=64",
    "training.batch_size=4",
    "replay.capacity=256",
    "evaluation.interval=96",
    "evaluation.episodes=4",
    "checkpoint.interval=64",
    "logging.interval=64",
)


class StopAt(Callback):
    def on_log(self, run, row):
        if run.step >= 160:
            run.stop("stopped by the test")


def rows(run):
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds" and "speed/" not in k} for line in lines]


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(kind, tmp_path):
    def session(name, **options):
        overrides = (*SMALL, f"network.recurrent={kind}", "replay.prioritized=true")
        return api.session(
            MAZE, preset="r2d2", steps=320, out=tmp_path / name, overrides=overrides, progress=False, **options
        )

    undisturbed, _ = session("undisturbed")
    _, stopped = session("stopped", callbacks=[StopAt()])
    assert stopped.steps < 320
    resumed, outcome = session("stopped", resume=True)
    assert (outcome.steps, outcome.reason) == (320, "finished")
    for which in ("last", "best"):
        expected = undisturbed.network(which).get_weights()
        for weight, other in zip(resumed.network(which).get_weights(), expected, strict=True):
            assert_array_equal(weight, other)
    assert rows(resumed) == rows(undisturbed)
    seeds = envs.seeds(1, 5, "evaluation")
    assert_array_equal(
        evaluate(resumed.act(), resumed.config.environment, seeds).returns,
        evaluate(undisturbed.act(), undisturbed.config.environment, seeds).returns,
    )


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_maze_is_solved_by_remembering_and_not_without(tmp_path):
    returns = {}
    for kind in ("gru", "none"):
        run = api.train(
            TMaze,
            preset="r2d2",
            steps=14_000,
            out=tmp_path / kind,
            progress=False,
            overrides=[f"network.recurrent={kind}", "evaluation.interval=2000"],
        )
        returns[kind] = evaluate(run.act(), run.config.environment, envs.seeds(1, 100, "evaluation")).mean
    assert returns["gru"] > 0.95  # 1 is the most that there is
    assert returns["none"] < 0.3  # 0 on average is the best without a memory
