"""What can be quantised: the linear layers of a step graph, the convolutions of a decoder, and their weights.

A linear layer is a MatMul whose second operand comes from a constant, possibly through Cast, Transpose and Reshape. The
first and the last layer of either graph are left alone: they are small and decide the picture directly.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..engines.errors import UserError

# Of a block, in the order of the graph, which is that of `Block.project` and `finish`: keys and values come before queries.
PARTS = ("self.k", "self.v", "self.q", "self.o", "cross.q", "cross.o", "ffn.0", "ffn.2")


@dataclass(frozen=True)
class Linear:
    """One linear layer y = x·W with W [K, N], or one convolution with W [O, I, (time,) height, width]."""

    name: str  # block 3 ffn.0
    node: str  # the node's name
    activation: str  # tensor x
    path: tuple[str, ...]  # initializer, then the tensors that Cast and Transpose make of it; the last one is W
    conv: bool = False

    @property
    def key(self) -> str:
        """Of the activation's statistics: tensors of both graphs have the same names."""
        return f"decode:{self.activation}" if self.conv else self.activation


def find_linears(model: ModelProto, layers: int) -> list[Linear]:
    """The linear layers of all blocks, in the order of the graph. Raises UserError when they are not as expected."""
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type == "MatMul" and (path := _constant_path(node.input[1], makers, constants)):
            found.append((node, path))
    inner = found[1:-1]
    if len(inner) != len(PARTS) * layers:
        raise UserError(
            f"graph {model.graph.name}: {len(found)} linear layers, expected {len(PARTS)} in each of {layers} blocks, "
            "a first and a last one (is it quantised already?)"
        )
    names = [f"block {i} {part}" for i in range(layers) for part in PARTS]
    return [Linear(name, node.name, node.input[0], path) for name, (node, path) in zip(names, inner, strict=True)]


def find_matching(model: ModelProto, known: Sequence[Linear], source: ModelProto) -> list[tuple[Linear, Linear]]:
    """The linear layers of another graph of the same model that have the weights of known ones, which are `source`'s: (that,
    the known one).

    Weights are matched by what they are, not by their names, which differ between the graphs of a large export."""
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    theirs = {tensor.name: tensor for tensor in source.graph.initializer}
    by_weight: dict[str, list[Linear]] = {}
    for linear in known:
        if not linear.conv:
            by_weight.setdefault(_content(theirs[linear.path[0]]), []).append(linear)
    found = []
    for node in model.graph.node:
        path = _constant_path(node.input[1], makers, set(constants)) if node.op_type == "MatMul" else None
        twins = by_weight.get(_content(constants[path[0]]), []) if path else []
        if path and twins:  # layers of equal weights stand in the same order in both graphs
            twin = twins.pop(0)
            found.append((Linear(twin.name, node.name, node.input[0], path), twin))
    return found


def _content(tensor: TensorProto) -> str:
    """Equal for equal weights of one bundle, whose graphs share the place of those outside."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    if place:
        return f"{place['location']}:{place.get('offset', 0)}"
    return f"{list(tensor.dims)} {hashlib.sha256(numpy_helper.to_array(tensor).tobytes()).hexdigest()}"


def find_convolutions(model: ModelProto) -> list[Linear]:
    """The convolutions of a decoder, without its first layer and its last, which may be several convolutions: those that
    the frames come from with none after them."""
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type == "Conv" and (path := _constant_path(node.input[1], makers, constants)):
            found.append(Linear(f"decode {len(found)}", node.name, node.input[0], path, conv=True))
    known, last = {conv.node for conv in found}, set()
    reached, seen = [model.graph.output[0].name], set()
    while reached:
        node = makers.get(name := reached.pop())
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.name in known:
            last.add(node.name)
        else:
            reached += node.input
    return [conv for conv in found if conv.path != found[0].path and conv.node not in last]


def _constant_path(tensor: str, makers: dict[str, NodeProto], constants: set[str]) -> tuple[str, ...] | None:
    path = [tensor]
    while path[-1] not in constants:
        maker = makers.get(path[-1])
        if maker is None or maker.op_type not in ("Cast", "Transpose", "Reshape"):
            return None
        path.append(maker.input[0])
    return tuple(reversed(path))


def tensor_values(tensor: TensorProto, folder: Path) -> NDArray:
    """A constant of a graph. folder: where external data lies. onnx's own reader refuses a file that is linked twice, which
    the weights of a bundle are while another one is made of it."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    place = {entry.key: entry.value for entry in tensor.external_data}
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    count, offset = math.prod(tensor.dims), int(place.get("offset", 0))
    return np.fromfile(folder / place["location"], kind, count, offset=offset).reshape(tensor.dims)


def weight_of(graph: GraphProto, linear: Linear, folder: Path) -> tuple[NDArray[np.float32], bool]:
    """W as float32, and whether the layer computes in float16. folder: where external data lies."""
    tensor = next(t for t in graph.initializer if t.name == linear.path[0])
    values = tensor_values(tensor, folder)
    for name in linear.path[1:]:
        node = next(n for n in graph.node if name in n.output)
        if node.op_type == "Reshape":  # the patch embedding's, which is not quantised
            raise UserError(f"graph {graph.name}: {linear.name}: a weight behind a Reshape")
        if node.op_type == "Transpose":
            values = values.T
        else:
            target = next(a.i for a in node.attribute if a.name == "to")
            values = values.astype(np.float16 if target == 10 else np.float32)
    return values.astype(np.float32), values.dtype == np.float16
