"""CUDA through cuda-python: device buffers, pinned frames, two streams, and chunks recorded as CUDA graphs.

Everything a chunk does on the device is enqueued without waiting; the host waits where it reads. No GPU has run this yet:
docs/tensorrt.md says what is tested without one.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .base import Buffer
from .errors import UserError

try:
    import nvtx  # type: ignore[import-not-found]
except ImportError:
    nvtx = None

CPU_HINT = "--backend onnxruntime runs on the CPU"


STAGED = 4 << 20  # bytes: what is larger is seldom written, and goes down through one piece that all share
DRIVER = Path("/proc/driver/nvidia/version")
NEEDED = {13: 580, 12: 525}  # the least driver of each CUDA


def too_old(error: str, file: Path = DRIVER) -> str:
    """What to do about a driver that is older than the CUDA that was installed: it answers as if there were no card."""
    if "InsufficientDriver" not in error or not file.is_file():
        return ""
    found = re.search(r"(\d{3})\.\d[\d.]*", file.read_text())
    if found is None:
        return ""
    cuda = max((cuda for cuda, least in NEEDED.items() if int(found[1]) >= least), default=None)
    told = f": the driver is {found[0]}, CUDA 13 needs {NEEDED[13]} or later"
    return told + (f"; install one, or packages for CUDA {cuda} (cuda-python~=12.9)" if cuda == 12 else "; install one")


class Pass(Protocol):
    """What CUDA can put into a chain: something that enqueues itself on the stream it is given."""

    def __call__(self, stream: Any = None) -> None: ...


class Cuda:
    """The CUDA runtime of one device, every error code turned into one line.

    api: `cuda.bindings.runtime`, or something that looks like it.
    """

    def __init__(self, api: Any = None):
        if api is None:
            try:
                from cuda.bindings import runtime as api  # type: ignore[attr-defined]
            except ImportError:
                raise UserError("TensorRT engines need cuda-python: pip install 'everframe[rtx]'") from None
        self.api = api
        try:
            count = self.call("cudaGetDeviceCount")
        except UserError as error:
            raise UserError(f"no NVIDIA GPU that CUDA can use ({error}{too_old(str(error))}); {CPU_HINT}") from None
        except RuntimeError as error:  # cuda-python could not load the driver's library
            raise UserError(f"no NVIDIA driver ({error}); {CPU_HINT}") from None
        if count < 1:
            raise UserError(f"no NVIDIA GPU in this machine; {CPU_HINT}")
        # Not blocking: neither waits for the default stream, which an embedding program may use.
        self.stream, self.beside = (self.call("cudaStreamCreateWithFlags", api.cudaStreamNonBlocking) for _ in range(2))
        self._sent = self._arrived = 0  # copies from staging memory, in their order on the main stream
        self._shared: np.ndarray | None = None

    def call(self, name: str, *args: Any) -> Any:
        """A runtime function's result. Raises UserError with CUDA's own name of the error."""
        code, *result = getattr(self.api, name)(*args)
        if code != self.api.cudaError_t.cudaSuccess:
            raise UserError(f"CUDA: {name}: {code.name}")
        return result[0] if len(result) == 1 else tuple(result)

    def malloc(self, size: int, what: str) -> int:
        with contextlib.suppress(UserError):
            return int(self.call("cudaMalloc", size))
        gc.collect()  # whatever closed streams still hold in cycles
        try:
            return int(self.call("cudaMalloc", size))
        except UserError:
            raise UserError(f"GPU memory: {size / 2**20:.0f} MiB asked for {what}, {self.memory_note()}") from None

    def memory_note(self) -> str:
        free, total = self.call("cudaMemGetInfo")
        room = f"{free / 2**20:.0f} of {total / 2**20:.0f} MiB free"
        return f"{room}: choose a smaller size or window, or INT8 (everframe plan)"

    def capability(self) -> str:
        """Compute capability of the device, as sm_89."""
        kinds = self.api.cudaDeviceAttr
        major = self.call("cudaDeviceGetAttribute", kinds.cudaDevAttrComputeCapabilityMajor, 0)
        minor = self.call("cudaDeviceGetAttribute", kinds.cudaDevAttrComputeCapabilityMinor, 0)
        return f"sm_{major}{minor}"

    def copy(self, target: int, source: int, size: int, kind: str, stream: Any = None) -> None:
        self.call(
            "cudaMemcpyAsync", target, source, size, getattr(self.api.cudaMemcpyKind, kind), stream or self.stream
        )

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int, kind: str
    ):
        """`rows` pieces of `width` bytes."""
        way = getattr(self.api.cudaMemcpyKind, kind)
        self.call("cudaMemcpy2DAsync", target, target_pitch, source, source_pitch, width, rows, way, self.stream)

    def wait(self) -> None:
        self.call("cudaStreamSynchronize", self.stream)
        self._arrived = self._sent

    def send(self, target: int, staging: np.ndarray) -> int:
        """Copy pinned memory down. Returns the copy's number: the memory may be written again when it has `arrived`."""
        self.copy(target, staging.ctypes.data, staging.nbytes, "cudaMemcpyHostToDevice")
        self._sent += 1
        return self._sent

    def arrived(self, number: int) -> None:
        """Wait for a copy that `send` numbered, unless the host has waited since."""
        if number > self._arrived:
            self.wait()

    def shared(self) -> np.ndarray:
        """STAGED bytes of pinned memory for who waits before anybody else asks."""
        if self._shared is None:
            self._shared = pinned(self, self, STAGED)
        return self._shared


