"""Fills the replay with Atari frames and says how much memory it takes.

    python scripts/replay_memory.py --frames 1000000 --out benchmarks/replay_memory.json

Every frame is written and batches of four-frame stacks are drawn all the while, by the compiled programs that training
uses; resident memory is the system's own count for this process, read before the ring is made and at the end.
"""

import argparse
import json
import pathlib
import platform
import shlex
import sys
import time
from typing import Any

import numpy as np
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # the checkout, installed or not
from rlplatform.experience import Block, Replay

BLOCK, BATCH = 1_000, 32


def memory(field: str) -> int:
    """Bytes that the system counts for this process: `VmRSS`, resident now, or `VmHWM`, at most so far."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system has no /proc/self/status with VmRSS and VmHWM")


def compiled(function: Any, *signature: Any) -> Any:
    """One XLA program, as the learner makes them."""
    return tf.function(function, jit_compile=True, autograph=False).get_concrete_function(*signature)


def measure(frames: int) -> dict[str, Any]:
    """Fills a ring of `frames` frames once and a block more, and draws from it after each block."""
    rng = np.random.default_rng(0)
    block = Block.empty(BLOCK, 1, (84, 84), "uint8")
    block.observation[:] = rng.integers(0, 256, block.observation.shape, dtype=np.uint8)
    signature = Block(*(tf.TensorSpec(field.shape, field.dtype) for field in block))
    before = memory("VmRSS")
    replay = Replay(frames, 1, (84, 84), "uint8", n_step=1, frame_stack=4, gamma=0.99)
    insert = compiled(replay.insert, signature)
    sample = compiled(lambda seed: replay.uniform(BATCH, seed).observation, tf.TensorSpec([2], tf.int32))
    tensors = [tf.constant(field) for field in block]
    begun = time.perf_counter()
    for index in range(-(-frames // BLOCK) + 1):
        insert(*tensors)
        assert sample(tf.constant([0, index])).shape == (BATCH, 84, 84, 4)
    seconds = time.perf_counter() - begun
    after, peak = memory("VmRSS"), memory("VmHWM")
    return {
        "frames": frames,
        "frame": [84, 84],
        "frame_stack": 4,
        "fill": replay.fill,
        "ring_gb": (after - before) / 1e9,
        "bytes_per_frame": (after - before) / frames,
        "peak_gb": (peak - before) / 1e9,
        "process_gb": after / 1e9,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Measures, prints one line of JSON, and writes it with the command and the versions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    result = measure(args.frames)
    result["command"] = shlex.join(["python", "scripts/replay_memory.py", *sys.argv[1:]])
    result["versions"] = {"python": platform.python_version(), "tensorflow": tf.__version__, "numpy": np.__version__}
    result["machine"] = f"{platform.machine()}, {platform.system()}"
    print(json.dumps(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
