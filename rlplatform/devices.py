"""Where a run lives and its program runs, as a `tf.distribute` strategy, and what replicas tell one another."""

import contextlib
import functools
import glob
import json
import os
import platform
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from rlplatform.config import Device
from rlplatform.errors import UserError

CLUSTER = "TF_CONFIG"  # where TensorFlow reads who the workers are


def strategy(device: Device, replicas: int = 0) -> tf.distribute.Strategy:
    """The strategy under whose scope the variables of a run are made.

    Every replica holds its shard of the environments and of the replay, and draws its own share of each batch.

    Args:
        device: `auto` takes the first GPU, or the CPU where there is none, and never more than one device: a small
            network is slower on several. `mirrored` takes several devices of this machine, `multiworker` those of all
            machines that `TF_CONFIG` names, `tpu` all cores of a TPU.
        replicas: of `mirrored`: how many GPUs, or logical CPUs where there is no GPU; 0 is all GPUs, or two CPUs.

    Returns:
        A strategy. A GPU's memory is taken as it is needed, not all at the start.

    Raises:
        UserError: what was asked for is not there.
    """
    if device == "mirrored":
        return _mirrored_on(*_mirrored(replicas))
    if device == "multiworker":
        return _multiworker()
    if device == "tpu":
        return _tpu()
    if _gpu(device) is None:
        return tf.distribute.OneDeviceStrategy("/cpu:0")
    _grow_memory()
    return tf.distribute.OneDeviceStrategy("/gpu:0")


def describe(device: Device, replicas: int = 0) -> str:
    """What `strategy` takes, in words for people: `CPU, 2 cores (x86_64)` or `2 GPUs (NVIDIA H100 PCIe)`."""
    if device == "tpu":
        return "TPU"
    if device == "multiworker":
        workers = cluster()
        return f"worker {workers.task} of {len(workers.addresses)}, {describe('auto')}"
    gpus = tf.config.list_physical_devices("GPU")
    if device == "mirrored":
        count = replicas or len(gpus) or 2
        return f"{count} GPUs ({_name(gpus[0])})" if gpus else f"{count} logical devices of {describe('cpu')}"
    gpu = _gpu(device)
    return f"CPU, {_num_cores()} cores ({platform.machine()})" if gpu is None else f"GPU ({_name(gpu)})"


class Found(NamedTuple):
    """Whether one kind of device is here.

    Attributes:
        device: what `--device` calls it.
        here: whether a run can take it.
        what: what it is, or why it is not here.
    """

    device: Device
    here: bool
    what: str


def found() -> list[Found]:
    """Every kind of device, in the order of `--device`, without `auto`."""
    gpus = tf.config.list_physical_devices("GPU")
    missing = "TensorFlow sees no GPU"
    kinds = [Found("cpu", True, describe("cpu")), Found("gpu", bool(gpus), describe("gpu") if gpus else missing)]
    kinds.append(Found("mirrored", True, describe("mirrored")))
    try:
        kinds.append(Found("multiworker", True, describe("multiworker")))
    except UserError:
        kinds.append(Found("multiworker", False, "no workers are named, by --workers or TF_CONFIG"))
    tpu = _tpu_name()
    kinds.append(Found("tpu", tpu is not None, "no TPU is attached, and TPU_NAME is not set" if tpu is None else tpu))
    return kinds


def chosen() -> tuple[Device, str]:
    """What `auto` takes here, and why."""
    count = len(tf.config.list_physical_devices("GPU"))
    if count == 0:
        return "cpu", "TensorFlow sees no GPU"
    if count == 1:
        return "gpu", "there is a GPU"
    return "gpu", f"the first of {count} GPUs: several serve large batches, and are asked for by 'mirrored'"


# --- many machines --------------------------------------------------------------------------------------------------


class Cluster(NamedTuple):
    """The workers of a run, and which of them this process is; the first one is the chief."""

    addresses: list[str]  # host:port
    task: int


class Place(NamedTuple):
    """Which of the processes that run together this one is."""

    worker: int
    workers: int


