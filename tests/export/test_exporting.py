"""A policy known by heart goes all the way to a verified bundle, and broken ones do not."""

import ctypes
import dataclasses
import html
import html.parser
import importlib.util
import json
import pathlib
import shutil
import subprocess
import types

import gymnasium as gym
import numpy as np
import pytest
import tf_keras as keras
from breaking import edit, reseal
from known import cartpole_run

from rlplatform import api, compression, envs
from rlplatform.config import Config
from rlplatform.errors import RunError, UserError
from rlplatform.export import compress, export, exporting, read, verify
from rlplatform.runtime import Policy
from rlplatform.training import Best, Run

EPISODES = 4


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    run = cartpole_run(folder / "run")
    said = []
    verification = export(run, folder / "bundle", episodes=EPISODES, progress=said.append)
    return run, folder / "bundle", verification, said


@pytest.fixture
def copied(exported, tmp_path):
    """A copy of the bundle that a test may break."""
    return shutil.copytree(exported[1], tmp_path / "bundle")


def test_a_policy_that_is_known_to_score_500_scores_500_as_a_file(exported):
    _, path, verification, _ = exported
    assert verification.passed
    assert [row.name for row in verification.rows] == ["network", "policy.tflite", "policy_int8.tflite"]
    for row in verification.rows:
        assert (row.mean.low, row.mean.estimate, row.mean.high) == (500.0, 500.0, 500.0)
    observation, _ = (env := gym.make("CartPole-v1")).reset(seed=123)
    policy, total, over = Policy(path), 0.0, False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(policy.act(observation))
        total, over = total + reward, terminated or truncated
    env.close()
    assert total == 500.0


def test_a_report_tells_all_on_one_page_that_needs_nothing_else(exported):
    _, path, verification, _ = exported
    text = (path / "report.html").read_text()
    tags = []
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed(text)
    assert not any({"src", "href"} & set(attributes) for _, attributes in tags)
    assert sum(tag == "tr" for tag, _ in tags) >= 1 + len(verification.rows) + 1 + len(verification.gates)
    assert f"All {len(verification.gates)} gates hold." in text
    for row in verification.rows:
        assert f"<td>{row.name}<td>" in text
        assert f"<td>{row.bytes:,}<td>" in text
    for gate in verification.gates:
        assert html.escape(gate.sentence) in text
    assert "centred the values of the actions" in text


def test_every_gate_is_tried_by_name(exported):
    _, _, verification, _ = exported
    tried = {(gate.name, gate.file) for gate in verification.gates}
    common = ("operators", "runtime reference", "return", "mean return")
    assert tried == (
        {("hashes", "policy.json"), ("contract", "policy.json"), ("algebra", "network"), ("converter", "policy.tflite")}
        | {(name, "policy.tflite") for name in common}
        | {(name, "policy_int8.tflite") for name in (*common, "agreement", "saturation", "scale")}
    )


def test_the_bundle_holds_what_it_promises(exported):
    run, path, _, _ = exported
    manifest = read(path)
    assert {"policy.tflite", "policy_int8.tflite", "golden.npz", "saved_model/saved_model.pb"} <= set(manifest["files"])
    assert manifest["environment"]["id"] == "CartPole-v1"
    assert manifest["environment"]["gymnasium"] == gym.__version__
    observation = {
        "shape": [4],
        "dtype": "float32",
        "frame_shape": [4],
        "frame_stack": 1,
        "layout": None,
        "binary": False,
    }
    assert manifest["observation"] == observation
    assert manifest["action"] == {"count": 2, "start": 0, "mask": False, "layout": None}
    assert manifest["network"]["folds"] == ["centred the values of the actions"]
    provenance = manifest["provenance"]
    assert (provenance["seed"], provenance["steps"], provenance["run"]) == (7, 12_345, "run")
    assert 'id = "CartPole-v1"' in provenance["config"]
    quantisation = manifest["files"]["policy_int8.tflite"]["quantisation"]
    assert quantisation["method"] in ("dynamic", "dynamic_all")  # by which packages there are
    assert quantisation["weights"]["int8"] >= 64 * 64
    assert manifest["verification"]["passed"]
    assert not manifest["verification"]["forced"]
    assert manifest["default"] in manifest["variants"]
    assert manifest["files"]["policy.tflite"]["bytes"] == (path / "policy.tflite").stat().st_size
    assert run.path.is_dir()


