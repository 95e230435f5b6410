"""A .tflite file as objects and back, in as few bytes as the format allows: what is equal is written once.

The package that makes the objects writes them too, but it repeats every shape and scale, and forgets that a buffer's
data lies at a multiple of 16 bytes, as the schema demands and kernels may rely on.
"""

from collections.abc import Callable
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema

Array = np.ndarray[Any, Any]

ALIGNMENT = 16  # of a buffer's data, in bytes from the start of the file (`force_align` in schema.fbs)


def read(content: bytes) -> Any:
    """The file's `ModelT`."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))


def write(model: Any) -> bytes:
    """The file of a `ModelT`."""
    builder = _Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class _Builder(flatbuffers.Builder):
    """Gives the place of what was written before, where the same is written again: readers cannot tell.

    The methods are those that `Pack` of the generated classes calls.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._places: dict[Any, int] = {}
        self._fields: list[Any] = []

    def CreateNumpyVector(self, x: Array) -> int:
        def written() -> int:
            if x.dtype == np.uint8:  # The data of a buffer.
                self.Prep(ALIGNMENT, x.nbytes)
            return int(super(_Builder, self).CreateNumpyVector(x))

        return self._once((x.dtype.str, x.tobytes()), written)

    def CreateString(self, s: bytes) -> int:
        return self._once(("string", s), lambda: int(super(_Builder, self).CreateString(s)))

    def StartObject(self, numfields: int) -> None:
        self._fields = []
        super().StartObject(numfields)

    def PrependSlot(self, flags: Any, o: int, x: Any, d: Any) -> None:
        if x != d:
            self._fields.append((flags, o, x))
        super().PrependSlot(flags, o, x, d)

    def PrependUOffsetTRelativeSlot(self, o: int, x: int, d: int) -> None:
        if x != d:
            self._fields.append(("offset", o, x))
        super().PrependUOffsetTRelativeSlot(o, x, d)

    def EndObject(self) -> int:
        fields = tuple(self._fields)
        if fields not in self._places:
            self._places[fields] = int(super().EndObject())
            return self._places[fields]
        self.head = len(self.Bytes) - self.objectEnd  # Takes the table back.
        self.current_vtable, self.nested = None, False
        return self._places[fields]

    def _once(self, content: Any, written: Callable[[], int]) -> int:
        if content not in self._places:
            self._places[content] = written()
        return self._places[content]
