"""Policies in C: compiled by gcc and compared with LiteRT, number by number."""

import ctypes
import math
import shutil
import subprocess

import numpy as np
import pytest
import tf_keras as keras
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.agents import networks
from rlplatform.compression import canonical, convert, students
from rlplatform.config import Config
from rlplatform.errors import UserError
from rlplatform.export import c_layers, c_source
from rlplatform.runtime import open_graph

STRICT = (
    "-std=c99",
    "-ffreestanding",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Werror",
    "-pedantic",
    "-O2",
    "-shared",
    "-fPIC",
)
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")


def policy(text, shape, num_actions=4, target="mcu", seed=0, quantisation="auto"):
    """The converted files of a random student, and observations that it was calibrated on."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    if len(shape) == 3:
        seen = rng.integers(0, 256, (200, *shape), np.uint8)
    else:
        seen = (rng.normal(size=(400, *shape)) * np.linspace(0.1, 20, shape[0])).astype(np.float32)
    model = canonical(students.build(students.parse(text), seen, num_actions)).model
    return convert(model, seen, target, quantisation), seen


class Compiled:
    """The C code as a library."""

    def __init__(self, folder, files, about="a test"):
        int8 = c_layers.read_layers(files.int8_file)
        scaling = None if files.scaling is None else files.scaling._asdict()
        header, source = c_source.write(c_layers.read_layers(files.float_file), int8, about, scaling)
        (folder / "policy.h").write_text(header)
        (folder / "policy.c").write_text(source)
        done = subprocess.run(
            ["gcc", *STRICT, "-o", "policy.so", "policy.c"], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        self.library = ctypes.CDLL(str(folder / "policy.so"))
        self.source, self.header = source, header

    def call(self, name, observation, num_actions, kind, allowed=None):
        q = np.zeros(num_actions, kind)
        mask = None if allowed is None else allowed.astype(np.uint8).ctypes.data_as(ctypes.c_void_p)
        observation = np.ascontiguousarray(observation)
        action = getattr(self.library, name)(
            observation.ctypes.data_as(ctypes.c_void_p), mask, q.ctypes.data_as(ctypes.c_void_p)
        )
        return action, q

    def quantised(self, observation, kind=np.int8):
        observation = np.ascontiguousarray(observation, np.float32)
        made = np.zeros(observation.size, kind)
        pointers = (array.ctypes.data_as(ctypes.c_void_p) for array in (observation, made))
        self.library.policy_quantise(*pointers)
        return made


@needs_gcc
@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "shape"),
    [("linear", (4,)), ("16-8", (8,)), ("64-64", (6,)), ("4x3s1 16", (10, 10, 3)), ("8x4s2-6x3s1 12", (20, 20, 2))],
)
def test_c_gives_the_values_and_actions_of_litert(tmp_path, text, shape):
    files, seen = policy(text, shape)
    compiled = Compiled(tmp_path, files)
    scaling = None if files.scaling is None else files.scaling._asdict()
    float_graph = open_graph(files.float_file, "float")
    int8_graph = open_graph(files.int8_file, "int8", scaling=scaling)
    apart = 0
    for observation in seen[:200]:
        expected = float_graph.q_values(observation)
        action, q = compiled.call("policy_act", observation.astype(np.float32), 4, np.float32)
        assert_allclose(q, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
        assert action == q.argmax()
        entered = int8_graph.quantise(observation) if int8_graph.quantise else observation[None]
        assert_array_equal(compiled.quantised(observation), entered.ravel())
        int8_graph.write(int8_graph.observation.index, entered)
        int8_graph.invoke()
        expected = int8_graph.read(int8_graph.q.index, 0)[0].astype(int)
        action, q = compiled.call("policy_act_int8", entered, 4, np.int8)
        apart = max(apart, np.abs(q.astype(int) - expected).max())
        assert action == q.argmax()
    assert apart <= 2  # XNNPACK scales in float, C as the reference kernels do


@needs_gcc
@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "shape"), [("linear", (4,)), ("16-8", (8,)), ("64-64", (6,)), ("8x4s2-6x3s1 12", (20, 20, 2))]
)
def test_int16_activations_in_c_give_litert_s_numbers_to_the_last_unit(tmp_path, text, shape):
    files, seen = policy(text, shape, quantisation="int16x8")
    compiled = Compiled(tmp_path, files)
    scaling = None if files.scaling is None else files.scaling._asdict()
    graph = open_graph(files.int8_file, "int16", scaling=scaling)
    assert "policy_act_int16" in compiled.header
    assert "policy_act_int8" not in compiled.header
    for observation in seen[:200]:
        entered = graph.quantise(observation)
        assert np.abs(compiled.quantised(observation, np.int16) - entered.ravel().astype(int)).max() <= 1
        graph.write(graph.observation.index, entered)
        graph.invoke()
        action, q = compiled.call("policy_act_int16", entered, 4, np.int16)
        assert_array_equal(q, graph.read(graph.q.index, 0)[0])
        assert action == q.argmax()


def with_layer_norm(hidden, target, quantisation):
    """The files of a random network with LayerNorm, and observations of sizes that differ fiftyfold."""
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(1)
    network = networks.build(Config().replace(network={"hidden_units": hidden, "layer_norm": True}), (6,), "float32", 4)
    for layer in network.layers:
        if isinstance(layer, keras.layers.LayerNormalization):
            units = layer.gamma.shape
            layer.set_weights([rng.uniform(-1.5, 1.5, units), rng.normal(0.0, 0.3, units)])
    seen = (rng.uniform(-1.0, 1.0, (400, 6)) * rng.permutation(np.geomspace(0.02, 1.0, 400))[:, None]).astype(
        np.float32
    )
    return convert(canonical(network).model, seen, target, quantisation), seen


@needs_gcc
@pytest.mark.slow
@pytest.mark.parametrize("hidden", [(16,), (64, 48)])
def test_layer_norm_in_c_gives_litert_s_values_in_float_and_with_int16_activations(tmp_path, hidden):
    files, seen = with_layer_norm(hidden, "mcu", "int16x8")
    compiled = Compiled(tmp_path, files)
    graph = open_graph(files.float_file, "float")
    int16_graph = open_graph(files.int8_file, "int16", scaling=files.scaling._asdict())
    values = []
    for observation in seen[:200]:
        expected = graph.q_values(observation)
        action, q = compiled.call("policy_act", observation, 4, np.float32)
        assert_allclose(q, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
        assert action == q.argmax()
        entered = int16_graph.quantise(observation)
        int16_graph.write(int16_graph.observation.index, entered)
        int16_graph.invoke()
        action, q = compiled.call("policy_act_int16", entered, 4, np.int16)
        assert action == q.argmax()
        values.append((q.astype(int), int16_graph.read(int16_graph.q.index, 0)[0].astype(int)))
    ours, theirs = map(np.array, zip(*values, strict=True))
    assert np.abs(ours - theirs).max() <= 0.25 * np.ptp(theirs) / 255, "a quarter of what would be a step of int8"
    needed = subprocess.run(["nm", "-u", "policy.so"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "sqrt" not in needed


@pytest.mark.slow
def test_layer_norm_in_int8_is_refused_in_c():
    files, _ = with_layer_norm((16,), "mcu", "static")
    with pytest.raises(UserError, match=r"LayerNorm in float32 and with int16 activations; this network has \w+ too"):
        c_layers.read_layers(files.int8_file)


@needs_gcc
@pytest.mark.slow
def test_a_forbidden_action_is_not_taken_and_no_library_is_needed(tmp_path):
    files, seen = policy("8", (4,))
    compiled = Compiled(tmp_path, files)
    allowed = np.array([False, True, False, True])
    for observation in seen[:50]:
        action, q = compiled.call("policy_act", observation, 4, np.float32, allowed)
        assert action == np.where(allowed, q, -np.inf).argmax()
    needed = subprocess.run(["nm", "-u", "policy.so"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert not {"malloc", "free", "printf", "memcpy", "expf"} & set(needed.split())
    assert "POLICY_NUM_ACTIONS 4" in compiled.header
    assert "#include <stdlib.h>" not in compiled.source


@given(scale=st.floats(1e-9, 100.0))
def test_a_multiplier_and_a_shift_are_the_scale(scale):
    multiplier, shift = c_layers.multiplier_of(scale)
    assert multiplier == 0 or 2**30 <= multiplier < 2**31
    assert_allclose(math.ldexp(multiplier, shift - 31), scale, rtol=2**-30, atol=2**-32)


@given(value=st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_literal_reads_back_as_the_number(value):
    text = c_source._float(value)
    assert text.endswith("f")
    assert np.float32(text[:-1]) == np.float32(value)
    assert any(letter in text for letter in ".e")


@pytest.mark.slow
def test_a_dynamic_int8_file_is_refused_in_a_sentence():
    files, _ = policy("64-64", (8,), target="cpu")
    with pytest.raises(UserError, match="C is written for float32 or static int8"):
        c_layers.read_layers(files.int8_file)
