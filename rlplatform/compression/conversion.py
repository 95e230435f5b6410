"""From a canonical network to files, in a process of its own: .tflite in float32 and in int8 after training, ONNX."""

import importlib.util
import json
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf

from rlplatform.compression import chain, inspection
from rlplatform.compression.balancing import balanced
from rlplatform.compression.choice import choose
from rlplatform.compression.compensation import compensated
from rlplatform.compression.converter import CONVERTER
from rlplatform.compression.normalize import Normalize, ramped
from rlplatform.compression.onnx_file import ONNX_FILE
from rlplatform.compression.refinement import refine
from rlplatform.compression.slimming import slim
from rlplatform.errors import RunError, UserError, nearest

Array = np.ndarray[Any, Any]
Target = Literal["cpu", "mcu"]
Quantisation = Literal["auto", "dynamic", "dynamic_all", "static", "int16x8"]

TARGETS = ("cpu", "mcu")
QUANTISATIONS = ("auto", "dynamic", "dynamic_all", "static", "int16x8")
LEAST_STEPS = 1 / 64  # of int16's that a feature keeps
SMALL = 50_000  # Below this many parameters, a scale for each unit of a Dense costs more bytes than it is worth.


class Scaling(NamedTuple):
    """The integer file takes `(observation - offset) * multiplier`, feature by feature: `[O...]` float32 each."""

    offset: Array
    multiplier: Array


class Files(NamedTuple):
    """What a conversion gives.

    Attributes:
        float_file: float32, signature `act`: `observation [1, O...]` to `action [1]` int32 and `q [1, A]` float32.
            Under masks it also takes `action_mask [1, A]` bool, which `action` heeds and `q` does not. One that
            remembers takes `state [1, H]` float32, and gives `next_state [1, H]`.
        int8_file: for `cpu` the same signature over int8 weights; for `mcu`, int8 (int16 with int16x8) in and out, no
            `action_mask` and no `action`: the greatest of the values, of those that are allowed, is the action.
        scaling: what is done to an observation before it enters the `mcu` file; None for images and for `cpu`.
        quantisation: how the int8 file came about, in words and numbers.
        onnx_file: the float32 file's inputs and outputs as ONNX, if it was asked for.
    """

    float_file: bytes
    int8_file: bytes
    scaling: Scaling | None
    quantisation: dict[str, Any]
    onnx_file: bytes | None = None


def convert(
    model: Any,
    calibration: Array,
    target: Target = "cpu",
    quantisation: Quantisation = "auto",
    masks: Array | None = None,
    *,
    states: Array | None = None,
    onnx: bool = False,
    trained: Any | None = None,
) -> Files:
    """Converts a canonical network.

    For `cpu`, `auto` takes dynamic int8 (int8 weights, float activations, no calibration), unless another way is
    clearly smaller and as faithful: static int8, or ai-edge-quantizer's dynamic int8 where it is installed. That
    happens for networks whose layers are too small for the converter's own dynamic quantiser. For `mcu`, `auto` is
    static int8, in and out. Ranges are the true minima and maxima over `calibration`; what is done after that stands
    in `refinement` and `slimming`. For a network that remembers, `auto` is dynamic int8.

    Args:
        model: `[B, O...]` float32 to `[B, A]`, from `canonical`.
        calibration: `[N, O...]` observations as the environment gives them, uint8 or float32, which the files take.
        target: what the int8 file is for.
        quantisation: how to make it: `dynamic`, or `dynamic_all` for layers of any size (by ai-edge-quantizer),
            `static`, or `int16x8` (int8 weights, int16 activations).
        masks: `[N, A]` bool, the actions that are allowed in `calibration`, where the environment offers masks.
        states: `[N, H]` float32, for a network that remembers: what it had in mind before each of `calibration`.
        onnx: whether to make the ONNX file too, which needs the extra `onnx`.
        trained: what the static file is made of in place of `model`, in the form that `static_form` gives: its weights
            were trained for int8 with one scale for each Dense.

    Raises:
        UserError: the target or the quantisation is unknown, or does not fit the network or the target.
        RunError: the converter failed.
    """
    order = _ordered(model, calibration, target, quantisation, masks, onnx, trained)
    return _converted([order], calibration, target, masks, states)[0]


