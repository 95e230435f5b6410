"""A policy that remembers goes all the way to a verified bundle; one whose file or runtime forgets does not."""

import json
import shutil

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from breaking import reseal
from known import maze_run

from rlplatform import api
from rlplatform.compression import flatfile
from rlplatform.envs.memory import TMaze
from rlplatform.errors import UserError
from rlplatform.export import compress, export, verify
from rlplatform.runtime import Policy

FLOAT, INT8 = "policy.tflite", "policy_int8.tflite"
EPISODES = 6


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return maze_run(tmp_path_factory.mktemp("maze") / "run")


@pytest.mark.parametrize(
    ("function", "options", "sentence"),
    [
        (export, {"target": "mcu"}, "the target mcu is .*; one that remembers is exported for the target cpu"),
        (export, {"quantisation": "static"}, "quantisation static .*; for one that remembers it is auto, dynamic or"),
        (export, {"qat": True}, "quantisation-aware training is for networks without a memory; leave --qat out"),
        (export, {"formats": ["tflite", "c"]}, "the format c .*; the others are tflite, saved_model and onnx"),
        (compress, {"budget": "2kB"}, "which has no students .*; leave --budget, --prune and --clusters out, or train"),
        (compress, {"prune": 0.5}, "which has no students"),
        (compress, {"clusters": 8}, "which has no students"),
        (compress, {"target": "mcu"}, "the target mcu is for networks without a memory"),
    ],
)
def test_what_is_not_made_of_a_policy_that_remembers_is_refused_before_anything_is_done(
    run, tmp_path, function, options, sentence
):
    with pytest.raises(UserError, match=rf"has a recurrent network \(gru\).*{sentence}"):
        function(run, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


# --- a good bundle ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    bundle = tmp_path_factory.mktemp("exported") / "bundle"
    return bundle, export(run, bundle, episodes=EPISODES)


@pytest.fixture
def good(exported, tmp_path):
    return shutil.copytree(exported[0], tmp_path / "bundle")


def manifest(path):
    return json.loads((path / "policy.json").read_text())


@pytest.mark.slow
def test_a_policy_that_remembers_the_way_finds_it_as_a_file(exported):
    path, verification = exported
    assert verification.passed
    assert [row.name for row in verification.rows] == ["network", FLOAT, INT8]
    assert [row.mean.estimate for row in verification.rows] == [1.0] * 3
    rows = {row.variant: row for row in verification.rows}
    assert rows["int8"].bytes < rows["float"].bytes
    for variant in ("float", "int8"):
        assert rows[variant].visited.states == EPISODES * 4
        policy, env = Policy(path, variant), TMaze(length=3)
        for seed in range(6):
            observation, _ = env.reset(seed=seed)
            policy.reset()
            rewards, over = [], False
            while not over:
                observation, reward, terminated, truncated, _ = env.step(policy.step(observation))
                rewards.append(reward)
                over = terminated or truncated
            assert rewards == [0.0, 0.0, 0.0, 1.0]
    assert api.evaluate(path, episodes=5).evaluation.returns.tolist() == [1.0] * 5


@pytest.mark.slow
def test_every_gate_is_tried_by_name_and_the_manifest_says_what_is_remembered(exported):
    path, verification = exported
    tried = {(gate.name, gate.file) for gate in verification.gates}
    common = ("operators", "runtime reference", "runtime reference state", "return", "mean return")
    assert tried == (
        {("hashes", "policy.json"), ("contract", "policy.json"), ("memory", "policy.json")}
        | {("algebra", "network"), ("state", "network"), ("converter", FLOAT), ("state", FLOAT)}
        | {(name, FLOAT) for name in common}
        | {(name, INT8) for name in (*common, "agreement", "saturation", "scale")}
    )
    said = manifest(path)
    assert said["state"] == {"kind": "gru", "size": 32, "initial": 0.0}
    assert any("Policy.reset and Policy.step" in sentence for sentence in said["preprocessing"])
    assert said["files"][INT8]["quantisation"]["method"] == "dynamic"
    assert f"All {len(verification.gates)} gates hold." in (path / "report.html").read_text()
    with np.load(path / "golden.npz") as golden:
        first = golden["first"]
        assert first.sum() >= 8
        assert not golden["states"][first].any()
        goes_on = np.flatnonzero(~first)
        np.testing.assert_allclose(golden["next_states"][goes_on - 1], golden["states"][goes_on], atol=1e-5)


@pytest.mark.slow
def test_a_bundle_that_remembers_verifies_again(good):
    assert failed(good) == {}


# --- broken ones ------------------------------------------------------------------------------------------------------


def failed(folder):
    """The gates that do not hold, by the files that they examine."""
    reseal(folder)
    found = {}
    for gate in verify(folder, episodes=EPISODES).gates:
        if not gate.passed:
            found.setdefault(gate.file, set()).add(gate.name)
    return found


def forget_state(path):
    """Whatever state is given, the file computes with zeros."""
    model = flatfile.read(path.read_bytes())
    graph = model.subgraphs[0]
    state = next(int(given.tensorIndex) for given in model.signatureDefs[0].inputs if given.name == b"state")
    shape = graph.tensors[state].shape
    zeros, buffer = schema.TensorT(), schema.BufferT()
    buffer.data = np.zeros(4 * int(np.prod(shape)), np.uint8)
    model.buffers.append(buffer)
    zeros.shape, zeros.type, zeros.buffer = shape, schema.TensorType.FLOAT32, len(model.buffers) - 1
    graph.tensors.append(zeros)
    for operator in graph.operators:
        operator.inputs = [len(graph.tensors) - 1 if index == state else int(index) for index in operator.inputs]
    path.write_bytes(flatfile.write(model))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "gates"),
    [(FLOAT, {"converter", "state", "return"}), (INT8, {"agreement", "return"})],
)
def test_a_file_that_drops_its_state_is_refused(good, file, gates):
    forget_state(good / file)
    found = failed(good)
    assert set(found) == {file}
    assert gates <= found[file]


@pytest.mark.slow
def test_a_runtime_that_does_not_forget_is_refused(good, monkeypatch):
    monkeypatch.setattr(Policy, "reset", lambda self: None)
    assert failed(good) == {"policy.json": {"memory"}}


@pytest.mark.slow
def test_a_runtime_that_forgets_within_an_episode_is_refused(good, monkeypatch):
    step = Policy.step

    def forgetful(self, frame, action_mask=None):
        self.reset()
        return step(self, frame, action_mask)

    monkeypatch.setattr(Policy, "step", forgetful)
    assert failed(good) == {"policy.json": {"memory"}}
