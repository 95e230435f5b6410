"""A run's folder reads back what was written, and says in one sentence what is missing or damaged."""

import pathlib

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rlplatform import envs
from rlplatform.config import Config
from rlplatform.errors import RunError, UserError
from rlplatform.training import Best, Run

SPEC = envs.Spec((3,), "float32", 2, 5)
OBSERVATIONS = np.arange(300, dtype=np.float32).reshape(50, 6)


@pytest.fixture
def run(tmp_path):
    config = Config().replace(seed=3, environment={"frame_stack": 2}, network={"hidden_units": [4]})
    run = Run(tmp_path / "run", config, SPEC)
    run.path.mkdir()
    run.create("1.2.3")
    return run


def weights(seed=0):
    """Random weights of a network of 6 inputs, 4 units and 2 actions."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in ((6, 4), (4,), (4, 2), (2,))]


def files(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def test_a_folder_reads_back_as_the_run_it_was(run):
    assert Run.open(run.path) == run
    assert Run.open(str(run.path)) == run
    assert run.observation_shape == (6,)
    assert files(run.path) == ["config.toml", "run.json"]


def test_the_best_policy_reads_back_bit_for_bit(run):
    run.save_best(Best(17, -0.1, weights()), OBSERVATIONS)
    best = Run.open(run.path).best()
    assert (best.step, best.mean_return) == (17, -0.1)
    for weight, expected in zip(best.weights, weights(), strict=True):
        assert_array_equal(weight, expected)
    assert files(run.path / "best") == ["observations.npz", "policy.npz"]


def test_the_best_network_computes_what_its_weights_say(run):
    run.save_best(Best(17, 0.0, weights()), OBSERVATIONS)
    first, first_bias, last, last_bias = weights()
    observations = np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32)
    expected = np.maximum(observations @ first + first_bias, 0.0) @ last + last_bias
    np.testing.assert_allclose(run.network("best").predict(observations, verbose=0), expected, rtol=1e-5, atol=1e-5)
    assert_array_equal(run.act("best")(observations), expected.argmax(axis=1))


def test_the_last_network_is_that_of_the_newest_checkpoint(run):
    for step, seed in ((10, 1), (20, 2)):
        online = {f"agent/online/{index}": weight for index, weight in enumerate(weights(seed))}
        run.checkpoints().save(step, online | {"agent/target/0": np.zeros(3)}, {})
    for weight, expected in zip(run.network("last").get_weights(), weights(2), strict=True):
        assert_array_equal(weight, expected)


def test_observations_are_drawn_without_repetition_and_follow_from_the_seed(run):
    run.save_best(Best(1, 0.0, weights()), OBSERVATIONS)
    drawn = run.observations(20, seed=4)
    assert len(np.unique(drawn[:, 0])) == len(drawn) == 20
    assert np.isin(drawn, OBSERVATIONS).all()
    assert_array_equal(run.observations(20, seed=4), drawn)
    assert not np.array_equal(run.observations(20, seed=5), drawn)
    assert_array_equal(run.observations(1_000), OBSERVATIONS)


def test_a_run_without_weights_says_so(run):
    assert run.best() is None
    for ask in (lambda: run.network("best"), lambda: run.observations(5)):
        with pytest.raises(UserError, match="has no best policy yet: its first evaluation is still to come"):
            ask()
    with pytest.raises(UserError, match="has no checkpoint yet"):
        run.network("last")


@pytest.mark.parametrize("name", ["policy.npz", "observations.npz"])
def test_a_truncated_file_of_the_best_policy_is_named(run, name):
    run.save_best(Best(1, 0.0, weights()), OBSERVATIONS)
    path = run.path / "best" / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunError, match=f"{name} is damaged"):
        run.best() if name == "policy.npz" else run.observations(5)


def test_a_damaged_description_is_named(run):
    for damage in ("{", "{}", '{"spec": {"observation_shape": 3}}', '{"spec": {"colour": 1}}'):
        (run.path / "run.json").write_text(damage)
        with pytest.raises(RunError, match=r"run.json is damaged"):
            Run.open(run.path)


def test_a_damaged_configuration_is_named(run):
    (run.path / "config.toml").write_text("sed = 1")
    with pytest.raises(UserError, match=r"config.toml: unknown key 'sed'; did you mean 'seed'\?"):
        Run.open(run.path)


def test_what_is_no_run_folder_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="there is no run folder nowhere"):
        Run.open(pathlib.Path("nowhere"))
    with pytest.raises(UserError, match=r"is not a run folder: it has no config.toml and run.json"):
        Run.open(tmp_path)
    (run.path / "run.json").unlink()
    with pytest.raises(UserError, match="is not a run folder"):
        Run.open(run.path)