def convert_all(
    models: Sequence[Any],
    calibration: Array,
    target: Target = "cpu",
    quantisation: Quantisation = "auto",
    masks: Array | None = None,
) -> list[Files]:
    """`convert` for several networks on the same observations, in one process: most of its time is its start."""
    orders = [_ordered(model, calibration, target, quantisation, masks) for model in models]
    return _converted(orders, calibration, target, masks) if orders else []


class _Order(NamedTuple):
    """What is to be converted, and how: `jobs` are for the worker, `form` and `scaling` from `static_form`."""

    model: Any
    form: Any
    scaling: Scaling | None
    per_channel: bool
    trained: Any | None
    jobs: list[dict[str, Any]]


def _ordered(
    model: Any,
    calibration: Array,
    target: Target,
    quantisation: Quantisation,
    masks: Array | None,
    onnx: bool = False,
    trained: Any | None = None,
) -> _Order:
    modes = _modes(model, calibration, target, quantisation)
    observation_dtype = calibration.dtype.name
    form, scaling = static_form(model, calibration, target)
    ramps = "int16x8" in modes and any(isinstance(layer, Normalize) for layer in model.layers)
    per_channel = trained is None and (model.count_params() >= SMALL or ramps)  # Slopes of ramps differ a thousandfold.
    if per_channel and scaling is not None and modes == ["int16x8"]:
        form, scaling = _evened(form, scaling)
    jobs: list[dict[str, Any]] = [{"mode": "float", "saved_model": "float", "output": "float.tflite"}]
    for mode in modes:
        jobs.append({"mode": mode, "saved_model": "float", "output": f"{mode}.tflite", "per_channel": per_channel})
        if mode in ("static", "int16x8"):
            integer = "int16" if mode == "int16x8" else "int8"
            jobs[-1] |= {
                "saved_model": "static",
                "input": integer if target == "mcu" else observation_dtype,
                "output_type": integer if target == "mcu" else "float32",
                "masked_actions": 0 if masks is None or target == "mcu" else masks.shape[1],
            }
    if onnx:
        jobs.append({"mode": "onnx", "saved_model": "float", "output": ONNX_FILE})
    return _Order(model, form, scaling, per_channel, trained, jobs)


def _converted(
    orders: Sequence[_Order], calibration: Array, target: Target, masks: Array | None, states: Array | None = None
) -> list[Files]:
    with tempfile.TemporaryDirectory(prefix="rlplatform-") as name:
        folders = [pathlib.Path(name) / str(index) for index in range(len(orders))]
        for folder, order in zip(folders, orders, strict=True):
            _write(folder, order, calibration, target, masks)
        CONVERTER.run(folders)
        made = [
            {job["mode"]: (folder / job["output"]).read_bytes() for job in order.jobs}
            for folder, order in zip(folders, orders, strict=True)
        ]
    return [
        _chosen(order, contents, calibration, target, masks, states)
        for order, contents in zip(orders, made, strict=True)
    ]


def _write(folder: pathlib.Path, order: _Order, calibration: Array, target: Target, masks: Array | None) -> None:
    """What the worker finds in its folder."""
    folder.mkdir()
    representative = as_seen(calibration, order.scaling)
    save(order.model, calibration.dtype.name, folder / "float", mask=masks is not None)
    cpu = target == "cpu"
    if any(job["saved_model"] == "static" for job in order.jobs):
        form = order.trained
        if form is None:
            int16 = any(job["mode"] == "int16x8" for job in order.jobs)
            form = balanced(order.form, representative, norms=int16) if order.per_channel else order.form
            form = compensated(form, representative, order.per_channel)
            form = ramped(form, representative) if int16 else form
        form = chain.join_pixels(form)
        if not cpu:  # What enters is made for the file; a reshape in it would take the memory of another image.
            representative = representative.reshape(-1, *form.input.shape[1:])
        shape = representative.shape[1:]
        save(form, "float32", folder / "static", action=cpu, mask=cpu and masks is not None, shape=shape)
    np.save(folder / "calibration.npy", representative)
    (folder / "jobs.json").write_text(json.dumps(order.jobs))


