"""Which device a run's variables live on, as a `tf.distribute` strategy, and how its operations are made repeatable."""

import contextlib
import os
import platform
from typing import Any, Literal

import tensorflow as tf

from rlplatform.errors import UserError

Device = Literal["auto", "cpu", "gpu"]


def strategy(device: Device) -> tf.distribute.Strategy:
    """The strategy under whose scope all variables of a run are made.

    Args:
        device: `auto` takes the first GPU, or the CPU where there is none.

    Returns:
        A strategy of one replica. A GPU's memory is taken as it is needed, not all at the start.

    Raises:
        UserError: a GPU is asked for and TensorFlow sees none.
    """
    if _gpu(device) is None:
        return tf.distribute.OneDeviceStrategy("/cpu:0")
    for gpu in tf.config.list_physical_devices("GPU"):  # all of them, or none: TensorFlow refuses a mixture
        if not tf.config.experimental.get_memory_growth(gpu):
            try:
                tf.config.experimental.set_memory_growth(gpu, True)
            except RuntimeError:  # too late: whoever used the GPU first in this process has chosen
                break
    return tf.distribute.OneDeviceStrategy("/gpu:0")


def describe(device: Device) -> str:
    """The device that `strategy` takes, in words for people: `CPU, 2 cores (x86_64)` or `GPU (NVIDIA H100 PCIe)`."""
    gpu = _gpu(device)
    if gpu is None:
        return f"CPU, {_num_cores()} cores ({platform.machine()})"
    return f"GPU ({tf.config.experimental.get_device_details(gpu).get('device_name', 'unnamed')})"


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


def _num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
