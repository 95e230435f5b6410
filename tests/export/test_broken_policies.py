"""A good bundle is broken in the ways in which policies are broken in practice; the gate that should see it does."""

import numpy as np
import pytest
from breaking import edit, reseal
from known import Signs

from rlplatform.export import verify
from rlplatform.runtime import FrameStack, Policy

pytestmark = pytest.mark.slow  # All of them together: each tries a whole bundle.

FLOAT, INT8 = "policy.tflite", "policy_int8.tflite"


def failed(folder):
    """The gates that do not hold, by the files that they examine."""
    reseal(folder)
    found = {}
    for gate in verify(folder, episodes=2, factory=Signs).gates:
        if not gate.passed:
            found.setdefault(gate.file, set()).add(gate.name)
    return found


def test_the_policy_that_is_broken_below_is_good(signs):
    _, verification = signs
    assert verification.passed
    for row in verification.rows:
        assert (row.mean.low, row.mean.high) == (Signs.STEPS, Signs.STEPS)


def test_a_bundle_that_was_only_rewritten_is_as_good(good):
    for file in (FLOAT, INT8):
        edit(good / file, lambda layers: None)
    assert failed(good) == {}


# --- a layer's weights are shuffled ---------------------------------------------------------------------------------


def shuffle(layers):
    kernel = layers[0].arrays[0]
    kernel[:] = np.random.default_rng(0).permutation(kernel.ravel()).reshape(kernel.shape)


@pytest.mark.parametrize(("file", "gate"), [(FLOAT, "converter"), (INT8, "agreement")])
def test_shuffled_weights_of_a_layer_are_refused(good, file, gate):
    edit(good / file, shuffle)
    found = failed(good)
    assert {gate, "return"} <= found[file]


# --- an int8 scale is off by two ------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_an_int8_scale_that_is_off_by_two_is_refused(good, factor):
    def rescale(layers):
        for tensor in layers[-1].tensors:
            tensor.quantization.scale = tensor.quantization.scale * np.float32(factor)

    edit(good / INT8, rescale)
    found = failed(good)
    assert set(found) == {INT8}
    assert "scale" in found[INT8]


def test_an_observation_that_enters_int8_at_twice_its_size_is_refused(good):
    def rescale(manifest):
        scaling = manifest["files"][INT8]["input_scaling"]
        scaling["multiplier"] = [2 * multiplier for multiplier in scaling["multiplier"]]

    reseal(good, rescale)
    found = failed(good)
    assert "scale" in found[INT8]


# --- the observation's mean is dropped ------------------------------------------------------------------------------


def without_mean(layers):
    layers[0].arrays[1][:] = 0.0  # all of it was the normalisation, folded


def test_a_file_without_the_observations_mean_is_refused(good):
    edit(good / FLOAT, without_mean)
    found = failed(good)
    assert {"converter", "return"} <= found[FLOAT]


def test_a_fold_that_forgot_the_observations_mean_is_refused(good):
    """Here the file gives what the folded network gave: golden values are the file's."""
    edit(good / FLOAT, without_mean)
    reseal(good)
    policy = Policy(good, "float")
    with np.load(good / "golden.npz") as golden:
        arrays = dict(golden)
    arrays["q"] = np.stack([policy.q_values(observation) for observation in arrays["observations"]])
    np.savez_compressed(good / "golden.npz", **arrays)
    found = failed(good)
    assert found["network"] == {"algebra"}
    assert "converter" not in found[FLOAT]


def test_an_int8_file_before_which_the_mean_is_dropped_is_refused(good):
    def drop(manifest):
        manifest["files"][INT8]["input_scaling"]["offset"] = [0.0] * 4

    reseal(good, drop)
    found = failed(good)
    assert {"agreement", "return"} <= found[INT8]


# --- frames are stacked newest first --------------------------------------------------------------------------------


def newest_first(layers):
    kernel = layers[0].arrays[0]
    kernel[:] = kernel[:, [2, 3, 0, 1]]


@pytest.mark.parametrize(("file", "gate"), [(FLOAT, "converter"), (INT8, "agreement")])
def test_a_file_that_takes_the_newest_frame_first_is_refused(good, file, gate):
    edit(good / file, newest_first)
    found = failed(good)
    assert {gate, "return"} <= found[file]


def test_a_runtime_that_joins_the_newest_frame_first_is_refused(good, monkeypatch):
    push = FrameStack.push
    monkeypatch.setattr(FrameStack, "push", lambda self, frame: push(self, frame)[[2, 3, 0, 1]])
    assert failed(good) == {"policy.json": {"frames"}}


def test_a_runtime_that_begins_an_episode_with_frames_of_the_last_one_is_refused(good, monkeypatch):
    monkeypatch.setattr(FrameStack, "reset", lambda self: None)
    assert failed(good) == {"policy.json": {"frames"}}


# --- two actions are swapped ----------------------------------------------------------------------------------------


def swap(layers):
    for array in layers[-1].arrays:
        array[[1, 2]] = array[[2, 1]]


def turn_one_action_round(layers):
    layers[-1].arrays[0][1] *= -1


@pytest.mark.parametrize(("file", "gate"), [(FLOAT, "converter"), (INT8, "agreement")])
def test_an_action_whose_sign_is_wrong_is_refused(good, file, gate):
    edit(good / file, turn_one_action_round)
    assert {gate, "return"} <= failed(good)[file]


@pytest.mark.parametrize(("file", "gate"), [(FLOAT, "converter"), (INT8, "agreement")])
def test_swapped_actions_are_refused(good, file, gate):
    edit(good / file, swap)
    found = failed(good)
    assert {gate, "return", "mean return"} <= found[file]


def test_a_first_action_that_the_environment_calls_otherwise_is_refused(good):
    def count_from_one(manifest):
        manifest["action"]["start"] = 1

    reseal(good, count_from_one)
    assert failed(good) == {"policy.json": {"contract"}}
