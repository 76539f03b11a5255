"""TensorRT and TensorRT-RTX: compiled engines run from Python, one code path, the module chosen by name.

Everything a chunk does on the device is enqueued on one stream without waiting; `chain` records it once as a CUDA graph
and launches that. The host waits where it reads a buffer.

No GPU has run this yet: what is tested without one is stated in docs/tensorrt.md.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from . import store
from .base import Buffer, check_bindings
from .bundle import Bundle, Graph
from .errors import UserError
from .lower import STORED_LOW, lower
from .trtbuild import first_error_logger, load_module

LOW_TYPES = {"fp16": "float16", "bf16": "bfloat16"}


class Cuda:
    """The CUDA runtime through cuda-python, every error code turned into one line."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime  # type: ignore[attr-defined]
        except ImportError:
            raise UserError("TensorRT engines need cuda-python: pip install 'everframe[rtx]'") from None
        self.api = runtime
        try:
            count = self.call("cudaGetDeviceCount")
        except UserError as error:
            raise UserError(
                f"no NVIDIA GPU that CUDA can use ({error}); --backend onnxruntime runs on the CPU"
            ) from None
        except RuntimeError as error:  # cuda-python could not load the driver's library
            raise UserError(f"no NVIDIA driver ({error}); --backend onnxruntime runs on the CPU") from None
        if count < 1:
            raise UserError("no NVIDIA GPU in this machine; --backend onnxruntime runs on the CPU")
        self.stream = self.call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)

    def call(self, name: str, *args: Any) -> Any:
        """A runtime function's result. Raises UserError with CUDA's own name of the error."""
        code, *result = getattr(self.api, name)(*args)
        if code != self.api.cudaError_t.cudaSuccess:
            raise UserError(f"CUDA: {name}: {code.name}")
        return result[0] if len(result) == 1 else tuple(result)

    def malloc(self, size: int) -> int:
        try:
            return int(self.call("cudaMalloc", size))
        except UserError:
            raise UserError(f"GPU memory: {size / 2**20:.0f} MiB asked, {self.memory_note()}") from None

    def memory_note(self) -> str:
        free, total = self.call("cudaMemGetInfo")
        room = f"{free / 2**20:.0f} of {total / 2**20:.0f} MiB free"
        return f"{room}: choose a smaller size or window, or INT8 (everframe plan)"

    def copy(self, target: int, source: int, size: int, kind: str) -> None:
        self.call("cudaMemcpyAsync", target, source, size, getattr(self.api.cudaMemcpyKind, kind), self.stream)

    def wait(self) -> None:
        self.call("cudaStreamSynchronize", self.stream)


class CudaBuffer:
    """Device memory of fixed shape with a pinned host twin. bfloat16 is read and written as its raw uint16."""

    def __init__(self, cuda: Cuda, shape: Sequence[int], dtype: str):
        self.cuda, self.shape = cuda, tuple(shape)
        self.dtype = np.dtype("uint16" if dtype == "bfloat16" else dtype)
        self.bytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        self.address = cuda.malloc(self.bytes)
        cuda.call("cudaMemsetAsync", self.address, 0, self.bytes, cuda.stream)
        self._pinned: np.ndarray | None = None

    def host(self) -> np.ndarray:
        """Pinned host memory of the same size, made when first needed: most buffers never leave the device."""
        if self._pinned is None:
            pointer = int(self.cuda.call("cudaHostAlloc", self.bytes, 0))
            raw = np.ctypeslib.as_array((ctypes.c_uint8 * self.bytes).from_address(pointer))
            self._pinned = raw.view(self.dtype).reshape(self.shape)
        return self._pinned

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """For CuPy, PyTorch and PyCUDA in an embedding program: no copy."""
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.address, False), "version": 3}

    def write(self, values: np.ndarray) -> None:
        if values.shape != self.shape or values.dtype != self.dtype:
            raise ValueError(f"cannot write {values.dtype} {values.shape} into {self.dtype} {self.shape}")
        self.cuda.wait()  # the copy before may still read the pinned twin
        self.host()[...] = values
        self.cuda.copy(self.address, self.host().ctypes.data, self.bytes, "cudaMemcpyHostToDevice")

    def read(self) -> np.ndarray:
        self.cuda.copy(self.host().ctypes.data, self.address, self.bytes, "cudaMemcpyDeviceToHost")
        self.cuda.wait()
        return self.host().copy()

    def _rows(self, start: int, stop: int) -> tuple[int, int, int, int]:
        """Offset, bytes of a row of the copy, pitch, number of rows, for tokens start … stop − 1 of a ring [1, H, S, D]."""
        _, heads, tokens, depth = self.shape
        token = depth * self.dtype.itemsize
        return start * token, (stop - start) * token, tokens * token, heads

    def write_tokens(self, start: int, values: np.ndarray) -> None:
        offset, width, pitch, rows = self._rows(start, start + values.shape[2])
        values = np.ascontiguousarray(values)
        kind = self.cuda.api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.cuda.call(
            "cudaMemcpy2DAsync",
            self.address + offset,
            pitch,
            values.ctypes.data,
            width,
            width,
            rows,
            kind,
            self.cuda.stream,
        )
        self.cuda.wait()  # values may go away

    def read_tokens(self, start: int, stop: int) -> np.ndarray:
        offset, width, pitch, rows = self._rows(start, stop)
        out = np.empty((1, self.shape[1], stop - start, self.shape[3]), self.dtype)
        kind = self.cuda.api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.cuda.call(
            "cudaMemcpy2DAsync",
            out.ctypes.data,
            width,
            self.address + offset,
            pitch,
            width,
            rows,
            kind,
            self.cuda.stream,
        )
        self.cuda.wait()
        return out


