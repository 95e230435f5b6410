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


def configured(make, steps, **sections):
    config = Config().replace(
        environment={"id": f"rlplatform.envs.probes:{make.__name__}", "num_envs": 4},
        network={"hidden_units": [16]},
        replay={"capacity": 2_000},
        agent={"gamma": GAMMA, "target_update_interval": 20},
        optimizer={"learning_rate": 1e-2},
        exploration={"epsilon": 1.0},
        training={"total_steps": steps, "train_interval": 8, "batch_size": 32},
    )
    return config.replace(**sections)


def trained(config, learners):
    """The learner after `total_steps` random env steps, and the environment.

    `learners` are those that were compiled before, as they were built, by their number of actions.
    """
    env, steps = envs.make(config.environment), config.training.total_steps
    spec = envs.spec_of(env)
    if spec.num_actions not in learners:
        keras.utils.set_random_seed(0)
        new = Learner(config, spec, devices.strategy("cpu"))
        learners[spec.num_actions] = new, new.state()
    learner, at_first = learners[spec.num_actions]
    learner.load_state(at_first)
    collector = HostCollector(config, env, spec, make_actor(learner.agent.policy_network()))
    weights = learner.weights()
    while collector.steps < steps:
        block, _ = collector.collect(weights)
        if collector.steps < 64:
            learner.insert_block(block)
        else:
            rate = schedules.value(config.optimizer.learning_rate, collector.steps, steps)
            weights = learner.learn_block(block, rate).weights
    single = env.envs[0].unwrapped
    collector.close()
    return learner, single


def learned(make, steps, learners, **sections):
    """The largest difference between the network's values and the exact ones, after `steps` random env steps."""
    config = configured(make, steps, **sections)
    learner, env = trained(config, learners)
    observation, q = env.exact_q(config.agent.gamma)
    return float(np.abs(learner.agent.policy_network()(observation).numpy() - q).max())


@pytest.fixture(scope="module")
def learners():
    return {}


@pytest.mark.slow
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


@pytest.mark.slow
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


# --- every flag and every head ----------------------------------------------------------------------------------------

HEADS = {
    "scalar": {},
    "categorical": {"agent": {"head": "categorical", "v_min": -4.0, "v_max": 4.0, "num_atoms": 51}},
    "quantile": {"agent": {"head": "quantile", "num_quantiles": 16, "huber_delta": 0.1}},
    "implicit_quantile": {"agent": {"head": "implicit_quantile", "num_quantiles": 16, "huber_delta": 0.1}},
}
FLAGS = {
    "single": {"agent": {"double": False}},
    "dueling": {"network": {"dueling": True}},
    "three steps": {"agent": {"n_step": 3}},
    "prioritized": {"replay": {"prioritized": True, "importance_exponent": 1.0}},
    "noisy": {"network": {"noisy": True}},
    "munchausen": {"agent": {"munchausen": True, "munchausen_alpha": 0.5, "munchausen_temperature": 0.2}},
    "hard target": {"agent": {"tau": 1.0, "target_update_interval": 50}},
    "layer norm": {"network": {"layer_norm": True}},
    "normalized observations": {"network": {"normalize_observations": True}},
    "normalized rewards": {"agent": {"normalize_rewards": True}},
}
# Of values up to 1.7, and of fixed points that lie 0.5 apart: what 2,000 samples of each step leave, under every head.
# Returns over three steps scatter more, and Munchausen's share of the policy enlarges an error by 1 / (1 - share).
ERROR = {"one step": 0.08, "three steps": 0.12}


def fixed_point(mdp, agent, scale):
    """[S, A]: what a value converges to where all act at random, by iteration in numpy.

    For one step and a greedy policy, the optimal values. The n steps after the first are the behaviour's, here uniform,
    and not corrected; Munchausen adds its share of the scaled log-policy to the first reward, and its policy is soft
    (Vieillard et al. 2020, eq. 1). Its temperature is in units of the scaled reward.
    """
    goes_on, q = agent.gamma * (1.0 - mdp.ending), np.zeros_like(mdp.rewards)
    temperature, clip = agent.munchausen_temperature * scale, agent.munchausen_clip * scale
    for _ in range(2_000):
        value, extra = q.max(axis=1), 0.0
        if agent.munchausen:
            weights = np.exp((q - value[:, None]) / temperature)
            log_policy = (q - value[:, None]) - temperature * np.log(weights.sum(axis=1, keepdims=True))
            policy = weights / weights.sum(axis=1, keepdims=True)
            value = (policy * (q - log_policy)).sum(axis=1)
            extra = agent.munchausen_alpha * np.clip(log_policy, clip, 0.0)
        for _ in range(agent.n_step - 1):
            value = (mdp.rewards + goes_on * mdp.transitions @ value).mean(axis=1)
        following = mdp.rewards + extra + goes_on * mdp.transitions @ value
        change, q = np.abs(following - q).max(), following
    assert change < 1e-9, "the iteration has not come to rest"
    return q


def test_the_fixed_point_is_the_optimal_value_where_nothing_is_added():
    mdp = probes.RandomMDP(num_states=4, num_actions=2, ending=0.3, mdp_seed=3)
    agent = Config().replace(agent={"gamma": 0.9}).agent
    assert_allclose(fixed_point(mdp, agent, 1.0), mdp.exact_q(0.9)[1], atol=1e-8)
    soft = Config().replace(agent={"gamma": 0.9} | FLAGS["munchausen"]["agent"]).agent
    assert np.abs(fixed_point(mdp, soft, 1.0) - mdp.exact_q(0.9)[1]).max() > 0.1


def error_of(parts, steps=16_000):
    """The largest difference from the fixed point, of the configuration that these partial ones make together."""
    config = configured(
        probes.RandomMDP,
        steps,
        environment={"kwargs": {"num_states": 4, "num_actions": 2, "ending": 0.3, "mdp_seed": 3}},
        agent={"gamma": 0.9, "tau": 0.02, "target_update_interval": 1, "huber_delta": float("inf")},
        training={"batch_size": 64, "gradient_steps": 2},
        **TABULAR,
    )
    for part in parts:
        config = config.replace(**part)
    learner, mdp = trained(config, {})
    scale = float(learner.agent.normalization.variance) ** 0.5 if config.agent.normalize_rewards else 1.0
    q = learner.agent.policy_network()(np.eye(4, dtype=np.float32)).numpy() * scale
    return float(np.abs(q - fixed_point(mdp, config.agent, scale)).max())


def drawn_at_random(count):
    """A head and two flags each."""
    rng = np.random.default_rng(2)
    return [(str(rng.choice(list(HEADS))), *map(str, rng.choice(list(FLAGS), 2, False))) for _ in range(count)]


ALONE = [("scalar", flag) for flag in FLAGS] + [(head,) for head in HEADS]
TOGETHER = [("implicit_quantile", "munchausen", "prioritized"), ("categorical", "three steps", "dueling")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [*TOGETHER, *(pytest.param(names, marks=pytest.mark.exhaustive) for names in [*ALONE, *drawn_at_random(10)])],
    ids=", ".join,
)
def test_every_head_and_flag_learns_the_values_that_its_equation_has(names):
    head, *flags = names
    error = error_of([HEADS[head], *(FLAGS[flag] for flag in flags)])
    bound = ERROR["three steps" if "three steps" in flags else "one step"]
    assert error < bound / (1.0 - 0.5 * ("munchausen" in flags))


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
