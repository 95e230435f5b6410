"""Q(lambda) on the newest block is what the definitions say, for every step that was lived through, and it learns.

Returns are worked out forwards, as mixtures of n-step returns (Sutton & Barto 2018, eq. 12.3), where the code goes back
from the last row.
"""

import collections

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from gymnasium.vector import AutoresetMode
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform import api, devices, envs
from rlplatform.agents import PQN, make_actor
from rlplatform.agents.pqn import lambda_returns, shuffles
from rlplatform.config import Config, Schedule
from rlplatform.envs import probes
from rlplatform.envs.probes import Counting
from rlplatform.envs.serial import SerialVectorEnv
from rlplatform.errors import UserError
from rlplatform.experience import Batch, Block
from rlplatform.presets import resolve
from rlplatform.training import Callback, HostCollector, Learner, evaluate, schedules
from rlplatform.training import learner as learner_module

GAMMA = 0.5
MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)
decays = pytest.mark.parametrize("trace_decay", [0.0, 0.7, 1.0])


def configured(num_envs=2, steps=6, epochs=1, batch_size=4, **sections):
    return (
        Config()
        .replace(
            environment={"num_envs": num_envs},
            network={"hidden_units": [8]},
            agent={"algorithm": "pqn", "gamma": GAMMA},
            training={
                "train_interval": steps * num_envs,
                "batch_size": batch_size,
                "gradient_steps": epochs * steps * num_envs // batch_size,
            },
        )
        .replace(**sections)
    )


@pytest.fixture
def uncompiled(monkeypatch):
    """Learners whose programs are not compiled, which takes seconds: their lines run eagerly."""
    monkeypatch.setattr(learner_module, "_compile", lambda function, *signature: function)


def new(configuration, spec, seed=0):
    keras.utils.set_random_seed(seed)
    return Learner(configuration, spec, devices.strategy("cpu"))


def drawn(learner, number=0):
    """What the updates of a call learn from, live items alone, in numpy."""
    items = learner.replay.newest(learner._config.block_steps)
    batches = learner.agent.batches(items, tf.constant([0, number]))
    flat = [field.numpy().reshape(field.shape[0] * field.shape[1], *field.shape[2:]) for field in batches]
    everything = Batch(*flat)
    assert not everything.discount.any()  # nothing is left to bootstrap from
    return Batch(*(field[everything.weight > 0.0] for field in flat))


def mixture(rewards, values, terminates, trace_decay):
    """The return of the first of some steps of one episode: (1 - lambda) sum lambda^(n-1) G_n, the rest on the last.

    `values[n]` is that of the state after `n + 1` steps; after an episode that terminates there is none.
    """
    values = [*values[:-1], 0.0 if terminates else values[-1]]
    n_step = [
        sum(GAMMA**k * reward for k, reward in enumerate(rewards[:n])) + GAMMA**n * values[n - 1]
        for n in range(1, len(rewards) + 1)
    ]
    weights = [(1 - trace_decay) * trace_decay ** (n - 1) for n in range(1, len(rewards))]
    return float(np.dot([*weights, trace_decay ** (len(rewards) - 1)], n_step))


# --- the return -------------------------------------------------------------------------------------------------------


def returns(rewards, discounts, values, goes_on, trace_decay):
    columns = [np.array(part, np.float32)[:, None] for part in (rewards, discounts, values)]
    return lambda_returns(*columns, np.array(goes_on)[:, None], trace_decay).numpy()[:, 0].tolist()


def test_returns_are_those_worked_out_by_hand():
    # From the last: 4 + 1/2 * 8 = 8;  2 + 1/2 * (1/2 * 6 + 1/2 * 8) = 5.5;  1 + 1/2 * (1/2 * 10 + 1/2 * 5.5) = 4.875
    assert returns([1, 2, 4], [0.5] * 3, [10, 6, 8], [True] * 3, 0.5) == [4.875, 5.5, 8.0]


def test_without_trace_they_are_one_step_returns():
    assert returns([1, 2, 4], [0.5, 0.0, 0.5], [10, 6, 8], [True] * 3, 0.0) == [6.0, 2.0, 8.0]


def test_with_the_whole_trace_they_are_sums_of_rewards_with_one_value_at_the_end():
    expected = [1 + 0.5 * 2 + 0.25 * 4 + 0.125 * 8, 2 + 0.5 * 4 + 0.25 * 8, 4 + 0.5 * 8]
    assert returns([1, 2, 4], [0.5] * 3, [10, 6, 8], [True] * 3, 1.0) == expected


