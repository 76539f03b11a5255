"""CUDA through cuda-python: its errors in one line, two streams, device buffers, pinned memory.

Everything a chunk does on the device is enqueued without waiting; the host waits where it reads. No GPU has run this yet:
docs/tensorrt.md says what is tested without one.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .base import Buffer
from .errors import CudaError, UserError, load_error

CPU_HINT = "--backend onnxruntime runs on the CPU"


STAGED = 4 << 20  # bytes: what is larger is seldom written, and goes down through one piece that all share
DRIVER, MEMORY = Path("/proc/driver/nvidia/version"), Path("/proc/meminfo")
NEEDED = {13: 580, 12: 525}  # the least driver of each CUDA


def driver_release(file: Path = DRIVER) -> str | None:
    """As in 580.65.06; None where the system does not say."""
    found = re.search(r"\d{3}\.\d[\d.]*", file.read_text()) if file.is_file() else None
    return found[0] if found else None


def too_old(error: str, file: Path = DRIVER) -> str:
    """What to do about a driver that is older than the CUDA that was installed: it answers as if there were no card."""
    release = driver_release(file) if "InsufficientDriver" in error else None
    if release is None:
        return ""
    cuda = max((cuda for cuda, least in NEEDED.items() if int(release[:3]) >= least), default=None)
    if cuda == 13:
        return f": the driver is {release}, older than the installed cuda-python; install a newer one, or cuda-python~=13.0"
    told = f": the driver is {release}, CUDA 13 needs {NEEDED[13]} or later"
    packages = "cuda-python~=12.9, with tensorrt-rtx-cu12 or tensorrt-cu12"
    return f"{told}; install one{f', or packages for CUDA 12 ({packages})' if cuda == 12 else ''}"


def ask(api: Any, name: str, *args: Any) -> Any:
    """A runtime function's result. Raises CudaError with CUDA's own name of the error."""
    code, *result = getattr(api, name)(*args)
    if code != api.cudaError_t.cudaSuccess:
        raise CudaError(f"CUDA: {name}: {code.name}")
    return result[0] if len(result) == 1 else tuple(result)


def device_name(properties: Any) -> str:
    """As its maker calls it."""
    name = properties.name
    return name.decode() if isinstance(name, bytes) else str(name)


def memory_of(api: Any, file: Path = MEMORY) -> tuple[int, int]:
    """Bytes that are free, and all. A card without memory of its own (Jetson, GB10) has the system's, of which CUDA counts
    as used what holds copies of files, which whoever asks for memory gets. Raises CudaError."""
    free, total = ask(api, "cudaMemGetInfo")
    if ask(api, "cudaDeviceGetAttribute", api.cudaDeviceAttr.cudaDevAttrIntegrated, 0) and file.is_file():
        found = re.search(r"^MemAvailable:\s*(\d+) kB", file.read_text(), re.MULTILINE)
        free = max(free, int(found[1]) << 10 if found else 0)
    return int(free), int(total)


def hidden() -> str:
    """The choice that hides other cards, if one was made."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if seen is None else f", which sees only card {seen or 'none'} (--gpu or CUDA_VISIBLE_DEVICES)"


