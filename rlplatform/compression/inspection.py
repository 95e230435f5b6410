"""What stands in a .tflite file: its operators, where its weights went, and how fine its values are."""

import math
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from rlplatform.compression import flatfile

# May see floats in a file of int8 activations; SELECT_V2 puts an action mask over its values.
BRIDGES = frozenset({"QUANTIZE", "DEQUANTIZE", "ARG_MAX", "CAST", "SELECT_V2"})


class Contents(NamedTuple):
    """A file, read without running it.

    Attributes:
        operators: names of the operators, in the order in which they run.
        foreign: operators that a plain LiteRT runtime lacks or gets wrong: custom ones (Flex among them), sparse ones.
        float_islands: operators that compute in float between integer ones; empty where all activations are float.
        weights: how many weights are stored in which type.
        activations: the type of what flows between operators: int8, int16 or float32.
        q_step: what one step of integer values is worth, in units of value; 0 where the values are float.
        q_range: the least and the greatest value that the file can give.
    """

    operators: tuple[str, ...]
    foreign: tuple[str, ...]
    float_islands: tuple[str, ...]
    weights: dict[str, int]
    activations: str
    q_step: float
    q_range: tuple[float, float]

    @property
    def static(self) -> bool:
        """Whether activations are integers, by ranges that are fixed."""
        return self.activations != "float32"

    @property
    def fits_c(self) -> bool:
        """Whether all that it computes is in whole numbers that C has too: the reciprocal root of int8 it has not."""
        return self.static and not self.float_islands and "RSQRT" not in self.operators


def read(content: bytes) -> Contents:
    """Reads a file with one signature, which gives `q`.

    Args:
        content: the file's bytes.
    """
    model = flatfile.read(content)
    graph = model.subgraphs[0]
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]

    def is_constant(index: int) -> bool:
        data = model.buffers[graph.tensors[index].buffer].data
        return data is not None and len(data) > 0

    def type_of(index: int) -> str:
        return str(_TYPES[graph.tensors[index].type])

    operators, islands, foreign = [], [], []
    weights: dict[str, int] = {}
    moving_types: set[str] = set()  # Of what flows between operators.
    counted: set[int] = set()
    for operator in graph.operators:
        name = _OPERATORS[codes[operator.opcodeIndex]]
        operators.append(name)
        if name in ("CUSTOM", "DENSIFY") or name.startswith("STABLEHLO"):
            custom = model.operatorCodes[operator.opcodeIndex].customCode
            foreign.append(name if custom is None else custom.decode())
        inputs = [int(index) for index in operator.inputs if index >= 0]
        flowing = [index for index in [*inputs, *map(int, operator.outputs)] if not is_constant(index)]
        moving_types |= {type_of(index) for index in flowing}
        if name not in BRIDGES and any(type_of(index) == "FLOAT32" for index in flowing):
            islands.append(name)
        for index in inputs:
            if is_constant(index) and index not in counted and type_of(index) in ("FLOAT32", "FLOAT16", "INT8", "INT4"):
                counted.add(index)
                kind = type_of(index).lower()
                weights[kind] = weights.get(kind, 0) + _size(graph.tensors[index].shape)
    activations = next((kind for kind in ("INT8", "INT16") if kind in moving_types), "FLOAT32")
    return Contents(
        tuple(operators),
        tuple(foreign),
        tuple(islands) if activations != "FLOAT32" else (),
        weights,
        activations.lower(),
        *_q_steps(model, graph, codes),
    )


def _q_steps(model: Any, graph: Any, codes: list[int]) -> tuple[float, tuple[float, float]]:
    """The scale and the range of `q`, or of what is dequantised into it."""
    outputs = {output.name.decode(): int(output.tensorIndex) for output in model.signatureDefs[0].outputs}
    index = outputs["q"]
    for operator in graph.operators:
        if _OPERATORS[codes[operator.opcodeIndex]] == "DEQUANTIZE" and int(operator.outputs[0]) == index:
            index = int(operator.inputs[0])
    quantisation = graph.tensors[index].quantization
    if quantisation is None or quantisation.scale is None or not len(quantisation.scale):
        return 0.0, (-math.inf, math.inf)
    scale, zero_point = float(quantisation.scale[0]), int(quantisation.zeroPoint[0])
    limits = np.iinfo(_TYPES[graph.tensors[index].type].lower())
    return scale, ((limits.min - zero_point) * scale, (limits.max - zero_point) * scale)


def _size(shape: Any) -> int:
    size = 1
    for length in shape:
        size *= int(length)
    return size


_OPERATORS = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
_TYPES = {code: name for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
