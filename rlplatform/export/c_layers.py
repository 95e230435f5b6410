"""The layers of a .tflite file, with the numbers that C is written from."""

import dataclasses
import math
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from rlplatform.compression import flatfile
from rlplatform.errors import UserError

Array = np.ndarray[Any, Any]

_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
_RELU = schema.ActivationFunctionType.RELU
_NONE = schema.ActivationFunctionType.NONE
_DTYPES = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.INT8: np.int8,
    schema.TensorType.UINT8: np.uint8,
    schema.TensorType.INT16: np.int16,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.INT64: np.int64,
}
_WHOLE = {schema.TensorType.INT8: "int8", schema.TensorType.INT16: "int16"}
_BETWEEN = frozenset({"RESHAPE", "CAST", "QUANTIZE", "DEQUANTIZE"})


@dataclasses.dataclass(frozen=True)
class Norm:
    """What is left of LayerNorm after folding: `x * gamma / sqrt(mean(x^2) + epsilon) + beta`.

    Attributes:
        gamma: `[U]` float32 or int16.
        beta: `[U]` float32, or int32 in units of what the layer makes.
        relu: whether negative outputs become zero.
        epsilon: in float.
        root: in int16, the two layers that make the reciprocal root of the mean of squares.
        factors: in int16, by what become, as multipliers and shifts: squares, their sum, a product with the root, one
            with gamma, and that in units of what the layer makes.
    """

    gamma: Array
    beta: Array
    relu: bool
    epsilon: float = 0.0
    root: tuple["Layer", ...] = ()
    factors: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class Layer:
    """A Dense or a Conv2D layer of a file.

    Attributes:
        kind: `dense` or `conv`.
        weights: `[U, I]` for a Dense, `[U, h, w, C]` for a Conv2D; float32 or int8.
        bias: `[U]` float32, int32 or int64.
        relu: whether negative outputs become zero.
        inputs: `(H, W, C)` of a Conv2D, `(1, 1, I)` of a Dense.
        outputs: `(H, W, U)`, `(1, 1, U)`.
        stride: of a Conv2D, rows and columns.
        pad: of a Conv2D, rows above and columns to the left that are not there.
        scales: of the weights, one for each output, float64; empty in float.
        given: scale and zero point of what comes in; in float `(1, 0)`, or `(1, z)` where z is taken from all of it.
        made: scale and zero point of what goes out.
        activations: what goes in and out: float32, int8 or int16.
        norm: LayerNorm of what a Dense makes, if that follows.
    """

    kind: str
    weights: Array
    bias: Array
    relu: bool
    inputs: tuple[int, int, int]
    outputs: tuple[int, int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]
    scales: Array
    given: tuple[float, float]
    made: tuple[float, int]
    activations: str
    norm: Norm | None = None

    @property
    def factors(self) -> list[tuple[int, int]]:
        """By what sums become outputs, as multipliers and shifts: one for each output, or one for all."""
        pairs = [multiplier_of(self.given[0] * scale / self.made[0]) for scale in self.scales]
        if self.kind == "conv" and self.activations == "int16":  # There the runtimes keep 15 bits of the multiplier.
            pairs = [(min((multiplier + 2**15) >> 16, 2**15 - 1) << 16, shift) for multiplier, shift in pairs]
        return pairs[:1] if len(set(pairs)) == 1 else pairs


