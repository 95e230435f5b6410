"""Networks of every value head and flag, from training's form to files."""

import itertools
import json

import numpy as np
import pytest
import tf_keras as keras

from rlplatform.agents import networks
from rlplatform.agents.layers import Standardize
from rlplatform.compression import agreement, canonical, conversion, convert, gates, inspection
from rlplatform.compression.converter import CONVERTER
from rlplatform.config import Config
from rlplatform.runtime import open_graph

HEADS = ("scalar", "categorical", "quantile", "implicit_quantile")
FLAGS = ("dueling", "noisy", "layer_norm", "normalize_observations")
ALL = dict.fromkeys(FLAGS, True)
SEEN = np.random.default_rng(0).normal(0, 1, (300, 6)).astype(np.float32)


def network(head, flags, seed=0, **changes):
    """A network as training begins with it, but for statistics and biases, which are not at their first values."""
    keras.utils.set_random_seed(seed)
    network = {"hidden_units": [40, 40], "torso": "mlp", **flags} | changes
    agent = {"head": head, "v_min": -3.0, "v_max": 3.0, "num_atoms": 21, "num_quantiles": 16}
    shape, dtype = ((6,), "float32") if network["torso"] == "mlp" else ((36, 36, 2), "uint8")
    model = networks.build(Config().replace(network=network, agent=agent), shape, dtype, 4)
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        weights = layer.get_weights()
        if isinstance(layer, Standardize):
            layer.set_weights([rng.normal(0, 0.5, weights[0].shape), rng.exponential(1, weights[1].shape)])
        elif layer.name in ("q", "value", "advantage") and weights:  # so that distributions have a shape
            layer.set_weights([2 * weights[0], rng.normal(0, 0.02, weights[1].shape), *weights[2:]])
    return model


def float_files(models, folder):
    """The .tflite file of each network, all from one process."""
    jobs = []
    for index, model in enumerate(models):
        conversion.save(model, "float32", folder / f"model_{index}")
        jobs.append({"mode": "float", "saved_model": f"model_{index}", "output": f"{index}.tflite"})
    np.save(folder / "calibration.npy", SEEN)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    CONVERTER.run([folder])
    return [(folder / job["output"]).read_bytes() for job in jobs]


def values(content, observations):
    graph = open_graph(content, "file")
    return np.stack([graph.q_values(observation) for observation in observations])


def actions(content, observations):
    graph = open_graph(content, "file")
    found = []
    for observation in observations:
        graph.q_values(observation)
        found.append(graph.read(graph.action.index, 0).item())
    return np.array(found)


def assert_the_file_is_the_network(model, folded, content):
    """All gates of a float file hold, and its actions are the network's; how many different ones there are."""
    q, canonical_q = model(SEEN).numpy(), folded.model(SEEN).numpy()
    chosen = actions(content, SEEN)
    for gate in (
        gates.algebra(q, canonical_q, q.argmax(axis=1), folded.centred),
        gates.converter("file", q, canonical_q, values(content, SEEN), chosen),
        gates.operators("file", inspection.read(content)),
    ):
        assert gate.passed, gate.sentence
    clear = agreement.gaps(q) > 2e-5 * np.abs(q).max()
    np.testing.assert_array_equal(chosen[clear], q.argmax(axis=1)[clear])
    assert clear.mean() > 0.95
    return len(np.unique(chosen))


@pytest.mark.slow
def test_the_float_file_of_each_head_under_all_flags_is_the_network(tmp_path):
    models = [network(head, ALL) for head in HEADS]
    folded = [canonical(model) for model in models]
    files = float_files([each.model for each in folded], tmp_path)
    taken = [assert_the_file_is_the_network(*each) for each in zip(models, folded, files, strict=True)]
    assert np.mean(taken) > 2  # the networks choose at all


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_the_float_file_of_every_head_and_set_of_flags_is_the_network(tmp_path, head):
    models = [
        network(head, dict(zip(FLAGS, chosen, strict=True)), seed)
        for seed, chosen in enumerate(itertools.product([False, True], repeat=len(FLAGS)))
    ]
    folded = [canonical(model) for model in models]
    files = float_files([each.model for each in folded], tmp_path)
    taken = [assert_the_file_is_the_network(*each) for each in zip(models, folded, files, strict=True)]
    assert np.mean(taken) > 2  # the networks choose at all


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("torso", ["nature", "minatar", "cnn", "impala"])
def test_images_through_every_torso_become_files(tmp_path, torso):
    flags = {"dueling": True, "noisy": True, "normalize_observations": True, "convolutions": [[6, 8, 4], [8, 3, 1]]}
    model = network("quantile", flags, torso=torso)
    seen = np.random.default_rng(0).integers(0, 256, (20, 36, 36, 2), np.uint8)
    folded = canonical(model)
    files = convert(folded.model, seen, "cpu", "dynamic")
    expected = agreement.centred(model(seen).numpy())
    np.testing.assert_allclose(values(files.float_file, seen), expected, atol=1e-5 * max(1, np.abs(expected).max()))
    assert not inspection.read(files.int8_file).foreign


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("target", ["cpu", "mcu"])
def test_int8_keeps_the_choices_of_every_head(target, head, layer_norm):
    model = network(head, ALL | {"layer_norm": layer_norm})
    folded = canonical(model)
    files = convert(folded.model, SEEN, target)
    contents = inspection.read(files.int8_file)
    assert gates.operators("file", contents).passed
    assert "int8" in contents.weights
    q = agreement.centred(model(SEEN).numpy())
    graph = open_graph(files.int8_file, "file", scaling=None if files.scaling is None else files.scaling._asdict())
    given = np.stack([graph.q_values(observation) for observation in SEEN])
    found = agreement.measure(q, given, agreement.step_of(q, contents.q_step), contents.q_range)
    assert found.overall > 0.9
    assert found.clear is None or found.clear > (0.94 if target == "mcu" and layer_norm else 0.97)
