"""Files in fewer bytes, on files that are put together here, operator by operator, without the converter."""

import itertools

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st

from rlplatform.compression import flatfile, inspection
from rlplatform.compression.slimming import slim
from rlplatform.runtime import open_graph


def dense_file(widths, int8=True, seed=0):
    """A file of Dense layers with everything beside it that a converter leaves in one."""
    rng = np.random.default_rng(seed)
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.description, model.buffers = 3, b"MLIR Converted.", [schema.BufferT()]
    graph.name, graph.tensors, graph.operators, model.subgraphs = b"main", [], [], [graph]
    kinds = schema.TensorType

    def tensor(shape, kind, scale=0.0, data=None):
        made, buffer = schema.TensorT(), schema.BufferT()
        made.name, made.shape, made.type, made.hasRank = (
            f"canonical/tensor_{len(graph.tensors)}".encode(),
            shape,
            kind,
            True,
        )
        made.quantization = schema.QuantizationParametersT()
        if scale:
            made.quantization.scale, made.quantization.zeroPoint = [scale], [0]
            made.quantization.min, made.quantization.max = [-128 * scale], [127 * scale]
        if data is not None:
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
        made.buffer = len(model.buffers)
        model.buffers.append(buffer)
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    def layer(given, inputs, units, relu):
        kind, bias_kind = (kinds.INT8, kinds.INT32) if int8 else (kinds.FLOAT32, kinds.FLOAT32)
        weights = rng.integers(-127, 128, (units, inputs), np.int8)
        bias = rng.integers(-300, 300, units)
        tensor([units], bias_kind, data=bias.astype(np.int32))  # nothing uses it
        kernel = tensor([units, inputs], kind, 0.01 * int8, weights if int8 else weights.astype(np.float32) / 100)
        added = tensor([units], bias_kind, 0.0005 * int8, bias.astype(np.int32 if int8 else np.float32))
        made = tensor([1, units], kind, 0.05 * int8)
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = 0, [given, kernel, added], [made]
        operator.builtinOptionsType, operator.builtinOptions = 8, schema.FullyConnectedOptionsT()
        operator.builtinOptions.fusedActivationFunction = int(relu)
        operator.intermediates = []
        graph.operators.append(operator)
        return made

    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version, model.operatorCodes = 4 if int8 else 1, [code]
    first = last = tensor([1, widths[0]], kinds.INT8 if int8 else kinds.FLOAT32, 0.05 * int8)
    for index, (inputs, units) in enumerate(itertools.pairwise(widths)):
        last = layer(last, inputs, units, index < len(widths) - 2)
    graph.inputs, graph.outputs = [first], [last]
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.inputs, signature.outputs = b"act", [schema.TensorMapT()], [schema.TensorMapT()]
    signature.inputs[0].name, signature.inputs[0].tensorIndex = b"observation", first
    signature.outputs[0].name, signature.outputs[0].tensorIndex = b"q", last
    note, model.signatureDefs = schema.MetadataT(), [signature]
    note.name, note.buffer = b"CONVERSION_METADATA", len(model.buffers)
    model.metadata = [note]
    model.buffers.append(schema.BufferT())
    model.buffers[-1].data = np.arange(96, dtype=np.uint8)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def values(content, reference, seed=1):
    graph = open_graph(content, "file", reference=reference)
    seen = np.random.default_rng(seed).normal(0, 2, (20, graph.observation.shape[1])).astype(np.float32)
    return np.stack([graph.q_values(observation) for observation in seen])


@settings(max_examples=20)
@given(st.lists(st.integers(1, 24), min_size=2, max_size=4), st.booleans(), st.integers(0, 99))
def test_a_slim_file_gives_the_same_bits_by_the_same_operators(widths, int8, seed):
    content = dense_file(widths, int8, seed)
    slimmed = slim(content)
    for reference in (False, True):
        np.testing.assert_array_equal(values(slimmed, reference), values(content, reference))
    assert inspection.read(slimmed) == inspection.read(content)
    assert len(slimmed) < 0.75 * len(content) + sum(widths) * max(widths)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 24), min_size=2, max_size=4), st.booleans())
def test_weights_lie_at_multiples_of_sixteen_bytes(widths, int8):
    content = slim(dense_file(widths, int8))
    model = schema.Model.GetRootAsModel(content, 0)
    starts = [model.Buffers(index).DataAsNumpy() for index in range(model.BuffersLength())]
    whole = np.frombuffer(content, np.uint8)
    places = [data.ctypes.data for data in starts if not isinstance(data, int)]
    base = model.Buffers(0)._tab.Bytes
    origin = np.frombuffer(base, np.uint8).ctypes.data
    assert len(places) == 2 * (len(widths) - 1)
    assert all((place - origin) % flatfile.ALIGNMENT == 0 for place in places)
    assert len(whole) % flatfile.ALIGNMENT == 0


def test_slimming_twice_is_slimming_once():
    content = slim(dense_file([4, 16, 2]))
    assert slim(content) == content


def test_a_linear_policy_of_eight_features_takes_less_than_a_kilobyte():
    assert len(slim(dense_file([8, 4]))) < 800
    assert len(dense_file([8, 4])) > 1_100


def test_nothing_that_is_left_out_is_missed_on_a_microcontroller():
    micro = pytest.importorskip("tflite_micro")
    content = dense_file([5, 12, 3])
    seen = np.random.default_rng(0).integers(-128, 128, (20, 1, 5), np.int8)
    found = []
    for each in (content, slim(content)):
        interpreter = micro.runtime.Interpreter.from_bytes(each)
        rows = []
        for observation in seen:
            interpreter.set_input(observation, 0)
            interpreter.invoke()
            rows.append(np.array(interpreter.get_output(0)))
        found.append(rows)
    np.testing.assert_array_equal(found[0], found[1])


def test_a_second_layer_of_the_same_widths_costs_its_weights_and_little_beside_them():
    sizes = [len(slim(dense_file([8] * layers))) for layers in (2, 3, 4)]
    assert all(larger - smaller < 8 * 8 + 4 * 8 + 240 for smaller, larger in itertools.pairwise(sizes))
