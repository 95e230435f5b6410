"""What devices a machine has, which of them `auto` takes, and how fast each is at products and at updates."""

import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from rlplatform import devices
from rlplatform.config import Config, Device
from rlplatform.envs import Spec
from rlplatform.experience import Block
from rlplatform.training import Learner

MEASURED: tuple[Device, ...] = ("cpu", "gpu", "mirrored")
SECONDS = 1.0  # of each measurement
SIDE = 1_024  # of the matrices that are multiplied
PRODUCTS = 16  # in one program
UPDATES = 32  # in one call of `learn`
BATCH = 128


def take(speed: bool = True) -> dict[str, Any]:
    """What there is.

    Args:
        speed: measure it too; devices of other machines and TPUs are not measured.

    Returns:
        `auto`: the device that `auto` takes, and `why`. `devices`: one entry for each kind, with `device`, `here` and
        `what`; where it was measured also `gflops` (10^9 operations a second in a product of two float32 matrices of
        1,024 x 1,024) and `updates_per_s` (gradient updates of batch 128 of a network of 120 and 84 units, drawn from
        the replay, which is what `learn` does).
    """
    device, why = devices.chosen()
    kinds = devices.found()
    measured = [found.device for found in kinds if speed and found.here and found.device in MEASURED]
    # Several logical CPUs must be asked for before TensorFlow is used, so the last kind comes first.
    strategies = {name: devices.strategy(name) for name in reversed(measured)}
    entries = []
    for found in kinds:
        entry = found._asdict()
        if found.device in measured:
            strategy = strategies[found.device]
            entry |= {"gflops": _gflops(strategy), "updates_per_s": _updates(strategy)}
        entries.append(entry)
    return {"auto": device, "why": why, "devices": entries}


def _gflops(strategy: tf.distribute.Strategy) -> float:
    """Over all replicas of the strategy together."""

    def multiplied(matrix: tf.Tensor) -> tf.Tensor:
        product = matrix
        for _ in range(PRODUCTS):
            product = tf.matmul(product, matrix)
        return tf.reduce_sum(product)

    matrix = tf.random.stateless_uniform([SIDE, SIDE], [1, 2]) * (2.0 / SIDE)  # no constant: that would be folded
    program = tf.function(lambda matrix: strategy.run(multiplied, args=(matrix,)), autograph=False)
    rate = _rate(lambda: [value.numpy() for value in strategy.experimental_local_results(program(matrix))])
    return round(rate * PRODUCTS * int(strategy.num_replicas_in_sync) * 2e-9 * SIDE**3, 1)


def _updates(strategy: tf.distribute.Strategy) -> float:
    replicas = strategy.num_replicas_in_sync
    envs = 8 * replicas
    config = Config().replace(
        environment={"num_envs": envs},
        network={"hidden_units": [120, 84]},
        replay={"capacity": 1_000 * envs},
        training={"train_interval": 8 * envs, "gradient_steps": UPDATES, "batch_size": BATCH // replicas * replicas},
    )
    learner = Learner(config, Spec((4,), "float32", 2), strategy)
    block = Block.empty(config.block_steps, envs, (4,), "float32")
    return round(UPDATES * _rate(lambda: learner.learn_block(block, 1e-3)), 1)


def _rate(work: Callable[[], object]) -> float:
    """How often a second it is done, after a first time that may compile."""
    work()
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < SECONDS or count == 0:
        work()
        count += 1
    return count / elapsed