def _chosen(
    order: _Order,
    made: dict[str, bytes],
    calibration: Array,
    target: Target,
    masks: Array | None,
    states: Array | None,
) -> Files:
    """The files, refined and without what nobody reads; of several int8 files the one that `auto` takes."""
    model, scaling = order.model, order.scaling
    seen = tf.cast(calibration, "float32")
    expected = (model(seen, training=False) if states is None else model([seen, states], training=False)[0]).numpy()
    named = None if scaling is None else scaling._asdict()
    files, refinements = {}, {}
    for mode in made.keys() - {"float", "onnx"}:
        refined, refinements[mode] = refine(made[mode], made["float"], named, calibration, expected, masks, states)
        files[mode] = slim(refined)
    method, reason = choose(files, calibration, expected, masks, states)
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
    if method != "dynamic":
        details["dense_scales"] = "per unit" if order.per_channel else "per layer"
    return Files(slim(made["float"]), content, scaling, details, made.get("onnx"))


def static_form(model: Any, calibration: Array, target: Target) -> tuple[Any, Scaling | None]:
    """The network that a static file computes, and what is done to its observations before, if anything is.

    Args:
        model: as for `convert`.
        calibration: as for `convert`.
        target: as for `convert`.
    """
    model = chain.fold_shift(model)
    if target == "cpu" or calibration.dtype == np.uint8:
        return model, None
    scaling = _input_scaling(calibration)
    scaled = chain.scale_inputs(model, *scaling)
    return (model, None) if scaled is None else (scaled, scaling)


def save(
    model: Any,
    observation_dtype: str,
    path: pathlib.Path,
    *,
    action: bool = True,
    mask: bool = False,
    batch: int | None = 1,
    shape: Sequence[int] | None = None,
) -> None:
    """Writes a SavedModel with the signature `act`.

    Args:
        model: `[B, O...]` to `[B, A]`. With a second input and output, `act` takes `state [B, H]` after the observation
            and gives `next_state [B, H]`.
        observation_dtype: what `act` takes; it is cast to what the network takes.
        path: the folder to write.
        action: whether `act` gives `action [B]` int32 beside `q [B, A]`.
        mask: whether `act` takes `action_mask [B, A]` bool, among which the action is the best.
        batch: B, or None for any.
        shape: `[O...]` of what `act` takes, where the network takes the same numbers in another shape.

    Raises:
        RunError: the folder cannot be written.
    """
    enters = model.inputs[0]
    given = tuple(shape or enters.shape[1:])
    specifications = [tf.TensorSpec((batch, *given), observation_dtype, name="observation")]
    specifications += [tf.TensorSpec((batch, *state.shape[1:]), tf.float32, name="state") for state in model.inputs[1:]]
    if mask:
        specifications.append(tf.TensorSpec((batch, model.outputs[0].shape[-1]), tf.bool, name="action_mask"))

    def answer(q: Any, action_mask: Any) -> dict[str, Any]:
        allowed = tf.where(action_mask, q, q.dtype.min) if mask else q
        return {"action": tf.argmax(allowed, axis=1, output_type=tf.int32), "q": q} if action else {"q": q}

    def entering(observation: Any) -> Any:
        if given != tuple(enters.shape[1:]):
            observation = tf.reshape(observation, (-1, *enters.shape[1:]))
        return tf.cast(observation, enters.dtype)

    def act(observation: Any, action_mask: Any = None) -> dict[str, Any]:
        return answer(model(entering(observation), training=False), action_mask)

    def act_remembering(observation: Any, state: Any, action_mask: Any = None) -> dict[str, Any]:
        q, next_state = model([entering(observation), state], training=False)
        return answer(q, action_mask) | {"next_state": next_state}

    module = tf.Module()
    module.network = model  # Its variables are saved with it.
    function = act_remembering if len(model.inputs) > 1 else act
    module.act = tf.function(function, input_signature=specifications, autograph=False)
    try:
        tf.saved_model.save(module, str(path), signatures={"act": module.act})
    except tf.errors.OpError as error:
        raise RunError(f"the network could not be saved as {path}: {error.message}") from None


