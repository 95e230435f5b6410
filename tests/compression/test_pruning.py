"""Pruning and clustering: what becomes zero, what becomes equal, and that choices survive."""

import numpy as np
import pytest
import tf_keras as keras

from rlplatform.agents.pruning import layer_sparsities
from rlplatform.compression import canonical, students
from rlplatform.compression.clustering import cluster
from rlplatform.compression.distillation import Recipe, distil
from rlplatform.compression.labels import Labels
from rlplatform.compression.pruning import prune
from rlplatform.errors import UserError


def labels(count, seed=0):
    rng = np.random.default_rng(seed)
    observations = rng.normal(size=(count, 4)).astype(np.float32)
    values = np.tanh(observations @ np.array([[1, -1], [3, -3], [9, -9], [7, -7]], np.float32) / 5)
    return Labels(observations, values, None)


def agreement(model, held_out):
    return (model(held_out.observations).numpy().argmax(axis=1) == held_out.actions()).mean()


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    seen, held_out = labels(4_000), labels(1_000, seed=1)
    model = students.build(students.parse("48-32"), seen.observations, 2)
    distil(model, seen, held_out, Recipe(epochs=6, learning_rate=1e-2))
    return model, seen, held_out


def test_a_sparsity_out_of_range_is_refused():
    with pytest.raises(UserError, match=r"below 1; got 1\.5"):
        prune(None, None, None, 1.5)
    with pytest.raises(UserError, match="at least 2 values"):
        cluster(None, None, None, 1)


@pytest.mark.slow
def test_pruning_brings_the_zeros_keeps_the_choices_and_units_go(trained):
    model, seen, held_out = trained
    before = model.get_weights()
    pruned = prune(model, seen, held_out, 0.9, Recipe(epochs=12, learning_rate=3e-3))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    kernels = {
        layer.name: layer.get_weights()[0] for layer in pruned.model.layers if layer.name.startswith(("dense", "q"))
    }
    wanted = layer_sparsities({name: kernel.shape for name, kernel in kernels.items()}, 0.9)
    for name, kernel in kernels.items():
        assert abs((kernel == 0).mean() - wanted[name]) < 0.03
        assert pruned.sparsities[name] == pytest.approx((kernel == 0).mean())
    assert agreement(pruned.model, held_out) > 0.93
    folded = canonical(pruned.model)
    assert folded.model.count_params() < 0.8 * canonical(model).model.count_params()
    assert any("which no observation can make matter" in words for words in folded.folds)
    assert (agreement(folded.model, held_out) - agreement(pruned.model, held_out)) == pytest.approx(0.0, abs=0.002)


@pytest.mark.slow
def test_clustering_leaves_a_few_values_and_keeps_the_choices(trained):
    model, seen, held_out = trained
    clustered = cluster(model, seen, held_out, 8, Recipe(epochs=4, learning_rate=1e-3))
    assert set(clustered.values) == {"dense_0", "dense_1", "q_values"}
    for name, count in clustered.values.items():
        assert count == len(np.unique(clustered.model.get_layer(name).get_weights()[0])) <= 8
    assert agreement(clustered.model, held_out) > 0.93


@pytest.mark.slow
def test_clustering_keeps_the_zeros_of_pruning(trained):
    model, seen, held_out = trained
    pruned = prune(model, seen, held_out, 0.8, Recipe(epochs=6, learning_rate=3e-3))
    clustered = cluster(pruned.model, seen, held_out, 8, Recipe(epochs=3, learning_rate=1e-3))
    for name in clustered.values:
        before, after = (each.get_layer(name).get_weights()[0] for each in (pruned.model, clustered.model))
        assert (after[before == 0] == 0).all()
        assert len(np.unique(after)) <= 9
    assert agreement(clustered.model, held_out) > 0.9