class CudaDevice:
    def __init__(self, cuda: Cuda):
        self.cuda = cuda

    def zeros(self, shape: Sequence[int], dtype: str) -> CudaBuffer:
        return CudaBuffer(self.cuda, shape, dtype)

    def chain(self, passes: Sequence[Callable[[], None]]) -> Callable[[], list[float]]:
        return _Recording(self.cuda, passes)


class _Recording:
    """Passes that run one after the other on the stream, with an event between them: plainly the first time (TensorRT
    finishes its set-up then), as one CUDA graph from the second on, plainly for ever where capture fails."""

    def __init__(self, cuda: Cuda, passes: Sequence[Callable[[], None]]):
        self.cuda, self.passes = cuda, list(passes)
        self.events = [cuda.call("cudaEventCreate") for _ in range(len(self.passes) + 1)]
        self.graph: Any = None
        self.why_not: str | None = None
        self._runs = 0

    def __call__(self) -> list[float]:
        if self._runs == 1 and self.why_not is None:
            self._record()
        if self.graph is None:
            self._enqueue(0)
        else:
            self.cuda.call("cudaGraphLaunch", self.graph, self.cuda.stream)
        self._runs += 1
        self.cuda.call("cudaEventSynchronize", self.events[-1])
        return [self.cuda.call("cudaEventElapsedTime", a, b) / 1000 for a, b in pairwise(self.events)]

    def _enqueue(self, flags: int) -> None:
        self.cuda.call("cudaEventRecordWithFlags", self.events[0], self.cuda.stream, flags)
        for one, event in zip(self.passes, self.events[1:], strict=True):
            one()
            self.cuda.call("cudaEventRecordWithFlags", event, self.cuda.stream, flags)

    def _record(self) -> None:
        api, stream = self.cuda.api, self.cuda.stream
        mode = api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        try:
            self.cuda.call("cudaStreamBeginCapture", stream, mode)
            try:
                self._enqueue(api.cudaEventRecordExternal)
            finally:
                recorded = self.cuda.call("cudaStreamEndCapture", stream)
            self.graph = self.cuda.call("cudaGraphInstantiate", recorded, 0)
        except UserError as error:
            self.why_not = str(error)


