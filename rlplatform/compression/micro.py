"""tflite-micro's interpreter, which runs a file by a microcontroller's kernels: in a process that it may end."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rlplatform.compression import micro_worker
from rlplatform.errors import RunError
from rlplatform.runtime import open_graph

Array = np.ndarray[Any, Any]


class Answers(NamedTuple):
    """What a file gives on a microcontroller.

    Attributes:
        q: `[N, A]` float32.
        arena_bytes: memory that the interpreter had for everything but the file itself.
    """

    q: Array
    arena_bytes: int


def missing() -> str | None:
    """What to install so that files can be run; None where nothing is missing."""
    if importlib.util.find_spec("tflite_micro") is not None:
        return None
    return "tflite-micro is not installed here (pip install 'rlplatform[mcu]')"


def run(
    content: bytes, observations: Array, scaling: Mapping[str, Any] | None = None, arena_bytes: int | None = None
) -> Answers:
    """The answers of a file with int8 or int16 in and out, by tflite-micro's reference kernels.

    Args:
        content: the file's bytes.
        observations: `[N, O...]` as the environment gives them.
        scaling: as for `runtime.open_graph`.
        arena_bytes: of the arena; None looks for the least that suffices, in steps of 256 bytes.

    Raises:
        RunError: tflite-micro does not run it, or not in an arena of that size.
    """
    graph = open_graph(content, "the int8 file", scaling=scaling)
    if graph.quantise is None or graph.q.dtype not in (np.int8, np.int16):
        raise RunError("it is not int8 or int16 in and out")
    with tempfile.TemporaryDirectory(prefix="rlplatform-") as name:
        folder = pathlib.Path(name)
        (folder / "policy.tflite").write_bytes(content)
        (folder / "arena.json").write_text(json.dumps(arena_bytes))
        given = np.stack([graph.quantise(observation).copy() for observation in observations])
        np.save(folder / "inputs.npy", given)
        command = [sys.executable, "-P", str(micro_worker.__file__), str(folder)]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # It forks, which threads would not survive.
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
        arena = json.loads((folder / "arena.json").read_text())
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            reason = said[0] if said and done.returncode > 0 else f"its process ended with {done.returncode}"
            raise RunError(f"tflite-micro does not run it in an arena of {arena or 0:,} bytes: {reason}")
        q = (np.load(folder / "outputs.npy").astype(np.float32) - graph.q.zero_point) * np.float32(graph.q.scale)
    return Answers(q.astype(np.float32), arena)
