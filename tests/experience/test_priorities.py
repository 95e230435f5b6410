"""The tree's sums are those of a plain list, whatever was set; what it draws is where a plain cumulative sum lies."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.experience.priorities import WIDTH, SumTree, importance, stratified

SIZES = (1, 2, WIDTH - 1, WIDTH, WIDTH + 1, WIDTH**2, WIDTH**2 + 1, 3_000)
NUMBERS = st.floats(0.0, 1e4, width=32) | st.sampled_from([0.0, 0.0, 1.0, 1e-6])


def assert_whole(tree, numbers):
    """Every node is the sum of its children, and the leaves are the numbers."""
    assert_array_equal(tree.levels[0].numpy().ravel()[: tree.size], numbers)
    assert not tree.levels[0].numpy().ravel()[tree.size :].any()
    for below, above in itertools.pairwise(tree.levels):
        nodes = above.numpy().ravel()
        children = below.numpy().astype(np.float64)
        assert len(nodes) >= len(children)
        for node in range(len(nodes)):
            expected = sum(children[node]) if node < len(children) else 0.0
            assert_allclose(nodes[node], expected, rtol=1e-5, err_msg=f"node {node}")
    assert tree.levels[-1].shape[0] == 1
    assert_allclose(tree.total(), numbers.astype(np.float64).sum(), rtol=1e-5)


@given(st.data(), st.sampled_from(SIZES))
@settings(max_examples=20)
def test_every_node_is_the_sum_of_its_children_after_any_sets(data, size):
    tree, numbers = SumTree(size), np.zeros(size, np.float32)
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=40))
        values = data.draw(st.lists(NUMBERS, min_size=len(index), max_size=len(index)))
        tree.set(tf.constant(index), tf.constant(values, tf.float32))
        now = tree.get(tf.range(size)).numpy()
        for place in set(index):  # where an index comes twice, one of its values
            assert now[place] in [np.float32(value) for at, value in zip(index, values, strict=True) if at == place]
            numbers[place] = now[place]
        assert_whole(tree, numbers)


def test_sums_do_not_drift_however_often_a_number_is_set():
    tree, rng = SumTree(2_000), np.random.default_rng(0)
    numbers = np.zeros(2_000, np.float32)
    for size in 10.0 ** rng.integers(-6, 7, 200):  # great and small ones in turn, which differences would not survive
        index = rng.choice(2_000, 64, replace=False).astype(np.int32)
        numbers[index] = (rng.random(64) * size).astype(np.float32)
        tree.set(tf.constant(index), tf.constant(numbers[index]))
    assert_whole(tree, numbers)
    tree.set(tf.range(2_000), tf.zeros(2_000))
    assert float(tree.total()) == 0.0


def filled(numbers):
    tree = SumTree(len(numbers))
    tree.set(tf.range(len(numbers)), tf.constant(numbers, tf.float32))
    return tree


@given(
    st.sampled_from(SIZES).flatmap(lambda size: st.lists(st.integers(0, 9), min_size=size, max_size=size)),
    st.integers(0, 2**16),
)
@settings(max_examples=20)
def test_find_gives_the_slot_of_a_plain_cumulative_sum(numbers, seed):
    """Whole numbers are exact in float32, so that also masses on an edge fall where they should."""
    total = sum(numbers)
    if total == 0:
        return
    masses = np.random.default_rng(seed).integers(0, 2 * total, 50) / 2.0  # on edges and between them
    index, found = filled(numbers).find(tf.constant(masses, tf.float32))
    cumulative = list(itertools.accumulate(numbers))
    for mass, at, number in zip(masses, index.numpy(), found.numpy(), strict=True):
        expected = next(place for place, end in enumerate(cumulative) if end > mass)
        assert at == expected, f"mass {mass} of {total}"
        assert number == numbers[expected] > 0


@example(1_100, 362, 0.05, 3.0)  # a mass just below an edge, which a sum in another order put below 0
@given(
    st.sampled_from([2, WIDTH + 1, 1_100]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.05, 0.5, 0.95]),
    st.sampled_from([0.0, 3.0, 12.0]),
)
@settings(max_examples=25)
def test_what_has_no_chance_is_never_found_whatever_rounding_does(size, seed, share, spread):
    """Numbers of any sizes, masses on and beside every edge: float32 sums of parts and of wholes differ there."""
    rng = np.random.default_rng(seed)
    numbers = np.exp(spread * rng.normal(size=size)).astype(np.float32)
    numbers[rng.random(size) < share] = 0.0
    numbers[rng.integers(size)] = 1.0
    tree = filled(numbers)
    total = tree.total().numpy()
    edges = np.cumsum(numbers)
    masses = np.concatenate([edges, np.nextafter(edges, 0), np.nextafter(edges, np.inf), [0.0, total]])
    index, found = tree.find(tf.constant(np.clip(masses, 0.0, total), tf.float32))
    assert np.all(numbers[index.numpy()] > 0.0)
    assert_array_equal(found, numbers[index.numpy()])


@pytest.mark.parametrize("size", [3, 50, 1_500])
def test_numbers_are_drawn_in_proportion_to_their_size(size):
    rng = np.random.default_rng(size)
    numbers = rng.exponential(size=size).astype(np.float32)
    numbers[rng.random(size) < 0.2] = 0.0
    groups, count = 4_000, 64
    tree = filled(numbers)
    index, _ = tree.find(stratified(count, groups, tree.total(), tf.constant([1, 2])))
    drawn = np.bincount(index.numpy(), minlength=size)
    expected = groups * count * numbers.astype(np.float64) / numbers.sum(dtype=np.float64)
    assert not drawn[numbers == 0.0].any()
    live = expected > 5.0
    chi_square = ((drawn[live] - expected[live]) ** 2 / expected[live]).sum()
    freedom = live.sum() - 1
    # Wilson and Hilferty (1931): the 99.9 % point of chi-square. Strata only make the counts more even.
    assert chi_square < freedom * (1.0 - 2.0 / (9.0 * freedom) + 3.09 * (2.0 / (9.0 * freedom)) ** 0.5) ** 3


def test_a_group_has_one_mass_in_each_part_of_the_total():
    masses = stratified(8, 5, tf.constant(4.0), tf.constant([0, 1])).numpy().reshape(5, 8)
    assert_array_equal(np.floor(masses / 0.5), np.tile(np.arange(8), (5, 1)))
    assert len(np.unique(masses)) == 40
    shares = stratified(8, 2_000, tf.constant(4.0), tf.constant([0, 1])).numpy().reshape(-1, 8) / 0.5 - np.arange(8)
    assert_allclose(shares.mean(axis=0), 0.5, atol=4.0 * (1.0 / 12.0 / 2_000) ** 0.5)


@pytest.mark.parametrize("exponent", [0.0, 0.4, 1.0])
def test_importance_is_that_of_the_paper(exponent):
    """(N P(i)) ** -beta over the greatest of the batch (Schaul et al. 2016, section 3.4)."""
    rng = np.random.default_rng(0)
    everything = rng.exponential(size=100)
    drawn = rng.integers(0, 100, (3, 7))
    got = importance(tf.constant(everything[drawn], tf.float32), tf.constant(exponent)).numpy()
    for batch in range(3):
        weights = [(100 * everything[slot] / everything.sum()) ** -exponent for slot in drawn[batch]]
        assert_allclose(got[batch], [weight / max(weights) for weight in weights], rtol=1e-4)
    assert got.max() == 1.0


def test_a_draw_beside_every_live_slot_has_no_weight():
    got = importance(tf.constant([[0.0, 2.0, 8.0], [0.0, 0.0, 0.0]]), tf.constant(0.5))
    assert_allclose(got, [[0.0, 1.0, 0.5], [0.0, 0.0, 0.0]])


def test_the_compiled_tree_is_the_eager_one_and_compiles_once():
    eager, compiled = SumTree(3_000), SumTree(3_000)

    @tf.function(jit_compile=True, autograph=False)
    def set_and_find(index, values, mass):
        compiled.set(index, values)
        return compiled.find(mass * compiled.total()), compiled.get(index)

    rng = np.random.default_rng(0)
    for _ in range(5):
        index = tf.constant(rng.choice(3_000, 100, replace=False), tf.int32)
        values = tf.constant(rng.integers(0, 50, 100), tf.float32)
        mass = tf.constant(rng.random(40), tf.float32)
        (found, number), got = set_and_find(index, values, mass)
        eager.set(index, values)
        expected, expected_number = eager.find(mass * eager.total())
        assert_array_equal(found, expected)
        assert_array_equal(number, expected_number)
        assert_array_equal(got, values)
    for one, other in zip(eager.levels, compiled.levels, strict=True):
        assert_array_equal(one, other)
    assert set_and_find.experimental_get_tracing_count() == 1