class TrtEngine:
    """One deserialised engine."""

    def __init__(self, engine: Any, trt: ModuleType, graph: Graph, device: CudaDevice, file: Path, cache: Path | None):
        self.engine, self.trt, self.graph, self.device, self.file = engine, trt, graph, device, file
        self._cache_file = cache

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Callable[[], None]:
        check_bindings(self.graph, inputs, outputs, self.file)
        context = self._context()
        for name, buffer in (*inputs.items(), *outputs.items()):
            assert isinstance(buffer, CudaBuffer)
            if not context.set_tensor_address(name, buffer.address):
                raise UserError(f"{self.file}: does not accept the buffer of {name}")
        stream = int(self.device.cuda.stream)

        def run() -> None:
            if not context.execute_async_v3(stream):
                raise UserError(f"{self.file}: TensorRT could not run it: see CUDA's error above")

        return run

    def _context(self) -> Any:
        """An execution context; with TensorRT-RTX, one that shares the cache of what it compiles on first use."""
        if not hasattr(self.engine, "create_runtime_config"):
            context = self.engine.create_execution_context()
        else:
            config = self.engine.create_runtime_config()
            self._cache = config.create_runtime_cache()
            if self._cache_file is not None and self._cache_file.is_file():
                self._cache.deserialize(self._cache_file.read_bytes())  # refused by itself when it is another card's
            config.set_runtime_cache(self._cache)
            context = self.engine.create_execution_context(config)
        if context is None:
            raise UserError(f"{self.file}: no execution context: {self.device.cuda.memory_note()}")
        return context

    def save_cache(self) -> None:
        """Keep what TensorRT-RTX compiled for this card beside the engine, for a faster start."""
        if self._cache_file is not None and hasattr(self, "_cache"):
            part = self._cache_file.with_suffix(f".{os.getpid()}.part")
            part.write_bytes(bytes(self._cache.serialize()))
            part.replace(self._cache_file)


class TrtBackend:
    """Loads a bundle's compiled engines. Raises UserError when there is no GPU, or no engine that is valid here."""

    def __init__(self, backend: str = "tensorrt-rtx", precision: str | None = None):
        self.backend, self.precision = backend, precision
        self.trt = load_module(backend)
        self.device = CudaDevice(Cuda())
        self._log = first_error_logger(self.trt)
        self._runtime = self.trt.Runtime(self._log)

    def load(self, bundle: Bundle, name: str) -> TrtEngine:
        found = self._choose(bundle)
        record = found.record
        assert record is not None
        file = found.folder / record.graphs[name].file.file
        engine = self._runtime.deserialize_cuda_engine(file.read_bytes())
        if engine is None:
            raise UserError(f"{file}: {self.backend} cannot load it: {self._log.errors or 'no reason given'}")
        if record.options.get("strip_weights"):
            self._refit(engine, bundle, name, str(record.options["precision"]))
        graph = stored_types(bundle.manifest.graphs[name], LOW_TYPES[str(record.options["precision"])])
        return TrtEngine(engine, self.trt, graph, self.device, file, file.with_suffix(".cache"))

    def _choose(self, bundle: Bundle) -> store.Stored:
        """The newest engines of this backend (and precision, if one was asked for) that are valid here."""
        everything = store.stored(bundle, {self.backend: self.trt.__version__})
        mine = [
            e
            for e in everything
            if e.record is not None
            and e.record.backend == self.backend
            and self.precision in (None, e.record.options.get("precision"))
        ]
        for found in mine:
            if found.problem is None:
                return found
        why = f": {mine[0].problem}" if mine else ""
        raise UserError(
            f"{bundle.path}: holds no {self.backend} engine that can be used here{why}; run everframe build"
        )

    def _refit(self, engine: Any, bundle: Bundle, name: str, precision: str) -> None:
        """Put the bundle's weights into a weight-stripped engine."""
        import onnx

        file = bundle.graph_path(name)
        refitter = self.trt.Refitter(engine, self._log)
        parser = self.trt.OnnxParserRefitter(refitter, self._log)
        with tempfile.TemporaryDirectory() as scratch:
            for ref in bundle.manifest.graphs[name].data:
                os.symlink((bundle.path / ref.file).absolute(), Path(scratch) / ref.file)
            lowered = Path(scratch) / file.name
            onnx.save(lower(onnx.load(file, load_external_data=False), precision), lowered)  # type: ignore[arg-type]
            if not parser.refit_from_file(str(lowered)) or not refitter.refit_cuda_engine():
                raise UserError(f"{file}: its weights do not fit the stripped engine: {self._log.errors}")


def stored_types(graph: Graph, low: str) -> Graph:
    """The graph's tensors as the lowered engine has them: what is kept between passes in the low type."""

    def change(specs):
        return [
            s.model_copy(update={"dtype": low}) if s.name.startswith(STORED_LOW) and s.dtype == "float32" else s
            for s in specs
        ]

    return graph.model_copy(update={"inputs": change(graph.inputs), "outputs": change(graph.outputs)})
