"""A static int8 file made again after quantisation-aware training: the better of the two is kept, never silently."""

from typing import Any

import numpy as np

from rlplatform.compression import aware
from rlplatform.compression.agreement import Agreement
from rlplatform.compression.choice import fidelity, is_enough
from rlplatform.compression.conversion import Files, Target, convert, static_form
from rlplatform.compression.distillation import Recipe
from rlplatform.compression.labels import Labels

Array = np.ndarray[Any, Any]


def falls_short(files: Files, held_out: Labels) -> bool:
    """Whether the int8 file is static and would fail the gate of agreement on states that it was not made by."""
    return files.quantisation["method"] == "static" and not is_enough(_fidelity(files, held_out))


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
        held_out: of other episodes: by how often they act as the network there, the two files are compared.
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
    before, after = _fidelity(files, held_out), _fidelity(again, held_out)
    better = _rank(after) > _rank(before)
    told = {
        "taken": better,
        "reason": f"of {before.states} states of other episodes, the file without it takes the network's action in "
        f"{_words(before)}, the file with it in {_words(after)}",
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
