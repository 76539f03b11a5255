"""From a bundle's portable ONNX graph to what TensorRT's parser builds well: half precision, and attention by lengths.

Three rewritings, all on the graph alone (weights stay where they are):

* **Half precision, strongly typed.** Matrix products, convolutions, attention and the ring's update compute in FP16 or
  BF16; everything between them (norms, modulation, RoPE, softmax of the decomposed kind) stays in FP32. Casts at the seams
  fuse into their neighbours. The ring, the prompt's keys and values and the decoder's states are stored in the low type.
* **Attention by key-value lengths.** TensorRT's parser drops `nonpad_kv_seqlen` of the standard Attention with one
  warning, and would then attend to empty slots. Its own operator TRT_Attention keeps the lengths (as int32) and applies no
  scale of its own; ours is 1, folded into q. So every Attention becomes one.

Needs the package onnx.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Literal

import numpy as np

from .errors import UserError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper, shape_inference
else:
    with contextlib.suppress(ImportError):  # the base install has no onnx: trtbuild says so before anything is called
        from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper, shape_inference

Low = Literal["fp16", "bf16"]
QUANTISED = {"QuantizeLinear", "DequantizeLinear"}
COMPUTE = {"MatMul", "Gemm", "Conv", "Attention", "TensorScatter"} | QUANTISED
LENGTHS = "kv_len"
# Of all that is written here, part of the fingerprint of compiled engines: one more whenever a graph comes out otherwise.
LOWERING = 2


def stored_low(name: str) -> bool:
    """Whether an input or output is kept between passes in the low type. Scales of an INT8 ring are float32 throughout."""
    kept = ("k_", "v_", "sink_k_", "sink_v_", "prompt_k_", "prompt_v_", "state_")
    return name.startswith(kept) and "_scale" not in name


def lower(model: ModelProto, low: Low) -> ModelProto:
    """The graph as TensorRT should see it; model is changed in place and returned.

    Raises UserError for a half-precision graph that is to be built in the other half type, and for an Attention that
    TRT_Attention cannot express.
    """
    write_out_rope(model)
    floats = {i.data_type for i in model.graph.initializer} | {
        v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)
    }
    if low == "bf16" and any(v.type.tensor_type.elem_type == TensorProto.FLOAT16 for v in model.graph.input):
        raise UserError("precision bf16: this bundle was exported in fp16; export it with --precision fp32 for that")
    if TensorProto.FLOAT in floats:
        _Lowering(model, TensorProto.FLOAT16 if low == "fp16" else TensorProto.BFLOAT16).run()
    rewrite_attention(model)
    return model


class _Lowering:
    """One walk over the nodes, remembering under which name a value exists in which type."""

    def __init__(self, model: ModelProto, low: int):
        self.graph, self.low = model.graph, low
        inferred = shape_inference.infer_shapes(model, data_prop=True).graph
        self.kind = {i.name: i.data_type for i in self.graph.initializer}
        for value in (*inferred.input, *inferred.output, *inferred.value_info):
            self.kind[value.name] = value.type.tensor_type.elem_type
        self.constants = {i.name: i for i in self.graph.initializer}
        self.nodes: list[NodeProto] = []
        self.as_low: dict[str, str] = {}  # float value -> its name in the low type
        self.as_float: dict[str, str] = {}  # float value that exists in the low type only -> its name in float

    def run(self) -> None:
        stored = {v.name for v in self.graph.output if self._stored(v)}
        for value in self.graph.input:
            if self._stored(value):
                value.type.tensor_type.elem_type = self.low
                self.as_low[value.name] = value.name
                self.as_float[value.name] = ""  # made when it is first needed
        for value in self.graph.output:
            if value.name in stored:
                value.type.tensor_type.elem_type = self.low
        for node in self.graph.node:
            self._compute(node, stored) if node.op_type in COMPUTE else self._keep(node, stored)
        for value in self.graph.output:
            if value.name in self.as_float and value.name not in stored:
                self._cast(self.as_low[value.name], value.name, TensorProto.FLOAT)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        del self.graph.value_info[:]

    def _stored(self, value: ValueInfoProto) -> bool:
        return stored_low(value.name) and self.kind[value.name] == TensorProto.FLOAT

    def _cast(self, source: str, target: str, to: int) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [target], name=f"lower/{target}", to=to))

    def _lowered(self, name: str) -> str:
        if self.kind.get(name) != TensorProto.FLOAT:
            return name
        if name not in self.as_low:
            self.as_low[name] = f"{name}.low"
            self._cast(name, f"{name}.low", self.low)
        return self.as_low[name]

    def _lower_constant(self, name: str) -> None:
        """A scale must be a constant of the type it makes, not a Cast of one."""
        if self.kind.get(name) == TensorProto.FLOAT and name not in self.as_low:
            values = numpy_helper.to_array(self.constants[name])
            low = values.astype(helper.tensor_dtype_to_np_dtype(self.low))
            self.graph.initializer.append(numpy_helper.from_array(low, f"{name}.low"))
            self.as_low[name] = f"{name}.low"

    def _widened(self, name: str) -> str:
        if name not in self.as_float:
            return name
        if not self.as_float[name]:
            self.as_float[name] = f"{name}.float"
            self._cast(self.as_low[name], f"{name}.float", TensorProto.FLOAT)
        return self.as_float[name]

    def _compute(self, node: NodeProto, stored: set[str]) -> None:
        changed = NodeProto()
        changed.CopyFrom(node)
        if node.op_type in QUANTISED:
            self._lower_constant(node.input[1])
        inputs = [self._lowered(name) for name in node.input]
        del changed.input[:]
        changed.input.extend(inputs)
        for i, name in enumerate(node.output):
            if self.kind.get(name, TensorProto.FLOAT) == TensorProto.FLOAT:
                changed.output[i] = name if name in stored else f"{name}.low"
                self.as_low[name], self.as_float[name] = changed.output[i], ""
        self.nodes.append(changed)

    def _keep(self, node: NodeProto, stored: set[str]) -> None:
        changed = NodeProto()
        changed.CopyFrom(node)
        inputs = [self._widened(name) for name in node.input]
        del changed.input[:]
        changed.input.extend(inputs)
        late = [name for name in node.output if name in stored]
        for i, name in enumerate(node.output):
            if name in stored:
                changed.output[i] = f"{name}.float"
        self.nodes.append(changed)
        for name in late:
            self.as_low[name], self.as_float[name] = name, f"{name}.float"
            self._cast(f"{name}.float", name, self.low)


def write_out_rope(model: ModelProto) -> None:
    """Every RotaryEmbedding (x [H, 1, N, D], cos and sin [H, N, D/2]) -> halves a, b of x: a·cos − b·sin, b·cos + a·sin."""
    axis, made = "rope/axis", []
    for node in model.graph.node:
        if node.op_type != "RotaryEmbedding":
            made.append(node)
            continue
        if len(node.input) > 3 or any(a.i for a in node.attribute):
            raise UserError(f"graph {model.graph.name}: {node.name}: a RotaryEmbedding of this kind is not ours")

        x, *tables = node.input
        a, b, cos, sin = (f"{node.name}/{part}" for part in ("a", "b", "cos", "sin"))
        made.append(helper.make_node("Split", [x], [a, b], name=f"{node.name}/halves", axis=-1, num_outputs=2))
        steps = [
            ("Unsqueeze", [tables[0], axis], cos),
            ("Unsqueeze", [tables[1], axis], sin),
            *(("Mul", [half, table], f"{half}·{table}") for half in (a, b) for table in (cos, sin)),
            ("Sub", [f"{a}·{cos}", f"{b}·{sin}"], f"{node.name}/first"),
            ("Add", [f"{b}·{cos}", f"{a}·{sin}"], f"{node.name}/second"),
        ]
        made += [helper.make_node(op, inputs, [output], name=output) for op, inputs, output in steps]
        turned = [output for *_, output in steps[-2:]]
        made.append(helper.make_node("Concat", turned, list(node.output), name=node.name, axis=-1))
    if len(made) > len(model.graph.node):
        model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), axis))
        del model.graph.node[:]
        model.graph.node.extend(made)


def rewrite_attention(model: ModelProto) -> None:
    """Every Attention -> TRT_Attention(q, k, v[, '', '', lengths as int32])."""
    graph, lengths = model.graph, f"{LENGTHS}.int32"
    needed = False
    for node in graph.node:
        if node.op_type != "Attention":
            continue
        scale = next((a.f for a in node.attribute if a.name == "scale"), None)
        others = [name for name in node.input[3:6] if name]
        if scale != 1.0 or others or len(node.output) > 1:
            raise UserError(
                f"graph {graph.name}: {node.name}: an Attention with scale {scale} and {others} is not ours"
            )
        inputs = list(node.input[:3])
        if len(node.input) > 6 and node.input[6]:
            if node.input[6] != LENGTHS:
                raise UserError(f"graph {graph.name}: {node.name}: lengths {node.input[6]!r}, expected {LENGTHS!r}")
            inputs += ["", "", lengths]
            needed = True
        node.op_type, node.domain = "TRT_Attention", ""
        del node.input[:]
        node.input.extend(inputs)
        del node.attribute[:]
    if needed:
        graph.node.insert(0, helper.make_node("Cast", [LENGTHS], [lengths], name="lower/lengths", to=TensorProto.INT32))
