"""Files and bundles that are put together operator by operator, without TensorFlow."""

import hashlib
import json

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from rlplatform.runtime import digest

KERNEL = np.array([[1.0, 3.0, 9.0, 7.0], [-1.0, -3.0, -9.0, -7.0]], np.float32)  # [A, O]: pushes where the pole falls
TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int8": schema.TensorType.INT8,
    "int32": schema.TensorType.INT32,
    "bool": schema.TensorType.BOOL,
}


def linear_file(
    kernel=KERNEL,
    observation_shape=None,
    int8=False,
    with_action=True,
    signature="act",
    mask=None,
    remembers=False,
):
    """A .tflite file with q = kernel @ observation, in float32 or in int8 from end to end.

    With `mask`, the dtype of its input `action_mask`, the action is the best of those that are allowed. One that
    remembers has the sum of all observations as its state, and values that instead.
    """
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers = 3, [schema.BufferT()]
    graph.tensors, graph.operators = [], []

    def tensor(name, shape, kind, data=None, scale=None, zero_point=0):
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name, list(shape), TYPES[kind], 0
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            model.buffers.append(buffer)
            made.buffer = len(model.buffers) - 1
        if scale is not None:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale, made.quantization.zeroPoint = [scale], [zero_point]
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    def operator(code, inputs, outputs, options=None, kind=0):
        made, known = schema.OperatorT(), schema.OperatorCodeT()
        known.builtinCode, known.deprecatedBuiltinCode, known.version = code, min(code, 127), 4 if int8 else 1
        model.operatorCodes.append(known)
        made.opcodeIndex, made.inputs, made.outputs = len(model.operatorCodes) - 1, inputs, outputs
        made.builtinOptions, made.builtinOptionsType = options, kind
        graph.operators.append(made)

    model.operatorCodes = []
    count, width = kernel.shape
    shape = (1, *(observation_shape or (width,)))
    dtype = "int8" if int8 else "float32"
    observation = tensor("observation", shape, dtype, scale=0.05 if int8 else None, zero_point=3)
    scale = float(np.abs(kernel).max() / 127) if int8 else None
    weights = tensor(
        "weights", kernel.shape, dtype, np.round(kernel / scale).astype(np.int8) if int8 else kernel, scale
    )
    q = tensor("q", (1, count), dtype, scale=0.5 if int8 else None, zero_point=-5)
    outputs, inputs, valued = {"q": q}, {"observation": observation}, observation
    if remembers:
        inputs["state"], outputs["next_state"] = (tensor(name, (1, width), dtype) for name in ("state", "next_state"))
        valued = outputs["next_state"]
        options = schema.AddOptionsT()
        operator(schema.BuiltinOperator.ADD, [observation, inputs["state"]], [valued], options, 11)
    options = schema.FullyConnectedOptionsT()
    operator(schema.BuiltinOperator.FULLY_CONNECTED, [valued, weights, -1], [q], options, 8)
    compared = q
    if mask is not None:
        inputs["action_mask"] = tensor("action_mask", (1, count), mask)
    if mask == "bool":
        lowest = tensor("lowest", (1, count), "float32", np.full((1, count), np.finfo(np.float32).min, np.float32))
        compared = tensor("allowed", (1, count), "float32")
        operator(schema.BuiltinOperator.SELECT_V2, [inputs["action_mask"], q, lowest], [compared])
    if with_action:
        axis = tensor("axis", (1,), "int32", np.array([1], np.int32))
        action = tensor("action", (1,), "int32")
        options = schema.ArgMaxOptionsT()
        options.outputType = schema.TensorType.INT32
        operator(
            schema.BuiltinOperator.ARG_MAX, [compared, axis], [action], options, schema.BuiltinOptions.ArgMaxOptions
        )
        outputs["action"] = action
    graph.inputs, graph.outputs = list(inputs.values()), list(outputs.values())
    model.subgraphs = [graph]
    definition = schema.SignatureDefT()
    definition.signatureKey, definition.subgraphIndex = signature, 0
    definition.inputs, definition.outputs = ([named(*item) for item in each.items()] for each in (inputs, outputs))
    model.signatureDefs = [definition]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def named(name, index):
    made = schema.TensorMapT()
    made.name, made.tensorIndex = name, index
    return made


def write_bundle(
    folder,
    shape=(4,),
    frame_shape=None,
    frame_stack=1,
    dtype="float32",
    start=0,
    count=2,
    mask=None,
    layout=None,
    binary=False,
    state=None,
    **files,
):
    """A bundle with the given variants; what is not the runtime's business is left out."""
    folder.mkdir(exist_ok=True)
    files = files or {"float": linear_file()}
    manifest = {
        "format": "rlplatform-bundle",
        "version": 1,
        "sha256": "0" * 64,
        "environment": {"id": "CartPole-v1"},
        "observation": {
            "shape": list(shape),
            "dtype": dtype,
            "frame_shape": list(frame_shape or shape),
            "frame_stack": frame_stack,
            "layout": layout,
            "binary": binary,
        },
        "action": {"count": count, "start": start} | ({} if mask is None else {"mask": mask}),
        **({} if state is None else {"state": {"kind": "sum", "size": state, "initial": 0.0}}),
        "variants": {},
        "default": next(iter(files)),
        "files": {},
    }
    for variant, content in files.items():
        content, scaling = content if isinstance(content, tuple) else (content, {})
        manifest["variants"][variant] = f"{variant}.tflite"
        manifest["files"][f"{variant}.tflite"] = {"sha256": hashlib.sha256(content).hexdigest(), **scaling}
        (folder / f"{variant}.tflite").write_bytes(content)
    text = json.dumps(manifest)
    (folder / "policy.json").write_text(text.replace("0" * 64, digest(text, "0" * 64), 1))
    return folder
