"""A run's variables live where they were asked to, and a wish that cannot be met is refused with what would be."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from rlplatform import devices, inventory
from rlplatform.config import DEVICES
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


# --- several ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_mirrored_takes_logical_cpus_where_there_is_no_gpu():
    strategy = devices.strategy("mirrored")
    assert strategy.num_replicas_in_sync == 2
    with strategy.scope():
        places = [part.device for part in strategy.experimental_local_results(tf.Variable(1.0))]
    assert ["CPU:0" in places[0], "CPU:1" in places[1]] == [True, True]
    assert devices.describe("mirrored", 2).startswith("2 logical devices of CPU, ")


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_a_process_has_one_strategy_for_the_same_devices():
    """TensorFlow's collectives mix up what two of them exchange."""
    assert devices.strategy("mirrored", 2) is devices.strategy("mirrored", 2)


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_more_logical_cpus_than_this_process_has_begun_with_are_refused():
    assert len(tf.config.list_logical_devices("CPU")) == 2
    with pytest.raises(UserError, match="3 replicas need as many logical CPUs, and TensorFlow has begun with 2"):
        devices.strategy("mirrored", 3)


FOUR = """
from rlplatform import devices
from rlplatform.config import Config
from rlplatform.envs import Spec
from rlplatform.experience import Block
from rlplatform.training import Learner
strategy = devices.strategy("mirrored", 4)
config = Config().replace(
    environment={"num_envs": 4}, network={"hidden_units": [4]}, replay={"capacity": 80, "prioritized": True},
    training={"train_interval": 20, "gradient_steps": 2, "batch_size": 8},
)
learner = Learner(config, Spec((3,), "float32", 2), strategy)
block = Block.empty(5, 4, (3,), "float32")
block.reward[:] = [1.0, 2.0, 3.0, 4.0]
learner.insert_block(block)
learner.learn_block(block, 1e-2)
state = learner.state()
print([float(state[f"replay@{replica}/reward"][0]) for replica in range(4)])
moments = strategy.experimental_local_results(learner.agent.optimizer.first_moment)
print(len({moment.numpy().tobytes() for moment in moments}))
"""


@pytest.mark.slow
def test_four_replicas_on_one_cpu_learn_in_step():
    assert output_of(FOUR).splitlines() == ["[1.0, 2.0, 3.0, 4.0]", "1"]


def test_replicas_exchange_what_they_have():
    strategy = devices.strategy("mirrored", 2)

    def exchange():
        own = tf.cast(devices.replica(), tf.float32) + tf.constant([1.0, 5.0])  # [1, 5] and [2, 6]
        return devices.mean(own), devices.total(own), devices.least(-own), devices.gathered(own[None], axis=1)

    results = tf.function(lambda: strategy.run(exchange), autograph=False)()
    for mean, total, least, gathered in zip(*map(strategy.experimental_local_results, results), strict=True):
        assert mean.numpy().tolist() == [1.5, 5.5]
        assert total.numpy().tolist() == [3.0, 11.0]
        assert least.numpy().tolist() == [-2.0, -6.0]
        assert gathered.numpy().tolist() == [[1.0, 5.0, 2.0, 6.0]]


def test_one_replica_has_nobody_to_ask():
    value = tf.constant([1.0])
    assert devices.num_replicas() == 1
    assert all(each is value for each in (devices.mean(value), devices.total(value), devices.gathered(value, 0)))


@pytest.mark.parametrize(
    ("addresses", "index", "sentence"),
    [
        (["a:1"], 0, "several workers are needed, for one 'cpu', 'gpu' or 'mirrored' is right"),
        (["a:1", "b"], 0, "a worker's address is HOST:PORT, like node1:2222; got 'b'"),
        (["a:1", "b:2"], 2, "--task-index must lie between 0 and 1; got 2"),
    ],
)
def test_workers_that_cannot_be_are_refused(addresses, index, sentence, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "")
    with pytest.raises(UserError, match=sentence):
        devices.join(addresses, index)


@pytest.mark.parametrize("text", ["{", "[]", '{"cluster": {"worker": ["a:1", "b:2"]}}'])
def test_a_tf_config_that_does_not_read_is_refused_with_one_that_does(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match="TF_CONFIG must be JSON like"):
        devices.strategy("multiworker")


def test_workers_must_be_named(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UserError, match=r"give each --workers HOST:PORT,HOST:PORT and its own --task-index, or set"):
        devices.strategy("multiworker")


def test_tf_config_names_the_workers_with_the_chief_first(monkeypatch):
    task = '"task": {"type": "worker", "index": 0}'
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:2"], "chief": ["c:3"]}, ' + task + "}")
    assert devices.cluster() == (["c:3", "a:1", "b:2"], 1)
    assert devices.place("multiworker") == (1, 3)
    assert devices.place("cpu") == (0, 1)


def test_a_tpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.delenv("TPU_NAME", raising=False)
    monkeypatch.setattr(devices.glob, "glob", lambda pattern: [])
    with pytest.raises(UserError, match="no TPU is attached and TPU_NAME is not set; 'auto' would take"):
        devices.strategy("tpu")


def test_what_is_found_names_every_kind_and_auto_takes_one_that_is_here():
    found = {entry.device: entry.here for entry in devices.found()}
    assert set(found) == set(DEVICES) - {"auto"}
    assert found["cpu"]
    device, _ = devices.chosen()
    assert found[device]
    assert place_of_a_variable(devices.strategy("auto")) == place_of_a_variable(devices.strategy(device))


def test_the_inventory_measures_products_and_updates(monkeypatch):
    monkeypatch.setattr(inventory, "SECONDS", 0.0)
    monkeypatch.setattr(inventory, "SIDE", 64)
    monkeypatch.setattr(devices, "found", lambda: [devices.Found("cpu", True, "CPU"), devices.Found("tpu", False, "")])
    cpu, tpu = inventory.take()["devices"]
    assert min(cpu["gflops"], cpu["updates_per_s"]) > 0.0
    assert set(tpu) == {"device", "here", "what"}


# --- one process ------------------------------------------------------------------------------------------------------


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
