"""External data of a bundle's graphs in one file: every tensor is written as it comes, and once, whoever shares it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx_ir as ir

ALIGN = 4096  # so that a runtime can map a tensor where it lies
LEAST = 1024  # bytes; smaller tensors stay in the graph


class WeightFile:
    """A file that grows. Tensors of equal content share one place."""

    def __init__(self, file: Path):
        self.file = file
        self._places: dict[bytes, int] = {}  # hash of the content -> offset
        self._end = 0

    def put(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """Write a tensor, if no equal one is there, and return a reference to where it lies."""
        content = tensor.tobytes()
        key = hashlib.sha256(content).digest()
        if key not in self._places:
            offset = -(-self._end // ALIGN) * ALIGN
            with open(self.file, "r+b" if self._end else "wb") as f:
                f.seek(offset)
                f.write(content)
            self._places[key], self._end = offset, offset + len(content)
        return ir.ExternalTensor(
            self.file.name,
            self._places[key],
            len(content),
            ir.DataType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name or "",
            base_dir=self.file.parent,
        )

    def take(self, graph: ir.Graph) -> None:
        """Move a graph's constants here."""
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.nbytes >= LEAST:
                value.const_value = self.put(value.const_value)