def test_a_termination_has_no_value_after_it_and_a_cut_has_one():
    assert returns([1, 2, 4], [0.5, 0.0, 0.5], [10, 6, 8], [True] * 3, 1.0) == [1 + 0.5 * 2, 2.0, 8.0]
    assert returns([1, 2, 4], [0.5] * 3, [10, 6, 8], [True, False, True], 1.0) == [1 + 0.5 * 2 + 0.25 * 6, 5.0, 8.0]


def test_what_a_cut_hides_cannot_spoil_a_return():
    """The reward of a dead slot means nothing, and may be no number."""
    assert returns([1, np.nan], [0.5] * 2, [10, np.inf], [False, True], 0.5)[0] == 6.0


# --- the steps that were lived through --------------------------------------------------------------------------------


def counting(mode, num_envs):
    makers = [lambda: Counting((3, 5, 1, 2), ("terminated", "truncated", "both"))] * num_envs
    if mode is AutoresetMode.NEXT_STEP:
        return SerialVectorEnv(makers)
    return gym.vector.SyncVectorEnv(makers, autoreset_mode=mode)


def episodes_of(env, rows, mode):
    """The episodes that fill `rows` slots of one environment: (number, its live steps' rows, terminates)."""
    row, number = 0, 0
    while row < rows:
        turn = env + number
        length, truncated = (3, 5, 1, 2)[turn % 4], ("terminated", "truncated", "both")[turn % 3] == "truncated"
        if mode is AutoresetMode.NEXT_STEP:
            shown = length + 1  # a slot for the final observation
        else:
            shown = length
            length -= truncated  # the last step of a truncated episode has no observation after it
        yield number, range(row, row + length), not truncated
        row, number = row + shown, number + 1


@pytest.mark.exhaustive
@pytest.mark.slow
@decays
@pytest.mark.parametrize("frame_stack", [1, 3])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_every_step_is_learned_from_with_its_return_in_every_autoreset_mode(uncompiled, mode, frame_stack, trace_decay):
    """Once in each epoch, in one block or, as its last row, with the next one; and no other step is."""
    epochs, blocks = 2, 4
    configuration = configured(
        epochs=epochs, environment={"frame_stack": frame_stack}, agent={"trace_decay": trace_decay}
    )
    steps, num_envs = configuration.block_steps, configuration.environment.num_envs
    env = counting(mode, num_envs)
    spec = envs.spec_of(env)
    learner = new(configuration, spec)
    kernel, *rest = learner.agent.online.get_weights()
    kernel[0::3] = 0.0  # the identity is a large number, which would drown all else
    learner.agent.online.set_weights([kernel, *rest])
    collector = HostCollector(configuration, env, spec, make_actor(learner.agent.policy_network()))
    identities = [seed % 2**24 for seed in envs.seeds(configuration.seed, num_envs, "train")]

    def stacked(identity, episode, step):
        return [part for k in reversed(range(frame_stack)) for part in (identity, episode, max(step - k, 0))]

    def value(identity, episode, step):
        seen = np.array([stacked(identity, episode, step)], np.float32)
        return float(learner.agent.online(seen).numpy().max())

    actions = np.zeros((0, num_envs), np.int32)
    for number in range(blocks):
        block, _ = collector.collect(learner.weights())
        actions = np.concatenate([actions, block.action])
        learner.store(Block(*map(tf.constant, block)))
        newest = len(actions) - 1  # the row that only shows what came of the row before
        expected = {}
        for column, identity in enumerate(identities):
            for episode, rows, terminates in episodes_of(identity, newest + 1, mode):
                # The steps after the newest row are not there yet: the return ends at its value.
                seen = [row for row in rows if row < newest]
                over = len(seen) == len(rows)
                rewards = [Counting.reward_of(identity, episode, row - rows[0], actions[row, column]) for row in seen]
                values = [value(identity, episode, row - rows[0] + 1) for row in seen]
                for index, row in enumerate(seen):
                    if row >= newest - steps:
                        target = mixture(rewards[index:], values[index:], terminates and over, trace_decay)
                        key = tuple(stacked(identity, episode, row - rows[0]))
                        expected[key] = (actions[row, column], target)
        batch = drawn(learner, number)
        times = collections.Counter(map(tuple, batch.observation.tolist()))
        assert times == dict.fromkeys(expected, epochs)
        for observation, action, target in zip(batch.observation.tolist(), batch.action, batch.reward, strict=True):
            assert action == expected[tuple(observation)][0]
            assert_allclose(target, expected[tuple(observation)][1], rtol=1e-5)
    collector.close()


