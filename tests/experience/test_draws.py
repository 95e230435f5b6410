"""Random numbers are those of their distribution, and the same from one seed however they are computed."""

import math

import numpy as np
import pytest
import tensorflow as tf
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.experience.draws import random_normal, random_uniform

COUNT = 200_000
KINDS = {"uniform": lambda seed: random_uniform([COUNT], seed), "normal": lambda seed: random_normal(COUNT, seed)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_numbers_compiled_and_not_and_another_seed_others(kind):
    draw = KINDS[kind]
    one, again, other, later = (draw(tf.constant(seed)).numpy() for seed in ([3, 4], [3, 4], [4, 4], [3, 5]))
    assert_array_equal(one, again)
    assert np.abs(np.corrcoef([one, other, later]) - np.eye(3)).max() < 0.01
    compiled = tf.function(draw, jit_compile=True)(tf.constant([3, 4]))
    assert_allclose(compiled, one, atol=1e-5)  # logarithms and cosines differ in their last bits


def test_uniform_numbers_are_uniform():
    numbers = random_uniform([100, COUNT // 100], tf.constant([1, 2])).numpy()
    assert numbers.dtype == np.float32
    assert 0.0 <= numbers.min() < 1e-4
    assert 1.0 - 1e-4 < numbers.max() < 1.0
    counts = np.bincount((numbers.ravel() * 100).astype(int), minlength=100)
    chi_square = ((counts - COUNT / 100) ** 2 / (COUNT / 100)).sum()
    assert 60.0 < chi_square < 149.0  # 99 degrees of freedom: 0.1 % on either side


def test_normal_numbers_are_normal():
    numbers = np.sort(random_normal(COUNT, tf.constant([1, 2])).numpy().astype(np.float64))
    assert np.isfinite(numbers).all()
    distribution = np.array([0.5 * (1.0 + math.erf(number / math.sqrt(2.0))) for number in numbers])
    distance = np.abs(distribution - (np.arange(COUNT) + 0.5) / COUNT).max()
    assert distance < 1.95 / math.sqrt(COUNT)  # Kolmogorov and Smirnov: exceeded once in a thousand
