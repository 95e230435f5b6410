"""A run that prunes: its zeros are there, stay, are resumed, delivered and removed; a run that does not has no mask."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from numpy.testing import assert_allclose, assert_array_equal
from quick import QUICK

from rlplatform import api, config, devices, envs
from rlplatform.compression import canonical, convert
from rlplatform.config import Config
from rlplatform.errors import UserError
from rlplatform.experience import Block, RecurrentBlock
from rlplatform.training import Callback, Learner
from rlplatform.training import learner as learner_module

STEPS, HALF = 256, 128
PRUNED = (
    *QUICK,
    "network.hidden_units=[32, 32]",
    "checkpoint.interval=64",
    "logging.interval=16",
    "prune.final_sparsity=0.9",
    "prune.interval=4",
)
VECTOR = envs.Spec((3,), "float32", 3)


class StopAt(Callback):
    """Stops at the first row of metrics from `step` on."""

    def __init__(self, step):
        self.step = step

    def on_log(self, run, row):
        if run.step >= self.step:
            run.stop("stopped by the test")


def train(path, more=(), **options):
    return api.train(
        "CartPole-v1",
        preset="dqn",
        steps=STEPS,
        seed=1,
        out=path,
        overrides=(*PRUNED, *more),
        progress=False,
        **options,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def uncompiled(monkeypatch):
    """Learners whose programs are not compiled, which takes seconds: their lines run eagerly."""

    def eager(function, *signature):
        return lambda *tensors: function(*tf.nest.pack_sequence_as(signature, tensors))

    monkeypatch.setattr(learner_module, "_compile", eager)


def rows(run):
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds" and "speed/" not in k} for line in lines]


def share_of_zeros(weights):
    kernels = [weight for weight in weights if weight.ndim > 1]
    return sum(np.sum(kernel == 0.0) for kernel in kernels) / sum(kernel.size for kernel in kernels)


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_final_checkpoint_and_the_best_policy_have_the_zeros_that_were_asked_for(whole):
    size = 4 * 32 + 32 * 32 + 32 * 2
    for which in ("last", "best"):
        network = whole.network(which)
        assert abs(share_of_zeros(network.get_weights()) * size - 0.9 * size) <= 3 / 2  # each layer's count is rounded
        assert all(layer.get_weights()[1].any() for layer in network.layers if layer.weights)
    saved = whole.checkpoints().restore().variables
    for part in ("target", "online"):
        assert share_of_zeros([saved[f"agent/{part}/{index}"] for index in range(6)]) == pytest.approx(0.9, abs=2e-3)


def test_the_metrics_show_how_the_zeros_grow(whole):
    logged = [row for row in rows(whole) if "train/loss" in row]
    found, target = (np.array([row[f"prune/{name}"] for row in logged]) for name in ("sparsity", "target_sparsity"))
    steps = np.array([row["step"] for row in logged])
    assert not found[steps < 0.2 * STEPS].any()
    assert (np.diff(found) >= 0.0).all()
    assert (np.diff(target) >= 0.0).all()
    assert found[steps >= 0.8 * STEPS] == pytest.approx(0.9, abs=2e-3)
    between = (steps > 0.2 * STEPS) & (steps < 0.8 * STEPS)
    assert ((found[between] > 0.0) & (found[between] < 0.89)).sum() > 4
    assert (found <= target + 2e-3).all()


def test_the_best_policy_is_chosen_among_those_with_all_zeros(whole):
    evaluated = [row for row in rows(whole) if "eval/return" in row]
    assert ["eval/best_return" in row for row in evaluated] == [row["step"] >= 0.8 * STEPS for row in evaluated]
    assert whole.best().step >= 0.8 * STEPS


@pytest.mark.slow
def test_before_them_there_is_none_and_a_sentence_says_so(tmp_path):
    stopped = train(tmp_path / "run", callbacks=[StopAt(HALF)])
    with pytest.raises(
        UserError, match=r"its first evaluation with all its zeros \(prune.final_sparsity\) is still to"
    ):
        stopped.network("best")
    assert 0.0 < share_of_zeros(stopped.network("last").get_weights()) < 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [(), ("network.noisy=true", "network.dueling=true", "agent.tau=0.1", "agent.target_update_interval=1")]
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, more):
    undisturbed = train(tmp_path / "undisturbed", more)
    train(tmp_path / "run", more, callbacks=[StopAt(HALF)])
    resumed = train(tmp_path / "run", more, resume=True)
    assert rows(resumed) == rows(undisturbed)
    saved, expected = (run.checkpoints().restore().variables for run in (resumed, undisturbed))
    assert saved.keys() == expected.keys()
    for name, value in expected.items():
        assert_array_equal(saved[name], value, err_msg=name)
    for one, other in zip(resumed.best().weights, undisturbed.best().weights, strict=True):
        assert_array_equal(one, other)


@pytest.mark.slow
def test_a_run_that_goes_on_for_longer_loses_none_of_its_zeros(tmp_path, whole):
    train(tmp_path / "run")
    longer = api.train(
        "CartPole-v1", steps=2 * STEPS, out=tmp_path / "run", resume=True, overrides=[], progress=False, seed=1
    )
    for before, after in zip(whole.network("last").get_weights(), longer.network("last").get_weights(), strict=True):
        assert before.ndim == 1 or not after[before == 0.0].any()


# --- every agent ------------------------------------------------------------------------------------------------------

QUICK_ONES = ("soft target", "pqn")
AGENTS = {
    "soft target": {"agent": {"tau": 0.5}},
    "noisy dueling": {"network": {"noisy": True, "dueling": True, "layer_norm": True}},
    "implicit quantiles": {"agent": {"head": "implicit_quantile", "num_quantiles": 4}},
    "pqn": {"agent": {"algorithm": "pqn"}, "training": {"batch_size": 8}},
    "r2d2": {"network": {"recurrent": "gru", "recurrent_units": 6}, "replay": {"burn_in": 2, "sequence_length": 6}},
}


@pytest.mark.parametrize(
    "settings",
    [pytest.param(made, id=name, marks=[pytest.mark.slow] * (name not in QUICK_ONES)) for name, made in AGENTS.items()],
)
def test_what_is_zero_stays_zero_in_both_networks_and_the_rest_learns_on(uncompiled, settings):
    made = Config().replace(
        environment={"num_envs": 2},
        network={"hidden_units": [8, 7]},
        training={"train_interval": 10, "gradient_steps": 2, "batch_size": 4},
        prune={"final_sparsity": 0.7, "interval": 2, "distribution": "uniform"},
    )
    made = made.replace(**settings)
    if made.agent.algorithm == "dqn":
        made = made.replace(replay={"capacity": 60}, agent={"target_update_interval": 1})
    keras.utils.set_random_seed(0)
    learner, rng = Learner(made, VECTOR, devices.strategy("cpu")), np.random.default_rng(0)
    agent = learner.agent
    networks = [agent.online, *([agent.target] if made.agent.algorithm == "dqn" else [])]

    def block():
        slots = Block.empty(5, 2, (3,), "float32")
        slots.observation[:] = rng.normal(size=slots.observation.shape)
        slots.reward[:] = rng.normal(size=slots.reward.shape)
        return RecurrentBlock(*slots, np.zeros((2, 6), np.float32)) if made.is_recurrent else slots

    for _ in range(3):
        learner.insert_block(block())
    for done in (0.1, 0.3, 0.5):
        weights = learner.learn_block(block(), 1e-2, done=done).weights
        assert not agent.is_pruned
    weights = learner.learn_block(block(), 1e-2, done=0.8).weights
    assert agent.is_pruned
    assert_array_equal(weights, learner.weights())  # what is acted with has the zeros too
    before = {variable.name: variable.numpy() for variable in agent.online.trainable_variables}
    masks = {name: values != 0.0 for name, values in before.items() if "kernel" in name}
    assert not any(mask.all() for mask in masks.values())
    for _ in range(4):
        learner.learn_block(block(), 1e-2, done=0.9)
    after = {variable.name: variable.numpy() for variable in agent.online.trainable_variables}
    for name, mask in masks.items():
        assert not after[name][~mask].any()
        assert (after[name] != before[name])[mask].any()
    for network in networks:
        for variable in network.trainable_variables:
            assert "kernel" not in variable.name or not variable.numpy()[~masks[variable.name]].any()
    assert agent.pruning.sparsity(agent.online.trainable_variables) == pytest.approx(0.7, abs=0.02)


def operations(made):
    """How often each operation stands in the program of an update's last step."""
    keras.utils.set_random_seed(0)
    agent = Learner(made, VECTOR, devices.strategy("cpu")).agent
    variables = agent.online.trainable_variables
    signature = [tf.TensorSpec(variable.shape, tf.float32) for variable in variables]
    traced = tf.function(
        lambda *gradients: agent.optimizer.apply(list(gradients), variables, tf.constant(1e-3)), autograph=False
    ).get_concrete_function(*signature)
    kinds = [operation.type for operation in traced.graph.get_operations()]
    return {kind: kinds.count(kind) for kind in kinds}, len(traced.captured_inputs)