class CudaBuffer:
    """Device memory of fixed shape. bfloat16 is the host's ml_dtypes.bfloat16.

    What the host writes goes down from pinned memory that stays: CUDA does not promise to have read pageable memory when a
    copy's call returns, and where the card reads it by itself (Thor, GB10) it need not have. Nothing waits for a small
    buffer's copy but its next one. `fetch` goes to pinned memory too, which a recorded graph can copy to.
    """

    def __init__(self, cuda: Cuda, shape: Sequence[int], dtype: str):
        if dtype == "bfloat16":
            import ml_dtypes  # noqa: F401 - makes the name known to NumPy
        self.cuda, self.shape, self.dtype = cuda, tuple(shape), np.dtype(dtype)
        self.bytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        self.address = cuda.malloc(self.bytes, f"a tensor {self.dtype} {list(self.shape)}")
        _free_with(self, cuda, "cudaFree", self.address)
        cuda.call("cudaMemsetAsync", self.address, 0, self.bytes, cuda.stream)
        self._pinned: np.ndarray | None = None
        self._staging: np.ndarray | None = None
        self._number = 0  # of the last copy from there

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """For CuPy, PyTorch and PyCUDA in an embedding program: no copy."""
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.address, False), "version": 3}

    def write(self, values: np.ndarray) -> None:
        if values.shape != self.shape or values.dtype != self.dtype:
            raise ValueError(f"cannot write {values.dtype} {values.shape} into {self.dtype} {self.shape}")
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        if self.bytes <= STAGED:
            if self._staging is None:
                self._staging = pinned(self, self.cuda, self.bytes)
            self.cuda.arrived(self._number)
            self._staging[:] = raw
            self._number = self.cuda.send(self.address, self._staging)
            return
        staging = self.cuda.shared()
        for start in range(0, self.bytes, STAGED):
            piece = staging[: min(STAGED, self.bytes - start)]
            piece[:] = raw[start : start + len(piece)]
            self.cuda.send(self.address + start, piece)
            self.cuda.wait()

    def read(self) -> np.ndarray:
        out = np.empty(self.shape, self.dtype)
        self.cuda.copy(out.ctypes.data, self.address, self.bytes, "cudaMemcpyDeviceToHost")
        self.cuda.wait()
        return out

    def write_tokens(self, start: int, values: np.ndarray) -> None:
        values = np.asarray(values, self.dtype)
        _, heads, tokens, depth = values.shape
        at_once = max(1, STAGED // (heads * depth * self.dtype.itemsize))
        for first in range(0, tokens, at_once):
            part = values[:, :, first : first + at_once]
            staging = self.cuda.shared()[: part.nbytes]
            staging.view(self.dtype).reshape(part.shape)[:] = part
            target, pitch, width, rows = self._span(start + first, start + first + part.shape[2])
            self.cuda.copy_rows(target, pitch, staging.ctypes.data, width, width, rows, "cudaMemcpyHostToDevice")
            self.cuda.wait()

    def read_tokens(self, start: int, stop: int) -> np.ndarray:
        out = np.empty((1, self.shape[1], stop - start, self.shape[3]), self.dtype)
        source, pitch, width, rows = self._span(start, stop)
        self.cuda.copy_rows(out.ctypes.data, width, source, pitch, width, rows, "cudaMemcpyDeviceToHost")
        self.cuda.wait()
        return out

    def copy_tokens(self, start: int, source: Buffer, begin: int = 0, count: int | None = None) -> None:
        assert isinstance(source, CudaBuffer)
        count = source.shape[2] - begin if count is None else count
        target, pitch, width, rows = self._span(start, start + count)
        there, other, _, _ = source._span(begin, begin + count)
        self.cuda.copy_rows(target, pitch, there, other, width, rows, "cudaMemcpyDeviceToDevice")

    def _span(self, start: int, stop: int) -> tuple[int, int, int, int]:
        """Address, pitch, bytes of a row, and rows (one per head) of tokens start … stop − 1 of a ring [1, H, S, D]."""
        _, heads, tokens, depth = self.shape
        token = depth * self.dtype.itemsize
        return self.address + start * token, tokens * token, (stop - start) * token, heads

    def fetch(self, stream: Any = None) -> None:
        if self._pinned is None:
            self._pinned = pinned(self, self.cuda, self.bytes).view(self.dtype).reshape(self.shape)
        self.cuda.copy(self._pinned.ctypes.data, self.address, self.bytes, "cudaMemcpyDeviceToHost", stream)

    def fetched(self) -> np.ndarray:
        assert self._pinned is not None
        return self._pinned.copy()


def pinned(owner: object, cuda: Cuda, size: int) -> np.ndarray:
    """Bytes of page-locked host memory, which go with their owner."""
    pointer = int(cuda.call("cudaHostAlloc", size, 0))
    _free_with(owner, cuda, "cudaFreeHost", pointer)
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))


