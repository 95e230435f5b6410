"""Bundles that are broken on purpose, with hashes that fit: only what a gate examines can give them away."""

import json

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from rlplatform.export import bundle

KINDS = {schema.TensorType.FLOAT32: np.float32, schema.TensorType.INT8: np.int8, schema.TensorType.INT32: np.int32}


def reseal(folder, change=None):
    """Makes the hashes of a bundle fit its files again, as someone who means harm would.

    `change(manifest)` may alter what `policy.json` says, of its files too.
    """
    manifest = json.loads((folder / "policy.json").read_text())
    if change is not None:
        change(manifest)
    sealed = {"sha256", "bytes", "gzip_bytes"}
    details = {
        name: {key: value for key, value in entry.items() if key not in sealed}
        for name, entry in manifest.pop("files").items()
    }
    bundle.seal(folder, {k: v for k, v in manifest.items() if k not in ("format", "version", "sha256")}, details)


def edit(path, change):
    """Rewrites a .tflite file: `change(layers)` gets its Dense layers, from the observation on."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(path.read_bytes(), 0))
    layers = [Layer(model, operator) for operator in model.subgraphs[0].operators if len(operator.inputs) == 3]
    change(layers)
    for layer in layers:
        layer.store()
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


class Layer:
    """A Dense layer of a file: `arrays`, its kernel `[U, I]` and maybe its bias `[U]`, to be changed; their tensors."""

    def __init__(self, model, operator):
        self._model = model
        self.tensors = [model.subgraphs[0].tensors[index] for index in operator.inputs[1:] if index >= 0]
        self.arrays = list(map(self._load, self.tensors))

    def _load(self, tensor):
        data = np.asarray(self._model.buffers[tensor.buffer].data, np.uint8)
        return data.view(KINDS[tensor.type]).reshape(tensor.shape).copy()

    def store(self):
        for tensor, array in zip(self.tensors, self.arrays, strict=True):
            self._model.buffers[tensor.buffer].data = np.ascontiguousarray(array).view(np.uint8).ravel()
