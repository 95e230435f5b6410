"""A run's variables live where they were asked to, and a wish that cannot be met is refused with what would be."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from rlplatform import devices
from rlplatform.errors import UserError

HAS_GPU = bool(tf.config.list_physical_devices("GPU"))


def place_of_a_variable(strategy):
    with strategy.scope():
        return tf.Variable(1.0).device


def output_of(program):
    """What a program of its own prints: what it sets cannot be set back."""
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout


def test_the_cpu_is_taken_when_asked_for():
    assert "CPU:0" in place_of_a_variable(devices.strategy("cpu"))


def test_auto_takes_a_gpu_exactly_where_there_is_one():
    assert ("GPU:0" if HAS_GPU else "CPU:0") in place_of_a_variable(devices.strategy("auto"))


def test_one_replica_is_in_step_with_the_caller():
    strategy = devices.strategy("cpu")
    assert strategy.num_replicas_in_sync == 1
    assert float(strategy.run(lambda x: x + 1.0, args=(tf.constant(2.0),))) == 3.0


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_with_what_auto_would_take():
    with pytest.raises(UserError, match=r"'gpu' was asked for, .* no GPU here; 'auto' would take the CPU$"):
        devices.strategy("gpu")
    with pytest.raises(UserError, match="no GPU here"):
        devices.describe("gpu")


@pytest.mark.skipif(not HAS_GPU, reason="there is no GPU")
def test_a_gpu_is_taken_when_asked_for_and_its_memory_only_as_needed():
    assert "GPU:0" in place_of_a_variable(devices.strategy("gpu"))
    assert all(tf.config.experimental.get_memory_growth(gpu) for gpu in tf.config.list_physical_devices("GPU"))
    assert devices.describe("gpu").startswith("GPU (")


def test_the_cpu_is_described_by_its_cores():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert devices.describe("cpu").startswith(f"CPU, {cores} cores (")


def test_the_tests_see_two_logical_cpus():
    assert len(tf.config.list_logical_devices("CPU")) == 2


LIMITED = """
import tensorflow as tf
from rlplatform import devices
for threads in (1, 2):
    devices.limit_threads(threads)
    print(tf.config.threading.get_intra_op_parallelism_threads(), float(tf.reduce_sum(tf.ones([100, 100]))))
"""


@pytest.mark.slow
def test_the_first_choice_of_threads_in_a_process_counts_and_a_later_one_does_no_harm():
    assert output_of(LIMITED).split("\n")[:2] == ["1 10000.0", "1 10000.0"]


DETERMINISTIC = """
import tensorflow as tf
from rlplatform import devices
devices.make_deterministic()
index = tf.random.stateless_uniform([200_000], [1, 2], 0, 10, tf.int32)
value = tf.random.stateless_normal([200_000], [3, 4])
with devices.strategy("auto").scope():
    total = tf.Variable(tf.zeros([10]))
total.scatter_add(tf.IndexedSlices(value, index))
print(total.numpy().tobytes().hex())
try:
    tf.random.uniform([2])
except RuntimeError as error:
    print("refused" if "seed" in str(error) else error)
"""


@pytest.mark.slow
def test_deterministic_operations_add_up_to_the_same_bits_in_every_process():
    (output,) = {output_of(DETERMINISTIC) for _ in range(2)}
    total, refused = output.split()
    assert refused == "refused"
    index = tf.random.stateless_uniform([200_000], [1, 2], 0, 10, tf.int32).numpy()
    value = tf.random.stateless_normal([200_000], [3, 4]).numpy().astype(np.float64)
    np.testing.assert_allclose(
        np.frombuffer(bytes.fromhex(total), np.float32), np.bincount(index, value, minlength=10), rtol=1e-3, atol=1e-2
    )