def place(device: Device) -> Place:
    """Where this process stands among the workers; alone, but for `multiworker`."""
    if device != "multiworker":
        return Place(0, 1)
    workers = cluster()
    return Place(workers.task, len(workers.addresses))


def join(addresses: Sequence[str], index: int) -> None:
    """Says who the workers are: what `TF_CONFIG` would, in this process.

    Raises:
        UserError: fewer than two, an address without a port, or an index of none of them.
    """
    os.environ[CLUSTER] = json.dumps(
        {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": index}}
    )
    cluster()


def cluster() -> Cluster:
    """The workers that `TF_CONFIG` names.

    Raises:
        UserError: it names none, or does not read.
    """
    text = os.environ.get(CLUSTER)
    if not text:
        raise UserError(
            "device 'multiworker' must know the workers: give each --workers HOST:PORT,HOST:PORT and its own "
            "--task-index, or set TF_CONFIG"
        )
    try:
        tree = json.loads(text)
        chiefs, workers = (list(tree["cluster"].get(kind, [])) for kind in ("chief", "worker"))
        index = int(tree["task"]["index"]) + (len(chiefs) if tree["task"]["type"] == "worker" else 0)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            'TF_CONFIG must be JSON like {"cluster": {"worker": ["a:1234", "b:1234"]}, "task": {"type": "worker", '
            f'"index": 0}}}}; got {text}'
        ) from None
    addresses = chiefs + workers
    if len(addresses) < 2:
        raise UserError(f"several workers are needed, for one 'cpu', 'gpu' or 'mirrored' is right; got {addresses}")
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise UserError(f"a worker's address is HOST:PORT, like node1:2222; got {address!r}")
    if not 0 <= index < len(addresses):
        raise UserError(f"--task-index must lie between 0 and {len(addresses) - 1}; got {index}")
    return Cluster(addresses, index)


def _multiworker() -> tf.distribute.Strategy:
    cluster()
    _grow_memory()
    # No timeout: each exchange would have a thread that sleeps as long. A worker that is gone is found by the health
    # check, in about half a minute.
    return tf.distribute.MultiWorkerMirroredStrategy()


# --- what replicas tell one another ---------------------------------------------------------------------------------


def num_replicas() -> int:
    """How many replicas run this line together, or will run what is made here."""
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def replica() -> tf.Tensor | int:
    """Traced: which of all replicas this is; the first one outside of `strategy.run`."""
    context = tf.distribute.get_replica_context()
    return 0 if context is None else context.replica_id_in_sync_group


def mean(value: tf.Tensor) -> tf.Tensor:
    """Traced: the mean of `value` over all replicas; `value` itself where there is one."""
    return _reduced(tf.distribute.ReduceOp.MEAN, value)


def total(value: tf.Tensor) -> tf.Tensor:
    """Traced: the sum of `value` over all replicas; `value` itself where there is one."""
    return _reduced(tf.distribute.ReduceOp.SUM, value)


