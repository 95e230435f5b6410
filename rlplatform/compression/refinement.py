"""What is done to an int8 file after the converter: edits that cost nothing to run and decide whether it plays.

Neighbouring states of a policy differ by little, so the error that int8 makes in them is nearly the same in all: it
shifts the values of the actions against each other, and where gaps are small that decides. The shift is measured on
calibration states and taken out of the last bias. Two things would drown it in noise: features of very different ranges
that share one int8 scale, and a range of the values that is stretched by a few states in which the choice is obvious.
"""

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from rlplatform.agents.acting import masked
from rlplatform.compression import flatfile, inspection
from rlplatform.runtime import open_graph

Array = np.ndarray[Any, Any]

HEADROOM = 1.25  # Episodes bring values that a few thousand states have not shown.
FIRST_LAYER_SHARE = 1 / 8  # The first layer may stay float32 where it has no more than this share of the weights.
_FULLY_CONNECTED = schema.BuiltinOperator.FULLY_CONNECTED
_BIASES: dict[int, tuple[np.dtype[Any], int]] = {  # By the type of what a layer is given.
    schema.TensorType.FLOAT32: (np.dtype(np.float32), schema.TensorType.FLOAT32),
    schema.TensorType.INT8: (np.dtype(np.int32), schema.TensorType.INT32),
    schema.TensorType.INT16: (np.dtype(np.int64), schema.TensorType.INT64),
}


def refine(
    int8_file: bytes,
    float_file: bytes,
    scaling: dict[str, Array] | None,
    observations: Array,
    q: Array,
    masks: Array | None = None,
    states: Array | None = None,
) -> tuple[bytes, list[str]]:
    """The file after all edits that fit it, and one sentence for each.

    Args:
        int8_file: what the converter made.
        float_file: the same network in float32.
        scaling: as for `runtime.open_graph`.
        observations: `[N, O...]`, calibration states.
        q: `[N, A]`, the network's values there.
        masks: `[N, A]` bool, the actions that are allowed there; all of them if None.
        states: `[N, H]`, what a network that remembers had in mind before each of them.
    """
    done: list[str] = []
    content = int8_file
    contents = inspection.read(content)
    if "int8" not in contents.weights:
        return content, done
    if not contents.static:
        content = float_first_layer(content, float_file)
        if content is not int8_file:
            done.append("kept the first layer in float32")
    if contents.static and masks is not None:
        content = select_in_float(content)
    q = q.astype(np.float64)
    is_centred = bool(np.abs(q.mean(axis=1)).max() <= 1e-4 * np.abs(q).max())
    if contents.activations == "int8" and is_centred and _head(flatfile.read(content)) is not None:
        limit = obvious(q, masks)
        narrower = narrow_range(content, limit) if limit > 0 else content
        if narrower is not content:
            done.append(f"cut the values off at {limit:.3g}, beyond which they decide nothing")
            content = narrower
    if _head(flatfile.read(content)) is None:
        return content, done
    unshifted, total = content, np.zeros(q.shape[1])
    reachable = np.clip(q, *inspection.read(content).q_range)
    for _ in range(2):  # The second time with values that the first has brought into the range.
        graph = open_graph(content, "the converted file", scaling=scaling)
        error = graph.q_batch(observations, states) - reachable
        total -= np.median(error, axis=0)
        content = shift_bias(unshifted, total)
    done.append(f"shifted the values of the actions by up to {np.abs(total).max():.3g}, by the median error")
    return content, done


def float_first_layer(int8_file: bytes, float_file: bytes) -> bytes:
    """A dynamic int8 file whose first layer, where it is a small Dense, is float32 again.

    The dynamic quantiser gives all features of an observation one scale, made anew for every observation: an angle of
    0.01 beside a velocity of 2 becomes zero.

    Args:
        int8_file: from dynamic quantisation.
        float_file: the same network in float32.
    """
    model, original = flatfile.read(int8_file), flatfile.read(float_file)
    layers, originals = _layers(model), _layers(original)
    state = _signature(model.signatureDefs[0].inputs).get("state")  # What reads it may stand first, and is not meant.
    place = next((place for place, layer in enumerate(layers) if layer.inputs[0] != state), None)
    if place is None:
        return int8_file
    first, size = layers[place], _size(model, layers[place])
    whole = sum(_size(model, layer) for layer in layers)
    if _code(model, first) != _FULLY_CONNECTED or size > FIRST_LAYER_SHARE * whole:
        return int8_file
    tensor = model.subgraphs[0].tensors[first.inputs[1]]
    source = original.subgraphs[0].tensors[originals[place].inputs[1]]
    if tensor.type == source.type:  # Too small for the quantiser.
        return int8_file
    tensor.type, tensor.quantization = source.type, None
    model.buffers[tensor.buffer].data = original.buffers[source.buffer].data
    first.builtinOptions.asymmetricQuantizeInputs = False
    return flatfile.write(model)


