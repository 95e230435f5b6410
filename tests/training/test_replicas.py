"""Several replicas are one learner: one device's weights from the same batches, in step, and one checkpoint for all."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from numpy.testing import assert_allclose, assert_array_equal
from quick import QUICK

from rlplatform import api, devices, envs
from rlplatform.agents.optimizer import Adam
from rlplatform.agents.recurrent import state_size
from rlplatform.config import Config
from rlplatform.errors import UserError
from rlplatform.experience import Batch, Block, RecurrentBlock
from rlplatform.presets import resolve, shipped
from rlplatform.training import Callback, Learner, shards
from rlplatform.training.replicas import Replicas

SPEC = envs.Spec((3,), "float32", 3)
SMALL = {
    "environment": {"num_envs": 4},
    "network": {"hidden_units": [8, 7]},
    "replay": {"capacity": 80},
    "agent": {"n_step": 2, "target_update_interval": 4},
    "training": {"train_interval": 20, "gradient_steps": 3, "batch_size": 16},
}
NORMALIZED = {"network": {"normalize_observations": True}, "agent": {"normalize_rewards": True}}


def configured(**sections):
    return Config().replace(**SMALL).replace(**sections)


@pytest.fixture(scope="module")
def strategy():
    return devices.strategy("mirrored", 2)


def new(config, strategy=None, seed=0):
    keras.utils.set_random_seed(seed)
    return Learner(config, SPEC, strategy or devices.strategy("cpu"))


def blocks_of(count, config, seed=0):
    rng = np.random.default_rng(seed)
    blocks = []
    for _ in range(count):
        block = Block.empty(config.block_steps, config.environment.num_envs, (3,), "float32")
        block.observation[:] = rng.normal(size=block.observation.shape)
        block.action[:] = rng.integers(0, 3, block.action.shape)
        block.reward[:] = rng.normal(size=block.reward.shape)
        for field in (block.terminated, block.first, block.dead):
            field[:] = rng.random(field.shape) < 0.2
        blocks.append(block)
    return blocks


def assert_in_step(learner, strategy):
    """Whatever is not experience is the same on every replica, bit for bit."""
    for variable in learner.agent.variables:
        first, *others = (part.numpy() for part in strategy.experimental_local_results(variable))
        for other in others:
            assert_array_equal(first, other, err_msg=variable.name)


def batch_of(rng, size):
    """Transitions whose importance differs."""
    return Batch(
        observation=rng.normal(size=(size, 3)).astype(np.float32),
        action=rng.integers(0, 3, size).astype(np.int32),
        reward=rng.normal(size=size).astype(np.float32),
        discount=np.where(rng.random(size) < 0.2, 0.0, 0.98).astype(np.float32),
        next_observation=rng.normal(size=(size, 3)).astype(np.float32),
        weight=rng.random(size).astype(np.float32),
        action_mask=np.zeros((size, 0), np.bool_),
        next_action_mask=np.zeros((size, 0), np.bool_),
        slot=np.arange(size, dtype=np.int32),
    )


HEADS = {
    "scalar": {},
    "categorical": {"head": "categorical", "num_atoms": 11, "v_min": -5.0, "v_max": 5.0},
    "quantile": {"head": "quantile", "num_quantiles": 5},
    "implicit_quantile": {"head": "implicit_quantile", "num_quantiles": 5},
}


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_a_hundred_updates_on_the_same_batches_give_one_devices_weights(head, strategy):
    """Each replica has half of every batch. The targets' noise and levels are those of one device too."""
    config = configured(agent=HEADS[head], network={"noisy": True, "dueling": True})
    one, two = new(config), new(config, strategy)
    alone = tf.function(one.agent.update, autograph=False)
    run = two.replicas.run
    together = tf.function(lambda batch, rate: run(two.agent.update, batch, rate), autograph=False)
    rng, rate = np.random.default_rng(0), tf.constant(1e-2)
    for _ in range(100):
        batch = batch_of(rng, 16)
        metrics = alone(Batch(*map(tf.constant, batch)), rate)
        other = together(Batch(*(two.replicas.split(field, 0) for field in batch)), rate)
    assert_in_step(two, strategy)
    assert_allclose(two.weights(), one.weights(), rtol=1e-3, atol=1e-4)
    assert np.abs(one.weights() - new(config).weights()).max() > 0.05, "nothing was learned"
    losses = [float(loss) for loss in strategy.experimental_local_results(other.loss)]
    assert_allclose(np.mean(losses), metrics.loss, rtol=1e-2)
    norms = [float(norm) for norm in strategy.experimental_local_results(other.gradient_norm)]
    assert_allclose(norms, [metrics.gradient_norm] * 2, rtol=1e-2)  # of the whole batch, before it is clipped


