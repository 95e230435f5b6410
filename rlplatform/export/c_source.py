"""A .tflite file as C99: two files without libraries, without malloc, with the arithmetic of LiteRT's own kernels.

What is read is the exported file itself, so that C and LiteRT compute from the same numbers. A float32 file becomes
float arithmetic. A static file becomes whole-number arithmetic: 32-bit sums (64-bit ones for int16
activations), then a multiplier of 31 bits and a shift (Jacob et al. 2018, section 2.2), rounded as LiteRT's reference
kernels round.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rlplatform.export.c_layers import Layer, Norm

Array = np.ndarray[Any, Any]

LINE = 100  # characters of a row of numbers


def write(
    float_layers: list[Layer], whole_layers: list[Layer] | None, about: str, scaling: Mapping[str, Any] | None = None
) -> tuple[str, str]:
    """`policy.h` and `policy.c`.

    Args:
        float_layers: of the float32 file.
        whole_layers: of the static file, with int8 or int16 activations; None leaves the whole-number part out.
        about: one line on what policy this is.
        scaling: `offset` and `multiplier`, each `[O...]`, which bring an observation to what the static file takes.
    """
    first, last = float_layers[0], float_layers[-1]
    sizes = {"POLICY_OBSERVATION_SIZE": math.prod(first.inputs), "POLICY_NUM_ACTIONS": last.outputs[2]}
    header = [
        f"/* {about}",
        " * Written by rlplatform; C99, without libraries. Functions are not re-entrant: their buffers are static. */",
        "#ifndef POLICY_H",
        "#define POLICY_H",
        "",
        "#include <stdint.h>",
        "",
        *(f"#define {name} {value}" for name, value in sizes.items()),
        "",
        "/* The greedy action, counted from 0. `observation` has its axes in the environment's order, channels last.",
        " * `allowed` has a byte for each action, 0 where it is forbidden; NULL allows all. `q` gets the values of all",
        " * actions, if it is not NULL. */",
        "int policy_act(const float *observation, const uint8_t *allowed, float *q);",
    ]
    source = [
        f"/* {about} */",
        '#include "policy.h"',
        "",
        "#include <stddef.h>",
        "",
        *_choice("float"),
        *_arrays(float_layers, "f"),
        *_buffers(float_layers, "float"),
        *(_ROOT if any(layer.norm for layer in float_layers) else []),
        *_float_kernels(float_layers),
        "int policy_act(const float *observation, const uint8_t *allowed, float *q) {",
        *_calls(float_layers, "float", "f"),
        "}",
    ]
    if whole_layers is not None:
        (in_scale, in_zero), (out_scale, out_zero) = whole_layers[0].given, whole_layers[-1].made
        name = whole_layers[0].activations
        act = f"int policy_act_{name}(const {name}_t *observation, const uint8_t *allowed, {name}_t *q)"
        header += [
            "",
            "/* The same in whole numbers. A value x of the observation enters as round(x / scale) + zero point, after",
            " * `policy_quantise` has scaled it; a value of an action is (q - zero point) * scale. */",
            f"#define POLICY_INPUT_SCALE {_float(in_scale)}",
            f"#define POLICY_INPUT_ZERO_POINT ({in_zero})",
            f"#define POLICY_OUTPUT_SCALE {_float(out_scale)}",
            f"#define POLICY_OUTPUT_ZERO_POINT ({out_zero})",
            f"void policy_quantise(const float *observation, {name}_t *quantised);",
            f"{act};",
        ]
        source += [
            "",
            *_choice(name),
            *_arrays(whole_layers, "i"),
            *_buffers(whole_layers, name),
            *_SCALED[name],
            *(_LIMITED if any(layer.norm for layer in whole_layers) else []),
            *_whole_kernels(whole_layers),
            *_quantise(whole_layers[0], scaling),
            f"{act} {{",
            *_calls(whole_layers, name, "i"),
            "}",
        ]
    header += ["", "#endif"]
    return "\n".join(header) + "\n", "\n".join(source) + "\n"


def _type(kind: str) -> str:
    return kind if kind == "float" else f"{kind}_t"


def _named(name: str, kind: str) -> str:
    """What a thing is called in the part of the code for a type."""
    return name if kind == "float" else f"{name}_{kind}"


def _choice(kind: str) -> list[str]:
    return [
        f"static int {_named('greedy', kind)}(const {_type(kind)} *values, const uint8_t *allowed) {{",
        "    int best = -1;",
        "    for (int a = 0; a < POLICY_NUM_ACTIONS; ++a) {",
        "        if (allowed != NULL && !allowed[a]) continue;",
        "        if (best < 0 || values[a] > values[best]) best = a;",
        "    }",
        "    return best < 0 ? 0 : best;",
        "}",
        "",
    ]


def _arrays(layers: list[Layer], prefix: str) -> list[str]:
    lines: list[str] = []
    for label, layer in _labelled(layers):
        integer = len(layer.scales) > 0
        kind = "int8_t" if integer else "float"
        lines += _array(f"static const {kind} {prefix}_weights_{label}", layer.weights)
        bias = f"{layer.bias.dtype.name}_t" if integer else "float"
        lines += _array(f"static const {bias} {prefix}_bias_{label}", layer.bias)
        if integer:
            pairs = layer.factors
            lines += _array(f"static const int32_t {prefix}_multiplier_{label}", np.array([pair[0] for pair in pairs]))
            lines += _array(f"static const int8_t {prefix}_shift_{label}", np.array([pair[1] for pair in pairs]))
        if layer.norm is not None:
            for name, values in (("gamma", layer.norm.gamma), ("beta", layer.norm.beta)):
                kind = f"{values.dtype.name}_t" if integer else "float"
                lines += _array(f"static const {kind} {prefix}_{name}_{label}", values)
    return [*lines, ""]


def _labelled(layers: list[Layer]) -> Iterable[tuple[str, Layer]]:
    """All layers by what their part of the code is called; what makes a reciprocal root comes before what it serves."""
    for index, layer in enumerate(layers):
        for place, inner in enumerate(() if layer.norm is None else layer.norm.root):
            yield f"{index}_root_{place}", inner
        yield str(index), layer


def _array(name: str, values: Array) -> list[str]:
    lines, row = [f"{name}[{values.size}] = {{"], "   "
    written = _float if values.dtype.kind == "f" else str
    for text in map(written, values.ravel().tolist()):
        if len(row) + len(text) + 2 > LINE:
            lines.append(row)
            row = "   "
        row += f" {text},"
    return [*lines, row, "};"]


def _float(value: float) -> str:
    """A float32 literal that reads back as the same number."""
    text = f"{float(np.float32(value)):.9g}"
    return f"{text if any(letter in text for letter in '.en') else f'{text}.0'}f"


def _buffers(layers: list[Layer], kind: str) -> list[str]:
    largest = max(math.prod(layer.outputs) for layer in layers)
    count = min(2, len(layers))
    return [f"static {_type(kind)} {_named('buffer', kind)}_{index}[{largest}];" for index in range(count)] + [""]


def _calls(layers: list[Layer], kind: str, prefix: str) -> Iterable[str]:
    given = "observation"
    for index in range(len(layers)):
        made = f"{_named('buffer', kind)}_{index % 2}"
        yield f"    {prefix}_layer_{index}({given}, {made});"
        given = made
    yield f"    for (int a = 0; q != NULL && a < POLICY_NUM_ACTIONS; ++a) q[a] = {given}[a];"
    yield f"    return {_named('greedy', kind)}({given}, allowed);"


def _float_kernels(layers: list[Layer]) -> list[str]:
    lines: list[str] = []
    for label, layer in _labelled(layers):
        rectify = ["if (sum < 0.0f) sum = 0.0f;"] if layer.relu else []
        zero = layer.given[1]
        x = f"(x[{{x}}] - {_float(zero)})" if zero else "x[{x}]"
        body = [f"float sum = f_bias_{label}[u];", *_sum(layer, label, "f", f"sum += {x} * f_weights_{{i}}[{{w}}];")]
        after = [] if layer.norm is None else _float_norm(layer.norm, label)
        lines += _function(
            layer, f"static void f_layer_{label}(const float *x, float *y)", [*body, *rectify], "sum", after
        )
    return lines


def _float_norm(norm: Norm, label: str) -> list[str]:
    units = norm.gamma.size
    return [
        "float power = 0.0f;",
        f"for (int u = 0; u < {units}; ++u) power += y[u] * y[u];",
        f"const float root = reciprocal_root(power / {units}.0f + {_float(norm.epsilon)});",
        f"for (int u = 0; u < {units}; ++u) {{",
        f"    y[u] = y[u] * root * f_gamma_{label}[u] + f_beta_{label}[u];",
        *(["    if (y[u] < 0.0f) y[u] = 0.0f;"] if norm.relu else []),
        "}",
    ]


def _whole_kernels(layers: list[Layer]) -> list[str]:
    lines: list[str] = []
    for label, layer in _labelled(layers):
        zero, (_, out_zero) = layer.given[1], layer.made
        which = "0" if len(layer.factors) == 1 else "u"
        limits, kind = np.iinfo(layer.activations), f"{layer.activations}_t"
        least = max(limits.min, out_zero) if layer.relu else limits.min
        body = [
            f"{'int32_t' if kind == 'int8_t' else 'int64_t'} sum = i_bias_{label}[u];",
            *_sum(layer, label, "i", f"sum += ((int32_t)x[{{x}}] - ({zero})) * i_weights_{{i}}[{{w}}];"),
            f"sum = scaled(sum, i_multiplier_{label}[{which}], i_shift_{label}[{which}]) + ({out_zero});",
            f"if (sum < {least}) sum = {least};",
            f"if (sum > {limits.max}) sum = {limits.max};",
        ]
        after = [] if layer.norm is None else _whole_norm(layer.norm, label)
        lines += _function(
            layer, f"static void i_layer_{label}(const {kind} *x, {kind} *y)", body, f"({kind})sum", after
        )
    return lines


def _whole_norm(norm: Norm, label: str) -> list[str]:
    units = norm.gamma.size
    square, power, product, gamma, made = (f"{multiplier}, {shift}" for multiplier, shift in norm.factors)
    ramps = norm.root[0].outputs[2]
    return [
        "int64_t squares = 0;",
        f"for (int u = 0; u < {units}; ++u) squares += limited(scaled((int64_t)y[u] * y[u], {square}), -32768);",
        f"const int16_t power = limited(scaled(squares, {power}), -32768);",
        f"int16_t ramps[{ramps}], root;",
        f"i_layer_{label}_root_0(&power, ramps);",
        f"i_layer_{label}_root_1(ramps, &root);",
        f"for (int u = 0; u < {units}; ++u) {{",
        f"    const int16_t even = limited(scaled((int64_t)y[u] * root, {product}), -32768);",
        f"    const int16_t sized = limited(scaled((int64_t)even * i_gamma_{label}[u], {gamma}), -32768);",
        f"    y[u] = limited(scaled(sized, {made}) + i_beta_{label}[u], {0 if norm.relu else -32768});",
        "}",
    ]


def _sum(layer: Layer, label: str, prefix: str, line: str) -> list[str]:
    """The loops over one output's inputs."""
    if layer.kind == "dense":
        size = layer.inputs[2]
        return [f"for (int n = 0; n < {size}; ++n) {line.format(x='n', w=f'u * {size} + n', i=label)}"]
    _, height, width, channels = layer.weights.shape
    rows, columns, _ = layer.inputs
    place = f"(r * {columns} + c) * {channels} + n"
    weight = f"((u * {height} + i) * {width} + j) * {channels} + n"
    return [
        f"for (int i = 0; i < {height}; ++i) {{",
        f"    const int r = row * {layer.stride[0]} - {layer.pad[0]} + i;",
        f"    if (r < 0 || r >= {rows}) continue;",
        f"    for (int j = 0; j < {width}; ++j) {{",
        f"        const int c = column * {layer.stride[1]} - {layer.pad[1]} + j;",
        f"        if (c < 0 || c >= {columns}) continue;",
        f"        for (int n = 0; n < {channels}; ++n) {line.format(x=place, w=weight, i=label)}",
        "    }",
        "}",
    ]


