"""What a graph costs: floating-point operations and weights, counted by walking the ONNX graph itself.

A multiply-add is two operations, as in torch.utils.flop_counter. Counted are the operators that matter: MatMul, Gemm,
Conv, ConvTranspose and Attention (over the whole ring: what a full stream pays). Needs the package onnx.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path


def graph_flops(file: Path) -> Counter[str]:
    """Operations of one pass by operator type."""
    import onnx
    from onnx import shape_inference

    inferred = shape_inference.infer_shapes(onnx.load(file, load_external_data=False), data_prop=True)
    graph = inferred.graph
    shapes = {i.name: tuple(i.dims) for i in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
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
