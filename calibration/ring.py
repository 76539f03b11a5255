"""The INT8 KV ring: keys and values of the portable form as int8, with a scale for every head and token beside them.

The graphs quantise what they hand out (the step graph after the commit pass, the recache graph the whole ring) and
dequantise what they read, so that the runtime only moves bytes: `k_0` [1, H, S, D] becomes int8, `k_0_scale` [1, H, S, 1]
float32 stands beside it. Half of FP16's ring, a quarter of FP32's.
"""

from __future__ import annotations

import re

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from ..engines.errors import UserError

READ = re.compile(r"(sink_)?[kv]_\d+")  # inputs; the recache graph reads copies of the sinks
SINK_KEYS = re.compile(r"sink_k_\d+")
MADE = re.compile(r"([kv]_\d+)_(new|next)")  # outputs
LARGEST = 127.0


def check_form(form: str) -> None:
    """Raises UserError for a step graph whose ring stays in floats."""
    if form != "portable":
        raise UserError("--ring int8 needs the portable form: everframe export … --form portable")


def int8_ring(model: ModelProto, turned: int = 0) -> None:
    """Change a step, recache or sinks graph in place. turned: tokens of the sinks, where these follow the window: their keys
    stand beside the ring too, in float, and the graph turns those. Raises UserError for the in-place form, whose cache
    operator takes floats only."""
    graph = model.graph
    read = [value for value in graph.input if READ.fullmatch(value.name)]
    if turned:
        read = [value for value in read if not SINK_KEYS.fullmatch(value.name)]
    made = [value for value in graph.output if MADE.fullmatch(value.name)]
    check_form("in-place" if {f"{value.name}_next" for value in read} & {value.name for value in made} else "portable")
    graph.initializer.append(helper.make_tensor("ring.largest", TensorProto.FLOAT, [], [LARGEST]))
    graph.initializer.append(helper.make_tensor("ring.least", TensorProto.FLOAT, [], [1e-8]))
    graph.initializer.append(helper.make_tensor("ring.axis", TensorProto.INT64, [1], [3]))
    kinds = {value.name: value.type.tensor_type.elem_type for value in made}
    before = [node for value in read for node in _dequantised(model, value)]
    after = [node for value in made for node in _quantised(model, value)]
    if turned:
        for name, place in (("start", 0), ("sinks", turned), ("end", 1 << 40), ("tokens", 2)):
            graph.initializer.append(helper.make_tensor(f"ring.{name}", TensorProto.INT64, [1], [place]))
        if any(
            value.name in ("step", "leaving") for value in graph.input
        ):  # not of the recache graph, which has copies
            before += _float_sinks_read(model, [value for value in read if value.name[0] == "k"], kinds, turned)
        after += _float_sinks_made(model, [value for value in made if value.name[0] == "k"], kinds, turned)
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]


def _dequantised(model: ModelProto, value: ValueInfoProto) -> list[NodeProto]:
    """Turn an input into int8 with scales, and everything that reads it to what these nodes make of both."""
    graph, name, kind = model.graph, value.name, value.type.tensor_type.elem_type
    _, heads, tokens, _ = (d.dim_value for d in value.type.tensor_type.shape.dim)
    value.type.tensor_type.elem_type = TensorProto.INT8
    graph.input.append(helper.make_tensor_value_info(f"{name}_scale", TensorProto.FLOAT, [1, heads, tokens, 1]))
    for node in graph.node:
        for i, source in enumerate(node.input):
            if source == name:
                node.input[i] = f"{name}.read"
    return [
        helper.make_node("Cast", [name], [f"{name}.wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}.wide", f"{name}_scale"], [f"{name}.float"]),
        helper.make_node("Cast", [f"{name}.float"], [f"{name}.read"], to=kind),
    ]


def _quantised(model: ModelProto, value: ValueInfoProto) -> list[NodeProto]:
    """Turn an output into int8 with scales; what the graph itself reads of it stays what it was."""
    graph, own = model.graph, value.name
    match = MADE.fullmatch(own)
    assert match is not None
    _, heads, tokens, _ = (d.dim_value for d in value.type.tensor_type.shape.dim)
    value.type.tensor_type.elem_type = TensorProto.INT8
    scale = f"{match[1]}_scale_{match[2]}"
    graph.output.append(helper.make_tensor_value_info(scale, TensorProto.FLOAT, [1, heads, tokens, 1]))
    for node in graph.node:
        for names in (node.output, node.input):
            for i, name in enumerate(names):
                if name == own:
                    names[i] = f"{own}.made"
    return [
        helper.make_node("Cast", [f"{own}.made"], [f"{own}.wide"], to=TensorProto.FLOAT),
        helper.make_node("Abs", [f"{own}.wide"], [f"{own}.abs"]),
        helper.make_node("ReduceMax", [f"{own}.abs", "ring.axis"], [f"{own}.peak"], keepdims=1),
        helper.make_node("Max", [f"{own}.peak", "ring.least"], [f"{own}.safe"]),
        helper.make_node("Div", [f"{own}.safe", "ring.largest"], [scale]),
        helper.make_node("Div", [f"{own}.wide", scale], [f"{own}.scaled"]),
        helper.make_node("Round", [f"{own}.scaled"], [f"{own}.round"]),
        helper.make_node("Cast", [f"{own}.round"], [own], to=TensorProto.INT8),
    ]


def _float_sinks_read(
    model: ModelProto, keys: list[ValueInfoProto], kinds: dict[str, int], tokens: int
) -> list[NodeProto]:
    """What reads keys of the ring reads them with float ones, from an input of their own, where the sinks' stand."""
    graph, nodes = model.graph, []
    for value in keys:
        name = value.name
        _, heads, _, depth = (d.dim_value for d in value.type.tensor_type.shape.dim)
        shape = [1, heads, tokens, depth]
        graph.input.append(helper.make_tensor_value_info(f"sink_{name}", kinds[f"{name}_new"], shape))
        for node in graph.node:
            for i, source in enumerate(node.input):
                if source == f"{name}.read":
                    node.input[i] = f"{name}.seen"
        nodes += [
            helper.make_node("Slice", [f"{name}.read", "ring.sinks", "ring.end", "ring.tokens"], [f"{name}.past"]),
            helper.make_node("Concat", [f"sink_{name}", f"{name}.past"], [f"{name}.seen"], axis=2),
        ]
    return nodes


def _float_sinks_made(
    model: ModelProto, keys: list[ValueInfoProto], kinds: dict[str, int], tokens: int
) -> list[NodeProto]:
    """Keys in float as outputs of their own: a chunk's, which may be a sink, or those that a ring begins with."""
    graph, nodes = model.graph, []
    for value in keys:
        name, own = f"sink_{value.name}", f"{value.name}.made"
        _, heads, made, depth = (d.dim_value for d in value.type.tensor_type.shape.dim)
        shape = [1, heads, min(made, tokens), depth]
        graph.output.append(helper.make_tensor_value_info(name, kinds[value.name], shape))
        if made > tokens:
            nodes.append(helper.make_node("Slice", [own, "ring.start", "ring.sinks", "ring.tokens"], [name]))
        else:
            nodes.append(helper.make_node("Identity", [own], [name]))
    return nodes
