"""The smallest weights go, as many as the schedule says, and none comes back."""

import math

import numpy as np
import pytest
import tf_keras as keras
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.agents import networks
from rlplatform.agents.pruning import Pruning, growth, layer_sparsities, without_smallest
from rlplatform.compression import optimization
from rlplatform.config import Config, PruneConfig
from rlplatform.errors import UserError

SHAPES = st.lists(st.integers(1, 200), min_size=2, max_size=4).map(tuple)
KERNELS = st.dictionaries(st.text(min_size=1, max_size=3), SHAPES, min_size=1, max_size=5)
ROUNDED = st.integers(-8, 8).map(lambda value: value / 4)  # Equal ones among them.


def pruning(shape=(4,), dtype="float32", agent=None, prune=None, **network):
    config = Config().replace(network={"hidden_units": [8, 6]} | network, agent=agent or {})
    return Pruning(
        made := networks.build(config, shape, dtype, 3, training=True),
        PruneConfig(**({"final_sparsity": 0.8} | (prune or {}))),
    ), made


# --- when -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_schedule_is_that_of_tfmot():
    schedule = optimization.load().sparsity.keras.PolynomialDecay(0.0, 0.95, 200, 800, frequency=1)
    for step in range(0, 1_001, 50):
        prunes, sparsity = schedule(step)
        if prunes:  # between 200 and 800
            assert 0.95 * growth(step / 1_000, 0.2, 0.8) == pytest.approx(float(sparsity), abs=1e-6)
        assert bool(prunes) == (200 <= step <= 800)


def test_the_schedule_by_hand():
    assert [growth(done, 0.25, 0.75) for done in (0.0, 0.25, 0.5, 0.75, 2.0)] == [0.0, 0.0, 0.875, 1.0, 1.0]


def test_weights_are_chosen_at_every_interval_between_begin_and_end_and_at_the_end_whatever_the_interval():
    subject, network = pruning(prune={"begin": 0.2, "end": 0.5, "interval": 100})
    due = [
        updates
        for updates in range(30, 1_001, 30)
        if subject.is_due(updates / 1_000, updates - 30, updates)
        and (subject.choose(updates / 1_000, network.trainable_variables) or True)
    ]
    assert due == [210, 300, 420, 510]
    assert subject.is_complete


# --- which ----------------------------------------------------------------------------------------------------------


@given(st.data())
def test_the_smallest_go_and_those_that_have_gone_stay_away(data):
    values = np.array(data.draw(st.lists(ROUNDED, min_size=1, max_size=30)), np.float32)
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    zeros = data.draw(st.integers(0, len(values)))
    found = without_smallest(values, kept, zeros)
    assert not (found & ~kept).any()
    assert (~found).sum() == max(zeros, (~kept).sum())
    gone = np.abs(values[kept & ~found])
    assert gone.max(initial=0.0) <= np.abs(values[found]).min(initial=np.inf)


@given(kernels=KERNELS, sparsity=st.floats(0, 0.99))
def test_small_layers_keep_more_and_all_together_have_the_sparsity(kernels, sparsity):
    found = layer_sparsities(kernels, sparsity)
    sizes = {name: math.prod(shape) for name, shape in kernels.items()}
    assert all(-1e-9 <= share <= 1.0 for share in found.values())
    zeros = sum(found[name] * sizes[name] for name in kernels)
    assert_allclose(zeros / sum(sizes.values()), sparsity, atol=1e-6)
    scores = {name: sum(shape) / sizes[name] for name, shape in kernels.items()}
    for one in kernels:
        for other in kernels:
            if scores[one] > scores[other]:
                assert found[one] <= found[other] + 1e-9


@given(kernels=KERNELS, sparsity=st.floats(0, 0.99), distribution=st.sampled_from(["erk", "uniform"]), data=st.data())
def test_what_a_layer_keeps_at_least_the_others_make_up_for(kernels, sparsity, distribution, data):
    sizes = {name: math.prod(shape) for name, shape in kernels.items()}
    first = data.draw(st.sampled_from(sorted(kernels)))
    assume(0.5 * sizes[first] <= (1.0 - sparsity) * sum(sizes.values()))
    found = layer_sparsities(kernels, sparsity, distribution, {first: 0.5})
    assert found[first] <= 0.5 + 1e-9
    zeros = sum(found[name] * sizes[name] for name in kernels)
    assert_allclose(zeros / sum(sizes.values()), sparsity, atol=1e-6)
    if distribution == "uniform":
        assert len({round(share, 9) for name, share in found.items() if name != first}) <= 1


