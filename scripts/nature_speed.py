"""Times the files of the network of Mnih et al. 2015 and of a student of it, in turn, on frames of Pong.

    python scripts/nature_speed.py --out benchmarks/nature_speed.json

Both have random weights, on which neither size nor speed depends. The large one is folded and stays float32, the
student becomes static int8, as `compress --target mcu` writes it. A decision is an observation of bytes in and an
action out, on one thread. Each round times one after the other; what counts is the median over rounds of their ratio.
"""

import argparse
import json
import pathlib
import shlex
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras as keras

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # the checkout, installed or not
from rlplatform.agents import networks
from rlplatform.compression import canonical, convert, machine, students, visited
from rlplatform.compression.latency import microseconds
from rlplatform.config import Config
from rlplatform.runtime import open_graph
from rlplatform.training import random_actions

GAME, SHAPE, ACTIONS, SEED, STATES = "ALE/Pong-v5", (84, 84, 4), 6, 0, 500
STUDENT = "4x8s4-8x4s2-8x3s1 32"  # that of benchmarks/pong.json


def measure(student: str, rounds: int) -> dict[str, Any]:
    """Converts both networks and times their files."""
    config = Config().replace(environment={"id": GAME, "frame_stack": 4}, network={"torso": "nature"}, seed=SEED)
    keras.utils.set_random_seed(SEED)
    seen, _ = visited(random_actions(ACTIONS, SEED), config.environment, STATES, SEED)
    small = students.build(students.parse(student), seen, ACTIONS, seed=SEED)
    large = canonical(networks.build(config, SHAPE, "uint8", ACTIONS)).model
    files = [convert(large, seen, "cpu", "dynamic").float_file, convert(canonical(small).model, seen, "mcu").int8_file]
    decisions = [_decision(content) for content in files]
    times = np.array([[microseconds(decide, seen[:100]) for decide in decisions] for _ in range(rounds)])
    ratios = times[:, 0] / times[:, 1]
    low, median, high = (round(float(each), 2) for each in np.percentile(ratios, (2.5, 50, 97.5)))
    large_time, small_time = (round(float(each), 2) for each in np.median(times, axis=0))
    return {
        "large": {"bytes": len(files[0]), "microseconds": large_time},
        "student": {"architecture": student, "bytes": len(files[1]), "microseconds": small_time},
        "times_smaller": round(len(files[0]) / len(files[1]), 1),
        "times_faster": {"median": median, "low": low, "high": high, "rounds": rounds},
    }


def _decision(content: bytes) -> Callable[[Any], int]:
    graph = open_graph(content, "the file")
    return lambda observation: int(graph.q_values(observation).argmax())


def main() -> None:
    """Measures, prints one line of JSON, and writes it with the command and the versions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default=STUDENT, help="its convolutions and hidden units")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    result = measure(args.student, args.rounds)
    result["command"] = shlex.join(["python", "scripts/nature_speed.py", *sys.argv[1:]])
    result["machine"] = machine()
    print(json.dumps(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
