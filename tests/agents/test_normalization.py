"""Statistics over many blocks are those of numpy over everything at once; rewards are in units of their returns."""

import numpy as np
import pytest
import tensorflow as tf
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.agents import DQN
from rlplatform.config import Config
from rlplatform.experience import Block

GAMMA = 0.9
KINDS = [((3,), "float32"), ((4, 5), "float32"), ((4, 5, 2), "uint8"), ((3,), "uint8"), ((4, 5), "uint8")]


def agent_of(shape=(3,), dtype="float32", frame_stack=1, num_envs=3, observations=True, rewards=True, **agent):
    config = Config().replace(
        environment={"num_envs": num_envs, "frame_stack": frame_stack},
        network={"hidden_units": [4], "torso": "mlp", "normalize_observations": observations},
        agent={"gamma": GAMMA, "normalize_rewards": rewards} | agent,
        training={"train_interval": 12},
    )
    frame = (*shape, 1) if len(shape) == 2 else shape
    return DQN(config, (*frame[:-1], frame[-1] * frame_stack), dtype, 2)


def blocks_of(count, shape=(3,), dtype="float32", num_envs=3, steps=4, seed=0, offset=0.0):
    rng, blocks = np.random.default_rng(seed), []
    for _ in range(count):
        block = Block.empty(steps, num_envs, shape, dtype)
        values = rng.normal(size=block.observation.shape) * rng.exponential(size=shape) + offset
        block.observation[:] = rng.integers(0, 256, values.shape) if dtype == "uint8" else values
        block.reward[:] = rng.normal(size=block.reward.shape) + 1.0
        block.first[:] = rng.random(block.first.shape) < 0.2
        block.dead[:] = rng.random(block.dead.shape) < 0.2
        blocks.append(block)
    return blocks


def observe(agent, blocks):
    for block in blocks:
        agent.observe(Block(*map(tf.constant, block)))


def discounted_returns(blocks):
    """Of every live slot: the discounted sum of its episode's rewards up to it, environment by environment."""
    whole, returns = Block(*(np.concatenate(field) for field in zip(*blocks, strict=True))), []
    for env in range(whole.reward.shape[1]):
        total = 0.0
        for t in range(len(whole.reward)):
            if whole.dead[t, env]:
                total = 0.0  # between two episodes
                continue
            total = (0.0 if whole.first[t, env] else GAMMA * total) + float(whole.reward[t, env])
            returns.append(total)
    return np.array(returns)


@pytest.mark.parametrize("frame_stack", [1, 3])
@pytest.mark.parametrize(("shape", "dtype"), KINDS)
def test_what_the_network_sees_is_standardised_by_the_mean_and_variance_of_all_frames(shape, dtype, frame_stack):
    agent, blocks = agent_of(shape, dtype, frame_stack), blocks_of(5, shape, dtype)
    observe(agent, blocks)
    frames = np.concatenate([block.observation.reshape(-1, *shape) for block in blocks]).astype(np.float64)
    frames = frames[..., None] if len(shape) == 2 else frames
    frames = frames / 255.0 if dtype == "uint8" else frames  # bytes are scaled before they are standardised
    layer = agent.online.get_layer("standardize")
    assert_allclose(layer.mean, np.concatenate([frames.mean(axis=0)] * frame_stack, axis=-1), rtol=1e-4, atol=1e-5)
    assert_allclose(layer.variance, np.concatenate([frames.var(axis=0)] * frame_stack, axis=-1), rtol=1e-3, atol=1e-6)
    assert float(agent.normalization.observations) == 5 * 4 * 3


def test_features_far_from_0_keep_their_variance():
    agent, blocks = agent_of(), blocks_of(50, offset=1e4)
    observe(agent, blocks)
    frames = np.concatenate([block.observation.reshape(-1, 3) for block in blocks]).astype(np.float64)
    layer = agent.online.get_layer("standardize")
    assert_allclose(layer.mean, frames.mean(axis=0), rtol=1e-6)
    assert_allclose(layer.variance, frames.var(axis=0), rtol=2e-2)


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_rewards_are_divided_by_the_deviation_of_the_discounted_returns(steps):
    agent, blocks = agent_of(), blocks_of(6, steps=steps)
    assert_array_equal(agent.normalization.scaled(tf.constant([2.0, -4.0])), [2.0, -4.0])  # nothing is known yet
    observe(agent, blocks)
    returns = discounted_returns(blocks)
    assert_allclose(agent.normalization.mean, returns.mean(), rtol=1e-4)
    assert_allclose(agent.normalization.variance, returns.var(), rtol=1e-4)
    assert float(agent.normalization.returns) == len(returns)
    expected = np.array([2.0, -4.0]) / np.sqrt(returns.var() + 1e-8)
    assert_allclose(agent.normalization.scaled(tf.constant([2.0, -4.0])), expected, rtol=1e-4)


def test_the_rewards_of_dead_slots_count_for_nothing():
    one, other, blocks = agent_of(), agent_of(), blocks_of(4)
    foreign = [block._replace(reward=np.where(block.dead, 1e6, block.reward)) for block in blocks]
    observe(one, blocks)
    observe(other, foreign)
    assert_array_equal(one.normalization.variance, other.normalization.variance)
    all_dead = [block._replace(dead=np.ones_like(block.dead)) for block in blocks]
    fresh = agent_of()
    observe(fresh, all_dead)
    assert (float(fresh.normalization.variance), float(fresh.normalization.returns)) == (1.0, 0.0)


def test_what_is_not_asked_for_has_no_statistics():
    agent = agent_of(observations=False, rewards=False)
    observe(agent, blocks_of(2))
    assert not agent.normalization.variables
    reward = tf.constant([2.0, -4.0])
    assert agent.normalization.scaled(reward) is reward
    assert agent_of(rewards=False).normalization.scaled(reward) is reward


def test_the_policy_and_the_next_target_have_the_statistics_of_the_online_network():
    agent, blocks = agent_of(target_update_interval=2), blocks_of(3)
    at_first = agent.target.get_weights()
    observe(agent, blocks)
    layer = agent.online.get_layer("standardize")
    assert_array_equal(agent.policy_network().get_layer("standardize").mean, layer.mean)
    for weight, expected in zip(agent.target.get_weights(), at_first, strict=True):
        assert_array_equal(weight, expected)  # until it is due, the target network is what it was, with its own
    agent.updates.assign(2)
    agent._update_target()
    assert_array_equal(agent.target.get_layer("standardize").mean, layer.mean)
    assert_array_equal(agent.target.get_layer("standardize").variance, layer.variance)


def test_statistics_are_part_of_the_state():
    one, other, blocks = agent_of(), agent_of(), blocks_of(6)
    observe(one, blocks[:3])
    other.load_state(one.state())
    observe(one, blocks[3:])
    observe(other, blocks[3:])
    for name, value in one.state().items():
        assert_array_equal(other.state()[name], value, err_msg=name)


def test_the_compiled_statistics_are_the_eager_ones():
    eager, compiled, blocks = agent_of((4, 5), "uint8", 2), agent_of((4, 5), "uint8", 2), blocks_of(3, (4, 5), "uint8")
    program = tf.function(compiled.observe, jit_compile=True, autograph=False)
    for block in blocks:
        program(Block(*map(tf.constant, block)))
    observe(eager, blocks)
    for one, two in zip(compiled.normalization.variables, eager.normalization.variables, strict=True):
        assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    layers = (agent.online.get_layer("standardize") for agent in (compiled, eager))
    assert_allclose(*(layer.variance for layer in layers), rtol=1e-4)