def random_block(configuration, spec, rng):
    rows = (configuration.block_steps, configuration.environment.num_envs)
    return Block(
        observation=rng.normal(size=(*rows, *spec.observation_shape)).astype(np.float32),
        action=rng.integers(0, spec.num_actions, rows, np.int32),
        reward=rng.normal(size=rows).astype(np.float32),
        terminated=rng.random(rows) < 0.2,
        first=rng.random(rows) < 0.2,
        dead=rng.random(rows) < 0.2,
        action_mask=rng.random((*rows, spec.num_actions if spec.action_mask else 0)) < 0.6,
    )


@decays
@pytest.mark.parametrize("action_mask", [False, True])
def test_the_value_of_a_state_is_that_of_its_best_allowed_action(uncompiled, action_mask, trace_decay):
    configuration = configured(3, 5, epochs=1, batch_size=5, agent={"trace_decay": trace_decay})
    spec, rng = envs.Spec((4,), "float32", 3, action_mask=action_mask), np.random.default_rng(1)
    learner = new(configuration, spec)
    block = random_block(configuration, spec, rng)
    if action_mask:
        block.action_mask[..., 0] |= ~block.action_mask.any(axis=2)
    learner.store(Block(*map(tf.constant, block)))
    q = learner.agent.online(block.observation.reshape(15, 4)).numpy().reshape(5, 3, 3)
    value = np.where(block.action_mask, q, -np.inf).max(axis=2) if action_mask else q.max(axis=2)
    expected = {}
    for env in range(3):
        for start in range(4):
            stop = start  # the last step of the return
            while stop < 3 and not block.terminated[stop, env] and not block.dead[stop + 1, env]:
                stop += 1
            if not block.dead[start, env]:
                rewards, values = block.reward[start : stop + 1, env], value[start + 1 : stop + 2, env]
                target = mixture(rewards, values, block.terminated[stop, env], trace_decay)
                expected[tuple(block.observation[start, env])] = target
    batch = drawn(learner)
    assert collections.Counter(map(tuple, batch.observation)) == dict.fromkeys(expected, 1)
    assert_allclose(batch.reward, [expected[tuple(row)] for row in batch.observation], rtol=1e-4, atol=1e-5)


def test_rewards_are_scaled_before_they_are_summed(uncompiled):
    configuration = configured(agent={"normalize_rewards": True, "trace_decay": 1.0})
    spec, rng = envs.Spec((4,), "float32", 3), np.random.default_rng(2)
    learner = new(configuration, spec)
    learner.agent.online.set_weights([0.0 * part for part in learner.agent.online.get_weights()])
    block = random_block(configuration, spec, rng)._replace(
        dead=np.zeros((6, 2), bool), terminated=np.ones((6, 2), bool)
    )
    learner.store(Block(*map(tf.constant, block)))
    deviation = float(tf.sqrt(learner.agent.normalization.variance))
    assert deviation != 1.0
    assert_allclose(sorted(drawn(learner).reward), np.sort(block.reward[:5].ravel()) / deviation, rtol=1e-5)


# --- minibatches ------------------------------------------------------------------------------------------------------


def test_a_shuffle_is_each_number_once_in_another_order_each_time():
    orders = shuffles(4, 50, tf.constant([3, 1])).numpy()
    assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(50), (4, 1)))
    assert len({tuple(order) for order in orders}) == 4
    assert_array_equal(orders, shuffles(4, 50, tf.constant([3, 1])))
    assert (shuffles(4, 50, tf.constant([3, 2])).numpy() != orders).any()


def test_shuffles_put_each_number_everywhere_equally_often():
    places = shuffles(6_000, 5, tf.constant([0, 0])).numpy()
    counts = np.stack([np.bincount(places[:, place], minlength=5) for place in range(5)])
    assert np.abs(counts - 1_200).max() < 5 * np.sqrt(6_000 * 0.2 * 0.8)  # five standard deviations


def test_batches_go_on_through_the_shuffles_where_they_are_no_whole_epoch(uncompiled):
    configuration = configured(1, 6, batch_size=4).replace(training={"gradient_steps": 2})  # 8 of 6 slots
    learner, rng = new(configuration, envs.Spec((4,), "float32", 3)), np.random.default_rng(3)
    for _ in range(2):
        block = random_block(configuration, envs.Spec((4,), "float32", 3), rng)._replace(dead=np.zeros((6, 1), bool))
        learner.store(Block(*map(tf.constant, block)))
    times = collections.Counter(map(tuple, drawn(learner).observation))
    assert sorted(times.values()) == [1, 1, 1, 1, 2, 2]


# --- the update -------------------------------------------------------------------------------------------------------

ALL = {"dueling": True, "noisy": True, "layer_norm": True, "normalize_observations": True}


