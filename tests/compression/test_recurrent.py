"""Networks that remember: their canonical form and their files go through sequences as they do."""

import numpy as np
import pytest
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.agents import networks
from rlplatform.agents.layers import Standardize
from rlplatform.compression import canonical, convert, gates, onnx_file, playing
from rlplatform.compression.calibration import Reservoir
from rlplatform.compression.cell import Cell
from rlplatform.config import Config, EnvironmentConfig
from rlplatform.errors import UserError
from rlplatform.runtime import Decision, open_graph
from rlplatform.training import evaluate

SHAPE, ACTIONS = (5,), 3


def network(kind, seed=0, units=6, hidden=(7, 4), head="scalar", dtype="float32", **flags):
    """A random one, with biases and statistics that are not those it begins with."""
    config = Config().replace(
        network={"recurrent": kind, "recurrent_units": units, "hidden_units": hidden, **flags},
        agent={"head": head, "num_atoms": 5, "v_min": -2.0, "v_max": 3.0, "num_quantiles": 5},
    )
    keras.utils.set_random_seed(seed)
    model = networks.build(config, SHAPE, dtype, ACTIONS)
    rng = np.random.default_rng(seed)
    model.set_weights([weight + rng.normal(0, 0.3, weight.shape) for weight in model.get_weights()])
    for layer in model.layers:
        if isinstance(layer, Standardize):
            layer.set_weights([rng.normal(0.3, 1.0, SHAPE), rng.uniform(0.3, 2.0, SHAPE)])
    return model


def sequence(model, rows=12, items=3, seed=1):
    """`[T, B, O]` observations."""
    rng = np.random.default_rng(seed)
    if model.inputs[0].dtype == "uint8":
        return rng.integers(0, 256, (rows, items, *SHAPE), np.uint8)
    return rng.normal(0, 1.5, (rows, items, *SHAPE)).astype(np.float32)


def unroll(model, seen):
    """`[T, B, A]` values and `[T, B, H]` states, each after the state before it, from nothing."""
    state = np.zeros((seen.shape[1], model.inputs[1].shape[1]), np.float32)
    rows, states = [], []
    for row in seen.astype(model.inputs[0].dtype.name):
        q, state = (tensor.numpy() for tensor in model([row, state]))
        rows.append(q)
        states.append(state)
    return np.stack(rows), np.stack(states)


def centred(q):
    return q - q.mean(axis=-1, keepdims=True)


# --- the canonical form -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(["gru", "lstm"]),
    seed=st.integers(0, 2**16),
    units=st.integers(1, 8),
    hidden=st.lists(st.integers(1, 8), min_size=1, max_size=3),
    head=st.sampled_from(["scalar", "categorical", "quantile", "implicit_quantile"]),
    dtype=st.sampled_from(["float32", "uint8"]),
    flags=st.fixed_dictionaries(
        {flag: st.booleans() for flag in ("dueling", "noisy", "layer_norm", "normalize_observations")}
    ),
    greedy=st.booleans(),
)
def test_the_canonical_network_goes_through_sequences_as_the_network_does(
    kind, seed, units, hidden, head, dtype, flags, greedy
):
    model = network(kind, seed, units, tuple(hidden), head, dtype, **flags)
    before = model.get_weights()
    folded = canonical(model, greedy)
    seen = sequence(model)
    (q, states), (folded_q, folded_states) = unroll(model, seen), unroll(folded.model, seen)
    scale = max(1.0, np.abs(q).max())
    assert_allclose(folded_q, centred(q) if folded.centred else q, atol=2e-5 * scale)
    assert_allclose(folded_states, states, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(layer, Standardize) for layer in folded.model.layers)
    for weight, untouched in zip(model.get_weights(), before, strict=True):
        assert_array_equal(weight, untouched)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_what_comes_before_and_after_the_memory_folds_and_the_memory_stays(kind):
    model = network(kind, hidden=(4,), dueling=True, normalize_observations=True)
    folded = canonical(model)
    shown = ["Output"] if kind == "lstm" else []  # a GRU shows all that it remembers
    assert [
        type(layer).__name__ for layer in folded.model.layers if not isinstance(layer, keras.layers.InputLayer)
    ] == [
        "Dense",
        "Cell",
        *shown,
        "Dense",
        "Dense",
    ]
    seen = sequence(model, rows=4)
    (q, states), (folded_q, folded_states) = unroll(model, seen), unroll(folded.model, seen)
    assert_allclose(folded_q, centred(q), atol=1e-5)
    assert_allclose(folded_states, states, atol=1e-5)
    assert "dropped the value stream" in folded.folds
    assert "folded the normalisation of observations into 'recurrent_inputs'" in folded.folds


def test_units_before_the_memory_that_it_does_not_see_are_removed():
    model = network("gru", hidden=(7, 4))
    kernel, recurrent_kernel, bias = model.get_layer("recurrent").get_weights()
    kernel[[1, 4]] = 0.0
    model.get_layer("recurrent").set_weights([kernel, recurrent_kernel, bias])
    folded = canonical(model)
    assert folded.model.get_layer("dense_0").units == 5
    seen = sequence(model)
    assert_allclose(unroll(folded.model, seen)[0], centred(unroll(model, seen)[0]), atol=1e-5)


def test_a_canonical_network_is_saved_and_loaded_with_its_cell(tmp_path):
    model = canonical(network("lstm")).model
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert any(isinstance(layer, Cell) for layer in loaded.layers)
    seen = sequence(model)
    assert_array_equal(unroll(loaded, seen)[0], unroll(model, seen)[0])