def _free_with(owner: object, cuda: Cuda, how: str, thing: Any) -> None:
    """Free memory, an event or a graph when its owner goes; at the end of the process the driver does."""
    weakref.finalize(owner, cuda.call, how, thing).atexit = False


class CudaDevice:
    overlaps = True

    def __init__(self, cuda: Cuda):
        self.cuda = cuda

    def free(self) -> int | None:
        return int(self.cuda.call("cudaMemGetInfo")[0])

    def zeros(self, shape: Sequence[int], dtype: str) -> CudaBuffer:
        return CudaBuffer(self.cuda, shape, dtype)

    def chain(self, passes: Sequence[Callable[[], None]], beside: Sequence[Callable[[], None]] = ()) -> CudaLaunch:
        return CudaLaunch(self.cuda, passes, beside)


def new_event(owner: object, cuda: Cuda) -> Any:
    """An event that goes with its owner."""
    event = cuda.call("cudaEventCreate")
    _free_with(owner, cuda, "cudaEventDestroy", event)
    return event


class _Lane:
    """Passes in a row on one stream, with an event before the first and after each."""

    def __init__(self, cuda: Cuda, stream: Any, passes: Sequence[Any]):
        self.cuda, self.stream, self.passes = cuda, stream, list(passes)
        self.events = [new_event(self, cuda) for _ in range(len(self.passes) + 1)]

    def enqueue(self, flags: int) -> None:
        self.cuda.call("cudaEventRecordWithFlags", self.events[0], self.stream, flags)
        for one, event in zip(self.passes, self.events[1:], strict=True):
            one(self.stream)
            self.cuda.call("cudaEventRecordWithFlags", event, self.stream, flags)

    def seconds(self) -> list[float]:
        return [self.cuda.call("cudaEventElapsedTime", a, b) / 1000 for a, b in pairwise(self.events)]