def _modes(model: Any, calibration: Array, target: str, quantisation: str) -> list[str]:
    """The ways to quantise that are tried."""
    if target not in TARGETS:
        raise UserError(f"unknown target {target!r}; choices: {', '.join(TARGETS)}")
    if quantisation not in QUANTISATIONS:
        raise UserError(f"unknown quantisation {quantisation!r}; {nearest(quantisation, QUANTISATIONS)}")
    if target == "mcu" and quantisation.startswith("dynamic"):
        raise UserError(
            "dynamic int8 does not run on microcontrollers; for the target mcu, quantisation is static or int16x8"
        )
    if len(model.inputs) > 1:
        if refusal := refuses_memory(target, quantisation):
            raise UserError(refusal)
        quantisation = "dynamic" if quantisation == "auto" else quantisation
    installed = _has_edge_quantizer()
    if quantisation == "dynamic_all" and not installed:
        raise UserError("dynamic_all needs ai-edge-quantizer: pip install 'rlplatform[quantize]'")
    if quantisation == "int16x8" and (refusal := refuses_int16x8(model, target)):
        raise UserError(refusal)
    if quantisation != "auto":
        return [quantisation]
    if target == "mcu":
        return ["static"]
    every = installed and model.count_params() < SMALL  # What it adds is layers of less than 1,024 weights.
    return ["dynamic", "static", *(["dynamic_all"] if every else [])]


def refuses_memory(target: str, quantisation: str) -> str | None:
    """Why a network that remembers is not converted so, and how it is; None where it is."""
    if target != "cpu":
        return (
            f"the target {target} is for networks without a memory; one that remembers is exported for the target cpu"
        )
    if quantisation in ("static", "int16x8"):
        return (
            f"quantisation {quantisation} is for networks without a memory; for one that remembers it is auto, dynamic "
            "or dynamic_all"
        )
    return None


def _has_edge_quantizer() -> bool:
    return importlib.util.find_spec("ai_edge_quantizer") is not None


def refuses_int16x8(model: Any, target: str) -> str | None:
    """Why a network is not converted to int8 weights and int16 activations; None where it is."""
    if target == "cpu" and any(len(weight.shape) > 2 for weight in model.weights):
        return (
            "int16x8 with convolutions is for microcontrollers: on a CPU they take many times as long in it as in "
            "float32; quantisation is static or dynamic there"
        )
    return None


def _input_scaling(calibration: Array) -> Scaling:
    """Brings every feature to [-1, 1]: they share one int8 scale, and their own ranges may differ a hundredfold."""
    low, high = calibration.min(axis=0), calibration.max(axis=0)
    half = np.where(high > low, (high - low) / 2, 1.0)
    return Scaling(((low + high) / 2).astype(np.float32), (1.0 / half).astype(np.float32))


def _evened(form: Any, scaling: Scaling) -> tuple[Any, Scaling]:
    """The same with features in such units that the first layer's weights of all of them are of like size.

    In int16 a feature may do with fewer steps; in a kernel of int8, small weights beside large ones may not.
    """
    first = chain.first(chain.read(form.output, chain.producers(form))[1])
    assert first is not None, "observations are scaled for a Dense alone"
    size = np.sqrt(np.square(first.kernel).mean(axis=1)).reshape(scaling.offset.shape)
    factor = np.clip(size / max(size.max(), np.finfo(np.float32).tiny), LEAST_STEPS, 1.0)
    evened = chain.scale_inputs(form, np.zeros_like(factor), factor)
    return evened, Scaling(scaling.offset, (scaling.multiplier * factor).astype(np.float32))


def as_seen(calibration: Array, scaling: Scaling | None) -> Array:
    """`[N, O...]` float32 as the static file's network sees them; bytes span 0 to 255, so that one step is one."""
    seen = calibration.astype(np.float32)
    if scaling is not None:
        return (seen - scaling.offset) * scaling.multiplier
    if calibration.dtype == np.uint8:
        seen[0].flat[0], seen[0].flat[-1] = 0.0, 255.0
    return seen
