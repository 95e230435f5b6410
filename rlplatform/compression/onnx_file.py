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


def missing_converter() -> str | None:
    """What to install so that a file can be made; None where nothing is missing."""
    return _missing("tf2onnx")


def missing_runtime() -> str | None:
    """What to install so that a file can be run; None where nothing is missing."""
    return _missing("onnxruntime")


def run(content: bytes, observations: Array, masks: Array | None = None) -> Answers:
    """The answers of a file, one observation at a time.

    Args:
        content: the file's bytes; from `observation [1, O...]`, and maybe `action_mask [1, A]`, to `action [1]` and
            `q [1, A]`.
        observations: `[N, O...]` of the file's dtype.
        masks: `[N, A]` bool, for a file that takes masks.

    Raises:
        RunError: onnxruntime does not load it, or it takes or gives something else.
    """
    import onnxruntime  # Here: the extra may be missing.

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        answers = [session.run(["q", "action"], inputs) for inputs in _inputs(observations, masks)]
    except Exception as error:  # onnxruntime has an exception of its own for each of its codes.
        raise RunError(f"onnxruntime does not run it: {str(error).strip().splitlines()[0]}") from None
    return Answers(np.concatenate([q for q, _ in answers]), np.concatenate([action for _, action in answers]))


def _inputs(observations: Array, masks: Array | None) -> list[dict[str, Array]]:
    inputs = [{"observation": observation[None]} for observation in observations]
    if masks is not None:
        for given, mask in zip(inputs, masks, strict=True):
            given["action_mask"] = mask[None]
    return inputs


def _missing(package: str) -> str | None:
    if importlib.util.find_spec(package) is not None:
        return None
    return f"{package} is not installed here (pip install 'rlplatform[onnx]')"
