"""Folds the dueling Nature network, and counts on Atari frames how often its greedy action changes.

    python scripts/lossless_folds.py --states 100000 --out benchmarks/lossless_folds.json

The network has random weights: what is folded is algebra, and a trained one has the same layers. The states are stacks
of four frames that random actions meet. Where the two best values of a network differ by less than float32 resolves,
either action is right; such states are counted apart (`undecided`), by a bound on the rounding of the values.
"""

import argparse
import json
import pathlib
import platform
import shlex
import sys
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # the checkout, installed or not
from rlplatform import envs
from rlplatform.agents import networks
from rlplatform.compression import canonical
from rlplatform.compression.agreement import gaps
from rlplatform.config import Config
from rlplatform.training import evaluate, random_actions

GAME, SHAPE, ACTIONS = "ALE/Pong-v5", (84, 84, 4), 6
CHUNK, SEED = 500, 0
ROUNDING = 1e-5  # of the largest value: what float32 sums of 3,136 products may be wrong by, with room


class Enough(Exception):
    """All states are there."""


class Counter:
    """Compares two networks in the states that it is given, in chunks of one size.

    Args:
        network: `[B, O...]` to `[B, A]`.
        folded: the same.
        states: how many states to compare.
    """

    def __init__(self, network: Any, folded: Any, states: int) -> None:
        self._networks = tuple(tf.function(each, autograph=False) for each in (network, folded))
        self._waiting: list[Any] = []
        self._wanted = states
        self.states = self.other = self.undecided = self.other_undecided = 0
        self.largest_error = 0.0

    def add(self, observations: Any) -> None:
        """Takes `[n, O...]` uint8 in; raises `Enough` when no more are wanted."""
        self._waiting.extend(observations.copy())
        while len(self._waiting) >= CHUNK:
            chunk, self._waiting = np.stack(self._waiting[:CHUNK]), self._waiting[CHUNK:]
            self._compare(chunk)
            if self.states >= self._wanted:
                raise Enough

    def _compare(self, chunk: Any) -> None:
        network, folded = self._networks
        q = network(tf.constant(chunk)).numpy().astype(np.float64)
        other_q = folded(tf.constant(chunk.astype(np.float32))).numpy()
        scale = np.abs(q).max()
        close = gaps(q) <= ROUNDING * scale
        other = q.argmax(axis=1) != other_q.argmax(axis=1)
        self.states += len(chunk)
        self.other += int(other.sum())
        self.undecided += int(close.sum())
        self.other_undecided += int((other & close).sum())
        error = np.abs(q - q.mean(axis=1, keepdims=True) - other_q).max() / scale
        self.largest_error = max(self.largest_error, float(error))


def measure(states: int) -> dict[str, Any]:
    """Folds a network and compares it in as many states."""
    config = Config().replace(
        environment={"id": GAME, "frame_stack": 4}, network={"torso": "nature", "dueling": True}, seed=SEED
    )
    keras.utils.set_random_seed(SEED)
    network = networks.build(config, SHAPE, "uint8", ACTIONS)
    form = canonical(network)
    counter = Counter(network, form.model, states)
    act = random_actions(ACTIONS, SEED)
    try:
        while True:
            seeds = envs.seeds(SEED + counter.states, 32, "folds")
            evaluate(act, config.environment, seeds, on_observation=counter.add)
    except Enough:
        pass
    return {
        "game": GAME,
        "parameters": int(network.count_params()),
        "folded_parameters": int(form.model.count_params()),
        "folds": list(form.folds),
        "states": counter.states,
        "other_actions": counter.other,
        "undecided": counter.undecided,
        "other_actions_of_undecided": counter.other_undecided,
        "agreement": 1.0 - counter.other / counter.states,
        "largest_error": counter.largest_error,
    }


def main() -> None:
    """Measures, prints one line of JSON, and writes it with the command and the versions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, default=100_000)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    result = measure(args.states)
    result["command"] = shlex.join(["python", "scripts/lossless_folds.py", *sys.argv[1:]])
    result["versions"] = {"python": platform.python_version(), "tensorflow": tf.__version__, "numpy": np.__version__}
    print(json.dumps(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