class Cuda:
    """The CUDA runtime of one device, every error code turned into one line.

    api: `cuda.bindings.runtime`, or something that looks like it; otherwise: what runs where there is no such device.
    """

    def __init__(self, api: Any = None, otherwise: str = CPU_HINT):
        if api is None:
            try:
                from cuda.bindings import runtime as api  # type: ignore[attr-defined]
            except ImportError:
                raise UserError(f"a GPU needs cuda-python: pip install 'cuda-python>=12.6'; {otherwise}") from None
        self.api = api
        try:
            count = self.call("cudaGetDeviceCount")
        except UserError as error:
            raise UserError(
                f"no NVIDIA GPU that CUDA can use ({error}{too_old(str(error))}{hidden()}); {otherwise}"
            ) from None
        except RuntimeError as error:  # cuda-python could not load the driver's library
            raise UserError(f"no NVIDIA driver ({error}); {otherwise}") from None
        if count < 1:
            raise UserError(f"no NVIDIA GPU in this machine; {otherwise}")
        chosen = self.call("cudaGetDeviceFlags")
        if not chosen & api.cudaDeviceScheduleMask:  # an embedding program has not chosen: who waits sleeps
            self.call("cudaSetDeviceFlags", chosen | api.cudaDeviceScheduleBlockingSync)
        # Not blocking: neither waits for the default stream, which an embedding program may use. Decoding comes first: its
        # frames are due, and its many small kernels would stand behind the large ones of the next chunk.
        least, greatest = self.call("cudaDeviceGetStreamPriorityRange")
        self.stream, self.beside = (
            self.call("cudaStreamCreateWithPriority", api.cudaStreamNonBlocking, priority)
            for priority in (least, greatest)
        )
        for stream in (self.stream, self.beside):
            free_with(self, self, "cudaStreamDestroy", stream)
        self._sent = self._arrived = 0  # copies from staging memory, in their order on the main stream
        self._shared: np.ndarray | None = None
        self._waiting: list[Callable[[], None]] = []
        self._aside: tuple[Any, np.ndarray] | None = None  # stream and pinned memory of `carry_up`

    def call(self, name: str, *args: Any) -> Any:
        """A runtime function's result. Raises CudaError with CUDA's own name of the error."""
        return ask(self.api, name, *args)

    def malloc(self, size: int, what: str) -> int:
        with contextlib.suppress(UserError):
            return int(self.call("cudaMalloc", size))
        gc.collect()  # whatever closed streams still hold in cycles
        try:
            return int(self.call("cudaMalloc", size))
        except UserError:
            kind = CudaError if size <= memory_of(self.api)[1] else UserError  # what no card of this size ever holds
            raise kind(f"GPU memory: {size / 2**20:.0f} MiB asked for {what}, {self.memory_note()}") from None

    def load_error(self, reason: str, size: int) -> type[UserError]:
        """`errors.load_error` on this card."""
        return load_error(reason, size, memory_of(self.api)[1])

    def memory_note(self) -> str:
        free, total = memory_of(self.api)
        room = f"{free / 2**20:.0f} of {total / 2**20:.0f} MiB free"
        return f"{room}: choose a smaller size or window, or INT8 (everframe plan)"

    def name(self) -> str:
        return device_name(self.call("cudaGetDeviceProperties", 0))

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
        """Until everything on the main stream is done; then `once_done` is answered."""
        self.call("cudaStreamSynchronize", self.stream)
        self._arrived = self._sent
        while self._waiting:
            self._waiting.pop()()

    def once_done(self, what: Callable[[], None]) -> None:
        """Call it after the next wait, when what is enqueued now has run."""
        self._waiting.append(what)

    def send(self, target: int, staging: np.ndarray) -> int:
        """Copy pinned memory down. Returns the copy's number: the memory may be written again when it has `arrived`."""
        self.copy(target, staging.ctypes.data, staging.nbytes, "cudaMemcpyHostToDevice")
        self._sent += 1
        return self._sent

    def arrived(self, number: int) -> None:
        """Wait for a copy that `send` numbered, unless the host has waited since."""
        if number > self._arrived:
            self.wait()

    def carry_up(self, source: int, size: int) -> Iterator[np.ndarray]:
        """Device memory that nobody writes, piece by piece beside whatever the other streams do. In one thread at a time,
        which need not be the loop's."""
        if self._aside is None:
            least, _ = self.call("cudaDeviceGetStreamPriorityRange")
            stream = self.call("cudaStreamCreateWithPriority", self.api.cudaStreamNonBlocking, least)
            free_with(self, self, "cudaStreamDestroy", stream)
            self._aside = stream, pinned(self, self, STAGED)
        stream, staging = self._aside
        for start in range(0, size, STAGED):
            piece = staging[: min(STAGED, size - start)]
            self.copy(piece.ctypes.data, source + start, piece.nbytes, "cudaMemcpyDeviceToHost", stream)
            self.call("cudaStreamSynchronize", stream)
            yield piece

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

    def __init__(self, cuda: Cuda, shape: Sequence[int], dtype: str, clear: bool = True):
        """clear: filled with zeros, on the main stream."""
        if dtype == "bfloat16":
            import ml_dtypes  # noqa: F401 - makes the name known to NumPy
        self.cuda, self.shape, self.dtype = cuda, tuple(shape), np.dtype(dtype)
        self.bytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        self.address = cuda.malloc(self.bytes, f"a tensor {self.dtype} {list(self.shape)}")
        free_with(self, cuda, "cudaFree", self.address)
        if clear:
            self.clear()
        self._pinned: np.ndarray | None = None
        self._staging: np.ndarray | None = None
        self._number = 0  # of the last copy from there

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """For CuPy, PyTorch and PyCUDA in an embedding program: no copy."""
        kind = "<u2" if self.dtype.name == "bfloat16" else self.dtype.str  # the protocol has no name for it: its bits
        return {
            "shape": self.shape,
            "typestr": kind,
            "data": (self.address, False),
            "version": 3,
            "stream": int(self.cuda.stream),  # ours, which does not wait for the reader's
        }

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

    def clear(self) -> None:
        self.cuda.call("cudaMemsetAsync", self.address, 0, self.bytes, self.cuda.stream)

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

    def copy(self, source: Buffer) -> None:
        assert isinstance(source, CudaBuffer)
        self.cuda.copy(self.address, source.address, self.bytes, "cudaMemcpyDeviceToDevice")

    def parts(self) -> Iterator[np.ndarray]:
        yield from self.cuda.carry_up(self.address, self.bytes)

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
    free_with(owner, cuda, "cudaFreeHost", pointer)
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))


def free_with(owner: object, cuda: Cuda, how: str, thing: Any) -> None:
    """Free memory, a stream, an event or a graph when its owner goes; at the end of the process the driver does.

    What it answers is not looked at: after an error of the device every one of these calls would repeat it."""
    weakref.finalize(owner, getattr(cuda.api, how), thing).atexit = False
