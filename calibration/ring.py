"""The INT8 KV ring: keys and values of the portable form as int8, with a scale for every head and token beside them.

The graph quantises what the commit pass hands out and dequantises what it reads, so that the runtime only moves bytes:
`k_0` [1, H, S, D] becomes int8, `k_0_scale` [1, H, S, 1] float32 stands beside it. Half of FP16's ring, a quarter of FP32's.
"""

from __future__ import annotations

import re

from onnx import ModelProto, TensorProto, helper

from ..engines.errors import UserError

RING = re.compile(r"[kv]_\d+")
LARGEST = 127.0


def int8_ring(model: ModelProto) -> None:
    """Change the step graph in place. Raises UserError for the in-place form, whose cache operator takes floats only."""
    graph = model.graph
    stored = [value for value in graph.input if RING.fullmatch(value.name)]
    outputs = {value.name: value for value in graph.output}
    if any(f"{value.name}_new" not in outputs for value in stored):
        raise UserError("--ring int8 needs the portable form: everframe export … --form portable")
    before, after = [], []
    graph.initializer.append(helper.make_tensor("ring.largest", TensorProto.FLOAT, [], [LARGEST]))
    graph.initializer.append(helper.make_tensor("ring.least", TensorProto.FLOAT, [], [1e-8]))
    graph.initializer.append(helper.make_tensor("ring.axis", TensorProto.INT64, [1], [3]))
    for value in stored:
        name, kind = value.name, value.type.tensor_type.elem_type
        _, heads, tokens, _ = (d.dim_value for d in value.type.tensor_type.shape.dim)
        value.type.tensor_type.elem_type = TensorProto.INT8
        graph.input.append(helper.make_tensor_value_info(f"{name}_scale", TensorProto.FLOAT, [1, heads, tokens, 1]))
        before += [
            helper.make_node("Cast", [name], [f"{name}.wide"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}.wide", f"{name}_scale"], [f"{name}.float"]),
            helper.make_node("Cast", [f"{name}.float"], [f"{name}.read"], to=kind),
        ]
        for node in graph.node:
            for i, source in enumerate(node.input):
                if source == name:
                    node.input[i] = f"{name}.read"
        own, out = f"{name}_new", outputs[f"{name}_new"]
        for node in graph.node:
            for i, target in enumerate(node.output):
                if target == own:
                    node.output[i] = f"{own}.made"
            for i, source in enumerate(node.input):
                if source == own:
                    node.input[i] = f"{own}.made"
        chunk = out.type.tensor_type.shape.dim[2].dim_value
        out.type.tensor_type.elem_type = TensorProto.INT8
        scale = f"{name}_scale_new"
        graph.output.append(helper.make_tensor_value_info(scale, TensorProto.FLOAT, [1, heads, chunk, 1]))
        after += [
            helper.make_node("Cast", [f"{own}.made"], [f"{own}.wide"], to=TensorProto.FLOAT),
            helper.make_node("Abs", [f"{own}.wide"], [f"{own}.abs"]),
            helper.make_node("ReduceMax", [f"{own}.abs", "ring.axis"], [f"{own}.peak"], keepdims=1),
            helper.make_node("Max", [f"{own}.peak", "ring.least"], [f"{own}.safe"]),
            helper.make_node("Div", [f"{own}.safe", "ring.largest"], [scale]),
            helper.make_node("Div", [f"{own}.wide", scale], [f"{own}.scaled"]),
            helper.make_node("Round", [f"{own}.scaled"], [f"{own}.round"]),
            helper.make_node("Cast", [f"{own}.round"], [own], to=TensorProto.INT8),
        ]
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