def read_layers(content: bytes) -> list[Layer]:
    """The layers of a file from `compression.convert`, from the observation to `q`.

    Raises:
        UserError: it computes something else than Dense and Conv2D layers with ReLU and LayerNorm, or it mixes float
            with integers.
    """
    graph = _Graph(flatfile.read(content))
    layers: list[Layer] = []
    tensor, norm = graph.outputs["q"], None
    while (operator := graph.makers.get(tensor)) is not None:
        name = graph.name(operator)
        if name in ("FULLY_CONNECTED", "CONV_2D"):
            layer = _layer(graph, operator, name)
            layers.insert(0, layer if norm is None else dataclasses.replace(layer, norm=norm))
            norm = None
        elif name in ("ADD", "SUB") and layers and graph.is_given(operator.inputs[0]):
            layers[0] = _shifted(layers[0], graph, operator, name)
        elif norm is None and (found := _norm(graph, tensor)) is not None:
            norm, tensor = found
            continue
        elif name not in _BETWEEN:
            raise UserError(
                f"C is written for Dense and Conv2D layers with ReLU, and for LayerNorm in float32 and with int16 "
                f"activations; this network has {name} too"
            )
        tensor = int(operator.inputs[0])
    if not layers or norm is not None:
        raise UserError("C is written for Dense and Conv2D layers; this network has none")
    if len({(layer.weights.dtype, layer.activations) for layer in layers}) > 1 or any(
        (layer.weights.dtype == np.int8) != bool(len(layer.scales)) for layer in layers
    ):
        raise UserError("C is written for float32 or static int8; this file mixes them")
    return layers


class _Graph:
    """A file's operators by what they make."""

    def __init__(self, model: Any) -> None:
        self._model, self._subgraph = model, model.subgraphs[0]
        self.makers = {int(operator.outputs[0]): operator for operator in self._subgraph.operators}
        self.outputs = {output.name.decode(): int(output.tensorIndex) for output in model.signatureDefs[0].outputs}

    def name(self, operator: Any) -> str:
        """What an operator is called; empty for none."""
        if operator is None:
            return ""
        code = self._model.operatorCodes[operator.opcodeIndex]
        return str(_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)])

    def maker(self, tensor: int, *names: str) -> Any | None:
        """The operator that makes a tensor, if it is called so."""
        operator = self.makers.get(int(tensor))
        return operator if self.name(operator) in names else None

    def is_given(self, index: int) -> bool:
        """Whether a tensor is the observation, or a cast of it."""
        operator = self.makers.get(int(index))
        return operator is None or (self.name(operator) == "CAST" and int(operator.inputs[0]) not in self.makers)

    def tensor(self, index: int) -> Any:
        """What the file says of a tensor."""
        return self._subgraph.tensors[index]

    def data(self, index: int) -> Array:
        """A constant."""
        tensor = self.tensor(index)
        raw = np.asarray(self._model.buffers[tensor.buffer].data, np.uint8)
        return raw.view(_DTYPES[tensor.type]).reshape(tensor.shape)

    def is_constant(self, index: int) -> bool:
        """Whether the file holds the tensor."""
        return self._model.buffers[self.tensor(index).buffer].data is not None

    def quantisation(self, index: int) -> tuple[float, int]:
        """Scale and zero point of a tensor."""
        found = self.tensor(index).quantization
        return float(np.float32(found.scale[0])), int(found.zeroPoint[0])


def _shifted(layer: Layer, graph: _Graph, operator: Any, name: str) -> Layer:
    """The first layer of an image's network, with what is taken from the image before it."""
    taken = graph.data(operator.inputs[1])
    if layer.given[1] or len(layer.scales) or np.ptp(taken) or layer.pad != (0, 0):
        raise UserError("C is written for a shift of the observation by one number, without padding after it")
    return dataclasses.replace(layer, given=(1.0, float(taken.flat[0]) * (-1 if name == "ADD" else 1)))


