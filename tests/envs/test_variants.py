"""Variants of known tasks move by other physics and keep everything else."""

import numpy as np
import pytest

from rlplatform import envs
from rlplatform.config import EnvironmentConfig
from rlplatform.errors import UserError

VARIANTS = "rlplatform.envs.variants"


def made(name, **kwargs):
    return envs.make_single(EnvironmentConfig(id=f"{VARIANTS}:{name}", kwargs=kwargs))


def test_a_pole_on_a_heavier_cart_moves_by_the_equations_of_its_masses():
    """One push to the right from rest (Florian 2007, eq. 23 and 24, without friction)."""
    env = made("HeavyCartPole", pole_length=2.0, cart_mass=5.0)
    env.reset(seed=0)
    env.unwrapped.state = np.zeros(4)
    observation, *_ = env.step(1)
    force, gravityless = 10.0, 10.0 / (5.0 + 0.1)
    angular = -gravityless / (2.0 * (4.0 / 3.0 - 0.1 / 5.1))
    linear = (force - 0.1 * 2.0 * angular) / 5.1
    np.testing.assert_allclose(observation, [0.0, 0.02 * linear, 0.0, 0.02 * angular], rtol=1e-6)
    assert env.spec.reward_threshold == 475.0
    env.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SWIG; as errors they would crash the import of Box2D
def test_wind_drives_the_lander_elsewhere_from_the_same_start():
    windy, calm = made("WindyLunarLander"), envs.make_single(EnvironmentConfig(id="LunarLander-v3"))
    ends = []
    for env in (windy, calm):
        env.reset(seed=3)
        ends.append([env.step(0)[0] for _ in range(40)])
        env.close()
    assert np.abs(ends[0][-1] - ends[1][-1]).max() > 0.01
    assert windy.observation_space == calm.observation_space
    assert windy.spec.reward_threshold == 200


@pytest.mark.parametrize("kwargs", [{"pole_length": 0.0}, {"cart_mass": -1.0}])
def test_lengths_and_masses_are_above_0(kwargs):
    with pytest.raises(UserError, match="pole_length and cart_mass must be above 0"):
        made("HeavyCartPole", **kwargs)