def moments(mean_here: tf.Tensor, variance: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Traced: mean and variance of all replicas' items, of which each has as many; those given where there is one."""
    if num_replicas() == 1:
        return mean_here, variance
    everywhere = mean(mean_here)
    return everywhere, mean(variance + tf.square(mean_here - everywhere))


def gathered(value: tf.Tensor, axis: int) -> tf.Tensor:
    """Traced: the `value` of all replicas, one after the other along an axis; `value` itself of one.

    As a sum in which each has its place: `all_gather` fails where a worker has one device.
    """
    count = num_replicas()
    if count == 1:
        return value
    if value.dtype == tf.bool:  # cannot be added
        return gathered(tf.cast(value, tf.int32), axis) > 0
    own = tf.reshape(tf.range(count) == replica(), [count, *[1] * value.shape.rank])
    return tf.concat(tf.unstack(total(tf.where(own, value[None], tf.zeros([], value.dtype))), count), axis)


def least(value: tf.Tensor) -> tf.Tensor:
    """Traced: the least of `value [...]` over all replicas, element by element; `value` itself where there is one."""
    return value if num_replicas() == 1 else tf.reduce_min(gathered(value[None], axis=0), axis=0)


def _reduced(operation: Any, value: tf.Tensor) -> tf.Tensor:
    return value if num_replicas() == 1 else tf.distribute.get_replica_context().all_reduce(operation, value)


# --- one process ----------------------------------------------------------------------------------------------------


def limit_threads(threads: int) -> None:
    """Sets how many cores one operation may use; 0 is all of them. Only the first choice in a process counts.

    A small network is faster on one core, above all where other processes keep the others busy: its operations take a
    few microseconds, and sharing one costs as much.
    """
    with contextlib.suppress(RuntimeError):  # TensorFlow is running already
        tf.config.threading.set_intra_op_parallelism_threads(threads)


def threads() -> int:
    """How many cores one operation may use in this process."""
    return int(tf.config.threading.get_intra_op_parallelism_threads()) or _num_cores()


def make_deterministic() -> None:
    """Makes every operation of this process give the same bits each time, on GPUs too, where some would not.

    Cannot be taken back. From here on, a stateful random operation needs a seed.
    """
    tf.config.experimental.enable_op_determinism()


def _gpu(device: Device) -> Any:
    """The physical GPU to use, or None for the CPU."""
    gpus = [] if device == "cpu" else tf.config.list_physical_devices("GPU")
    if device == "gpu" and not gpus:
        raise UserError("device 'gpu' was asked for, but TensorFlow sees no GPU here; 'auto' would take the CPU")
    return gpus[0] if gpus else None


def _mirrored(replicas: int) -> list[str]:
    """The devices of this machine that hold a replica each."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        if replicas > len(gpus):
            raise UserError(f"replicas must be at most {len(gpus)}, the GPUs that TensorFlow sees here; got {replicas}")
        _grow_memory()
        return [f"/gpu:{index}" for index in range(replicas or len(gpus))]
    count = replicas or 2
    cpu = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or ()) < count:
        with contextlib.suppress(RuntimeError):  # TensorFlow is running already
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    there = len(tf.config.list_logical_devices("CPU"))
    if there < count:
        raise UserError(
            f"{count} replicas need as many logical CPUs, and TensorFlow has begun with {there} in this process; "
            f"start a new one, or set replicas to {there}"
        )
    return [f"/cpu:{index}" for index in range(count)]


@functools.cache
def _mirrored_on(*names: str) -> tf.distribute.Strategy:
    """One for each set of devices in a process: the collectives of two would take each other's messages.

    Logical CPUs share their memory. What they exchange is added up there: collectives would keep 2 kB of each exchange.
    """
    shared = "cpu" in names[0]
    return tf.distribute.MirroredStrategy(names, tf.distribute.ReductionToOneDevice() if shared else None)


def _grow_memory() -> None:
    """Lets GPUs take their memory as it is needed."""
    for gpu in tf.config.list_physical_devices("GPU"):  # all of them, or none: TensorFlow refuses a mixture
        if not tf.config.experimental.get_memory_growth(gpu):
            try:
                tf.config.experimental.set_memory_growth(gpu, True)
            except RuntimeError:  # too late: whoever used the GPU first in this process has chosen
                break


def _tpu_name() -> str | None:
    """The TPU to connect to: `local` for one that is attached to this machine; None where there is none."""
    attached = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    return os.environ.get("TPU_NAME") or ("local" if attached else None)


def _tpu() -> tf.distribute.Strategy:
    """As TensorFlow's guide to TPUs has it: find, connect, initialise."""
    name = _tpu_name()
    if name is None:
        raise UserError(
            "device 'tpu' was asked for, but no TPU is attached and TPU_NAME is not set; 'auto' would take "
            f"{describe('auto')}"
        )
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        if name != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, tf.errors.OpError) as error:
        raise UserError(f"the TPU {name!r} cannot be used: {str(error).splitlines()[0]}") from error


def _name(gpu: Any) -> str:
    return str(tf.config.experimental.get_device_details(gpu).get("device_name", "unnamed"))


def _num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
