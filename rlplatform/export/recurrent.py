"""What is said of a network that remembers, and what is not made of one."""

from collections.abc import Iterable
from typing import Any

from rlplatform.agents.recurrent import state_size
from rlplatform.compression import Quantisation, Target, refuses_memory
from rlplatform.errors import UserError
from rlplatform.training import Run


def refuse(run: Run, target: Target, quantisation: Quantisation, qat: bool, formats: Iterable[str]) -> None:
    """Raises a `UserError` for what cannot be made of a run whose network remembers, and says what can."""
    if not run.config.is_recurrent:
        return
    reason = refuses_memory(target, quantisation)
    if qat:
        reason = (
            "quantisation-aware training is for networks without a memory; leave --qat out: weights are made int8 "
            "after training"
        )
    elif "c" in formats:
        reason = "the format c is for networks without a memory; the others are tflite, saved_model and onnx"
    if reason is not None:
        raise UserError(f"{_named(run)}: {reason}")


def refuse_students(run: Run) -> None:
    """Raises a `UserError` for a run whose network remembers, of which nothing smaller is made."""
    if run.config.is_recurrent:
        raise UserError(
            f"{_named(run)}, which has no students and is not pruned or clustered after training; leave --budget, "
            "--prune and --clusters out, or train with fewer network.recurrent_units or with prune.final_sparsity"
        )


def described(run: Run) -> dict[str, Any]:
    """What `policy.json` says of the state; nothing without one."""
    network = run.config.network
    if not run.config.is_recurrent:
        return {}
    return {"state": {"kind": network.recurrent, "size": state_size(network), "initial": 0.0}}


def preprocessing(run: Run) -> list[str]:
    """What must happen around a file that remembers, in a sentence."""
    if not run.config.is_recurrent:
        return []
    return [
        "a decision's next_state is the state of the episode's next decision, and an episode begins with zeros "
        "(Policy.reset and Policy.step do this)"
    ]


def _named(run: Run) -> str:
    return f"{run.path} has a recurrent network ({run.config.network.recurrent})"
