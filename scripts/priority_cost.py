"""What prioritised sampling costs: drawing a batch of 128 and writing its priorities, beside one update, both compiled.

    python scripts/priority_cost.py --out benchmarks/priority_cost.json

The ring is full. The programs are called in turn; the time of an empty one, that of a call, is taken off the others.
"""

import argparse
import json
import os
import pathlib
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # the checkout, installed or not
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from rlplatform import devices
from rlplatform.agents import DQN
from rlplatform.compression import machine
from rlplatform.config import Config
from rlplatform.experience import Batch, Block, Replay
from rlplatform.training.learner import _compile

BATCH, OBSERVATION, ACTIONS, HIDDEN, CAPACITY, ROWS = 128, (8,), 4, [256, 256], 1_000_000, 10_000


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=500, help="calls of each program")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    devices.limit_threads(1)
    replay = filled()
    priorities = replay.priorities
    assert priorities is not None
    agent = DQN(Config().replace(network={"hidden_units": HIDDEN}), OBSERVATION, "float32", ACTIONS)
    batch = Batch(*(field[0] for field in replay.sample(1, BATCH, tf.constant([0, 0]), tf.constant(1.0))))

    def prioritise(seed: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
        slot, weight = priorities.sample(1, BATCH, seed, beta)
        priorities.set_errors(slot, tf.abs(tf.random.stateless_normal([BATCH], seed, alg="philox")))
        return weight

    seed, number = tf.TensorSpec([2], tf.int32), tf.TensorSpec([], tf.float32)
    rate = tf.constant(1e-4)
    programs: dict[str, Any] = {
        "call": _compile(lambda number: number + 1.0, number),
        "sample and update priorities": _compile(prioritise, seed, number),
        "one update": _compile(agent.update, Batch(*(tf.TensorSpec(f.shape, f.dtype) for f in batch)), number),
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for index in range(args.repeat + 20):
        given = {
            "call": [rate],
            "sample and update priorities": [tf.constant([0, index]), tf.constant(0.5)],
            "one update": [*batch, rate],
        }
        for name, program in programs.items():
            begin = time.perf_counter()
            program(*given[name])
            seconds[name].append(time.perf_counter() - begin)
    median = {name: float(np.median(values[20:]) * 1e6) for name, values in seconds.items()}
    cost, update = (median[name] - median["call"] for name in ("sample and update priorities", "one update"))
    result = {
        "command": "python " + " ".join(sys.argv),
        "capacity": CAPACITY,
        "batch_size": BATCH,
        "hidden_units": HIDDEN,
        "median_us": {name: round(value, 1) for name, value in median.items()},
        "share_of_an_update": round(cost / update, 4),
        "machine": machine(),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{cost:.0f} us beside {update:.0f} us: {cost / update:.1%} of one update")


def filled() -> Replay:
    """A prioritised ring with an episode that never ends."""
    replay = Replay(CAPACITY, 1, OBSERVATION, "float32", n_step=1, frame_stack=1, gamma=0.99, priority_exponent=0.5)
    block = Block.empty(ROWS, 1, OBSERVATION, "float32")
    block.observation[:] = np.random.default_rng(0).normal(size=block.observation.shape)
    insert = _compile(replay.insert, Block(*(tf.TensorSpec(field.shape, field.dtype) for field in block)))
    for _ in range(CAPACITY // ROWS):
        insert(*(tf.constant(field) for field in block))
    return replay


if __name__ == "__main__":
    main()
