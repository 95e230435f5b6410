"""The float32 network as ONNX, and what onnxruntime answers by it; the extra `onnx` brings both."""

import importlib.util
from typing import Any, NamedTuple

import numpy as np

from rlplatform.errors import RunError

Array = np.ndarray[Any, Any]

ONNX_FILE = "policy.onnx"


class Answers(NamedTuple):
    """What a file gives by onnxruntime."""

    q: Array  # [N, A] float32
    actions: Array  # [N] int64, counted from 0
    states: Array | None = None  # [N, H] float32, for a file that remembers: what it has in mind after each


def missing_converter() -> str | None:
    """What to install so that a file can be made; None where nothing is missing."""
    return _missing("tf2onnx")


def missing_runtime() -> str | None:
    """What to install so that a file can be run; None where nothing is missing."""
    return _missing("onnxruntime")


def run(content: bytes, observations: Array, masks: Array | None = None, states: Array | None = None) -> Answers:
    """The answers of a file, one observation at a time.

    Args:
        content: the file's bytes; from `observation [1, O...]`, and maybe `action_mask [1, A]`, to `action [1]` and
            `q [1, A]`; from `state [1, H]` besides, and to `next_state`, if it remembers.
        observations: `[N, O...]` of the file's dtype.
        masks: `[N, A]` bool, for a file that takes masks.
        states: `[N, H]` float32, for a file that remembers: what it has in mind before each.

    Raises:
        RunError: onnxruntime does not load it, or it takes or gives something else.
    """
    import onnxruntime  # Here: the extra may be missing.

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        names = ["q", "action"] if states is None else ["q", "action", "next_state"]
        answers = [session.run(names, inputs) for inputs in _inputs(observations, masks, states)]
    except Exception as error:  # onnxruntime has an exception of its own for each of its codes.
        raise RunError(f"onnxruntime does not run it: {str(error).strip().splitlines()[0]}") from None
    return Answers(*map(np.concatenate, zip(*answers, strict=True)))


def _inputs(observations: Array, masks: Array | None, states: Array | None) -> list[dict[str, Array]]:
    columns = {"observation": observations, "action_mask": masks, "state": states}
    given = {name: column for name, column in columns.items() if column is not None}
    return [{name: column[row][None] for name, column in given.items()} for row in range(len(observations))]


def _missing(package: str) -> str | None:
    if importlib.util.find_spec(package) is not None:
        return None
    return f"{package} is not installed here (pip install 'rlplatform[onnx]')"
