"""From a network of single images to a post graph of a bundle: everframe.engines.post says what those do.

The network is written into the graph once for every image, over the same weights: activations of one image at a time fit a
CPU's caches, and a file that takes one image is enough. uint8 stands at the graph's ends only, which is all that TensorRT
knows of it; what `scene` decides is arithmetic with zeros and ones, which every engine computes exactly.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

IMAGES = (0, 3, 1, 2)  # [N, H, W, 3] -> [N, 3, H, W]
PIXELS = (0, 2, 3, 1)


@dataclass(frozen=True)
class Net:
    """A network of images [1, 3, H, W] float32 RGB in [0, 1], with static shapes."""

    model: ModelProto
    images: list[str]  # its inputs: one, or two between which it makes another
    position: tuple[str, list[int]] | None  # an input that says where between them, and its shape
    output: str
    scale: int  # of the image that comes out


@dataclass
class _Writer:
    """Nodes and constants of a graph that grows."""

    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, TensorProto] = field(default_factory=dict)

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def number(self, value: float) -> str:
        return self.constant(f"number {value:g}", np.array(value, np.float32))

    def op(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def images(self, source: str, count: int) -> list[str]:
        """uint8 [count, H, W, 3] -> as many images [1, 3, H, W] float32 in [0, 1]."""
        floats = self.op("Cast", [source], f"{source} as float", to=TensorProto.FLOAT)
        unit = self.op("Mul", [floats, self.number(1 / 255)], f"{source} of one")
        turned = self.op("Transpose", [unit], f"{source} turned", perm=IMAGES)
        if count == 1:
            return [turned]
        names = [f"{source} {i}" for i in range(count)]
        sizes = self.constant(f"{source} ones", np.ones(count, np.int64))
        self.nodes.append(helper.make_node("Split", [turned, sizes], names, f"{source} split", axis=0))
        return names

    def pixels(self, images: Sequence[str], target: str) -> None:
        """The images as uint8 [count, H, W, 3]."""
        one = images[0] if len(images) == 1 else self.op("Concat", images, f"{target} together", axis=0)
        wide = self.op("Mul", [one, self.number(255)], f"{target} of 255")
        held = self.op("Clip", [wide, self.number(0), self.number(255)], f"{target} held")
        whole = self.op("Round", [held], f"{target} whole")
        turned = self.op("Transpose", [whole], f"{target} turned", perm=PIXELS)
        self.op("Cast", [turned], target, to=TensorProto.UINT8)

    def chosen(self, gate: str, one: str, other: str, name: str) -> str:
        """gate·one + (1 − gate)·other"""
        rest = self.op("Sub", [self.number(1), gate], f"{name} rest")
        a, b = self.op("Mul", [gate, one], f"{name} a"), self.op("Mul", [rest, other], f"{name} b")
        return self.op("Add", [a, b], name)


class _Copies:
    """A network written out again and again over the same constants."""

    def __init__(self, writer: _Writer, net: Net):
        self.writer, self.net = writer, net
        graph = net.model.graph
        varying, self._varying = {*net.images, *([net.position[0]] if net.position else [])}, []
        for tensor in graph.initializer:
            kept = TensorProto()
            kept.CopyFrom(tensor)
            kept.name = f"net {tensor.name}"
            writer.constants[kept.name] = kept
        for node in graph.node:  # in order: what does not depend on the images is written once
            if varying & set(node.input):
                varying |= set(node.output)
                self._varying.append(node)
            else:
                writer.nodes.append(_renamed(node, "net", {}, node.output))
        self._own = varying

    def __call__(self, images: Sequence[str], name: str, position: float = 0.5) -> str:
        """The image that the network makes of these; everything in the copy is called after `name`."""
        feeds = dict(zip(self.net.images, images, strict=True))
        if self.net.position is not None:
            where, shape = self.net.position
            feeds[where] = self.writer.constant(f"position {position:g}", np.full(shape, position, np.float32))
        for node in self._varying:
            self.writer.nodes.append(_renamed(node, name, feeds, self._own))
        return f"{name} {self.net.output}"


def _renamed(node: NodeProto, prefix: str, feeds: dict[str, str], own: Container[str]) -> NodeProto:
    """A copy whose values are called after `prefix` where they are its own, and after the network otherwise."""
    made = NodeProto()
    made.CopyFrom(node)
    made.name = f"{prefix} {node.output[0]}"  # those of a file need not have names
    del made.input[:], made.output[:]
    made.input.extend(v and feeds.get(v, f"{prefix if v in own else 'net'} {v}") for v in node.input)
    made.output.extend(v and f"{prefix} {v}" for v in node.output)
    return made


def has_branches(graph: GraphProto) -> bool:
    """Whether a node holds a graph of its own (If, Loop, Scan)."""
    return any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for node in graph.node for a in node.attribute)


def upscale_graph(net: Net, shape: Sequence[int]) -> ModelProto:
    """frames [N, H, W, 3] -> upscaled. shape: of the frames."""
    n, h, w, colours = shape
    writer = _Writer()
    copies = _Copies(writer, net)
    made = [copies([image], f"upscale {i}") for i, image in enumerate(writer.images("frames", n))]
    writer.pixels(made, "upscaled")
    larger = [n, net.scale * h, net.scale * w, colours]
    return _model(net, writer, "upscale", {"frames": ("uint8", list(shape))}, {"upscaled": larger})


def smooth_graph(net: Net, shape: Sequence[int], times: int) -> ModelProto:
    """frames [N, H, W, 3], last [1, H, W, 3], scene [1] -> smoothed_0 … smoothed_{times − 1} [N, H, W, 3], last_next. A
    network without a position makes the middle; of those, it makes the quarters."""
    n, h, w, colours = shape
    writer = _Writer()
    copies = _Copies(writer, net)

    def between(a: str, b: str, name: str) -> list[str]:
        if net.position is not None:
            return [copies([a, b], f"{name} {j}", j / times) for j in range(1, times)]
        middle = copies([a, b], f"{name} middle")
        if times == 2:
            return [middle]
        return [copies([a, middle], f"{name} early"), middle, copies([middle, b], f"{name} late")]

    frames, (last,) = writer.images("frames", n), writer.images("last", 1)
    scene = writer.op("Cast", ["scene"], "scene as float", to=TensorProto.FLOAT)
    low, high = writer.number(0), writer.number(1)
    new = writer.op("Clip", [scene, low, high], "new")  # a cut, or the first chunk: nothing between the two
    late = writer.op("Sub", [scene, high], "scene past a cut")
    first = writer.op("Clip", [late, low, high], "first")
    start = writer.chosen(first, frames[0], last, "start")
    row = []
    for i, (a, b) in enumerate(zip([start, *frames], frames, strict=False)):
        made = between(a, b, f"between {i}")
        if i == 0:
            made = [writer.chosen(new, start, one, f"kept {j}") for j, one in enumerate(made)]
        row += [a, *made]
    for k in range(times):
        writer.pixels(row[k * n : (k + 1) * n], f"smoothed_{k}")
    writer.pixels(frames[-1:], "last_next")
    one = [1, h, w, colours]
    read = {"frames": ("uint8", list(shape)), "last": ("uint8", one), "scene": ("int64", [1])}
    left = {f"smoothed_{k}": list(shape) for k in range(times)} | {"last_next": one}
    return _model(net, writer, "smooth", read, left)


def _model(
    net: Net, writer: _Writer, name: str, read: dict[str, tuple[str, list[int]]], left: dict[str, list[int]]
) -> ModelProto:
    kinds = {"uint8": TensorProto.UINT8, "int64": TensorProto.INT64}
    inputs = [helper.make_tensor_value_info(k, kinds[kind], shape) for k, (kind, shape) in read.items()]
    outputs = [helper.make_tensor_value_info(k, TensorProto.UINT8, shape) for k, shape in left.items()]
    graph = helper.make_graph(writer.nodes, name, inputs, outputs, list(writer.constants.values()))
    return helper.make_model(graph, opset_imports=net.model.opset_import, ir_version=net.model.ir_version)
