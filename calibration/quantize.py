"""From ranges to a graph with quantised linear layers, as explicit QuantizeLinear and DequantizeLinear.

    int8    activations per tensor, weights per output channel, both symmetric, with SmoothQuant's migration where asked for
    fp8     the same in E4M3
    int8-weights, int4-weights    weights only, dequantised on the way in: for sizes bound by memory, not by arithmetic

Attention's own products, norms, modulation, first and last layer keep their precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..engines.errors import UserError
from .linears import Linear, tensor_values, weight_of
from .observe import Statistics
from .quantisedfile import QuantisedFile

PRECISIONS = ("int8", "fp8", "int8-weights", "int4-weights")
METHODS = ("minmax", "entropy", "percentile", "smoothquant")
LARGEST = {"int8": 127.0, "fp8": 448.0, "int8-weights": 127.0, "int4-weights": 7.0}
LEAST = 2.0**-24  # of a scale: engines that make float16 of a float32 graph make no 0 of it
# The portable form's opset is 18, whose QuantizeLinear and DequantizeLinear know float32 and eight-bit integers only.
# TensorRT 10.3 names 20 as the last that it reads; blocks of int4 are in none before 21.
HALF_OPSET = FP8_OPSET = 19
INT4_OPSET = 21
BLOCK = 128  # input channels that share an int4 scale
STORED = {"int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn, "int4": ml_dtypes.int4}
TYPES = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN, "int4": TensorProto.INT4}


@dataclass(frozen=True)
class Range:
    """How a tensor is quantised: x/smooth, cut at ± threshold."""

    threshold: float
    smooth: NDArray[np.float32] | None  # [K]


def ranges(
    statistics: Statistics, weight_peaks: Mapping[str, NDArray[np.float32]], method: str, alpha: float
) -> dict[str, Range]:
    """The range of every tensor, widest over all passes. weight_peaks: tensor -> largest |W| per input channel [K].

    smoothquant: s_j = max|x_j|^α / max|W_j|^(1−α) (SmoothQuant, arXiv 2211.10438, equation 4).
    """
    if method not in METHODS:
        raise UserError(f"--method {method!r}: expected one of {', '.join(METHODS)}")
    if method in ("entropy", "percentile"):
        return {name: Range(max(t, 1e-6), None) for name, t in statistics.thresholds().items()}
    found = {}
    for name, peaks in statistics.peaks.items():
        peak = np.maximum(peaks.max(0), 1e-5)
        if method == "minmax" or name not in weight_peaks:
            found[name] = Range(float(peak.max()), None)
        else:
            smooth = peak**alpha / np.maximum(weight_peaks[name], 1e-5) ** (1 - alpha)
            smooth = (smooth / np.sqrt(smooth.min() * smooth.max())).astype(
                np.float32
            )  # around 1: safe in half precision
            found[name] = Range(float((peak / smooth).max()), smooth)
    return found


def peaks_of_weights(model: ModelProto, linears: Sequence[Linear], folder: Path) -> dict[str, NDArray[np.float32]]:
    """Largest |W| per input channel over all linear layers that read a tensor. [K]"""
    found: dict[str, NDArray[np.float32]] = {}
    for linear in (one for one in linears if not one.conv):
        peak = np.abs(weight_of(model.graph, linear, folder)[0]).max(1)
        found[linear.activation] = np.maximum(found.get(linear.activation, 0), peak)
    return found


def quantise(
    model: ModelProto,
    linears: Sequence[Linear],
    folder: Path,
    precision: str,
    found: Mapping[str, Range],
    data: QuantisedFile | None = None,
    refer: bool = False,
) -> None:
    """Quantise these layers of the graph, in place. folder: where external data lies.

    found is not needed for weight-only precisions. data: where weights go as they are made; without it they stay in memory.
    refer: external tensors that stay as they are stay where they are, for a graph that is saved beside them; else none is
    referred to afterwards.
    """
    if precision not in PRECISIONS:
        raise UserError(f"--precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    graph = model.graph
    chosen = {linear.node: linear for linear in linears}
    weights_only = precision.endswith("weights")
    halves = False
    nodes: list[NodeProto] = []
    ready: dict[str, str] = {}  # activation -> its dequantised twin
    added: list[TensorProto] = []
    for node in graph.node:
        linear = chosen.get(node.name)
        if linear is not None:
            weight, half = weight_of(graph, linear, folder)
            kind = np.float16 if half else np.float32
            halves |= half
            if not weights_only:
                span = found[linear.key]
                if span.smooth is not None:
                    weight = weight / _smoothing(span, kind).astype(np.float32)[:, None]
                if linear.activation not in ready:
                    ready[linear.activation] = _activation(linear.activation, span, precision, kind, nodes, added)
                node.input[0] = ready[linear.activation]
            store = numpy_helper.from_array if data is None else lambda values, name: data.add(name, values)
            _weight(linear, weight, precision, kind, nodes, added, store)
            node.input[1] = f"{linear.node}.w"
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    for _ in range(3):  # Cast and Transpose of weights that nobody reads any more
        nodes = [
            n for n in nodes if n.op_type not in ("Cast", "Transpose") or set(n.output) & used or _is_output(graph, n)
        ]
        used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    for tensor in kept if not refer else ():
        if tensor.data_location == TensorProto.EXTERNAL and data is not None:
            tensor.CopyFrom(data.copy(tensor, folder))
        elif tensor.data_location == TensorProto.EXTERNAL:
            tensor.CopyFrom(numpy_helper.from_array(tensor_values(tensor, folder), tensor.name))
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:]
    graph.initializer.extend([*kept, *added])
    del graph.value_info[:]
    if linears:
        _raise_opset(model, precision, halves)


def _raise_opset(model: ModelProto, precision: str, halves: bool) -> None:
    """To the first that knows the quantised layers. halves: some compute in float16."""
    needed = {"fp8": FP8_OPSET, "int4-weights": INT4_OPSET}.get(precision, HALF_OPSET if halves else 0)
    for domain in model.opset_import:
        if domain.domain == "":
            domain.version = max(domain.version, needed)


def _is_output(graph, node: NodeProto) -> bool:
    return bool({value.name for value in graph.output} & set(node.output))


def _activation(
    name: str, span: Range, precision: str, kind: type, nodes: list[NodeProto], added: list[TensorProto]
) -> str:
    """x -> x/smooth -> quantised and back. Returns the name of the last."""
    source = name
    if span.smooth is not None:
        added.append(numpy_helper.from_array(_smoothing(span, kind), f"{name}.smoothing"))
        source = f"{name}.smooth"
        nodes.append(helper.make_node("Mul", [name, f"{name}.smoothing"], [source]))
    added.append(numpy_helper.from_array(_scale(np.array(span.threshold), precision, kind), f"{name}.scale"))
    added.append(helper.make_tensor(f"{name}.zero", TYPES[precision], [], [0]))
    ends = [f"{name}.scale", f"{name}.zero"]
    nodes.append(helper.make_node("QuantizeLinear", [source, *ends], [f"{name}.q"], name=f"{name}.quantise"))
    nodes.append(helper.make_node("DequantizeLinear", [f"{name}.q", *ends], [f"{name}.dq"], name=f"{name}.dequantise"))
    return f"{name}.dq"


def _smoothing(span: Range, kind: type) -> NDArray:
    """1/smooth as the graph has it: weights take in its inverse, not that of the unrounded one."""
    assert span.smooth is not None
    return (1 / span.smooth).astype(kind)


def _scale(peak: NDArray, precision: str, kind: type) -> NDArray:
    """Of what reaches `peak`, as the graph has it: levels are counted in what they are multiplied by. Never 0."""
    return np.maximum(peak / LARGEST[precision], LEAST).astype(kind)


def check_decoder(precision: str) -> None:
    """Raises UserError for what convolutions are not quantised to."""
    if precision.removesuffix("-weights") != "int8":
        raise UserError(f"--decoder: convolutions are quantised to int8, not {precision}; expected --precision int8")


def _weight(
    linear: Linear,
    weight: NDArray[np.float32],
    precision: str,
    kind: type,
    nodes: list[NodeProto],
    added: list[TensorProto],
    store: Callable[[NDArray, str], TensorProto],
) -> None:
    """The stored form of W and the node that gives it back."""
    name, largest = linear.node, LARGEST[precision]
    attributes: dict[str, Any] = {"axis": 1}
    grouped, over = weight, 0  # the axes that share a scale
    if linear.conv:
        check_decoder(precision)
        attributes, over = {"axis": 0}, tuple(range(1, weight.ndim))  # of images or of clips
    elif precision == "int4-weights":
        block = BLOCK if weight.shape[0] % BLOCK == 0 else weight.shape[0]
        attributes = {"axis": 0, "block_size": block}
        grouped, over = weight.reshape(-1, block, weight.shape[1]), 1
    scale = _scale(np.abs(grouped).max(over), precision, kind)  # [O], [K/block, N] or [N]
    # A scale that was rounded down leaves the largest a little above the last level.
    levels = grouped / np.expand_dims(scale.astype(np.float32), over)
    np.clip(levels, -largest, largest, out=levels)
    if precision != "fp8":
        np.rint(levels, out=levels)
    stored = levels.reshape(weight.shape).astype(STORED[precision.removesuffix("-weights")])
    added.append(store(stored, f"{name}.stored"))
    added.append(numpy_helper.from_array(scale, f"{name}.scale"))
    nodes.append(
        helper.make_node(
            "DequantizeLinear",
            [f"{name}.stored", f"{name}.scale"],
            [f"{name}.w"],
            name=f"{name}.dequantise",
            **attributes,
        )
    )