def test_half_of_the_golden_states_are_those_with_the_smallest_gaps(exported):
    run, path, _, _ = exported
    with np.load(path / "golden.npz") as golden:
        observations, q, actions = golden["observations"], golden["q"], golden["actions"]
    assert len(observations) == len(q) == len(actions) == 1_000
    expected = run.network()(observations).numpy()
    np.testing.assert_array_equal(actions, expected.argmax(axis=1))
    np.testing.assert_allclose(q, expected - expected.mean(axis=1, keepdims=True), atol=1e-4)
    gaps = np.abs(q[:, 0] - q[:, 1])
    assert gaps[:500].max() <= gaps[500:].min()


def test_progress_is_told_in_order(exported):
    said = exported[3]
    assert said[:2] == ["collecting observations", "converting for cpu"]
    assert said[-1] == f"playing {EPISODES} episodes: policy_int8.tflite"


def test_a_verification_is_read_by_people_and_by_programs(exported):
    _, _, verification, _ = exported
    lines = verification.table().splitlines()
    assert lines[0].startswith(f"CartPole-v1: {EPISODES} episodes for each, on the same seeds")
    assert [line.split()[0] for line in lines[2:5]] == ["network", "policy.tflite", "policy_int8.tflite"]
    assert "500.0 ± 0.0" in lines[4]
    assert lines[5] == f"all {len(verification.gates)} gates passed"
    tree = json.loads(json.dumps(verification.to_json(), allow_nan=False))
    assert tree["passed"]
    assert tree["rows"][2]["visited"]["bins"][0]["low"] == 0.0
    assert tree["rows"][0]["mean"]["estimate"] == 500.0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"microseconds": 1.0}, "int8"),
        ({"microseconds": 1e6}, "float"),
        ({"microseconds": 1.0, "bytes": 10**9}, "float"),
    ],
)
def test_the_int8_file_is_the_default_where_it_is_smaller_and_not_much_slower(exported, changes, expected):
    network, float_row, int8_row = exported[2].rows
    rows = (network, float_row, dataclasses.replace(int8_row, **changes))
    assert exporting._default(dataclasses.replace(exported[2], rows=rows)) == expected


def test_verify_needs_nothing_but_the_bundle(exported, copied):
    shutil.copytree(exported[0].path, copied.parent / "elsewhere")
    verification = verify(copied, episodes=2, seed=5)
    assert verification.passed
    assert verification.episodes == 2
    assert verification.path == copied


