"""Agents reach the values of small problems that are known exactly; each probe that fails names the broken part.

Everything acts at random here, so that only learning is tested, and the values are compared, not the returns.
"""

import numpy as np
import pytest
import tf_keras as keras
from numpy.testing import assert_allclose

import rlplatform as rlp
from rlplatform import devices, envs
from rlplatform.agents import make_actor
from rlplatform.config import Config, Schedule
from rlplatform.envs import probes
from rlplatform.experience import Replay
from rlplatform.training import HostCollector, Learner, evaluate, schedules

GAMMA = 0.5


def learned(make, steps, learners, **sections):
    """The largest difference between the network's values and the exact ones, after `steps` random env steps.

    `learners` are those that were compiled before, as they were built, by their number of actions.
    """
    config = Config().replace(
        environment={"id": f"rlplatform.envs.probes:{make.__name__}", "num_envs": 4},
        network={"hidden_units": [16]},
        replay={"capacity": 2_000},
        agent={"gamma": GAMMA, "target_update_interval": 20},
        optimizer={"learning_rate": 1e-2},
        exploration={"epsilon": 1.0},
        training={"total_steps": steps, "train_interval": 8, "batch_size": 32},
    )
    config = config.replace(**sections)
    env = envs.make(config.environment)
    spec = envs.spec_of(env)
    if spec.num_actions not in learners:
        keras.utils.set_random_seed(0)
        new = Learner(config, spec, devices.strategy("cpu"))
        learners[spec.num_actions] = new, new.state()
    learner, at_first = learners[spec.num_actions]
    learner.load_state(at_first)
    collector = HostCollector(config, env, spec, make_actor(learner.agent.online))
    weights = learner.weights()
    while collector.steps < steps:
        block, _ = collector.collect(weights)
        if collector.steps < 64:
            learner.insert_block(block)
        else:
            rate = schedules.value(config.optimizer.learning_rate, collector.steps, steps)
            weights = learner.learn_block(block, rate).weights
    observation, q = env.envs[0].unwrapped.exact_q(config.agent.gamma)
    collector.close()
    return float(np.abs(learner.agent.online(observation).numpy() - q).max())


@pytest.fixture(scope="module")
def learners():
    return {}


@pytest.mark.parametrize("probe", probes.PROBES)
def test_the_values_of_a_probe_are_learned(probe, learners):
    error = learned(probe, 2_400, learners)
    assert error < 0.01, f"off by {error}. {probe.__doc__}"


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_broken_part_fails_its_own_probe_and_none_before(monkeypatch, number):
    broken = {
        1: lambda batch: batch._replace(weight=batch.weight * 0.0),  # no loss
        2: lambda batch: batch._replace(observation=batch.observation * 0.0),  # the network sees nothing
        3: lambda batch: batch._replace(discount=batch.discount * 0.0),  # no bootstrapping
        4: lambda batch: batch._replace(action=batch.action * 0),  # all actions are taken for the first
    }
    sample = Replay.sample
    monkeypatch.setattr(Replay, "sample", lambda self, *args: broken[number](sample(self, *args)))
    learners = {}  # traced anew, with the broken part
    errors = [learned(probe, 2_400, learners) for probe in probes.PROBES[:number]]
    assert max(errors[:-1], default=0.0) < 0.01
    assert errors[-1] > 0.1


TABULAR = {
    "network": {"hidden_units": [64]},
    "replay": {"capacity": 100_000},
    "optimizer": {"learning_rate": Schedule(kind="cosine", start=3e-3, end=1e-5)},
}


def test_the_values_of_a_small_random_process_are_learned():
    kwargs = {"num_states": 4, "num_actions": 2, "ending": 0.3, "mdp_seed": 3}
    error = learned(
        probes.RandomMDP,
        16_000,
        {},
        environment={"kwargs": kwargs},
        agent={"gamma": 0.9, "tau": 0.02, "target_update_interval": 1, "huber_delta": float("inf")},
        training={"batch_size": 64, "gradient_steps": 2},
        **TABULAR,
    )
    assert error < 0.1  # of values up to 1.9; 2,000 samples of each step leave about 0.05


@pytest.mark.slow
def test_n_step_values_of_a_process_without_choices_are_learned():
    """With one action, three-step returns are those of the policy that is learned about."""
    kwargs = {"num_states": 4, "num_actions": 1, "ending": 0.3, "mdp_seed": 3}
    error = learned(
        probes.RandomMDP,
        16_000,
        {},
        environment={"kwargs": kwargs},
        agent={"gamma": 0.9, "n_step": 3, "tau": 0.02, "target_update_interval": 1, "huber_delta": float("inf")},
        training={"batch_size": 64, "gradient_steps": 2},
        **TABULAR,
    )
    assert error < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("agent", [{"double": True}, {"double": False}, {"double": True, "tau": 1.0}])
@pytest.mark.parametrize("dueling", [False, True])
def test_every_variant_learns_the_values_of_a_random_process(agent, dueling):
    interval = 100 if agent.get("tau") == 1.0 else 1
    error = learned(
        probes.RandomMDP,
        100_000,
        {},
        agent={"gamma": 0.9, "tau": 0.02, "target_update_interval": interval, "huber_delta": float("inf")} | agent,
        training={"batch_size": 64, "gradient_steps": 2},
        **(TABULAR | {"network": {"hidden_units": [64], "dueling": dueling}}),
    )
    assert error < 0.15  # of values up to 3.9


@pytest.mark.slow
def test_convolutions_learn_to_catch(tmp_path):
    run = rlp.train(
        "rlplatform.envs.probes:Catch",
        steps=6_000,
        out=tmp_path / "catch",
        progress=False,
        overrides=[
            "environment.num_envs=4",
            "training.train_interval=8",
            "training.gradient_steps=2",
            "training.batch_size=32",
            "training.learning_starts=500",
            "replay.capacity=6000",
            "agent.gamma=0.9",
            "agent.target_update_interval=100",
            "optimizer.learning_rate=5e-4",
            "exploration.epsilon={kind='linear', start=1.0, end=0.05, fraction=0.5}",
            "evaluation.interval=2000",
            "evaluation.episodes=30",
        ],
    )
    played = evaluate(run.act(), run.config.environment, envs.seeds(1, 100, "evaluation"))
    assert any(isinstance(layer, keras.layers.Conv2D) for layer in run.network().layers)
    assert played.mean > 0.95  # at random -2 / 3
    assert_allclose(played.lengths, 5)
