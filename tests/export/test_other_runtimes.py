"""A bundle's files on other runtimes than LiteRT as it plays: ONNX, a microcontroller's kernels, what is missing."""

import importlib.util

import numpy as np
import pytest
from breaking import reseal
from known import Signs
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.compression import micro, onnx_file
from rlplatform.compression.micro_worker import STEP
from rlplatform.errors import RunError
from rlplatform.export import read, verify
from rlplatform.runtime import Policy

pytestmark = pytest.mark.slow  # All of them together: each tries a whole bundle.

INT8, ONNX = "policy_int8.tflite", "policy.onnx"

needs_onnx = pytest.mark.skipif(onnx_file.missing_converter() is not None, reason="the extra onnx is not installed")
needs_micro = pytest.mark.skipif(micro.missing() is not None, reason="the extra mcu is not installed")


def gates(verification):
    return {(gate.name, gate.file): gate.passed for gate in verification.gates}


def refused(folder):
    """The gates that do not hold."""
    reseal(folder)
    return {found for found, passed in gates(verify(folder, episodes=1, factory=Signs)).items() if not passed}


def golden(folder):
    with np.load(folder / "golden.npz") as arrays:
        return arrays["observations"]


@needs_onnx
def test_an_onnx_file_has_the_contract_of_the_float_file_and_is_hashed_like_it(signs):
    import onnxruntime

    folder, verification = signs
    session = onnxruntime.InferenceSession(folder / ONNX)
    assert [(each.name, each.type, each.shape) for each in session.get_inputs()] == [
        ("observation", "tensor(float)", [1, 4])
    ]
    outputs = {each.name: (each.type, each.shape) for each in session.get_outputs()}
    assert outputs == {"action": ("tensor(int32)", [1]), "q": ("tensor(float)", [1, 4])}
    assert gates(verification)["runtime ONNX", ONNX]
    assert read(folder)["files"][ONNX]["bytes"] == (folder / ONNX).stat().st_size


@needs_onnx
def test_an_onnx_file_answers_as_the_float_file(signs):
    folder, _ = signs
    policy, observations = Policy(folder, "float"), golden(folder)[500:600]
    answers = onnx_file.run((folder / ONNX).read_bytes(), observations)
    assert_allclose(answers.q, [policy.q_values(each) for each in observations], rtol=1e-5, atol=1e-5)
    assert_array_equal(answers.actions, policy.act_batch(observations))


@needs_onnx
def test_an_onnx_file_whose_actions_alone_are_wrong_is_refused(good):
    import onnx

    model = onnx.load(good / ONNX)
    chooses = next(node for node in model.graph.node if node.op_type == "ArgMax")
    chooses.op_type = "ArgMin"
    onnx.save(model, good / ONNX)
    assert refused(good) == {("runtime ONNX", ONNX)}


@needs_onnx
@pytest.mark.parametrize("observations", [np.zeros((1, 3), np.float32), np.zeros((1, 4), np.uint8)])
def test_what_onnxruntime_does_not_take_is_told_in_its_own_words(signs, observations):
    with pytest.raises(RunError, match=r"onnxruntime does not run it: .*(observation|expected: \(tensor\(float\)\))"):
        onnx_file.run((signs[0] / ONNX).read_bytes(), observations)


def test_bytes_that_are_no_onnx_file_are_told_in_a_sentence():
    pytest.importorskip("onnxruntime")
    with pytest.raises(RunError, match="onnxruntime does not run it: "):
        onnx_file.run(b"no model", np.zeros((1, 4), np.float32))


@needs_micro
def test_a_microcontrollers_kernels_give_litert_s_values_in_the_least_arena(signs):
    folder, verification = signs
    assert gates(verification)["runtime tflite-micro", INT8]
    entry, content, observations = read(folder)["files"][INT8], (folder / INT8).read_bytes(), golden(folder)[::10]
    answers = micro.run(content, observations, entry["input_scaling"])
    assert answers.arena_bytes == entry["arena_bytes"]
    assert answers.arena_bytes % STEP == 0
    policy = Policy(folder, "int8")
    expected = np.stack([policy.q_values(each) for each in observations])
    assert np.abs(answers.q - expected).max() <= 2.01 * policy._graph.q.scale
    with pytest.raises(RunError, match=f"does not run it in an arena of {answers.arena_bytes - STEP:,} bytes: "):
        micro.run(content, observations, entry["input_scaling"], answers.arena_bytes - STEP)


@needs_micro
def test_an_arena_that_ends_the_process_is_told_like_any_other(signs):
    content, scaling = (signs[0] / INT8).read_bytes(), read(signs[0])["files"][INT8]["input_scaling"]
    with pytest.raises(RunError, match="in an arena of 64 bytes: its process ended with -"):
        micro.run(content, golden(signs[0])[:1], scaling, 64)


@needs_micro
def test_a_bundle_that_promises_too_small_an_arena_is_refused(good):
    def promise(manifest):
        manifest["files"][INT8]["arena_bytes"] = 512

    reseal(good, promise)
    assert refused(good) == {("runtime tflite-micro", INT8)}


def test_a_float_file_is_not_what_microcontrollers_are_compared_by(signs):
    with pytest.raises(RunError, match="it is not int8 or int16 in and out"):
        micro.run((signs[0] / "policy.tflite").read_bytes(), golden(signs[0])[:1])


@needs_onnx
def test_a_runtime_that_is_not_installed_fails_nothing_and_is_named(signs, monkeypatch):
    found = importlib.util.find_spec
    absent = ("onnxruntime", "tflite_micro")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else found(name))
    verification = verify(signs[0], episodes=1, factory=Signs)
    assert verification.passed
    assert not {"runtime ONNX", "runtime tflite-micro"} & {gate.name for gate in verification.gates}
    assert verification.unchecked == (
        "gate 'runtime ONNX' was not tried for policy.onnx: onnxruntime is not installed here "
        "(pip install 'rlplatform[onnx]')",
        "gate 'runtime tflite-micro' was not tried for policy_int8.tflite: tflite-micro is not installed here "
        "(pip install 'rlplatform[mcu]')",
    )
    assert verification.table().splitlines()[-2:] == list(verification.unchecked)
    assert verification.to_json()["unchecked"] == verification.unchecked