def test_verify_refuses_a_changed_byte_by_the_files_name(copied):
    content = bytearray((copied / "policy_int8.tflite").read_bytes())
    content[len(content) // 2] ^= 1
    (copied / "policy_int8.tflite").write_bytes(content)
    with pytest.raises(RunError, match=r"gate 'hashes' failed: .*policy_int8\.tflite was changed after it was written"):
        verify(copied, episodes=1)


def test_verify_without_the_network_says_what_is_missing(copied):
    shutil.rmtree(copied / "saved_model")
    reseal(copied)
    with pytest.raises(UserError, match="has no saved_model/, so there is no network to compare its files with"):
        verify(copied, episodes=1)


# --- what export makes of a file that fails; test_broken_policies.py has more of them --------------------------------


def swap_the_actions(layers):
    for array in layers[-1].arrays:
        array[:] = array[::-1].copy()


def test_golden_values_of_another_network_fail_the_algebra_gate(copied):
    with np.load(copied / "golden.npz") as golden:
        arrays = dict(golden)
    arrays["q"] = arrays["q"][::-1]
    np.savez_compressed(copied / "golden.npz", **arrays)
    reseal(copied)
    failed = {gate.name for gate in verify(copied, episodes=1).gates if not gate.passed}
    assert "algebra" in failed


@pytest.fixture
def conversion_that_swaps_actions(exported, tmp_path_factory, monkeypatch):
    swapped = shutil.copy(exported[1] / "policy_int8.tflite", tmp_path_factory.mktemp("swapped"))
    edit(pathlib.Path(swapped), swap_the_actions)
    files = compression.Files(
        (exported[1] / "policy.tflite").read_bytes(), pathlib.Path(swapped).read_bytes(), None, {"method": "dynamic"}
    )
    monkeypatch.setattr(exporting.compression, "convert", lambda *arguments, **options: files)


def test_export_refuses_what_fails_and_writes_nothing(exported, conversion_that_swaps_actions, tmp_path):
    with pytest.raises(RunError, match=r"gate 'agreement' failed for policy_int8\.tflite: .*; .*out was not written"):
        export(exported[0], tmp_path / "out", episodes=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_export_by_force_says_so_and_does_not_prefer_the_failed_file(exported, conversion_that_swaps_actions, tmp_path):
    verification = export(exported[0], tmp_path / "out", episodes=2, force=True)
    assert not verification.passed
    manifest = read(tmp_path / "out")
    assert manifest["verification"]["forced"]
    assert not manifest["verification"]["passed"]
    assert "gate 'agreement' failed for policy_int8.tflite" in manifest["verification"]["failures"][0]
    assert manifest["default"] == "float"
    assert Policy(tmp_path / "out").variant == "float"


@pytest.mark.slow
def test_without_the_format_saved_model_the_bundle_has_no_network(exported, monkeypatch, tmp_path):
    files = [(exported[1] / name).read_bytes() for name in ("policy.tflite", "policy_int8.tflite")]
    made = compression.Files(*files, None, {"method": "dynamic"})
    monkeypatch.setattr(exporting.compression, "convert", lambda *arguments, **options: made)
    verification = export(exported[0], tmp_path / "out", formats=["tflite"], episodes=1)
    assert verification.passed
    assert not (tmp_path / "out" / "saved_model").exists()
    files = {"policy.tflite", "policy_int8.tflite", "golden.npz", "report.html"}
    assert set(read(tmp_path / "out")["files"]) == files


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"formats": ["onxn"]}, "unknown format 'onxn'; did you mean 'onnx'?"),
        ({"formats": ["savedmodel"]}, "unknown format 'savedmodel'; did you mean 'saved_model'?"),
        ({"target": "mcux"}, "unknown target 'mcux'; did you mean 'mcu'?"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_done(exported, tmp_path, arguments, sentence):
    with pytest.raises(UserError) as refusal:
        export(exported[0], tmp_path / "out", **arguments)
    assert str(refusal.value) == sentence
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_its_extra_is_refused_with_what_to_install(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for function in (export, compress):
        with pytest.raises(UserError) as refusal:
            function(exported[0], tmp_path / "out", formats=["tflite", "onnx"])
        assert str(refusal.value) == (
            "the format onnx cannot be written: tf2onnx is not installed here (pip install 'rlplatform[onnx]')"
        )
    assert list(tmp_path.iterdir()) == []


def test_export_does_not_replace_a_bundle_unasked(exported):
    with pytest.raises(UserError, match="holds a bundle already"):
        export(exported[0], exported[1])


# --- the other target, stacked frames, actions that begin elsewhere -------------------------------------------------

SHIFTED = """
import gymnasium as gym


class Shifted(gym.ActionWrapper):
    def __init__(self):
        super().__init__(gym.make("CartPole-v1"))
        self.action_space = gym.spaces.Discrete(2, start=3)

    def action(self, action):
        assert action in (3, 4)
        return action - 3
"""


def assert_c_takes_the_golden_actions(folder):
    """Both halves of `policy.c`, where the gap of the values is clear."""
    command = ["gcc", "-std=c99", "-O2", "-shared", "-fPIC", "-o", "policy.so", "policy.c"]
    subprocess.run(command, cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "policy.so"))
    golden = np.load(folder / "golden.npz")
    quantised = np.zeros(golden["observations"].shape[1], np.int8)
    whole = quantised.ctypes.data_as(ctypes.c_void_p)
    clear = np.abs(np.diff(golden["q"], axis=1))[:, 0] > 0.05 * np.abs(golden["q"]).max()
    assert clear.sum() > 100
    for observation, action in zip(golden["observations"][clear], golden["actions"][clear], strict=True):
        given = np.ascontiguousarray(observation, np.float32).ctypes.data_as(ctypes.c_void_p)
        assert library.policy_act(given, None, None) == action
        library.policy_quantise(given, whole)
        assert library.policy_act_int8(whole, None, None) == action


@pytest.mark.slow
def test_a_microcontrollers_bundle_of_stacked_frames_and_shifted_actions_plays_as_well(tmp_path):
    (tmp_path / "shifted.py").write_text(SHIFTED)
    env_id = f"{tmp_path}/shifted.py:Shifted"
    run = cartpole_run(tmp_path / "run", env_id, frame_stack=2, action_start=3)
    formats = ["tflite", "saved_model", "c"]
    verification = export(run, tmp_path / "bundle", target="mcu", formats=formats, episodes=EPISODES)
    assert verification.passed
    assert_c_takes_the_golden_actions(tmp_path / "bundle")
    tried = [(gate.name, gate.file) for gate in verification.gates]
    assert {("runtime C", "policy.tflite"), ("runtime C", "policy_int8.tflite")} <= set(tried)
    assert {("contract", "policy.json"), ("frames", "policy.json")} <= set(tried)
    assert api.evaluate(tmp_path / "bundle", episodes=2).evaluation.returns.tolist() == [500.0, 500.0]
    manifest = read(tmp_path / "bundle")
    observation = {
        "shape": [8],
        "dtype": "float32",
        "frame_shape": [4],
        "frame_stack": 2,
        "layout": None,
        "binary": False,
    }
    assert manifest["observation"] == observation
    assert manifest["preprocessing"]
    assert len(manifest["files"]["policy_int8.tflite"]["input_scaling"]["offset"]) == 8
    policy = Policy(tmp_path / "bundle", "int8")
    env = envs.make_single(run.config.environment)
    policy.reset()
    (observation, _), total, over = env.reset(seed=3), 0.0, False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(policy.step(observation))
        total, over = total + reward, terminated or truncated
    env.close()
    assert total == 500.0


# --- action masks ---------------------------------------------------------------------------------------------------


def masked_run(path, by):
    """A run whose best policy is that of `probes.Masked`: the last allowed action at 1, the first one at -1."""
    config = Config().replace(
        environment={"id": "rlplatform.envs.probes:Masked", "kwargs": {"by": by}}, network={"hidden_units": [8]}
    )
    env = envs.make_single(config.environment)
    env.reset(seed=0)
    run = Run(path, config, envs.spec_of(env))
    env.close()
    path.mkdir()
    run.create("0")
    up = np.repeat([1.0, 0.0], 4)
    worth = np.linspace(-1, 1, 5)
    weights = [2 * up[None] - 1, np.zeros(8), np.where(up[:, None] == 1, worth, -worth) / 4, np.full(5, 3.0)]
    observations = np.array([[-1.0], [1.0]] * 50, np.float32)
    run.save_best(Best(1, 1.0, [weight.astype(np.float32) for weight in weights]), observations)
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by", "target"), [("observation", "cpu"), pytest.param("info", "mcu", marks=pytest.mark.slow)]
)
def test_a_policy_under_masks_is_exported_verified_and_never_takes_what_is_forbidden(tmp_path, by, target):
    pytest.importorskip("tf2onnx")
    run = masked_run(tmp_path / "run", by)
    formats = ["tflite", "saved_model", "onnx"]
    verification = export(run, tmp_path / "bundle", target=target, formats=formats, episodes=20)
    assert verification.passed
    assert "runtime ONNX" in {gate.name for gate in verification.gates}
    network, float_row, int8_row = verification.rows
    assert network.mean == float_row.mean == int8_row.mean  # the same actions in every step of every episode
    assert network.mean.estimate > 1.0 > verification.random_return  # actions at random are worth nothing
    assert float_row.visited.overall == int8_row.visited.overall == 1.0
    manifest = read(tmp_path / "bundle")
    assert manifest["action"]["mask"]
    with np.load(tmp_path / "bundle" / "golden.npz") as golden:
        observations, masks, actions = golden["observations"], golden["masks"], golden["actions"]
    expected = [
        np.flatnonzero(mask)[-1 if value > 0 else 0] for value, mask in zip(observations[:, 0], masks, strict=True)
    ]
    np.testing.assert_array_equal(actions, expected)
    assert api.evaluate(tmp_path / "bundle", episodes=3).evaluation.mean > 0.5
    for variant in ("float", "int8"):
        policy = Policy(tmp_path / "bundle", variant)
        np.testing.assert_array_equal(policy.act_batch(observations, masks), expected)
        with pytest.raises(ValueError, match="a decision needs one of shape"):
            policy.act(observations[0])
    if by == "observation":
        given = {"value": np.array([1.0], np.float32), "action_mask": np.array([1, 0, 1, 0, 0], np.int8)}
        assert policy.act(given) == 2
        given["value"] = -given["value"]
        assert policy.act(given) == 0