# --- the files --------------------------------------------------------------------------------------------------------


def through(content, seen):
    """`[T, A]` values and `[T, H]` states of a file that goes through `[T, O]` by what it remembers itself."""
    graph = open_graph(content, "file")
    state = np.zeros(graph.state.shape[1], np.float32)
    rows, states = [], []
    for observation in seen:
        rows.append(graph.q_values(observation, state))
        state = graph.read(graph.next_state.index, 0)[0]
        states.append(state)
    return np.stack(rows), np.stack(states)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype", "masked"), [("gru", "float32", False), ("lstm", "uint8", True)], ids=["gru", "lstm"]
)
def test_files_go_through_sequences_as_the_network_does(kind, dtype, masked):
    model = network(kind, units=24, hidden=(48, 16), dtype=dtype, dueling=True, normalize_observations=dtype != "uint8")
    form = canonical(model).model
    seen = sequence(form if dtype == "float32" else model, rows=120, items=1)
    q, states = (tensor[:, 0] for tensor in unroll(form, seen))
    before = np.concatenate([np.zeros_like(states[:1]), states[:-1]])
    masks = np.random.default_rng(0).random((120, ACTIONS)) < 0.6
    masks[:, 0] |= ~masks.any(axis=1)
    with_onnx = onnx_file.missing_converter() is None and onnx_file.missing_runtime() is None
    files = convert(form, seen[:, 0], masks=masks if masked else None, states=before, onnx=with_onnx)
    assert files.quantisation["method"] == "dynamic"
    file_q, file_states = through(files.float_file, seen[:, 0])
    assert_allclose(file_q, q, atol=1e-5 * np.abs(q).max())
    assert_allclose(file_states, states, atol=1e-5)
    int8_q, int8_states = through(files.int8_file, seen[:, 0])
    assert np.abs(int8_states - file_states).max() > 1e-5  # the memory itself is in int8
    assert np.sqrt(((int8_q - q) ** 2).mean()) < 0.05 * q.std()
    if with_onnx:
        answers = onnx_file.run(files.onnx_file, seen[:, 0], masks if masked else None, before)
        assert_allclose(answers.q, q, atol=1e-5 * np.abs(q).max())
        assert_allclose(answers.states, states, atol=1e-5)
        allowed = np.where(masks, q, -np.inf) if masked else q
        assert (answers.actions == allowed.argmax(axis=1)).mean() > 0.98


@pytest.mark.parametrize(
    ("target", "quantisation", "sentence"),
    [
        ("mcu", "auto", "the target mcu is for networks without a memory; one that remembers is .* for the target cpu"),
        (
            "cpu",
            "static",
            "quantisation static is for networks without a memory; .* it is auto, dynamic or dynamic_all",
        ),
        ("cpu", "int16x8", "quantisation int16x8 is for networks without a memory"),
    ],
)
def test_what_is_not_made_of_a_network_that_remembers_is_refused(target, quantisation, sentence):
    model = canonical(network("gru")).model
    with pytest.raises(UserError, match=sentence):
        convert(model, sequence(model)[:, 0], target, quantisation, states=np.zeros((12, 6), np.float32))


# --- how they play ----------------------------------------------------------------------------------------------------


class Counter:
    """A policy, and a network, that counts the steps of an episode; its values are the count, times -1 for action 1."""

    remembers, initial_state, action_start, state_size = True, np.zeros(1, np.float32), 5, 1

    def __init__(self, forgets=False):
        self._forgets = forgets

    def answers(self, observations, states):
        after = states + 1.0
        return after * np.array([1.0, -1.0, 0.5], np.float32), after * (not self._forgets)

    def decide(self, observation, state, action_mask=None):
        q, after = self.answers(observation[None], state[None])
        return Decision(int(q[0].argmax()) + self.action_start, q[0], after[0])


COUNTING = EnvironmentConfig(
    id="rlplatform.envs.probes:Counting", kwargs={"lengths": [2, 7, 3], "ends": ["terminated"]}
)


def beside(forgets):
    reservoir = Reservoir(1_000, seed=0)
    played = evaluate(playing.beside(Counter(forgets), Counter(), reservoir), COUNTING, range(40))
    pairs, masks = reservoir.states()
    assert masks is None
    assert len(pairs) == played.lengths.sum()  # of episodes that have ended, nothing is compared
    return pairs[:, 0, 0], pairs[:, 1, 0]


def test_the_network_goes_beside_a_file_by_what_it_remembers_itself():
    network_q, file_q = beside(forgets=False)
    assert_array_equal(network_q, file_q)
    assert set(network_q) == set(range(1, 8))
    network_q, file_q = beside(forgets=True)
    assert set(network_q) == set(range(1, 8))
    assert set(file_q) == {1.0}


def test_the_gate_sees_a_state_that_is_another():
    states = np.random.default_rng(0).uniform(-1, 1, (20, 4)).astype(np.float32)
    assert gates.state("policy.tflite", states, states * np.float32(1 + 1e-6), gates.CONVERTER).passed
    other = states.copy()
    other[7, 2] += 1e-3
    gate = gates.state("policy.tflite", states, other, gates.CONVERTER)
    assert (gate.name, gate.file, gate.passed) == ("state", "policy.tflite", False)
    assert gates.runtime_state("policy_int8.tflite", "reference", states, other, is_int8=True).passed
    assert not gates.runtime_state("policy.tflite", "reference", states, other, is_int8=False).passed