def select_in_float(content: bytes) -> bytes:
    """A static int8 file that applies its mask to the values in float, if it takes one.

    The converter does it in int8, where what is forbidden gets the least value that int8 has. An allowed action may
    have that too, and then the forbidden one would be taken.

    Args:
        content: from static quantisation.
    """
    model = flatfile.read(content)
    graph = model.subgraphs[0]
    q = _signature(model.signatureDefs[0].outputs)["q"]
    mask = _signature(model.signatureDefs[0].inputs).get("action_mask")
    select = next((operator for operator in graph.operators if mask is not None and operator.inputs[0] == mask), None)
    if select is None or select.inputs[1] == q:
        return content
    lowest = schema.TensorT()
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(np.finfo(np.float32).min.tobytes(), np.uint8)
    model.buffers.append(buffer)
    lowest.name, lowest.shape, lowest.buffer = b"lowest", [1], len(model.buffers) - 1
    lowest.type = schema.TensorType.FLOAT32
    graph.tensors.append(lowest)
    allowed = graph.tensors[select.outputs[0]]
    allowed.type, allowed.quantization = schema.TensorType.FLOAT32, None
    select.inputs = [mask, q, len(graph.tensors) - 1]
    makes_q = next(operator for operator in graph.operators if operator.outputs[0] == q)
    graph.operators.remove(makes_q)
    graph.operators.insert(graph.operators.index(select), makes_q)
    return flatfile.write(model)


def narrow_range(content: bytes, limit: float) -> bytes:
    """A static int8 file whose values end at `-limit` and `limit`, with steps that are finer for it.

    Args:
        content: from static quantisation; it ends in a Dense.
        limit: in units of value, above zero. A range that is narrower already stays.
    """
    model = flatfile.read(content)
    quantisation = model.subgraphs[0].tensors[_head(model).outputs[0]].quantization
    scale = limit / 127.0
    if scale >= quantisation.scale[0]:
        return content
    quantisation.scale, quantisation.zeroPoint = [scale], [0]
    quantisation.min = quantisation.max = None
    return flatfile.write(model)


def obvious(q: Array, masks: Array | None = None) -> float:
    """The value above which it does not matter how great a value is, on the given states.

    Values that are centred decide by their order alone: as long as no second best value is cut off, the best one may
    be. Nine tenths of the states keep their best value whole all the same. Where all that is allowed is bad, the best
    of it must not be cut off from below either. What decides has a quarter more room than these states need.

    Args:
        q: `[N, A]`, centred.
        masks: `[N, A]` bool, the actions that are allowed; all of them if None.
    """
    greatest = np.abs(q).max(axis=1) if masks is None else np.where(masks, np.abs(q), 0.0).max(axis=1)
    best_two = np.sort(masked(q, masks), axis=1)[:, -2:]
    second, best = best_two[:, 0], best_two[:, -1]
    deciding = max(second.max(), (-best[second > -np.inf]).max(initial=0.0))
    return float(max(1.05 * np.percentile(greatest, 90), HEADROOM * deciding))


def shift_bias(content: bytes, shift: Array) -> bytes:
    """A file that gives values which are greater by `shift`.

    Args:
        content: the file; it ends in a Dense.
        shift: `[A]`, in units of value.
    """
    model = flatfile.read(content)
    graph = model.subgraphs[0]
    last = _head(model)
    weights, given = graph.tensors[last.inputs[1]], graph.tensors[last.inputs[0]]
    kind, stored = _BIASES[given.type]
    integer = kind.kind == "i"
    scale: Any = 1.0
    if integer:
        scale = np.asarray(weights.quantization.scale, np.float64) * given.quantization.scale[0]
    old = np.zeros(len(shift), kind)
    if len(last.inputs) > 2 and last.inputs[2] >= 0:
        old = np.asarray(model.buffers[graph.tensors[last.inputs[2]].buffer].data, np.uint8).view(kind)
    change = np.rint(shift / scale) if integer else shift
    buffer = schema.BufferT()
    buffer.data = np.frombuffer((old + change).astype(kind).tobytes(), np.uint8)
    model.buffers.append(buffer)
    bias = schema.TensorT()  # Always a new one: layers may share a bias of zeros.
    bias.name, bias.shape, bias.buffer = b"shifted_bias", [len(shift)], len(model.buffers) - 1
    bias.type = stored
    if integer:
        bias.quantization = schema.QuantizationParametersT()
        bias.quantization.scale = np.atleast_1d(scale).astype(np.float32)
        bias.quantization.zeroPoint = [0] * len(bias.quantization.scale)
    graph.tensors.append(bias)
    last.inputs = [last.inputs[0], last.inputs[1], len(graph.tensors) - 1]
    return flatfile.write(model)


def _code(model: Any, operator: Any) -> int:
    code = model.operatorCodes[operator.opcodeIndex]
    return int(max(code.builtinCode, code.deprecatedBuiltinCode))


def _layers(model: Any) -> list[Any]:
    """The operators with a kernel, in order."""
    kernels = (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.DEPTHWISE_CONV_2D, _FULLY_CONNECTED)
    return [operator for operator in model.subgraphs[0].operators if _code(model, operator) in kernels]


def _head(model: Any) -> Any:
    """The Dense that gives `q`, or None if something else does."""
    outputs = _signature(model.signatureDefs[0].outputs)
    by_output = {int(operator.outputs[0]): operator for operator in model.subgraphs[0].operators}
    found = by_output.get(outputs["q"])
    if found is not None and _code(model, found) == schema.BuiltinOperator.DEQUANTIZE:
        found = by_output.get(int(found.inputs[0]))
    if found is None or _code(model, found) != _FULLY_CONNECTED:
        return None
    return found if found.builtinOptions.fusedActivationFunction == schema.ActivationFunctionType.NONE else None


def _signature(tensors: list[Any]) -> dict[str, int]:
    """The inputs or the outputs of a signature: which tensor each of them is."""
    return {tensor.name.decode(): int(tensor.tensorIndex) for tensor in tensors}


def _size(model: Any, operator: Any) -> int:
    return int(np.prod(model.subgraphs[0].tensors[operator.inputs[1]].shape))