def batch_of(observation, action, target, weight):
    nothing = tf.zeros([len(action)])
    masks = tf.zeros([len(action), 0], tf.bool)
    return Batch(
        tf.constant(observation, tf.float32), tf.constant(action), tf.constant(target, tf.float32), nothing,
        tf.constant(observation, tf.float32), tf.constant(weight, tf.float32), masks, masks, nothing,
    )  # fmt: skip


@pytest.mark.parametrize(("delta", "losses"), [(float("inf"), (0.5, 2.0)), (1.0, (0.5, 1.5))])
def test_an_update_moves_the_values_of_the_actions_taken_towards_their_returns(delta, losses):
    keras.utils.set_random_seed(0)
    agent = PQN(configured(agent={"huber_delta": delta}, network={"hidden_units": [2]}), (2,), "float32", 3)
    table = np.array([[1, 2, 3], [4, 5, 6]], np.float32)  # one-hot states pass through, so the last layer is a table
    agent.online.set_weights([np.eye(2), np.zeros(2), table, np.zeros(3)])
    items = batch_of([[1, 0], [0, 1], [0, 1]], [2, 0, 1], [2, 6, 100], [1, 1, 0])
    metrics = agent.update(items, tf.constant(1e-3))
    assert_allclose(metrics.td_error, [-1, 2, 0])
    assert_allclose(metrics.loss, sum(losses) / 3)
    assert_allclose(metrics.q, [3, 6, 6])
    moved = np.sign(agent.online.get_weights()[2] - table)
    assert_array_equal(moved, [[0, 0, -1], [1, 0, 0]])


def test_noise_is_fresh_in_every_update_and_follows_from_the_seed():
    def errors(seed, updates=2):
        keras.utils.set_random_seed(0)
        agent = PQN(configured(seed=seed, network=ALL), (2,), "float32", 3)
        items = batch_of([[1, 0], [0, 1]], [2, 0], [2, 6], [1, 1])
        return [tuple(agent.update(items, tf.constant(0.0)).td_error.numpy()) for _ in range(updates)]

    first, second = errors(0)
    assert first != second
    assert errors(0) == [first, second]
    assert errors(1) != [first, second]


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("network", [{}, ALL], ids=["plain", "all"])
def test_the_compiled_program_agrees_with_the_same_lines_run_eagerly(network):
    configuration = configured(epochs=2, network=network, environment={"frame_stack": 2})
    spec, rng = envs.Spec((4,), "float32", 3, action_mask=True), np.random.default_rng(4)
    compiled, eager = new(configuration, spec), new(configuration, spec)
    for _ in range(3):
        block = random_block(configuration, spec, rng)
        block.action_mask[..., 0] = True
        learned = compiled.learn_block(block, 1e-3)
        metrics, weights = eager.learn(Block(*map(tf.constant, block)), tf.constant(1e-3), tf.constant(1.0))
        assert_allclose(learned.metrics.loss, metrics.loss, rtol=1e-3)
        assert_allclose(learned.weights, weights, rtol=1e-3, atol=1e-4)
    assert int(compiled.agent.updates) == 3 * configuration.training.gradient_steps


# --- what it learns ---------------------------------------------------------------------------------------------------


def learned(make, steps, kwargs, **sections):
    """The network's values of all states, and the environment, after `steps` random env steps."""
    configuration = configured(
        8, 16, epochs=2, batch_size=16,
        environment={"id": f"rlplatform.envs.probes:{make}", "kwargs": kwargs},
        network={"hidden_units": [32]},
        optimizer={"learning_rate": Schedule(kind="cosine", start=1e-2, end=1e-4)},
        exploration={"epsilon": 1.0},
    ).replace(**sections)  # fmt: skip
    env = envs.make(configuration.environment)
    spec = envs.spec_of(env)
    learner = new(configuration, spec)
    collector = HostCollector(configuration, env, spec, make_actor(learner.agent.policy_network()))
    weights = learner.weights()
    while collector.steps < steps:
        block, _ = collector.collect(weights)
        weights = learner.learn_block(
            block, schedules.value(configuration.optimizer.learning_rate, collector.steps, steps)
        ).weights
    one = env.envs[0].unwrapped
    observation, exact = one.exact_q(configuration.agent.gamma)
    collector.close()
    return learner.agent.online(observation).numpy(), exact, one


@pytest.mark.parametrize(
    "probe", [probes.PROBES[1], *(pytest.param(each, marks=pytest.mark.slow) for each in probes.PROBES[3:])]
)
def test_the_values_of_a_probe_are_learned(probe):
    q, exact, _ = learned(probe.__name__, 6_000, {})
    assert_allclose(q, exact, atol=0.02, err_msg=probe.__doc__)