def test_layer_shares_by_hand():
    # 4 x 8 keeps factor * 12 of 32, 8 x 8 factor * 16 of 64, together a quarter of 96: factor = 24 / 28.
    assert_allclose(
        list(layer_sparsities({"a": (4, 8), "b": (8, 8)}, 0.75).values()), [1 - 72 / 7 / 32, 1 - 96 / 7 / 64]
    )
    assert_allclose(list(layer_sparsities({"a": (4, 8), "b": (8, 8)}, 0.75, "uniform").values()), [0.75, 0.75])


VARIANTS = {
    "dense": ({}, ["dense_0/kernel", "dense_1/kernel", "q/kernel"]),
    "layer norm": (
        {"layer_norm": True, "normalize_observations": True},
        ["dense_0/kernel", "dense_1/kernel", "q/kernel"],
    ),
    "noisy dueling": (
        {"noisy": True, "dueling": True},
        ["dense_0/kernel"]
        + [f"{stream}{layer}/{part}" for stream in ("value", "advantage") for layer in ("_dense_1", "")
           for part in ("kernel", "kernel_sigma")],
    ),
    "categorical": ({"agent": {"head": "categorical"}}, ["dense_0/kernel", "dense_1/kernel", "q/kernel"]),
    "implicit quantiles": (
        {"agent": {"head": "implicit_quantile", "num_quantiles": 4}},
        ["dense_0/kernel", "dense_1/kernel", "q_levels/kernel", "quantiles/kernel"],
    ),
    "convolutions": (
        {"shape": (6, 6, 2), "dtype": "uint8", "torso": "minatar"},
        ["conv_0/kernel", "dense_0/kernel", "q/kernel"],
    ),
    "convolutions asked for": (
        {"shape": (6, 6, 2), "torso": "cnn", "convolutions": [[5, 3, 1], [6, 2, 2]], "hidden_units": []},
        ["conv_0/kernel", "conv_1/kernel", "q/kernel"],
    ),
    "memory": (
        {"recurrent": "lstm", "recurrent_units": 5},
        ["dense_0/kernel", "dense_1/kernel", "q/kernel", "recurrent/kernel", "recurrent/recurrent_kernel"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "names"), VARIANTS.values(), ids=VARIANTS)
def test_kernels_are_pruned_and_nothing_else(settings, names):
    subject, network = pruning(**settings, prune={"distribution": "uniform"})  # by ERK small layers may stay whole
    variables = network.trainable_variables
    for variable in variables:
        variable.assign(np.random.default_rng(0).normal(size=variable.shape))
    subject.choose(1.0, variables)
    before = [variable.numpy() for variable in variables]
    subject.clear(variables)
    zeros = {}
    for variable, old in zip(variables, before, strict=True):
        new = variable.numpy()
        assert_array_equal(new[new != 0.0], old[new != 0.0])
        if (new == 0.0).any():
            zeros[variable.name.removesuffix(":0")] = new == 0.0
    assert sorted(zeros) == sorted(names)
    for name in zeros:
        if name.endswith("_sigma"):
            assert_array_equal(zeros[name], zeros[name.removesuffix("_sigma")])
    kernels = [variable for variable in variables if variable.name.endswith("kernel:0")]
    size, gone = sum(math.prod(kernel.shape) for kernel in kernels), sum(np.sum(kernel == 0.0) for kernel in kernels)
    assert gone == int(subject.zeros.numpy())
    assert abs(gone - 0.8 * size) <= len(kernels) / 2
    assert subject.sparsity(variables) == gone / size


@pytest.mark.parametrize("distribution", ["erk", "uniform"])
def test_the_first_convolution_keeps_half_of_its_weights(distribution):
    subject, network = pruning((36, 36, 2), "uint8", prune={"final_sparsity": 0.95, "distribution": distribution})
    subject.choose(1.0, network.trainable_variables)
    subject.clear(network.trainable_variables)
    shares = {layer.name: np.mean(layer.get_weights()[0] == 0.0) for layer in network.layers if layer.weights}
    assert shares["conv_0"] == 0.5
    assert shares["conv_2"] > 0.8
    assert subject.sparsity(network.trainable_variables) == pytest.approx(0.95, abs=1e-5)


def test_more_zeros_than_the_first_convolution_leaves_room_for_are_refused():
    with pytest.raises(
        UserError, match=r"keeps half of its weights, so prune.final_sparsity may be at most 0\.\d+ here"
    ):
        pruning((6, 6, 60), "uint8", torso="minatar", prune={"final_sparsity": 0.99})


def test_no_layer_loses_all_its_weights():
    keras.utils.set_random_seed(0)
    subject, network = pruning(prune={"final_sparsity": 0.999})
    subject.choose(1.0, network.trainable_variables)
    subject.clear(network.trainable_variables)
    assert all(layer.get_weights()[0].any() for layer in network.layers if layer.weights)