def _function(layer: Layer, head: str, body: list[str], result: str, after: list[str]) -> list[str]:
    rows, columns, units = layer.outputs
    if layer.kind == "dense":
        inner = [f"    for (int u = 0; u < {units}; ++u) {{", *(f"        {line}" for line in body)]
        return [f"{head} {{", *inner, f"        y[u] = {result};", "    }", *(f"    {line}" for line in after), "}", ""]
    return [
        f"{head} {{",
        f"    for (int row = 0; row < {rows}; ++row)",
        f"    for (int column = 0; column < {columns}; ++column)",
        f"    for (int u = 0; u < {units}; ++u) {{",
        *(f"        {line}" for line in body),
        f"        y[(row * {columns} + column) * {units} + u] = {result};",
        "    }",
        "}",
        "",
    ]


_ROOT = [
    "/* 1 / sqrt(x) for x above zero: a guess from the exponent, and Newton's method. */",
    "static float reciprocal_root(float x) {",
    "    union { float number; uint32_t bits; } guess = {x};",
    "    guess.bits = 0x5F3759DFu - (guess.bits >> 1);",
    "    for (int n = 0; n < 4; ++n) guess.number *= 1.5f - 0.5f * x * guess.number * guess.number;",
    "    return guess.number;",
    "}",
    "",
]
_OF_INT8 = [
    "/* sum * multiplier * 2^(shift - 31), rounded to the nearest as LiteRT's reference kernels do. */",
    "static int32_t scaled(int32_t sum, int32_t multiplier, int8_t shift) {",
    "    const int left = shift > 0 ? shift : 0, right = shift > 0 ? 0 : -shift;",
    "    const int64_t product = (int64_t)sum * ((int64_t)1 << left) * multiplier;",
    "    const int64_t nudge = product >= 0 ? ((int64_t)1 << 30) : 1 - ((int64_t)1 << 30);",
    "    const int64_t high = (product + nudge) / ((int64_t)1 << 31);",
    "    const int64_t mask = ((int64_t)1 << right) - 1, rest = high & mask;",
    "    const int64_t threshold = (mask >> 1) + (high < 0 ? 1 : 0);",
    "    const int64_t low = (high - rest) / ((int64_t)1 << right);",
    "    return (int32_t)(low + (rest > threshold ? 1 : 0));",
    "}",
    "",
]
_OF_INT16 = [
    "/* sum * multiplier * 2^(shift - 31), rounded to the nearest, a half upwards, as LiteRT's kernels do. The product",
    " * may have 78 bits; its lowest 16 decide nothing and are left out. */",
    "static int64_t scaled(int64_t sum, int32_t multiplier, int8_t shift) {",
    "    const int64_t low = sum & 0xFFFF, high = (sum - low) / 0x10000;",
    "    const int64_t divisor = (int64_t)1 << (15 - shift);",
    "    const int64_t nudged = high * multiplier + low * multiplier / 0x10000 + divisor / 2;",
    "    return (nudged - (nudged & (divisor - 1))) / divisor;",
    "}",
    "",
]
_LIMITED = [
    "static int16_t limited(int64_t x, int64_t least) {",
    "    return (int16_t)(x < least ? least : x > 32767 ? 32767 : x);",
    "}",
    "",
]
_SCALED = {"int8": _OF_INT8, "int16": _OF_INT16}


