"""OpenVINO: CPUs of any make, Intel GPUs and NPUs. Reads both forms of a bundle's graphs.

The in-place step graph comes in two compilations. While the ring fills, attention has a mask made from the valid length;
once it is full there is none, which is faster, and what bfloat16 needs: there the additive mask is wrong without any error
unless it is broadcast to every query (2026.4), which the first compilation does. The portable form has one, with its mask.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .base import HIDDEN, Buffer, EngineOptions, Shared, check_bindings
from .bundle import Bundle, Graph
from .errors import UserError
from .host import HostBuffer, HostDevice, share
from .machine import find_cores, thread_count
from .text import first_line

PRECISIONS = {"auto": "f32", "f32": "f32", "bf16": "bf16", "f16": "f16"}
CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}  # as OpenVINO names what a device computes in


def load_module() -> Any:
    """The package. Raises UserError naming the pip line."""
    try:
        import openvino
    except ImportError:
        raise UserError("--backend openvino: pip install 'everframe[openvino]'") from None
    return openvino


class OvEngine:
    """One graph, compiled; an in-place step graph for a full ring too, made when the ring is first full."""

    def __init__(self, compile_graph: Callable[[bool], Any], graph: Graph, device: HostDevice, file: Path):
        self.graph, self.device, self.file = graph, device, file
        self._compile = compile_graph
        self._compiled: dict[bool, Any] = {}
        self.fills = any(spec.name == "kv_len" for spec in graph.inputs)
        self.compiled(masked=self.fills)

    def compiled(self, masked: bool) -> Any:
        """The compilation with or without the mask of a ring that fills."""
        if masked not in self._compiled:
            self._compiled[masked] = self._compile(masked)
        return self._compiled[masked]

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Callable[[], None]:
        check_bindings(self.graph, inputs, outputs, self.file)
        return OvPass(self, {n: _host(b) for n, b in inputs.items()}, {n: _host(b) for n, b in outputs.items()})


class OvPass:
    """A pass over buffers in host memory, which OpenVINO reads and writes where they are."""

    def __init__(self, engine: OvEngine, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]):
        self.engine, self.inputs, self.outputs = engine, inputs, outputs
        self._requests: dict[bool, Any] = {}

    def __call__(self) -> None:
        masked = self.engine.fills and not self._full()
        request = self._requests.get(masked)
        if request is None:
            request = self._requests[masked] = self._request(masked)
        request.infer()

    def _full(self) -> bool:
        """Whether every slot of the ring counts."""
        return int(self.inputs["kv_len"][0]) >= self.outputs["k_0_next"].shape[2]

    def _request(self, masked: bool) -> Any:
        import openvino

        request = self.engine.compiled(masked).create_infer_request()
        for side, arrays in ((request.model_inputs, self.inputs), (request.model_outputs, self.outputs)):
            for port in side:
                name = next(n for n in port.get_names() if n in arrays)
                request.set_tensor(port, openvino.Tensor(arrays[name], shared_memory=True))
        return request


class OvBackend:
    """Loads graphs into OpenVINO. Raises UserError when it, or the device, is not there."""

    def __init__(self, options: EngineOptions):
        self.openvino = load_module()
        if options.precision not in PRECISIONS:
            raise UserError(f"--precision {options.precision!r}: expected one of {', '.join(PRECISIONS)}")
        self.precision, self.name = PRECISIONS[options.precision], options.device.upper()
        available = self.openvino.Core().available_devices
        if not any(one.split(".")[0] == self.name for one in available):
            raise UserError(f"--device {options.device!r}: OpenVINO finds {', '.join(available) or 'none'} here")
        able = self.openvino.Core().get_property(self.name, "OPTIMIZATION_CAPABILITIES")
        if CAPABILITIES[self.precision] not in able:
            raise UserError(f"--precision {options.precision}: this {self.name} has none; it has {', '.join(able)}")
        self.threads = thread_count(options.threads)
        self.device = HostDevice(self.threads)
        self._engines: Shared[tuple[str, str, int], OvEngine] = Shared()  # streams of one bundle share its weights

    def load(self, bundle: Bundle, name: str, beside: bool = False) -> OvEngine:
        """Loaded once for all streams of this backend."""
        threads = share(self.threads, name, beside)
        graph = bundle.manifest.graphs[name]
        key = (graph.model.sha256, str(bundle.graph_path(name)), threads)

        def load() -> OvEngine:
            file = bundle.graph_path(name)
            return OvEngine(lambda masked: self._compile(file, graph, threads, masked), graph, self.device, file)

        return self._engines.get(key, load)

    def _compile(self, file: Path, graph: Graph, threads: int, masked: bool) -> Any:
        settings = {"INFERENCE_PRECISION_HINT": self.precision, "PERFORMANCE_HINT": "LATENCY"}
        if self.name == "CPU":
            pinned = not find_cores().throttled and threads == os.cpu_count()
            settings |= {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": pinned}
        try:
            model = read_graph(self.openvino, file, masked)
            return self.openvino.Core().compile_model(model, self.name, settings)
        except RuntimeError as error:
            version = self.openvino.__version__.split("-")[0]
            raise UserError(f"{file}: OpenVINO {version} cannot load it: {first_line(error)}") from None


def read_graph(openvino: Any, file: Path, masked: bool) -> Any:
    """The graph as OpenVINO's own model. Its reader lacks TensorScatter and the attention's key-value lengths (2026.4): both
    are written here in operators that it has. masked: False where the ring is full."""
    from openvino import opset13 as op
    from openvino.frontend.onnx import ConversionExtension

    def scatter(node: Any) -> Any:
        ring, update, slot = (node.get_input(i) for i in range(3))
        tokens = update.get_partial_shape()[2].get_length()
        places = op.add(op.constant(np.arange(tokens, dtype=np.int64)), slot)
        return op.scatter_update(ring, places, update, op.constant(np.int64(2))).outputs()

    def attention(node: Any) -> Any:
        q, k, v = (node.get_input(i) for i in range(3))
        kind = np.dtype(q.get_element_type().to_dtype())
        scale, bias = op.constant(np.array(node.get_attribute("scale"), kind)), op.constant(np.array(0, kind))
        if masked and node.get_input_size() > 6:
            heads, queries = (q.get_partial_shape()[axis].get_length() for axis in (1, 2))
            tokens = k.get_partial_shape()[2].get_length()
            seen = op.less(op.constant(np.arange(tokens, dtype=np.int64)), node.get_input(6))
            hidden = op.select(seen, bias, op.constant(np.array(HIDDEN, kind)))
            shape = op.constant(np.array([1, heads, queries, tokens], np.int64))
            bias = op.broadcast(hidden, shape)
        return op.scaled_dot_product_attention(q, k, v, bias, scale).outputs()

    core = openvino.Core()
    core.add_extension(ConversionExtension("TensorScatter", scatter))
    core.add_extension(ConversionExtension("Attention", attention))
    return core.read_model(file)


def _host(buffer: Buffer) -> np.ndarray:
    if not isinstance(buffer, HostBuffer):
        raise ValueError(f"an OpenVINO engine needs host buffers, not {type(buffer).__name__}")
    return buffer.array


def installed_devices() -> Sequence[str]:
    """Devices that OpenVINO finds here; none without the package."""
    try:
        import openvino
    except ImportError:
        return []
    return openvino.Core().available_devices
