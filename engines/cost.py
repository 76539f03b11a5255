"""What a graph costs: floating-point operations, weights and live values, counted by walking the ONNX graph itself.

A multiply-add is two operations, as in torch.utils.flop_counter. Counted are the operators that matter: MatMul, Gemm,
Conv, ConvTranspose and Attention (over the whole ring: what a full stream pays). Needs the package onnx.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Held:
    """Bytes of a graph on its device."""

    weights: int
    live: int  # the values between inputs and outputs, where there are most


def read(file: Path) -> tuple[onnx.GraphProto, dict[str, Shape], dict[str, int]]:
    """A graph without its weights' bytes, and its values' shapes and element types."""
    import onnx
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(onnx.load(file, load_external_data=False), data_prop=True).graph
    shapes = {i.name: tuple(i.dims) for i in graph.initializer}
    kinds = {i.name: i.data_type for i in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        kinds[value.name] = value.type.tensor_type.elem_type
    return graph, shapes, kinds


def graph_memory(file: Path, wide: int) -> Held:
    """Bytes with floating-point numbers of `wide` bytes each. Live values: every one from the node that makes it to the last
    that reads it, in the order in which the nodes stand; an engine that runs them in another, or in place, takes less."""
    from onnx import TensorProto, helper

    graph, shapes, kinds = read(file)

    def size(name: str) -> int:
        kind = kinds.get(name, TensorProto.FLOAT)
        floating = TensorProto.DataType.Name(kind) in FLOATS
        return math.prod(shapes.get(name, ())) * (wide if floating else helper.tensor_dtype_to_np_dtype(kind).itemsize)

    weights = {i.name for i in graph.initializer}
    ends = {value.name for value in (*graph.input, *graph.output)} - weights
    last = {name: i for i, node in enumerate(graph.node) for name in node.input}
    now = most = 0
    for i, node in enumerate(graph.node):
        made = [name for name in node.output if name and name not in ends]
        now += sum(size(name) for name in made)
        most = max(most, now)
        over = {name for name in (*node.input, *made) if last.get(name, i) == i}
        now -= sum(size(name) for name in over if name and name not in ends and name not in weights)
    return Held(sum(map(size, weights)), most)


def graph_flops(file: Path) -> Counter[str]:
    """Operations of one pass by operator type."""
    graph, shapes, _ = read(file)
    total: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            flipped = any(a.name == "transA" and a.i for a in node.attribute)
            inner = shapes[node.input[0]][-2 if flipped else -1]
            total[node.op_type] += 2 * math.prod(shapes[node.output[0]]) * inner
        elif node.op_type == "Conv":
            _, *kernel = shapes[node.input[1]]
            total["Conv"] += 2 * math.prod(shapes[node.output[0]]) * math.prod(kernel)
        elif node.op_type == "ConvTranspose":
            total["Conv"] += 2 * math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])
        elif node.op_type == "Attention":
            (_, _, _, depth), keys = shapes[node.input[0]], shapes[node.input[1]]
            rows = math.prod(shapes[node.input[0]][:3])
            total["Attention"] += 2 * rows * keys[2] * (depth + shapes[node.input[2]][3])
    return total
