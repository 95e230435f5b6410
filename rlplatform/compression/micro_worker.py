"""The process that runs a file by tflite-micro: started with a folder, never imported.

In an arena that is too small, tflite-micro may end the process that it runs in; so each size is tried in a process of
its own, forked from this one. The folder holds `policy.tflite`, `inputs.npy`, `[N, 1, O...]` int8 or int16, and
`arena.json`: bytes, or null for the least that suffice. That number is then written there, and the answers into
`outputs.npy`, `[N, A]` of the same type. What tflite-micro says of a file that it does not run is on standard error.
"""

import json
import os
import pathlib
import sys
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

STEP = 256  # Bytes. An arena that just suffices is rounded up to these; a little less may end the process.
MOST = 2**26  # No microcontroller has more: a file that answers in no such arena answers in none.


def main(folder: pathlib.Path) -> int:
    """Runs the file on all inputs; the exit code of the process."""
    content, inputs = (folder / "policy.tflite").read_bytes(), np.load(folder / "inputs.npy")
    arena = json.loads((folder / "arena.json").read_text())
    if arena is None:
        arena = smallest(content, inputs[:1])
        (folder / "arena.json").write_text(json.dumps(arena))
    try:
        np.save(folder / "outputs.npy", outputs(content, inputs, arena))
    except RuntimeError as error:  # After what the interpreter has said of it.
        print(error, file=sys.stderr)
        return 1
    return 0


def outputs(content: bytes, inputs: Array, arena: int) -> Array:
    """What the file answers, `[N, A]` in whole numbers.

    Raises:
        RuntimeError: the arena does not suffice, or tflite-micro does not run an operator.
    """
    from tflite_micro import runtime  # Here: the extra `mcu` may be missing.

    interpreter = runtime.Interpreter.from_bytes(content, arena_size=arena)
    answers = []
    for given in inputs:
        interpreter.set_input(given, 0)
        interpreter.invoke()
        answers.append(interpreter.get_output(0)[0].copy())
    return np.stack(answers)


def smallest(content: bytes, inputs: Array) -> int:
    """The least arena, in whole steps, in which the file answers; `MOST` where it answers in none."""
    enough = STEP
    while enough < MOST and not suffices(content, inputs, enough):
        enough *= 2
    too_small = enough // 2 if enough < MOST else enough - STEP
    while enough - too_small > STEP:
        middle = (too_small + enough) // 2 // STEP * STEP
        if suffices(content, inputs, middle):
            enough = middle
        else:
            too_small = middle
    return enough


def suffices(content: bytes, inputs: Array, arena: int) -> bool:
    """Whether the file answers in an arena of so many bytes, tried in a process of its own, without a word."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
            outputs(content, inputs, arena)
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
