"""What the manifest says of an ONNX file. Needs the package onnx, so nothing that runs a bundle calls it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .bundle import Graph, TensorSpec, describe

if TYPE_CHECKING:
    from onnx import ValueInfoProto

EMBED_UP_TO = 512 << 20  # bytes of weights; beyond, they get a file of their own (a protobuf ends at 2 GiB)
KINDS = {"FLOAT": "float32", "FLOAT16": "float16", "INT64": "int64", "UINT8": "uint8", "INT8": "int8"}


def describe_graph(file: Path, data: Sequence[str] = ()) -> Graph:
    """Check a saved graph with onnx.checker and describe it. data: names of its external data files, beside it."""
    import onnx

    onnx.checker.check_model(file, full_check=True)
    graph = onnx.load(file, load_external_data=False).graph
    inputs, outputs = ([spec_of(value) for value in side] for side in (graph.input, graph.output))
    return Graph(model=describe(file), data=[describe(file.with_name(d)) for d in data], inputs=inputs, outputs=outputs)


def spec_of(value: ValueInfoProto) -> TensorSpec:
    from onnx import TensorProto

    tensor = value.type.tensor_type
    kind = KINDS[TensorProto.DataType.Name(tensor.elem_type)]
    return TensorSpec(name=value.name, shape=[d.dim_value for d in tensor.shape.dim], dtype=kind)  # type: ignore[arg-type]
