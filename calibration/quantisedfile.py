"""External data of a quantised bundle's graphs in one file, written tensor by tensor: a large model's weights are never in
memory together, and what graphs share is there once."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ..engines.datafile import LEAST, DataFile


class QuantisedFile(DataFile):
    """The tensors that it makes refer to it by its name."""

    def add(self, name: str, values: NDArray) -> TensorProto:
        return self._placed(name, values.shape, helper.np_dtype_to_tensor_dtype(values.dtype), _bytes(values))

    def copy(self, tensor: TensorProto, folder: Path) -> TensorProto:
        """The same of a tensor whose data lies in another file of `folder`, as it is."""
        place = {entry.key: entry.value for entry in tensor.external_data}
        kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        offset, count = int(place.get("offset", 0)), math.prod(tensor.dims)
        content = np.fromfile(folder / place["location"], np.uint8, math.ceil(count * kind.itemsize), offset=offset)
        return self._placed(tensor.name, tensor.dims, tensor.data_type, content.tobytes())

    def _placed(self, name: str, shape, kind: int, content: bytes) -> TensorProto:
        tensor = TensorProto(name=name, dims=list(shape), data_type=kind)
        if len(content) < LEAST:
            tensor.raw_data = content
            return tensor
        offset = self.place(content)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.file.name), ("offset", offset), ("length", len(content))):
            tensor.external_data.add(key=key, value=str(value))
        return tensor


def _bytes(values: NDArray) -> bytes:
    """As ONNX stores them: two values of four bits a byte."""
    from onnx import numpy_helper

    return numpy_helper.from_array(values).raw_data