def test_gradients_are_averaged_and_not_summed(strategy):
    """Adam would hide a wrong factor; its first moment shows the gradient itself."""
    with strategy.scope():
        weight = tf.Variable([0.0, 0.0])
        adam = Adam([weight], epsilon=1e-8, max_gradient_norm=float("inf"))
    gradients = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant([1.0, 3.0]) * (2.0 * float(context.replica_id_in_sync_group) + 1.0)  # 1 and 3 times
    )
    step = tf.function(lambda: strategy.run(lambda g: adam.apply([g], [weight], tf.constant(0.1)), args=(gradients,)))
    norms = [float(norm) for norm in strategy.experimental_local_results(step())]
    assert_allclose(adam.first_moment.numpy(), 0.1 * np.array([2.0, 6.0]), rtol=1e-6)
    assert_allclose(norms, np.hypot(2.0, 6.0), rtol=1e-6)


def test_statistics_are_those_of_one_device(strategy):
    config = configured(**NORMALIZED)
    one, two = new(config), new(config, strategy)
    observe = tf.function(lambda block: two.replicas.run(two.agent.observe, block), autograph=False)
    for block in blocks_of(3, config):
        one.agent.observe(Block(*map(tf.constant, block)))
        observe(Block(*(two.replicas.split(field, 1) for field in block)))
    assert_in_step(two, strategy)
    for name, value in one.agent.state().items():
        assert_allclose(two.agent.state()[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert abs(float(one.agent.normalization.variance) - 1.0) > 1e-3


# --- a whole learner ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(strategy):
    """Two replicas that have learned from four blocks, with priorities; and what each block gave."""
    config = configured(replay={"prioritized": True})
    learner = new(config, strategy)
    results = [learner.learn_block(block, 1e-2, 0.7) for block in blocks_of(4, config)]
    return config, learner, results, learner.state()


@pytest.mark.slow
def test_a_learner_on_two_replicas_stays_in_step_and_traces_once(learned, strategy):
    config, learner, results, _ = learned
    assert_in_step(learner, strategy)
    assert learner._learn.experimental_get_tracing_count() == 1
    assert learner.agent.updates.numpy() == 4 * 3
    metrics, weights = results[-1]
    assert metrics.td_error.shape == metrics.q.shape == (16,)
    assert np.isfinite(metrics.loss)
    assert_array_equal(weights, learner.weights())
    again = new(config, strategy)
    for block, before in zip(blocks_of(4, config), results, strict=True):  # the same seed, the same run
        assert_array_equal(again.learn_block(block, 1e-2, 0.7).weights, before.weights)


@pytest.mark.slow
def test_each_replica_has_its_own_environments_and_draws_of_its_own(learned, strategy):
    config, learner, _, state = learned
    one = new(config)
    for block in blocks_of(4, config):
        one.insert_block(block)
    whole = one.state()
    for replica in (0, 1):
        for field in ("observation", "reward", "dead"):
            rows = whole[f"replay/{field}"].reshape(20, 4, *whole[f"replay/{field}"].shape[1:])
            own = rows[:, 2 * replica : 2 * replica + 2]
            assert_array_equal(state[f"replay@{replica}/{field}"], own.reshape(40, *own.shape[2:]))
    draw = tf.function(lambda: learner.replicas.run(lambda: learner._draw(tf.constant(1.0)).slot), autograph=False)
    first, second = (slots.numpy() for slots in strategy.experimental_local_results(draw()))
    assert first.shape == (3, 8)
    assert not np.array_equal(first, second)


@pytest.mark.slow
def test_a_checkpoint_goes_from_two_replicas_to_one_to_four_and_back(learned):
    """Every slot and every priority is where it was; sums and the greatest priority are as those say."""
    config, learner, _, state = learned
    one = new(config)
    one.load_state(state)
    moved = one.state()
    assert moved["replay/reward"].shape == (80,)
    assert float(moved["replay/greatest"]) == max(float(state[f"replay@{replica}/greatest"]) for replica in (0, 1))
    assert_array_equal(one.weights(), learner.weights())
    numbers = moved["replay/level_0"].ravel()[:80]
    assert_allclose(moved["replay/level_1"].sum(), numbers.sum(), rtol=1e-6)
    four = shards.redistributed(shards.found("replay", state), 4, 4)
    (back,) = shards.redistributed(four, 1, 4)
    assert back.keys() == {name.removeprefix("replay/") for name in moved if name.startswith("replay/")}
    for name, value in back.items():
        assert_allclose(value, moved[f"replay/{name}"], rtol=1e-6, err_msg=name)
    learner.load_state(moved)
    returned = learner.state()
    for name, value in state.items():
        if "greatest" not in name:
            assert_allclose(returned[name], value, rtol=1e-6, err_msg=name)
    learner.load_state(state)  # the same number of replicas: to the bit
    for name, value in learner.state().items():
        assert_array_equal(value, state[name], err_msg=name)


@pytest.mark.slow
def test_a_run_goes_on_from_one_device_on_two_replicas(strategy):
    """The one-device checkpoint, and the block after it."""
    config = configured(**NORMALIZED)
    one, two = new(config), new(config, strategy, seed=1)
    first, second = blocks_of(2, config)
    one.learn_block(first, 1e-2)
    two.load_state(one.state())
    assert_array_equal(two.weights(), one.weights())
    two.learn_block(second, 1e-2)
    assert_in_step(two, strategy)
    one.insert_block(second)
    whole, state = one.state(), two.state()
    (ring,) = shards.redistributed(shards.found("replay", state), 1, 4)
    for name, value in ring.items():
        assert_array_equal(value, whole[f"replay/{name}"], err_msg=name)
    for name, value in whole.items():
        if "normalization" in name:
            assert_allclose(state[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


AGENTS = {
    "pqn": {
        "environment": {"num_envs": 4, "frame_stack": 2},
        "agent": {"algorithm": "pqn", "n_step": 1, "target_update_interval": 1000},
        "replay": {"capacity": 100_000},
    },
    "recurrent": {
        "network": {"recurrent": "lstm", "recurrent_units": 5, "hidden_units": [8]},
        "replay": {"burn_in": 3, "sequence_length": 6, "prioritized": True, "capacity": 160},
        "training": {"batch_size": 4},
    },
    "munchausen": {"agent": {"munchausen": True, "tau": 0.1, "target_update_interval": 1}},
    "stacked": {"environment": {"num_envs": 4, "frame_stack": 3}, "replay": {"prioritized": True}},
    "pruned": {"prune": {"final_sparsity": 0.5, "begin": 0.0, "end": 0.1, "interval": 1}},
    "everything": {
        "network": {"noisy": True, "dueling": True, "layer_norm": True, "normalize_observations": True},
        "agent": HEADS["implicit_quantile"] | {"munchausen": True, "normalize_rewards": True},
        "replay": {"prioritized": True},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_learns_on_two_replicas(agent, strategy):
    config = configured(**AGENTS[agent])
    learner, rng = new(config, strategy), np.random.default_rng(0)
    before = learner.weights()
    for block in blocks_of(4, config):
        if config.is_recurrent:
            block = RecurrentBlock(*block, rng.normal(size=(4, 10)).astype(np.float32))
        learned = learner.learn_block(block, 1e-2, done=0.5)
        assert np.isfinite(learned.metrics.loss)
    assert_in_step(learner, strategy)
    assert np.abs(learned.weights - before).max() > 1e-3
    if agent == "pruned":
        assert learner.agent.pruning.sparsity(learner.agent.online.trainable_variables) > 0.3
    one = new(config, seed=1)
    one.load_state(learner.state())
    assert_array_equal(one.weights(), learner.weights())


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("preset", shipped())
def test_every_preset_learns_on_two_replicas(preset, strategy):
    config = resolve("CartPole-v1", preset)
    num_envs = max(2, config.environment.num_envs)
    changes = {
        "environment": {"num_envs": num_envs},
        "network": {"hidden_units": [8]},
        "training": {"gradient_steps": 2},
    }
    if config.agent.algorithm == "dqn":
        rows = config.rows_before_sampling + 2 * max(1, config.training.train_interval // num_envs)
        changes["replay"] = {"capacity": num_envs * rows}
    config = config.replace(**changes)
    learner, rng = new(config, strategy), np.random.default_rng(0)
    stored = -(-config.rows_before_sampling // config.block_steps)
    for number, block in enumerate(blocks_of(stored + 2, config)):
        if config.is_recurrent:
            state = rng.normal(size=(num_envs, state_size(config.network)))
            block = RecurrentBlock(*block, state.astype(np.float32))
        if number < stored:
            learner.insert_block(block)
        else:
            learned = learner.learn_block(block, 1e-3)
    assert np.isfinite(learned.metrics.loss)
    assert_in_step(learner, strategy)


@pytest.mark.slow
def test_a_program_that_is_traced_once_for_all_replicas_does_the_same(learned, monkeypatch, strategy):
    """A TPU's way: rings are distributed variables, of which each replica has its part."""
    monkeypatch.setattr(tf.distribute, "TPUStrategy", tf.distribute.MirroredStrategy)
    config, _, results, state = learned
    shared = new(config, strategy)
    assert len(shared._replays) == 1
    for block, before in zip(blocks_of(4, config), results, strict=True):
        assert_array_equal(shared.learn_block(block, 1e-2, 0.7).weights, before.weights)
    again = new(config, strategy, seed=1)
    again.load_state(state)
    for one in (shared, again):
        for name, value in one.state().items():
            assert_array_equal(value, state[name], err_msg=name)


@pytest.mark.slow
def test_a_function_of_its_own_for_each_replica_does_the_same(learned, monkeypatch):
    """The way on GPUs, but for XLA: whoever draws and updates is found inside the functions too."""
    config, _, results, _ = learned
    functions = new(config, tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"]))  # with collectives
    functions.replicas.compiled, function = True, tf.function
    monkeypatch.setattr(tf, "function", lambda *given, jit_compile=False, **options: function(*given, **options))
    for block, before in zip(blocks_of(4, config), results, strict=True):
        assert_allclose(functions.learn_block(block, 1e-2, 0.7).weights, before.weights, rtol=1e-5, atol=1e-6)


# --- what does not divide ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"training": {"batch_size": 31}}, r"training.batch_size must be a multiple .* 2 replicas.* got 31, .* 32"),
        ({"replay": {"capacity": 81}}, r"replay.capacity must be a multiple .* got 81, the nearest is 80"),
        (
            {"environment": {"num_envs": 5}, "replay": {"capacity": 100}},
            r"environment.num_envs must be a multiple .* got 5, the nearest is 4",
        ),
        ({"environment": {"num_envs": 1}}, r"environment.num_envs .* got 1, the nearest is 2"),
    ],
)
def test_what_does_not_divide_is_refused_with_the_nearest_that_does(changes, sentence, strategy):
    with pytest.raises(UserError, match=sentence):
        new(configured(**changes), strategy)


def test_a_share_of_a_run_is_a_run_with_as_many_updates():
    config = configured(training={"total_steps": 1_019})
    share = config.divided(4)
    assert share.block_steps == config.block_steps
    assert share.environment.num_envs == 1
    assert (share.replay.capacity, share.training.batch_size) == (20, 4)
    assert share.training.total_steps // share.training.train_interval == 1_019 // 20
    assert config.divided(1) is config


def test_a_wish_to_stop_that_comes_while_workers_tell_each_other_is_heard_in_the_next_round(tmp_path, monkeypatch):
    class Watched(Callback):
        def on_train_begin(self, loop):
            self.loop, self.told = loop, 0

    watched, tell = Watched(), Replicas.tell

    def interrupted(self, value):
        told = tell(self, value)
        if value == "" and hasattr(watched, "told"):
            watched.told += 1
            if watched.told == 3:
                watched.loop.stop("late")
        return told

    monkeypatch.setattr(Replicas, "tell", interrupted)
    overrides = [*QUICK, "training.train_interval=16"]
    _, outcome = api.session("CartPole-v1", steps=160, out=tmp_path / "run", callbacks=[watched], overrides=overrides)
    assert outcome.reason == "late"
    assert outcome.steps == 48, "told at the beginning, then after each round: the third is the one that hears of it"