PROCESS = {"num_states": 4, "num_actions": 2, "ending": 0.3, "mdp_seed": 3}


@pytest.mark.slow
def test_one_step_returns_learn_the_optimal_values_from_random_actions():
    q, exact, _ = learned(
        "RandomMDP", 60_000, PROCESS, agent={"trace_decay": 0.0, "huber_delta": float("inf"), "gamma": 0.9}
    )
    assert np.abs(q - exact).max() < 0.1  # of values up to 1.9


@pytest.mark.slow
def test_traces_learn_the_mixture_of_optimal_values_and_what_was_done():
    """Uncut traces learn Q = r + gamma ((1 - lambda) max Q + lambda mean Q) where actions are random.

    That is the fixed point of Peng & Williams's operator (Harutyunyan et al. 2016, section 3): far from the optimal
    values here, and reached exactly.
    """
    trace_decay, gamma = 0.6, 0.9
    q, exact, process = learned(
        "RandomMDP", 60_000, PROCESS,
        agent={"trace_decay": trace_decay, "huber_delta": float("inf"), "gamma": gamma},
    )  # fmt: skip
    fixed = np.zeros_like(exact)
    for _ in range(1_000):
        value = (1 - trace_decay) * fixed.max(axis=1) + trace_decay * fixed.mean(axis=1)
        fixed = process.rewards + gamma * (1 - process.ending) * process.transitions @ value
    assert np.abs(exact - fixed).max() > 0.2
    assert np.abs(q - fixed).max() < 0.1


SMALL = (
    "device=cpu",
    "network.hidden_units=[8]",
    "environment.num_envs=2",
    "training.train_interval=32",
    "training.gradient_steps=4",
    "training.batch_size=16",
    "evaluation.interval=128",
    "evaluation.episodes=2",
    "checkpoint.interval=64",
    "logging.interval=64",
)


class StopAt(Callback):
    """Stops at the first row of metrics from `step` on."""

    def __init__(self, step):
        self.step = step

    def on_log(self, run, row):
        if run.step >= self.step:
            run.stop("stopped by the test")


def train(path, more=(), **options):
    return api.train(
        "CartPole-v1", preset="pqn", steps=384, out=path, overrides=(*SMALL, *more), progress=False, **options
    )


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [(), pytest.param(("environment.frame_stack=2", "network.noisy=true"), marks=pytest.mark.slow)],
    ids=["plain", "stacked"],
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, more):
    whole = train(tmp_path / "whole", more)
    train(tmp_path / "stopped", more, callbacks=[StopAt(192)])
    resumed = train(tmp_path / "stopped", more, resume=True)
    for weight, expected in zip(
        resumed.network("last").get_weights(), whole.network("last").get_weights(), strict=True
    ):
        assert_array_equal(weight, expected)
    assert whole.checkpoints().restore().variables["agent/updates"] == 384 // 32 * 4


@pytest.mark.exhaustive
@pytest.mark.slow
def test_it_learns_cartpole(tmp_path):
    run = api.train("CartPole-v1", preset="pqn", steps=60_000, seed=1, out=tmp_path / "run", progress=False)
    assert run.config.network.layer_norm
    played = evaluate(run.act(), run.config.environment, envs.seeds(7, 30, "evaluation"))
    assert played.mean > 400.0  # of 500; at random 22


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "agent.n_step=3",
        "agent.tau=0.5",
        "agent.target_update_interval=7",
        "agent.munchausen=true",
        "agent.head=quantile",
        "replay.prioritized=true",
        "replay.capacity=5000",
        "network.recurrent=gru",
    ],
)
def test_what_only_dqn_looks_at_is_refused(override):
    key, _, given = override.partition("=")
    with pytest.raises(
        UserError, match=rf"^agent.algorithm 'pqn' does not use {key}: leave it at .*; got \"?{given}\"?$"
    ):
        resolve("Any-v0", "pqn", [override])
    resolve("Any-v0", "dqn", ["training.train_interval=16", override])  # a recurrent network's sequences hold blocks


def test_what_only_pqn_looks_at_is_refused_elsewhere():
    with pytest.raises(
        UserError, match=r"^agent.algorithm 'dqn' does not use agent.trace_decay: leave it at 0.65; got 0.0$"
    ):
        resolve("CartPole-v1", "dqn", ["agent.trace_decay=0.0"])


def test_a_batch_is_no_larger_than_the_block():
    with pytest.raises(UserError, match=r"training.batch_size must be at most training.train_interval \(64\); got 65"):
        resolve("Any-v0", "pqn", ["training.train_interval=64", "training.batch_size=65"])
