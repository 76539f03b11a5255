"""OpenVINO: CPUs of any make, Intel GPUs and NPUs. Reads both forms of a bundle's graphs.

The step graph comes in two compilations. While the ring fills, attention has a mask; once it is full there is none, which is
faster, and what bfloat16 needs: there an additive mask is wrong without any error unless it is broadcast to every query
(2026.4), which the first compilation does. All shapes are static: keys and values cut to what the ring holds would need no
mask at all, but with shapes that change this OpenVINO writes outside of its memory (the heap's own checks abort).
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .base import HIDDEN, Buffer, Computing, EngineOptions, Shared, check_bindings
from .bundle import Bundle, Graph
from .errors import RunError, UserError
from .host import HostBuffer, HostDevice, share
from .machine import find_cores, processor_name, thread_count
from .openvinocache import Compiled, Settings
from .text import first_line

PRECISIONS = {"auto": "f32", "f32": "f32", "bf16": "bf16", "f16": "f16"}
KV_LENGTH = 6  # ONNX Attention's input that says how many keys and values count
CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}  # as OpenVINO names what a device computes in
KEPT = 256 << 20  # bytes of weights; with more, the compilation for a filling ring goes when the ring is full


def load_module() -> Any:
    """The package. Raises UserError naming the pip line."""
    try:
        import openvino
    except ImportError:
        raise UserError("--backend openvino: pip install 'everframe[openvino]'") from None
    return openvino


class OvEngine:
    """One graph, compiled; a step graph a second time for a full ring, while its first chunks are made."""

    def __init__(
        self,
        compile_graph: Callable[[bool], Any],
        graph: Graph,
        device: HostDevice,
        file: Path,
        loader: ThreadPoolExecutor,
    ):
        self.graph, self.device, self.file = graph, device, file
        names = {spec.name for spec in graph.inputs}
        self.fills = bool(names & {"kv_len", "mask"})
        self.passes: weakref.WeakSet[OvPass] = weakref.WeakSet()
        # Rings, by one of their buffers, and whether they were not full when a pass read them last: one that commits again
        # counts fewer slots for a while.
        self.filling: weakref.WeakKeyDictionary[HostBuffer, bool] = weakref.WeakKeyDictionary()
        # What a pass puts into a ring: one array a ring, whichever pass and compilation, for a stream has one at a time.
        self._chunks: weakref.WeakKeyDictionary[HostBuffer, np.ndarray] = weakref.WeakKeyDictionary()
        self._compile, self._lock = compile_graph, threading.Lock()
        self._filling = (
            compile_graph(True) if self.fills and "step" in names else None
        )  # a recache seldom meets such a ring
        if self.fills:
            self._steady = loader.submit(compile_graph, False).result
        else:  # here, and not behind the other compilation of a step graph: the first frame waits for this one
            made = compile_graph(False)
            self._steady = lambda: made
        self.large = sum(ref.bytes for ref in (graph.model, *graph.data)) > KEPT

    def compiled(self, filling: bool) -> Any:
        """The compilation with the mask of a ring that fills, or without."""
        if not filling:
            return self._steady()
        with self._lock:
            if self._filling is None:
                self._filling = self._compile(True)
            return self._filling

    def settle(self) -> None:
        """The ring is full: large weights stand in memory once again; a request holds what it was made from."""
        if not self.large or self._filling is None:
            return
        self._steady()
        with self._lock:
            if not any(self.filling.values()):  # of other streams
                self._filling = None
                for one in self.passes:
                    one.requests.pop(True, None)

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Callable[[], None]:
        check_bindings(self.graph, inputs, outputs, self.file)
        return OvPass(self, {n: _host(b) for n, b in inputs.items()}, {n: _host(b) for n, b in outputs.items()})

    def chunk_of(self, ring: HostBuffer, shape: tuple[int, ...]) -> np.ndarray:
        """Where the chunk's part of a ring waits to be written into its slot."""
        if ring not in self._chunks:
            self._chunks[ring] = np.empty(shape, ring.dtype)
        return self._chunks[ring]


