"""A static int8 file made again after quantisation-aware training: the better of the two is kept, never silently."""

from typing import Any

import numpy as np

from rlplatform.compression import aware
from rlplatform.compression.agreement import Agreement, hard_half
from rlplatform.compression.choice import fidelity, is_enough
from rlplatform.compression.conversion import Files, Target, convert, static_form
from rlplatform.compression.distillation import Recipe
from rlplatform.compression.labels import Labels

Array = np.ndarray[Any, Any]

JUDGED = 1_000  # States by which two files are compared, half of them the hardest: as the gate of agreement does.


def falls_short(files: Files, states: Labels) -> bool:
    """Whether the int8 file is static and would fail the gate of agreement on these states."""
    return files.quantisation["method"] == "static" and not is_enough(_fidelity(files, states))


def retrain(
    model: Any,
    files: Files,
    calibration: Array,
    masks: Array | None,
    target: Target,
    labels: Labels,
    held_out: Labels,
    recipe: Recipe = aware.RECIPE,
    seed: int = 0,
) -> Files:
    """The files with the better int8 file: that which is there, or one of weights that were trained for int8.

    Args:
        model: the canonical network that the files were made of, `[B, O...]` float32 to `[B, A]`.
        files: from `convert`, static.
        calibration: as for `convert`.
        masks: as for `convert`.
        target: as for `convert`.
        labels: what the network chooses, on observations as the environment gives them.
        held_out: of other episodes, in random order: by how often they act as the network there, the two files are
            compared.
        recipe: of the training.
        seed: of the training.

    Raises:
        UserError: the network has layers that cannot be trained so.
        RunError: the training diverged, or the converter failed.
    """
    form, scaling = static_form(model, calibration, target)

    def scaled(states: Labels) -> Labels:
        if scaling is None:
            return states
        return states._replace(observations=(states.observations - scaling.offset) * scaling.multiplier)

    trained = aware.train(form, scaled(labels), scaled(held_out), recipe, seed)
    again = convert(model, calibration, target, "static", masks, trained=trained.model)
    hard = hard_half(held_out.values, JUDGED, held_out.masks)
    allowed = None if held_out.masks is None else held_out.masks[hard]
    judged = Labels(held_out.observations[hard], held_out.values[hard], allowed)
    before, after = _fidelity(files, judged), _fidelity(again, judged)
    better = _rank(after) > _rank(before)
    told = {
        "taken": better,
        "reason": f"of {before.states} states of other episodes, half of them the hardest, the file without it takes "
        f"the network's action in {_words(before)}, the file with it in {_words(after)}",
        "preserved": trained.preserved,
        "epochs": trained.distilled.epochs,
    }
    kept = again if better else files
    return kept._replace(
        onnx_file=files.onnx_file, quantisation=kept.quantisation | {"quantisation_aware_training": told}
    )


def _fidelity(files: Files, held_out: Labels) -> Agreement:
    scaling = None if files.scaling is None else files.scaling._asdict()
    return fidelity(files.int8_file, held_out.observations, held_out.values, scaling, held_out.masks)


def _rank(found: Agreement) -> tuple[bool, float]:
    return is_enough(found), found.overall


def _words(found: Agreement) -> str:
    return f"{found.overall:.2%}" + ("" if found.clear is None else f" ({found.clear:.2%} where clear)")