@pytest.mark.parametrize(
    ("layer", "failed", "advises"),
    [("norm", "agreement", True), ("norm", "return", False), ("relu", "agreement", False)],
)
def test_where_layer_norm_fails_in_int8_a_smaller_network_is_recommended(layer, failed, advises):
    made = compression.Normalize(1e-3) if layer == "norm" else keras.layers.ReLU()
    subject = types.SimpleNamespace(
        files=types.SimpleNamespace(quantisation={"method": "static"}),
        canonical=compression.Canonical(keras.Sequential([keras.Input((4,)), made]), (), centred=False),
    )
    verification = types.SimpleNamespace(gates=[compression.Gate(failed, "policy_int8.tflite", False, "no")])
    assert ("--budget" in exporting._advice(subject, verification)) == advises


@pytest.mark.parametrize(
    ("failed", "narrow"),
    [
        ([("agreement", "policy_int8.tflite"), ("return", "policy_int8.tflite")], True),
        ([("return", "policy.tflite"), ("return", "policy_int8.tflite")], False),
        ([("algebra", "network"), ("agreement", "policy_int8.tflite")], False),
    ],
)
def test_int16_activations_are_no_answer_to_what_fails_in_float(failed, narrow):
    model = keras.Sequential([keras.layers.Dense(2, input_shape=(4,))])
    subject = types.SimpleNamespace(
        files=types.SimpleNamespace(quantisation={"method": "static"}), canonical=types.SimpleNamespace(model=model)
    )
    gates = [compression.Gate(name, file, False, "") for name, file in failed]
    gates.append(compression.Gate("converter", "policy.tflite", True, ""))
    assert exporting._is_narrow(subject, "mcu", types.SimpleNamespace(gates=gates)) is narrow


