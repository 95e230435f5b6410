"""Quantisation-aware training: its weights, what it preserves, and which file is kept."""

import numpy as np
import pytest
import tf_keras as keras

from rlplatform.compression import canonical, conversion, flatfile, inspection, retraining, students
from rlplatform.compression.aware import train
from rlplatform.compression.distillation import Recipe
from rlplatform.compression.labels import Labels
from rlplatform.compression.normalize import Normalize
from rlplatform.errors import UserError

pytestmark = pytest.mark.slow  # tfmot takes seconds to load

BRIEF = Recipe(epochs=2, batch_size=64, learning_rate=1e-4)


def network(hidden="16-16", seed=0):
    keras.utils.set_random_seed(seed)
    return students.build(students.parse(hidden), states(), 3)


def states(count=400, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, 5)).astype(np.float32)


def labels(model, count=400, seed=0):
    seen = states(count, seed)
    return Labels(seen, model(seen).numpy(), None)


def kernels(model):
    return [layer.get_weights()[0] for layer in model.layers if layer.get_weights()]


def is_on_a_grid(kernel):
    steps = kernel / (np.abs(kernel).max() / 127)
    return np.abs(steps - np.rint(steps)).max() < 0.01


def test_what_is_trained_are_weights_that_int8_holds_exactly():
    model = canonical(network()).model
    before = model.get_weights()
    trained = train(model, labels(model), labels(model, 100, seed=1), BRIEF)
    assert trained.preserved == "nothing"
    assert not any(map(is_on_a_grid, kernels(model)))
    assert all(map(is_on_a_grid, kernels(trained.model)))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    seen = labels(model, 400, seed=2)
    assert (trained.model(seen.observations).numpy().argmax(axis=1) == seen.actions()).mean() > 0.9


def test_a_pruned_network_keeps_its_zeros():
    model = canonical(network()).model
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if layer.get_weights():
            kernel, bias = layer.get_weights()
            layer.set_weights([np.where(rng.random(kernel.shape) < 0.5, 0.0, kernel), bias])
    trained = train(model, labels(model), labels(model, 100, seed=1), BRIEF)
    assert trained.preserved == "zeros"
    for before, after in zip(kernels(model), kernels(trained.model), strict=True):
        assert (after[before == 0.0] == 0.0).all()


def test_a_clustered_network_keeps_its_clusters():
    model = canonical(network()).model
    for layer in model.layers:
        if layer.get_weights():
            kernel, bias = layer.get_weights()
            layer.set_weights([np.rint(kernel * 8) / 8, bias])
    trained = train(model, labels(model), labels(model, 100, seed=1), BRIEF)
    assert trained.preserved == "clusters"
    for before, after in zip(kernels(model), kernels(trained.model), strict=True):
        assert len(np.unique(after)) <= len(np.unique(before))


def test_layers_that_are_not_known_are_refused_with_what_would_help():
    inputs = keras.Input((5,))
    model = keras.Model(inputs, keras.layers.Dense(2)(Normalize(1e-3)(keras.layers.Dense(8)(inputs))))
    with pytest.raises(UserError, match=r"this network has Normalize too; --budget makes a smaller network without it"):
        train(model, labels(model), labels(model), BRIEF)


def test_the_better_file_is_kept_and_both_are_told_of(monkeypatch):
    model = canonical(network()).model
    seen, held_out = labels(model), labels(model, 200, seed=1)
    files = conversion.convert(model, seen.observations, "mcu")
    kept = retraining.retrain(model, files, seen.observations, None, "mcu", seen, held_out, BRIEF)
    told = kept.quantisation["quantisation_aware_training"]
    assert told["taken"] == (kept.int8_file != files.int8_file)
    assert (
        "of 200 states of other episodes, half of them the hardest, the file without it takes the network's action in"
        in told["reason"]
    )
    assert kept.float_file == files.float_file
    assert inspection.read(kept.int8_file).operators == inspection.read(files.int8_file).operators
    monkeypatch.setattr(retraining, "_rank", lambda found: (True, 1.0))  # as good as each other
    with monkeypatch.context() as patched:
        patched.setattr(retraining, "convert", lambda *args, **options: files)
        again = retraining.retrain(model, files, seen.observations, None, "mcu", seen, held_out, BRIEF)
    assert again.int8_file == files.int8_file
    assert not again.quantisation["quantisation_aware_training"]["taken"]


def test_the_file_has_the_scales_that_were_trained():
    model = canonical(network()).model
    seen = labels(model)
    form, scaling = conversion.static_form(model, seen.observations, "mcu")
    inside = seen._replace(observations=(seen.observations - scaling.offset) * scaling.multiplier)
    trained = train(form, inside, inside, BRIEF).model
    file = conversion.convert(model, seen.observations, "mcu", "static", trained=trained).int8_file
    graph = flatfile.read(file).subgraphs[0]
    scales = [float(graph.tensors[operator.inputs[1]].quantization.scale[0]) for operator in graph.operators]
    np.testing.assert_allclose(scales, [np.abs(kernel).max() / 127 for kernel in kernels(trained)], rtol=1e-4)