def _quantise(first: Layer, scaling: Mapping[str, Any] | None) -> list[str]:
    """From an observation to whole numbers, with the rounding to even that the runtime has."""
    size, limits, kind = math.prod(first.inputs), np.iinfo(first.activations), f"{first.activations}_t"
    multiplier = np.full(size, 1.0 / first.given[0], np.float32)
    shift = np.full(size, first.given[1], np.float32)
    if scaling is not None:
        multiplier = np.asarray(scaling["multiplier"], np.float32).ravel() * np.float32(1.0 / first.given[0])
        shift = shift - np.asarray(scaling["offset"], np.float32).ravel() * multiplier
    same = len(set(multiplier.tolist())) == 1 and len(set(shift.tolist())) == 1
    which = "0" if same else "n"
    return [
        *_array("static const float input_multiplier", multiplier[:1] if same else multiplier),
        *_array("static const float input_shift", shift[:1] if same else shift),
        "",
        f"void policy_quantise(const float *observation, {kind} *quantised) {{",
        "    for (int n = 0; n < POLICY_OBSERVATION_SIZE; ++n) {",
        f"        float x = observation[n] * input_multiplier[{which}] + input_shift[{which}];",
        f"        if (x < {limits.min}.0f) x = {limits.min}.0f;",
        f"        if (x > {limits.max}.0f) x = {limits.max}.0f;",
        "        int whole = (int)x;",
        "        const float rest = x - (float)whole; /* between -1 and 1, the sign that of x */",
        "        if (rest > 0.5f || (rest == 0.5f && (whole & 1))) ++whole;",
        "        if (rest < -0.5f || (rest == -0.5f && (whole & 1))) --whole;",
        f"        quantised[n] = ({kind})whole;",
        "    }",
        "}",
        "",
    ]