class OvPass:
    """A pass over buffers in host memory, which OpenVINO reads and writes where they are."""

    def __init__(self, engine: OvEngine, inputs: dict[str, HostBuffer], outputs: dict[str, HostBuffer]):
        self.engine, self.inputs, self.outputs = engine, inputs, outputs
        self.requests: dict[bool, Any] = {}
        self._puts: list[tuple[np.ndarray, np.ndarray]] = []  # a ring, and what goes into it at its slot
        with engine._lock:
            engine.passes.add(self)

    def __call__(self) -> None:
        filling = self.engine.fills and not self._full()
        if self.engine.fills:
            with self.engine._lock:
                ring = self.inputs["k_0"] if "k_0" in self.inputs else self.outputs["k_0_next"]
                self.engine.filling[ring] = filling
        if not filling:
            self.engine.settle()
        try:
            request = self.requests.get(filling)
            if request is None:
                request = self.requests[filling] = self._request(filling)
            request.infer()
        except RuntimeError as error:
            raise RunError(f"{self.engine.file}: OpenVINO cannot run it: {first_line(error)}") from error
        at = int(self.inputs["slot"].array[0]) if self._puts else 0
        for ring, chunk in self._puts:
            ring[:, :, at : at + chunk.shape[2]] = chunk

    def _full(self) -> bool:
        """Whether every slot of the ring counts."""
        if "mask" in self.inputs:
            return not self.inputs["mask"].array.any()
        return int(self.inputs["kv_len"].array[0]) >= self.outputs["k_0_next"].shape[2]

    def _request(self, filling: bool) -> Any:
        import openvino

        request = self.engine.compiled(filling).create_infer_request()
        self._puts = []
        for side, buffers in ((request.model_inputs, self.inputs), (request.model_outputs, self.outputs)):
            for port in side:
                buffer = next((buffers[n] for n in port.get_names() if n in buffers), None)
                if buffer is None:
                    continue
                array = buffer.array
                if buffer.shape != tuple(port.shape):
                    array = self.engine.chunk_of(buffer, tuple(port.shape))
                    self._puts.append((buffer.array, array))
                request.set_tensor(port, openvino.Tensor(array, shared_memory=True))
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
        core = self.openvino.Core()
        able = core.get_property(self.name, "OPTIMIZATION_CAPABILITIES")
        if CAPABILITIES[self.precision] not in able:
            raise UserError(f"--precision {options.precision}: this {self.name} has none; it has {', '.join(able)}")
        self.version = self.openvino.__version__.split("-")[0]
        whole = processor_name() if self.name == "CPU" else core.get_property(self.name, "FULL_DEVICE_NAME")
        self.device_name = f"{self.name} {whole}"
        self.threads = thread_count(options.threads)
        self.device = HostDevice(self.threads)
        self._loader = ThreadPoolExecutor(1, "openvino-loader")
        self._engines: Shared[tuple[str, str, int], OvEngine] = Shared()  # streams of one bundle share its weights

    def computes(self, bundle: Bundle) -> Computing:
        return Computing(f"openvino {self.version}", self.device_name, self.precision)

    def load(self, bundle: Bundle, name: str, beside: bool = False) -> OvEngine:
        """Loaded once for all streams of this backend."""
        threads = share(self.threads, name, beside)
        graph, file = bundle.manifest.graphs[name], bundle.graph_path(name)
        compiling = Compiled(bundle, name, self.version, self.device_name, self._settings(threads))

        def compile_graph(masked: bool) -> Any:
            try:
                return compiling.get(lambda: read_graph(self.openvino, file, masked), masked)
            except RuntimeError as error:
                raise UserError(f"{file}: OpenVINO {self.version} cannot load it: {first_line(error)}") from None

        key = (graph.digest, str(file), threads)
        return self._engines.get(key, lambda: OvEngine(compile_graph, graph, self.device, file, self._loader))

    def _settings(self, threads: int) -> Settings:
        settings: Settings = {"INFERENCE_PRECISION_HINT": self.precision, "PERFORMANCE_HINT": "LATENCY"}
        if self.name == "CPU":
            pinned = not find_cores().throttled and threads == os.cpu_count()
            settings |= {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": pinned}
        return settings


def read_graph(openvino: Any, file: Path, masked: bool) -> Any:
    """The graph as OpenVINO's own model. masked: False where the ring is full."""
    core = openvino.Core()
    for extension in conversions(masked):
        core.add_extension(extension)
    model = core.read_model(file)
    put_out_chunks(model)
    spread_mask(model, masked)
    return model


def conversions(masked: bool) -> list[Any]:
    """Operators of the bundle's graphs written in OpenVINO's.

    Its reader lacks TensorScatter and the attention's key-value lengths (2026.4). RotaryEmbedding too is written here: made
    by its reader, it comes back wrong from a compiled model that was kept (keys off by as much as they are large)."""
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
        heads, queries, width = (q.get_partial_shape()[axis].get_length() for axis in (1, 2, 3))
        if not masked or node.get_input_size() <= KV_LENGTH:
            # A scale of its own comes only together with a mask; without one it is 1/√D.
            q = op.multiply(q, op.constant(np.array(node.get_attribute("scale") * width**0.5, kind)))
            return op.scaled_dot_product_attention(q, k, v).outputs()
        tokens = k.get_partial_shape()[2].get_length()
        seen = op.less(op.constant(np.arange(tokens, dtype=np.int64)), node.get_input(KV_LENGTH))
        hidden = op.select(seen, op.constant(np.array(0, kind)), op.constant(np.array(HIDDEN, kind)))
        mask = op.broadcast(hidden, op.constant(np.array([1, heads, queries, tokens], np.int64)))
        scale = op.constant(np.array(node.get_attribute("scale"), kind))
        return op.scaled_dot_product_attention(q, k, v, mask, scale).outputs()

    def rotary(node: Any) -> Any:
        x, *tables = (node.get_input(i) for i in range(3))  # [H, 1, N, D], cos and sin [H, N, D/2]
        cos, sin = (op.unsqueeze(table, op.constant(np.array([1], np.int64))) for table in tables)
        a, b = op.split(x, op.constant(np.int64(3)), 2).outputs()
        turned = (op.multiply(a, cos) - op.multiply(b, sin), op.multiply(b, cos) + op.multiply(a, sin))
        return op.concat(turned, 3).outputs()

    written = {"TensorScatter": scatter, "Attention": attention, "RotaryEmbedding": rotary}
    return [ConversionExtension(operator, conversion) for operator, conversion in written.items()]


def put_out_chunks(model: Any) -> None:
    """Let a graph of the in-place form put out the chunk's own keys and values, under the ring's name, in place of the ring.

    A ring that is input and output is copied whole by every pass (14 MB of the demo's, on one thread), and stays float32;
    one that is only read is changed within, in what the pass computes in."""
    from openvino import opset13 as op

    for result in model.get_results():
        ring = result.input_value(0)
        if ring.get_node().get_type_name() == "ScatterUpdate":
            names = ring.get_names()
            ring.set_names(set())
            model.remove_result(result)
            chunk = ring.get_node().input_value(2)
            chunk.add_names(names)
            model.add_results([op.result(chunk)])


def spread_mask(model: Any, masked: bool) -> None:
    """The portable form's additive mask [1, 1, 1, S], for every query, or none."""
    from openvino import opset13 as op

    mask = next((port for port in model.inputs if port.any_name == "mask"), None)
    for reader in mask.get_target_inputs() if mask is not None else ():
        scores = reader.get_node().output(0).get_partial_shape().to_shape()
        whole = op.broadcast(mask, op.constant(np.array(scores, np.int64)))
        reader.replace_source_output((whole if masked else op.constant(np.zeros((1, 1, 1, 1), np.float32))).output(0))


def _host(buffer: Buffer) -> HostBuffer:
    if not isinstance(buffer, HostBuffer):
        raise ValueError(f"an OpenVINO engine needs host buffers, not {type(buffer).__name__}")
    return buffer


def precisions(options: EngineOptions) -> list[str]:
    """What the chosen device can compute in, of what the options allow; nothing without the package or the device."""
    name = options.device.upper()
    if not any(one.split(".")[0] == name for one in installed_devices()):
        return []
    able = load_module().Core().get_property(name, "OPTIMIZATION_CAPABILITIES")
    wanted = [options.precision] if options.precision != "auto" else list(CAPABILITIES)
    return [one for one in wanted if CAPABILITIES.get(one) in able]


def installed_devices() -> Sequence[str]:
    """Devices that OpenVINO finds here; none without the package."""
    try:
        import openvino
    except ImportError:
        return []
    return openvino.Core().available_devices