def test_without_pruning_the_program_has_no_mask_and_with_it_one_product_more(uncompiled):
    off = Config().replace(network={"hidden_units": [8]}, prune={"interval": 7})
    (plain, inputs), (masked, more_inputs) = operations(off), operations(off.replace(prune={"final_sparsity": 0.5}))
    differences = {kind: masked[kind] - plain.get(kind, 0) for kind in masked if masked[kind] != plain.get(kind, 0)}
    assert differences == {"Mul": 1, "ReadVariableOp": 1, "Placeholder": 1}
    assert more_inputs == inputs + 1
    learner = Learner(off, VECTOR, devices.strategy("cpu"))
    assert learner.agent.pruning is None
    assert not [name for name in learner.state() if "pruning" in name]


# --- what comes after -------------------------------------------------------------------------------------------------


def test_units_that_pruning_has_emptied_are_removed(whole):
    network = whole.network("best")
    small, large = canonical(network), canonical(whole.fresh_network())
    assert small.model.count_params() < 0.7 * large.model.count_params()
    assert sum("which no observation can make matter" in words for words in small.folds) == 2  # both hidden layers
    observations = whole.observations(64)
    values, folded = network(observations).numpy(), small.model(observations).numpy()
    assert_allclose(folded - folded.mean(axis=1, keepdims=True), values - values.mean(axis=1, keepdims=True), atol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_bundle_of_a_pruned_run_is_smaller_than_that_of_its_network_before(tmp_path, whole):
    observations = whole.observations(64)
    before, after = (convert(canonical(made).model, observations) for made in (whole.fresh_network(), whole.network()))
    assert len(after.float_file) < 0.7 * len(before.float_file)
    assert len(after.int8_file) < len(before.int8_file)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["prune.begin=0.8"], "prune.begin must lie below prune.end; got 0.8 and 0.8"),
        (["transfer.frozen_layers=1"], "layers that are pruned must learn: leave transfer.frozen_layers or prune"),
        (
            ["callbacks.stop_on_reward=475"],
            "callbacks.stop_on_reward may end a run before prune.final_sparsity is reached",
        ),
        (
            ["callbacks.early_stopping_patience=3"],
            "reached: leave it at 0, or prune.final_sparsity at 0; got 3 and 0.9",
        ),
    ],
)
def test_what_does_not_go_with_pruning_is_refused(overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        config.change(Config(), ["prune.final_sparsity=0.9", *overrides])