@pytest.mark.exhaustive
@pytest.mark.slow
def test_training_for_int8_can_be_asked_for_and_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "AWARE_STATES", 2_000)
    run = cartpole_run(tmp_path / "run")
    verification = export(run, tmp_path / "bundle", "mcu", episodes=4, qat=True)
    assert verification.passed
    quantisation = read(tmp_path / "bundle")["files"]["policy_int8.tflite"]["quantisation"]
    told = quantisation["quantisation_aware_training"]
    assert quantisation["method"] == "static"
    assert (
        "of other episodes, half of them the hardest, the file without it takes the network's action in"
        in told["reason"]
    )
    with pytest.raises(UserError, match="quantisation-aware training is for static int8; leave --qat out for int16x8"):
        export(run, tmp_path / "other", "mcu", quantisation="int16x8", qat=True)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_policy_with_int16_activations_passes_its_gates_and_plays(tmp_path):
    run = cartpole_run(tmp_path / "run")
    verification = export(run, tmp_path / "bundle", "mcu", ("tflite", "c"), episodes=4, quantisation="int16x8")
    assert verification.passed
    assert verification.rows[-1].interquartile_mean.estimate == 500.0
    policy = Policy(tmp_path / "bundle", "int8")
    assert policy.act([0.0, 0.0, 0.2, 1.0]) == 1
    assert "policy_act_int16" in (tmp_path / "bundle" / "policy.h").read_text()
    assert sum(gate.name == "runtime C" and gate.passed for gate in verification.gates) == 2
