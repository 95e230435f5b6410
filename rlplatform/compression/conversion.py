"""From a canonical network to .tflite files, in a process of its own: float32, and int8 after training."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf

from rlplatform.compression import agreement, chain, inspection, worker
from rlplatform.compression.refinement import refine
from rlplatform.compression.slimming import slim
from rlplatform.errors import RunError, UserError
from rlplatform.runtime import open_graph

Array = np.ndarray[Any, Any]
Target = Literal["cpu", "mcu"]
Quantisation = Literal["auto", "dynamic", "static"]

TARGETS = ("cpu", "mcu")
SMALL = 50_000  # Below this many parameters, a scale for each unit of a Dense costs more bytes than it is worth.
WORTHWHILE = 0.9  # Static int8 for a CPU must be this much smaller than dynamic int8 to be taken for it.
AS_GOOD = 0.005  # And agree with the network almost as often: this much less at most.
ENOUGH = 0.99  # And always where the network's choice is clear: the gate of the verification.


class Scaling(NamedTuple):
    """An int8 file takes `(observation - offset) * multiplier`, feature by feature: `[O...]` float32 each."""

    offset: Array
    multiplier: Array


class Files(NamedTuple):
    """What a conversion gives.

    Attributes:
        float_file: float32, signature `act`: `observation [1, O...]` to `action [1]` int32 and `q [1, A]` float32.
            Under masks it also takes `action_mask [1, A]` bool, which `action` heeds and `q` does not.
        int8_file: for `cpu` the same signature over int8 weights; for `mcu`, int8 in and out, no `action_mask` and no
            `action`: the greatest of the int8 values, of those that are allowed, is the action.
        scaling: what is done to an observation before it enters the `mcu` file; None for images and for `cpu`.
        quantisation: how the int8 file came about, in words and numbers.
    """

    float_file: bytes
    int8_file: bytes
    scaling: Scaling | None
    quantisation: dict[str, Any]


def convert(
    model: Any,
    calibration: Array,
    target: Target = "cpu",
    quantisation: Quantisation = "auto",
    masks: Array | None = None,
) -> Files:
    """Converts a canonical network.

    For `cpu`, `auto` takes dynamic int8 (int8 weights, float activations, no calibration), unless static int8 is
    clearly smaller and as faithful, which happens for networks whose layers are too small for the converter's dynamic
    quantiser. For `mcu`, int8 is always static, in and out. Ranges are the true minima and maxima over `calibration`;
    what is done after that stands in `refinement`.

    Args:
        model: `[B, O...]` float32 to `[B, A]`, from `canonical`.
        calibration: `[N, O...]` observations as the environment gives them, uint8 or float32, which the files take.
        target: what the int8 file is for.
        quantisation: how to make it.
        masks: `[N, A]` bool, the actions that are allowed in `calibration`, where the environment offers masks.

    Raises:
        UserError: the target is unknown, or dynamic int8 is asked for a microcontroller.
        RunError: the converter failed.
    """
    if target not in TARGETS:
        raise UserError(f"unknown target {target!r}; choices: {', '.join(TARGETS)}")
    if target == "mcu" and quantisation == "dynamic":
        raise UserError("dynamic int8 does not run on microcontrollers; for the target mcu, quantisation is static")
    observation_dtype = calibration.dtype.name
    scaling = _input_scaling(calibration) if target == "mcu" and observation_dtype == "float32" else None
    scaled_model = None if scaling is None else chain.scale_inputs(model, *scaling)
    if scaled_model is None:
        scaling = None
    per_channel = model.count_params() >= SMALL
    integer = "int8" if target == "mcu" else "uint8" if observation_dtype == "uint8" else "float32"
    static = {
        "mode": "static",
        "saved_model": "static",
        "output": "static.tflite",
        "input": integer,
        "output_type": "int8" if target == "mcu" else "float32",
        "per_channel": per_channel,
        "masked_actions": 0 if masks is None or target == "mcu" else masks.shape[1],
    }
    jobs = [{"mode": "float", "saved_model": "float", "output": "float.tflite"}]
    if target == "cpu" and quantisation != "static":
        jobs.append({"mode": "dynamic", "saved_model": "float", "output": "dynamic.tflite"})
    if target == "mcu" or quantisation != "dynamic":
        jobs.append(static)
    with tempfile.TemporaryDirectory(prefix="rlplatform-") as name:
        folder = pathlib.Path(name)
        save(model, observation_dtype, folder / "float", mask=masks is not None)
        cpu = target == "cpu"
        save(scaled_model or model, "float32", folder / "static", action=cpu, mask=cpu and masks is not None)
        np.save(folder / "calibration.npy", _representative(calibration, scaling))
        (folder / "jobs.json").write_text(json.dumps(jobs))
        _run(folder)
        made = {job["mode"]: (folder / str(job["output"])).read_bytes() for job in jobs}
    expected = model(tf.cast(calibration, "float32"), training=False).numpy()
    named = None if scaling is None else scaling._asdict()
    files, refinements = {}, {}
    for mode in made.keys() - {"float"}:
        refined, refinements[mode] = refine(made[mode], made["float"], named, calibration, expected, masks)
        files[mode] = slim(refined)
    method, reason = _choose(files, calibration, expected, masks)
    content = files[method]
    contents = inspection.read(content)
    details = {
        "method": method if "int8" in contents.weights else "none",
        "reason": reason,
        "refinements": refinements[method],
        "target": target,
        "weights": contents.weights,
        "operators": list(contents.operators),
        "q_step": contents.q_step,
        "calibration_observations": len(calibration),
    }
    if method == "static":
        details["dense_scales"] = "per unit" if per_channel else "per layer"
    return Files(slim(made["float"]), content, scaling, details)


def save(
    model: Any,
    observation_dtype: str,
    path: pathlib.Path,
    *,
    action: bool = True,
    mask: bool = False,
    batch: int | None = 1,
) -> None:
    """Writes a SavedModel with the signature `act`.

    Args:
        model: `[B, O...]` to `[B, A]`.
        observation_dtype: what `act` takes; it is cast to what the network takes.
        path: the folder to write.
        action: whether `act` gives `action [B]` int32 beside `q [B, A]`.
        mask: whether `act` takes `action_mask [B, A]` bool, among which the action is the best.
        batch: B, or None for any.

    Raises:
        RunError: the folder cannot be written.
    """
    specifications = [tf.TensorSpec((batch, *model.input_shape[1:]), observation_dtype, name="observation")]
    if mask:
        specifications.append(tf.TensorSpec((batch, model.output_shape[-1]), tf.bool, name="action_mask"))

    def act(observation: Any, action_mask: Any = None) -> dict[str, Any]:
        q = model(tf.cast(observation, model.inputs[0].dtype), training=False)
        allowed = tf.where(action_mask, q, q.dtype.min) if mask else q
        return {"action": tf.argmax(allowed, axis=1, output_type=tf.int32), "q": q} if action else {"q": q}

    module = tf.Module()
    module.network = model  # Its variables are saved with it.
    module.act = tf.function(act, input_signature=specifications, autograph=False)
    try:
        tf.saved_model.save(module, str(path), signatures={"act": module.act})
    except tf.errors.OpError as error:
        raise RunError(f"the network could not be saved as {path}: {error.message}") from None


def _run(folder: pathlib.Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-P", str(worker.__file__), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return
    reason = folder / "error.txt"
    lines = [reason.read_text()] if reason.exists() else [line for line in done.stderr.splitlines() if line.strip()]
    raise RunError(f"the conversion to LiteRT failed: {lines[-1] if lines else f'it ended with {done.returncode}'}")


def _choose(made: dict[str, bytes], observations: Array, q: Array, masks: Array | None) -> tuple[str, str]:
    """Which int8 file to keep, and the sentence that says why."""
    if "dynamic" not in made:
        return "static", "int8 weights and activations, with ranges from calibration"
    nothing = "int8" not in inspection.read(made["dynamic"]).weights
    dynamic = (
        "no layer has the 1,024 weights from which on dynamic int8 changes it: all of it is float32"
        if nothing
        else "int8 weights in layers of at least 1,024 weights; float activations"
    )
    if "static" not in made or len(made["static"]) > WORTHWHILE * len(made["dynamic"]):
        return "dynamic", dynamic
    found = {mode: _agreement(made[mode], observations, q, masks) for mode in ("dynamic", "static")}
    as_good = found["static"].overall >= found["dynamic"].overall - AS_GOOD
    enough = found["static"].clear is None or found["static"].clear >= ENOUGH
    if enough and (nothing or as_good):
        return "static", "int8 weights and activations: smaller than dynamic int8 here, and faithful"
    return "dynamic", f"{dynamic}; static int8 would be smaller, but takes the network's action in only " + (
        f"{found['static'].overall:.1%} of {len(observations)} states"
    )


def _agreement(content: bytes, observations: Array, q: Array, masks: Array | None) -> agreement.Agreement:
    graph, contents = open_graph(content, "the converted file"), inspection.read(content)
    given = np.stack([graph.q_values(observation) for observation in observations])
    return agreement.measure(q, given, agreement.step_of(q, contents.q_step, masks), contents.q_range, masks)


def _input_scaling(calibration: Array) -> Scaling:
    """Brings every feature to [-1, 1]: they share one int8 scale, and their own ranges may differ a hundredfold."""
    low, high = calibration.min(axis=0), calibration.max(axis=0)
    half = np.where(high > low, (high - low) / 2, 1.0)
    return Scaling(((low + high) / 2).astype(np.float32), (1.0 / half).astype(np.float32))


def _representative(calibration: Array, scaling: Scaling | None) -> Array:
    """`[N, O...]` float32 as the static file's network sees them; bytes span 0 to 255, so that one step is one."""
    seen = calibration.astype(np.float32)
    if scaling is not None:
        return (seen - scaling.offset) * scaling.multiplier
    if calibration.dtype == np.uint8:
        seen[0].flat[0], seen[0].flat[-1] = 0.0, 255.0
    return seen
