"""External data of a bundle's graphs in one file: every tensor is written as it comes, and once, whoever shares it.

The weights of a transformer need never be in memory together: `put` writes one as soon as it is made and gives it back as a
view of the file, and a graph that is exported of such views finds its constants where they lie.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from ..engines.datafile import LEAST, SHARED, DataFile
from ..engines.files import own_folder

LARGE = 1 << 20  # bytes; smaller weights stay in memory


class WeightFile(DataFile):
    """With views of the file as tensors, and the graphs that refer to it."""

    def __init__(self, file: Path):
        super().__init__(file)
        self._mapped: list[tuple[int, int, int]] = []  # address of a view of the file, bytes, offset
        self.users: set[str] = set()  # files of the graphs that refer to it

    def put(self, weight: Tensor) -> Tensor:
        """Write a large matrix [out, in] and return a view of it that lives in the file; anything else as it is.

        It is written as [in, out], which is how a graph's MatMul wants it: the exporter then has nothing to transpose.
        """
        if weight.ndim != 2 or weight.nbytes < LARGE:
            return weight
        values = weight.t().contiguous().numpy()
        offset = self.append(values.tobytes())
        view = np.memmap(self.file, values.dtype, "c", offset, values.shape)
        self._mapped.append((view.ctypes.data, view.nbytes, offset))
        return torch.from_numpy(view).t()

    def take(self, graph: ir.Graph, file: Path) -> None:
        """Move the constants of the graph of `file` here, and this beside it."""
        if self.file.parent != file.parent:
            self.move(file.with_name(SHARED))
        self.users.add(file.name)
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.nbytes >= LEAST:
                value.const_value = self._external(value.const_value)

    def move(self, file: Path) -> None:
        """Give the file another name, in the same file system. Views of it stay what they are."""
        if self.file.exists():
            os.replace(self.file, file)
        self.file = file

    def _external(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """A reference to where the tensor lies; it is written if it is not here yet."""
        offset = self._place_of(tensor)
        if offset is None:
            offset = self.place(tensor.tobytes())
        kind, shape = ir.DataType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        place = {"shape": shape, "name": tensor.name or "", "base_dir": self.file.parent}
        return ir.ExternalTensor(self.file.name, offset, tensor.nbytes, kind, **place)

    def _place_of(self, tensor: ir.TensorProtocol) -> int | None:
        """Where in the file a constant is a view of it."""
        values = tensor.numpy()
        address = values.ctypes.data
        for start, size, offset in self._mapped:
            if address == start and values.nbytes == size and values.flags.c_contiguous:
                return offset
        return None


@contextmanager
def scratch(target: Path) -> Iterator[WeightFile]:
    """A file beside a bundle that is to be, gone afterwards unless a graph has taken it into the bundle."""
    with own_folder(target) as folder:
        yield WeightFile(folder / SHARED)