def _norm(graph: _Graph, tensor: int) -> tuple[Norm, int] | None:
    """LayerNorm that makes a tensor, and the tensor that it is of; None where something else makes it."""
    last, relu = graph.makers[tensor], False
    constants: dict[str, int] = {}
    chain: dict[str, int] = {}  # what each part makes
    for name in ("ADD", "MUL"):
        operator = graph.maker(tensor, name)
        if operator is not None and graph.is_constant(operator.inputs[1]):
            relu |= operator is last and operator.builtinOptions.fusedActivationFunction == _RELU
            constants[name], chain[name], tensor = int(operator.inputs[1]), tensor, int(operator.inputs[0])
    product = graph.maker(tensor, "MUL")
    if product is None or "ADD" not in constants or "MUL" not in constants:
        return None
    of, root = (int(index) for index in product.inputs)
    epsilon, layers = 0.0, list[Layer]()
    if (reciprocal := graph.maker(root, "RSQRT")) is not None:
        added = graph.maker(reciprocal.inputs[0], "ADD")
        if added is None or graph.tensor(root).type != schema.TensorType.FLOAT32:
            return None
        epsilon, power = float(graph.data(added.inputs[1]).item()), int(added.inputs[0])
    else:
        power = root
        while (ramp := graph.maker(power, "FULLY_CONNECTED")) is not None:
            layers.insert(0, _layer(graph, ramp, "FULLY_CONNECTED"))
            power = int(ramp.inputs[0])
        if not layers:
            return None
    mean = graph.maker(power, "MEAN")
    square = None if mean is None else graph.maker(mean.inputs[0], "MUL")
    if square is None or {int(index) for index in square.inputs} != {of} or len(graph.tensor(of).shape) != 2:
        return None
    gamma, beta = graph.data(constants["MUL"]), graph.data(constants["ADD"])
    if not layers:
        return Norm(gamma, beta, relu, epsilon), of
    places = (
        of,
        square.outputs[0],
        power,
        root,
        tensor,
        constants["MUL"],
        chain["MUL"],
        constants["ADD"],
        chain["ADD"],
    )
    x, squares, powers, roots, products, gammas, scaled, betas, made = (graph.quantisation(each)[0] for each in places)
    factors = (
        x * x / squares,
        squares / (powers * gamma.size),
        x * roots / products,
        products * gammas / scaled,
        scaled / made,
    )
    whole = np.rint(beta * (betas / made)).astype(np.int32)
    return Norm(gamma, whole, relu, 0.0, tuple(layers), tuple(map(multiplier_of, factors))), of


def _layer(graph: _Graph, operator: Any, name: str) -> Layer:
    options = operator.builtinOptions
    if options.fusedActivationFunction not in (_RELU, _NONE):
        raise UserError("C is written for Dense and Conv2D layers with ReLU; this network has another activation")
    given, kernel = (graph.tensor(operator.inputs[index]) for index in (0, 1))
    made = graph.tensor(operator.outputs[0])
    weights = graph.data(operator.inputs[1])
    bias = np.zeros(weights.shape[0], np.int32 if weights.dtype == np.int8 else np.float32)
    if len(operator.inputs) > 2 and operator.inputs[2] >= 0:
        bias = graph.data(operator.inputs[2]).ravel()
    integer = given.type in _WHOLE
    scales = np.zeros(0)
    if integer:
        scales = np.broadcast_to(
            np.asarray(kernel.quantization.scale, np.float32).astype(np.float64), weights.shape[:1]
        )
    inputs, outputs = (1, 1, int(weights.shape[-1])), (1, 1, int(weights.shape[0]))
    stride, pad = (1, 1), (0, 0)
    if name == "CONV_2D":
        inputs, outputs = (tuple(map(int, tensor.shape[1:])) for tensor in (given, made))  # type: ignore[assignment]
        stride = (int(options.strideH), int(options.strideW))
        if options.padding == schema.Padding.SAME:
            whole = [
                max(0, (outputs[axis] - 1) * stride[axis] + weights.shape[1 + axis] - inputs[axis]) for axis in (0, 1)
            ]
            pad = (whole[0] // 2, whole[1] // 2)
    return Layer(
        "conv" if name == "CONV_2D" else "dense",
        weights,
        bias,
        options.fusedActivationFunction == _RELU,
        inputs,
        outputs,
        stride,
        pad,
        scales,
        graph.quantisation(operator.inputs[0]) if integer else (1.0, 0),
        graph.quantisation(operator.outputs[0]) if integer else (1.0, 0),
        _WHOLE.get(given.type, "float32"),
    )


def multiplier_of(scale: float) -> tuple[int, int]:
    """A positive factor as `multiplier * 2 ** (shift - 31)`, the multiplier of 31 bits."""
    if scale == 0.0:
        return 0, 0
    fraction, shift = math.frexp(scale)
    multiplier = round(fraction * 2**31)
    if multiplier == 2**31:
        multiplier, shift = multiplier // 2, shift + 1
    return (0, 0) if shift < -31 else (multiplier, shift)
