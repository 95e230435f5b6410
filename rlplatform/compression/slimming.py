"""The same file in fewer bytes: a small policy's file is mostly what the converter wrote beside its weights.

Nothing that is taken out has a meaning when the file runs: names of tensors, descriptions, the ranges that scales were
made from, tensors and buffers that no operator uses. What counts stays as it is: operators, their versions and options,
weights, scales, shapes and the signature.
"""

from typing import Any

import numpy as np

from rlplatform.compression import flatfile


def slim(content: bytes) -> bytes:
    """A file of one graph without what its runtime does not read.

    Args:
        content: the file's bytes.

    Returns:
        A file that gives the same bits, by the same operators on the same weights.
    """
    model = flatfile.read(content)
    graph = model.subgraphs[0]
    model.description = model.metadata = model.metadataBuffer = graph.name = None
    _keep_tensors(graph, model.signatureDefs)
    _keep_buffers(model, graph.tensors)
    for operator in graph.operators:
        if operator.intermediates is not None and not len(operator.intermediates):
            operator.intermediates = None
    for code in model.operatorCodes:
        code.deprecatedBuiltinCode = 0  # Readers take the greater of the two.
    for tensor in graph.tensors:
        tensor.name = None
        if tensor.shape is not None and len(tensor.shape):
            tensor.hasRank = False  # A shape that has a length has a rank.
            if np.array_equal(tensor.shapeSignature, tensor.shape):
                tensor.shapeSignature = None
        _keep_scales(tensor)
    return flatfile.write(model)


def _keep_tensors(graph: Any, signatures: list[Any]) -> None:
    """Those that something refers to, counted anew."""
    operators = [indices for operator in graph.operators for indices in (operator.inputs, operator.outputs)]
    used = np.unique(np.concatenate([*operators, graph.inputs, graph.outputs]))
    used = used[used >= 0]
    place = {int(old): new for new, old in enumerate(used)} | {-1: -1}

    def moved(indices: Any) -> Any:
        return np.array([place[int(index)] for index in indices], np.int32)

    graph.tensors = [graph.tensors[index] for index in used]
    graph.inputs, graph.outputs = moved(graph.inputs), moved(graph.outputs)
    for operator in graph.operators:
        operator.inputs, operator.outputs = moved(operator.inputs), moved(operator.outputs)
    for signature in signatures:
        for tensor in [*signature.inputs, *signature.outputs]:
            tensor.tensorIndex = place[int(tensor.tensorIndex)]


def _keep_buffers(model: Any, tensors: list[Any]) -> None:
    """One for each different content; the first is empty, and serves all tensors without."""
    empty = model.buffers[0]
    buffers, places = [empty], {b"": 0}
    for tensor in tensors:
        buffer = model.buffers[tensor.buffer]
        data = b"" if buffer.data is None else np.asarray(buffer.data, np.uint8).tobytes()
        if data not in places:
            places[data] = len(buffers)
            buffers.append(buffer)
        tensor.buffer = places[data]
    model.buffers = buffers


def _keep_scales(tensor: Any) -> None:
    quantisation = tensor.quantization
    if quantisation is None:
        return
    quantisation.min = quantisation.max = None
    if quantisation.details is None and (quantisation.scale is None or not len(quantisation.scale)):
        tensor.quantization = None
