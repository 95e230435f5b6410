"""From environments with masks, many entries and actions of components to values that are known exactly."""

import json
import warnings

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import rlplatform as rlp
from rlplatform import envs
from rlplatform.config import Config, EnvironmentConfig
from rlplatform.envs import probes
from rlplatform.training import Callback, Run, evaluate

GAMMA = 0.8
PROBES = "rlplatform.envs.probes"


def trained(name, path, steps, kwargs=None, epsilon=1.0, callbacks=()):
    """A run that acts at random while it trains, unless told otherwise, so that only learning is tested."""
    arguments = ", ".join(f"{key}={json.dumps(value)}" for key, value in (kwargs or {}).items())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*text at note is left out")
        return rlp.train(
            f"{PROBES}:{name}",
            steps=steps,
            out=path,
            progress=False,
            callbacks=callbacks,
            overrides=[
                "environment.num_envs=8",
                f"environment.kwargs={{{arguments}}}",
                "network.hidden_units=[64]",
                "training.train_interval=8",
                "training.gradient_steps=2",
                "training.batch_size=64",
                "training.learning_starts=500",
                "replay.capacity=20000",
                f"agent.gamma={GAMMA}",
                "agent.n_step=1",
                "agent.normalize_rewards=false",  # values are compared in the rewards' own units
                "agent.huber_delta=1.0",
                "agent.tau=0.02",
                "agent.target_update_interval=1",
                "optimizer.learning_rate={kind='cosine', start=3e-3, end=1e-5}",
                f"exploration.epsilon={epsilon}",
                f"evaluation.interval={steps}",
                "logging.interval=400",
                "evaluation.episodes=20",
            ],
        )


@pytest.mark.slow
@pytest.mark.parametrize("by", ["info", "observation"])
def test_values_behind_masks_are_those_of_the_best_allowed_action(tmp_path, by):
    """An unmasked maximum in the target would be the greatest reward at every step, off by more than 0.3."""
    run = trained("Masked", tmp_path / "run", 24_000, {"by": by, "ending": 0.3})
    observation, q = probes.Masked(by, ending=0.3).exact_q(GAMMA)
    unmasked = 1.0 / (1.0 - GAMMA * 0.7) * GAMMA * 0.7
    assert unmasked - (q[1, -1] - 1.0) > 0.3
    assert np.abs(run.network()(observation).numpy() - q).max() < 0.1
    assert run.spec.action_mask
    played = evaluate(run.act(), run.config.environment, range(50))
    best = evaluate(
        lambda seen, mask: np.where(mask, seen * np.arange(5), -np.inf).argmax(axis=1),
        run.config.environment,
        range(50),
    )
    assert played.returns.tolist() == best.returns.tolist()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("Signals", 40_000), ("Dials", 12_000)])
def test_values_of_many_entries_and_of_joint_actions_are_learned(tmp_path, name, steps):
    run = trained(name, tmp_path / "run", steps)
    observation, q = getattr(probes, name)().exact_q(GAMMA)
    assert np.abs(run.network()(observation).numpy() - q).max() < 0.1


def test_a_run_records_how_its_observations_and_actions_were_adapted(tmp_path):
    config = Config().replace(environment={"id": f"{PROBES}:Signals"})
    with pytest.warns(UserWarning, match="text at note is left out"):
        spec = envs.spec_of(envs.make(config.environment))
    Run(tmp_path, config, spec).create("1.0")
    saved = rlp.load(tmp_path).spec
    assert saved == spec
    assert [entry["path"] for entry in saved.layout["entries"]] == [["sign"], ["dials"], ["panel", 0], ["panel", 1]]
    assert saved.layout["left_out"] == [{"path": ["note"], "kind": "Text"}]
    dials = envs.spec_of(envs.make(EnvironmentConfig(id=f"{PROBES}:Dials")))
    assert (dials.num_actions, dials.action_layout["sizes"], dials.action_layout["start"]) == (12, [3, 4], [-1, 2])


class StopAt(Callback):
    """Stops a run at a step."""

    def __init__(self, step):
        self.step = step

    def on_log(self, run, row):
        if run.step >= self.step:
            run.stop("stopped by the test")


@pytest.mark.slow
def test_a_run_with_masks_goes_on_bit_for_bit(tmp_path):
    kwargs = {"by": "observation"}
    whole = trained("Masked", tmp_path / "whole", 1_600, kwargs, epsilon=0.3)
    stopped = trained("Masked", tmp_path / "run", 1_600, kwargs, epsilon=0.3, callbacks=[StopAt(800)])
    assert stopped.checkpoints().restore().step == 800
    resumed = rlp.train(f"{PROBES}:Masked", out=tmp_path / "run", resume=True, progress=False)
    for weight, expected in zip(
        resumed.network("last").get_weights(), whole.network("last").get_weights(), strict=True
    ):
        assert_array_equal(weight, expected)
    assert_array_equal(resumed.observations(10_000), whole.observations(10_000))
