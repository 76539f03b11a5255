"""Networks for post graphs that a formula can follow, as ONNX files, and that formula over a stream's frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Frames = NDArray[np.uint8]
Size = int | str


def image(name: str, height: Size = "h", width: Size = "w", kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [1, 3, height, width])


def write(file: Path, nodes: list, inputs: list, output: str, constants: dict[str, NDArray], opset: int = 17) -> Path:
    made = [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, 3, "H", "W"])]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "net", inputs, made, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), file)
    return file


def upscale_file(file: Path, scale: int = 2, height: Size = "h", width: Size = "w") -> Path:
    """Every pixel s×s times, with red and blue in each other's place."""
    swap = np.eye(3, dtype=np.float32)[::-1].reshape(3, 3, 1, 1).copy()
    nodes = [
        helper.make_node("Resize", ["image", "", "scales"], ["large"], mode="nearest"),
        helper.make_node("Conv", ["large", "swap"], ["made"]),
    ]
    scales = np.array([1, 1, scale, scale], np.float32)
    return write(file, nodes, [image("image", height, width)], "made", {"swap": swap, "scales": scales})


def smooth_file(file: Path, position: bool = False) -> Path:
    """0.75·before + 0.25·after; with a position t, (1 − t)·before + t·after."""
    inputs, constants = [image("before"), image("after")], {"one": np.float32(1)}
    if position:
        inputs.append(helper.make_tensor_value_info("t", TensorProto.FLOAT, [1]))
        share = [helper.make_node("Identity", ["t"], ["share"])]
    else:
        constants["share"] = np.float32(0.25)
        share = []
    nodes = [
        *share,
        helper.make_node("Sub", ["one", "share"], ["rest"]),
        helper.make_node("Mul", ["before", "rest"], ["a"]),
        helper.make_node("Mul", ["after", "share"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["made"]),
    ]
    return write(file, nodes, inputs, "made", {k: np.asarray(v) for k, v in constants.items()})


def between(a: NDArray, b: NDArray, times: int, position: bool) -> list[NDArray]:
    if position:
        return [a + (b - a) * j / times for j in range(1, times)]

    def middle(a: NDArray, b: NDArray) -> NDArray:
        return 0.75 * a + 0.25 * b

    m = middle(a, b)
    return [m] if times == 2 else [middle(a, m), m, middle(m, b)]


def smoothed(chunks: Iterable[tuple[Frames, bool]], times: int = 2, position: bool = False) -> Iterator[Frames]:
    """What `smooth` makes of decoded chunks, each with whether a cut begins it."""
    last = None
    for frames, cut in chunks:
        values = frames.astype(np.float64)
        start = values[0] if last is None else last
        row = []
        for i, (a, b) in enumerate(zip([start, *values], values, strict=False)):
            held = i == 0 and (cut or last is None)
            row += [a, *([start] * (times - 1) if held else between(a, b, times, position))]
        last = values[-1]
        yield np.round(np.stack(row)).astype(np.uint8)


def enlarged(frames: Frames, scale: int = 2) -> Frames:
    return frames.repeat(scale, 1).repeat(scale, 2)[..., ::-1]
