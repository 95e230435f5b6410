"""Weights that int8 holds exactly."""

import numpy as np
import pytest
import tf_keras as keras
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from rlplatform.compression import canonical, conversion, rounding, students
from rlplatform.compression.rounding import rounded
from rlplatform.compression.students import Architecture
from rlplatform.runtime import open_graph

RANGES = np.array([1.0, 0.1, 30.0, 4.0], np.float32)


def network(hidden=(16,), actions=3, seed=0):
    """A student of four features of very different ranges, with random biases, in canonical form."""
    keras.utils.set_random_seed(seed)
    model = students.build(Architecture((), tuple(hidden)), states(), actions)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dense):
            layer.bias.assign(np.random.default_rng(seed).normal(0.0, 0.3, layer.units))
    return canonical(model)


def states(count=1_000, seed=1):
    return (np.random.default_rng(seed).uniform(-1.0, 1.0, (count, 4)) * RANGES).astype(np.float32)


@settings(max_examples=15)
@given(st.integers(0, 2**16), st.lists(st.integers(1, 12), max_size=2), st.integers(2, 6))
def test_rounding_changes_little_stays_centred_and_changes_nothing_the_second_time(seed, hidden, actions):
    exact = network(hidden, actions, seed)
    once = rounded(exact, states(), "mcu")
    values, expected = once.model(states(seed=2)).numpy(), exact.model(states(seed=2)).numpy()
    assert once.centred
    assert_allclose(values.mean(axis=1), 0.0, atol=1e-5 * max(1.0, np.abs(values).max()))
    assert np.abs(values - expected).max() <= 0.15 * np.abs(expected).max()
    twice = rounded(once, states(), "mcu")
    assert_allclose(twice.model(states(seed=2)).numpy(), values, rtol=1e-4, atol=1e-5 * np.abs(values).max())


@pytest.mark.slow
def test_the_file_holds_the_very_weights():
    once = rounded(network((16, 8)), states(), "mcu")
    files = conversion.convert(once.model, states(), "mcu", "static")
    form, _ = conversion.static_form(once.model, states(), "mcu")
    interpreter = Interpreter(model_content=files.int8_file)
    interpreter.allocate_tensors()
    held = [
        interpreter.get_tensor(each["index"]) * each["quantization_parameters"]["scales"][0]
        for each in interpreter.get_tensor_details()
        if each["dtype"] is np.int8 and each["shape"][0] > 1
    ]
    kernels = [layer.get_weights()[0] for layer in form.layers if layer.get_weights()]
    assert len(held) == len(kernels) == 3, [each.shape for each in held]
    for kernel in kernels:
        (own,) = [each for each in held if each.T.shape == kernel.shape]
        assert_allclose(own.T, kernel, rtol=1e-4, atol=1e-5 * np.abs(kernel).max())


@pytest.mark.slow
def test_without_the_rounding_of_activations_nothing_is_lost():
    errors = []
    exact = network((24, 24))
    for each in (exact, rounded(exact, states(), "mcu")):
        files = conversion.convert(each.model, states(), "mcu", "int16x8")
        graph = open_graph(files.int8_file, "the file", scaling=files.scaling._asdict())
        q = each.model(states()).numpy()
        errors.append(np.abs(graph.q_batch(states()) - q).max() / np.abs(q).max())
    assert errors[1] < 1e-3
    assert errors[0] > 5 * errors[1]


def test_where_few_states_make_the_steps_coarse_weights_make_up_for_each_other(monkeypatch):
    """Each of a few features, here and there, is ten times what it is elsewhere: it gets a tenth of the steps."""
    exact, seen = network((24, 24)), states(3_000)
    seen[np.arange(8), np.arange(8) % 4] *= 10.0
    expected = exact.model(states(seed=2)).numpy()
    errors = []
    for compensate in (True, False):
        if not compensate:
            monkeypatch.setattr(rounding, "compensated", lambda model, *_, **__: model)
        given = rounded(exact, seen, "mcu").model(states(seed=2)).numpy()
        errors.append(np.sqrt(np.square(given - expected).mean()))
    assert errors[0] < 0.6 * errors[1]


@pytest.mark.parametrize("target", ["cpu", "mcu"])
def test_networks_with_a_scale_for_each_unit_stay_as_they_are(target):
    large = network((256, 256))
    assert rounded(large, states(), target) is large
