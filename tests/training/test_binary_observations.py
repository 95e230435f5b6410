"""An environment of 0 and 1 as bool learns, bit for bit, what it learns as float32, from a quarter of the memory."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rlplatform import devices, envs
from rlplatform.agents import make_actor
from rlplatform.config import Config
from rlplatform.training.collectors import HostCollector
from rlplatform.training.evaluation import evaluate, greedy
from rlplatform.training.learner import Learner
from rlplatform.training.run import seed_networks

pytestmark = pytest.mark.slow


class Lights(gym.Env[Any, Any]):
    """Sixteen lights in two planes; an action names the number of lights that are on in a corner."""

    def __init__(self, dtype: str = "bool") -> None:
        self.observation_space = gym.spaces.Box(0, 1, (4, 2, 2), np.dtype(dtype))
        self.action_space = gym.spaces.Discrete(3)
        self._left = 0

    def _shown(self) -> np.ndarray:
        self._lights = self.np_random.integers(0, 2, (4, 2, 2))
        return self._lights.astype(self.observation_space.dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._left = 7
        return self._shown(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float(self._lights[0, 0].sum() == action)
        self._left -= 1
        return self._shown(), reward, self._left == 0, False, {}


def trained(dtype: str, frame_stack: int, normalize: bool) -> tuple[envs.Spec, Learner, np.ndarray, np.ndarray]:
    config = Config().replace(
        environment={"id": "Lights", "num_envs": 2, "frame_stack": frame_stack},
        network={"hidden_units": [12], "normalize_observations": normalize},
        training={"train_interval": 16, "gradient_steps": 2, "batch_size": 8},
        replay={"capacity": 100},
    )
    seed_networks(3)
    env = envs.make(config.environment, lambda: Lights(dtype))
    spec = envs.spec_of(env)
    learner = Learner(config, spec, devices.strategy("cpu"))
    actor = make_actor(learner.agent.policy_network())
    collector, weights = HostCollector(config, env, spec, actor), learner.weights()
    for _ in range(12):
        block, _ = collector.collect(weights)
        weights = learner.learn_block(block, 1e-3).weights
    collector.close()
    actor.load(weights)
    returns = evaluate(greedy(actor), config.environment, [1, 2, 3], factory=lambda: Lights(dtype)).returns
    return spec, learner, weights, returns


@pytest.mark.exhaustive
@pytest.mark.parametrize(("frame_stack", "normalize"), [(1, False), (1, True), (3, False)])
def test_bool_learns_what_float32_learns(frame_stack: int, normalize: bool) -> None:
    spec, learner, weights, returns = trained("bool", frame_stack, normalize)
    float_spec, float_learner, float_weights, float_returns = trained("float32", frame_stack, normalize)
    np.testing.assert_array_equal(weights, float_weights)
    np.testing.assert_array_equal(returns, float_returns)
    assert spec.observation_dtype == float_spec.observation_dtype == "float32"
    assert (spec.stored_dtype, float_spec.stored_dtype) == ("bool", "float32")
    ring, float_ring = learner.replay.observation.numpy(), float_learner.replay.observation.numpy()
    np.testing.assert_array_equal(ring, float_ring)
    assert 4 * ring.nbytes == float_ring.nbytes
    np.testing.assert_array_equal(learner.observations(20), float_learner.observations(20))
    assert learner.observations(20).dtype == np.float32


def test_the_first_observations_of_nothing_are_float32_too() -> None:
    config = Config().replace(environment={"id": "Lights"})
    env = envs.make(config.environment, Lights)
    learner = Learner(config, envs.spec_of(env), devices.strategy("cpu"))
    assert learner.observations(5).dtype == np.float32
    env.close()