class CudaLaunch:
    """One chunk: passes on the main stream and others on the second one.

    Enqueued plainly the first time, because engines finish their set-up then; one CUDA graph from the second time on, so
    that a chunk is one launch; plainly for ever where capture fails (`why_not` says why).
    """

    def __init__(self, cuda: Cuda, passes: Sequence[Callable[[], None]], beside: Sequence[Callable[[], None]] = ()):
        self.cuda = cuda
        self._main = _Lane(cuda, cuda.stream, passes)
        self._side = _Lane(cuda, cuda.beside, beside) if beside else None
        # Order between the streams, inside a graph too: no timing, no meaning outside.
        self._fork, self._join = (new_event(self, cuda) for _ in range(2))
        self.graph: Any = None
        self.why_not: str | None = None
        self._runs = 0
        self._done: list[float] | None = None

    def start(self) -> None:
        if self._runs == 1 and self.why_not is None:
            self._record()
        with named("chunk"):
            if self.graph is None:
                self._enqueue(0)
            else:
                self.cuda.call("cudaGraphLaunch", self.graph, self.cuda.stream)
        self._runs += 1
        self._done = None

    def main(self) -> list[float]:
        if self._done is None:
            self.cuda.wait()
            self._done = self._main.seconds()
        return self._done

    def side(self) -> list[float]:
        if self._side is None:
            return []
        self.cuda.call("cudaEventSynchronize", self._side.events[-1])  # not the stream: the main lane still works
        return self._side.seconds()

    def _enqueue(self, flags: int) -> None:
        cuda = self.cuda
        if self._side is not None:
            cuda.call("cudaEventRecordWithFlags", self._fork, cuda.stream, 0)
            cuda.call("cudaStreamWaitEvent", cuda.beside, self._fork, 0)
            self._side.enqueue(flags)
            cuda.call("cudaEventRecordWithFlags", self._join, cuda.beside, 0)
        self._main.enqueue(flags)
        if self._side is not None:
            cuda.call("cudaStreamWaitEvent", cuda.stream, self._join, 0)

    def _record(self) -> None:
        cuda, api = self.cuda, self.cuda.api
        for one in (*self._main.passes, *(self._side.passes if self._side else ())):
            if not getattr(one, "capturable", lambda: True)():
                self.why_not = "TensorRT: the engine cannot be captured"
                return
        mode = api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        collecting = gc.isenabled()
        gc.collect()
        gc.disable()  # a buffer that the collector frees meanwhile would make the recording invalid
        try:
            cuda.call("cudaStreamBeginCapture", cuda.stream, mode)
            try:
                self._enqueue(api.cudaEventRecordExternal)
            except BaseException:
                with contextlib.suppress(UserError):  # what failed first is the reason
                    cuda.call("cudaStreamEndCapture", cuda.stream)
                raise
            recorded = cuda.call("cudaStreamEndCapture", cuda.stream)
            try:
                ready = cuda.call("cudaGraphInstantiate", recorded, 0)
            finally:
                cuda.call("cudaGraphDestroy", recorded)
            _free_with(self, cuda, "cudaGraphExecDestroy", ready)
            cuda.call(
                "cudaGraphUpload", ready, cuda.stream
            )  # what the card has no room for shows here, not in a launch
            self.graph = ready
        except UserError as error:
            self.why_not = str(error)
        finally:
            if collecting:
                gc.enable()


def named(name: str) -> AbstractContextManager[Any]:
    """An NVTX range, for Nsight Systems; nothing where the package nvtx is not installed."""
    return contextlib.nullcontext() if nvtx is None else nvtx.annotate(name, domain="everframe")
