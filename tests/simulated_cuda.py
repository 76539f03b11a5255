"""CUDA's rules about order, without a GPU: streams, events, capture and graphs over host memory.

It stands in for `cuda.bindings.runtime`, and its engines are the real ones of ONNX Runtime working on the addresses that
were "allocated". Work is put off until somebody waits for it, and then only what that wait needs is done, in the order that
the waits and events promise and no more: a missing event shows as a wrong frame. Host memory is read when the copy is done,
pageable memory too, which CUDA stages on most machines and promises on none. What CUDA forbids during a capture is answered
with its error and makes the capture invalid; memory that is freed is filled with a pattern, and its use is an error.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from everframe.engines.base import Buffer, Computing, EngineOptions
from everframe.engines.bundle import Bundle
from everframe.engines.cuda import Cuda, CudaBuffer
from everframe.engines.cudalaunch import CudaDevice
from everframe.engines.ort import OrtBackend, OrtBuffer, OrtEngine


class Code(Enum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorStreamCaptureUnsupported = 900  # noqa: N815
    cudaErrorStreamCaptureInvalidated = 901  # noqa: N815
    cudaErrorStreamCaptureUnjoined = 904  # noqa: N815
    cudaErrorCapturedEvent = 907  # noqa: N815


@dataclass(eq=False)
class Op:
    work: Callable[[], object]
    after: list[Op]
    done: bool = False

    def run(self) -> None:
        pending = [self]
        while pending:
            op = pending[-1]
            waiting = [o for o in op.after if not o.done]
            if waiting and not op.done:
                pending += waiting
                continue
            if not op.done:
                op.done = True
                op.work()
                op.after.clear()
            pending.pop()


def nothing() -> None: ...


@dataclass(eq=False)
class FakeStream:
    number: int
    priority: int = 0
    last: Op = field(default_factory=lambda: Op(nothing, [], True))

    def __int__(self) -> int:
        return self.number


@dataclass(eq=False)
class Event:
    op: Op | None = None
    captured: bool = False  # recorded inside a capture last, where it has no meaning outside


@dataclass(eq=False)
class Graph:
    ops: list[Op]
    last: Op
    events: list[tuple[Event, Op]]  # external records
    flags: int = 0


class SimulatedRuntime:
    """What `Cuda` calls. `log` has every call by name."""

    cudaError_t = Code  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815
    cudaEventRecordExternal = 1  # noqa: N815
    cudaDeviceScheduleBlockingSync = 4  # noqa: N815
    cudaDeviceScheduleMask = 7  # noqa: N815
    cudaEventBlockingSync = 1  # noqa: N815
    cudaGraphInstantiateFlags = SimpleNamespace(cudaGraphInstantiateFlagUseNodePriority=8)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(  # noqa: N815
        cudaMemcpyHostToDevice="h2d", cudaMemcpyDeviceToHost="d2h", cudaMemcpyDeviceToDevice="d2d"
    )

    cudaDeviceAttr = SimpleNamespace(  # noqa: N815
        cudaDevAttrComputeCapabilityMajor="major",
        cudaDevAttrComputeCapabilityMinor="minor",
        cudaDevAttrIntegrated="integrated",
    )

    def __init__(self, eager: bool = False, memory: int = 1 << 40, captures: bool = True):
        self.eager, self.free, self.captures = eager, memory, captures
        self.total, self.capability, self.integrated = memory, (9, 0), False
        self.streams: list[FakeStream] = []
        self.memory: dict[int, np.ndarray] = {}
        self.pinned: set[int] = set()
        self.freed: dict[int, np.ndarray] = {}  # kept, so that an address never comes again
        self.invalid = False  # what is being captured
        self.captures_for = 0  # its thread
        self.lock = threading.RLock()
        self.log: list[str] = []
        self.flags = 0
        self.alive: set[Event | Graph | FakeStream] = set()  # events, streams, graphs and what was instantiated of them
        self.capturing: list[Op] | None = None
        self.captured_streams: dict[FakeStream, Op] = {}  # and what each stood at before
        self.external: list[tuple[Event, Op]] = []

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("cuda") and callable(found) and name != "cudaError_t":
            self.log.append(name)
            if self.capturing is not None and threading.get_ident() != self.captures_for:
                return self.outside(found)
            return self.one_at_a_time(found)
        return found

    def one_at_a_time(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def locked(*args: Any) -> Any:
            with self.lock:
                return call(*args)

        return locked

    def outside(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A call of another thread while one captures, which in the thread-local mode is none of the capture's business."""

        def locked(*args: Any) -> Any:
            with self.lock:
                held, self.capturing = self.capturing, None
                try:
                    return call(*args)
                finally:
                    self.capturing = held

        return locked

    # Order

    def enqueue(self, stream: FakeStream | int, work: Callable[[], object], *after: Op) -> Op:
        stream = self.streams[stream] if isinstance(stream, int) else stream
        op = Op(work, [stream.last, *after])
        if self.capturing is not None and (
            stream in self.captured_streams or any(a in self.capturing for a in after)  # an event brings a stream in
        ):
            if stream not in self.captured_streams:
                self.captured_streams[stream] = stream.last
                op.after = list(after)
            self.capturing.append(op)
        stream.last = op
        if self.eager and self.capturing is None:
            op.run()
        return op

    def _unless_capturing(self) -> Code:
        if self.capturing is None:
            return Code.cudaSuccess
        self.invalid = True
        return Code.cudaErrorStreamCaptureUnsupported

    def view(self, address: int, size: int) -> np.ndarray:
        """So many bytes of memory that is allocated now."""
        for start, array in self.memory.items():
            if start <= address and address + size <= start + len(array):
                return array[address - start : address - start + size]
        gone = any(start <= address < start + len(array) for start, array in self.freed.items())
        raise AssertionError(f"{size} bytes at {address}: {'freed' if gone else 'never allocated'}")

    def cudaGetDeviceProperties(self, device):  # noqa: N802
        major, minor = self.capability
        return Code.cudaSuccess, SimpleNamespace(name=b"simulated card", major=major, minor=minor)

    def cudaDriverGetVersion(self):  # noqa: N802
        return Code.cudaSuccess, 13000

    cudaRuntimeGetVersion = cudaDriverGetVersion  # noqa: N815

    def cudaDeviceGetAttribute(self, attribute, device):  # noqa: N802
        if attribute == "integrated":
            return Code.cudaSuccess, int(self.integrated)
        return Code.cudaSuccess, self.capability[attribute == "minor"]

    def cudaGetDeviceCount(self):  # noqa: N802
        return Code.cudaSuccess, 1

    def cudaSetDeviceFlags(self, flags):  # noqa: N802
        self.flags = flags
        return (Code.cudaSuccess,)

    def cudaGetDeviceFlags(self):  # noqa: N802
        return Code.cudaSuccess, self.flags

    def cudaStreamDestroy(self, stream):  # noqa: N802
        self.alive.remove(stream)
        return (Code.cudaSuccess,)

    def cudaDeviceGetStreamPriorityRange(self):  # noqa: N802
        return Code.cudaSuccess, 0, -5

    def cudaStreamCreateWithPriority(self, flags, priority):  # noqa: N802
        self.streams.append(FakeStream(len(self.streams), priority))
        self.alive.add(self.streams[-1])
        return Code.cudaSuccess, self.streams[-1]

    def cudaEventCreateWithFlags(self, flags):  # noqa: N802
        assert flags == self.cudaEventBlockingSync
        self.alive.add(event := Event())
        return Code.cudaSuccess, event

    def cudaEventRecordWithFlags(self, event, stream, flags):  # noqa: N802
        assert event in self.alive
        op = self.enqueue(stream, nothing)
        event.op, event.captured = op, self.capturing is not None and flags != self.cudaEventRecordExternal
        if self.capturing is not None and flags == self.cudaEventRecordExternal:
            self.external.append((event, op))
        return (Code.cudaSuccess,)

    def cudaStreamWaitEvent(self, stream, event, flags):  # noqa: N802
        self.enqueue(stream, nothing, event.op)
        return (Code.cudaSuccess,)

    def cudaStreamSynchronize(self, stream):  # noqa: N802
        if self.capturing is None:
            stream.last.run()
        return (self._unless_capturing(),)

    def cudaEventSynchronize(self, event):  # noqa: N802
        if event.captured:
            return (Code.cudaErrorCapturedEvent,)
        if self.capturing is None:
            event.op.run()
        return (self._unless_capturing(),)

    def cudaEventElapsedTime(self, a, b):  # noqa: N802
        assert a.op.done
        assert b.op.done
        return Code.cudaSuccess, 1.0

    def cudaStreamBeginCapture(self, stream, mode):  # noqa: N802
        if not self.captures:
            return (Code.cudaErrorStreamCaptureUnsupported,)
        self.capturing, self.captured_streams, self.external = [], {stream: stream.last}, []
        self.invalid, self.captures_for = False, threading.get_ident()
        root = Op(nothing, [])
        self.capturing.append(root)
        stream.last = root
        return (Code.cudaSuccess,)

    def cudaStreamEndCapture(self, stream):  # noqa: N802
        assert self.capturing is not None
        ops, last, events = self.capturing, stream.last, self.external
        reached, pending = set(), [last]
        while pending:
            op = pending.pop()
            reached.add(op)
            pending += [o for o in op.after if o not in reached]
        joined = all(s.last in reached for s in self.captured_streams)
        for captured, before in self.captured_streams.items():
            captured.last = before
        self.capturing = None
        if self.invalid:
            return Code.cudaErrorStreamCaptureInvalidated, None
        self.alive.add(graph := Graph(ops, last, events))
        return (Code.cudaSuccess if joined else Code.cudaErrorStreamCaptureUnjoined), graph

    def cudaGraphInstantiate(self, graph, flags):  # noqa: N802
        assert graph in self.alive
        ready = Graph(graph.ops, graph.last, graph.events, flags)
        self.alive.add(ready)
        return Code.cudaSuccess, ready

    def cudaGraphUpload(self, graph, stream):  # noqa: N802
        assert graph in self.alive
        return (self._unless_capturing(),)

    def _destroy(self, thing):
        self.alive.remove(thing)  # a KeyError for what was destroyed already
        return (Code.cudaSuccess,)

    cudaEventDestroy = cudaGraphDestroy = cudaGraphExecDestroy = _destroy  # noqa: N815

    def cudaGraphLaunch(self, graph, stream):  # noqa: N802
        assert graph in self.alive
        copies: dict[Op, Op] = {}
        for op in graph.ops:
            copies[op] = Op(op.work, [copies[o] for o in op.after] or [stream.last])
        for event, op in graph.events:
            event.op = copies[op]
        stream.last = Op(nothing, list(copies.values()))
        if self.eager:
            stream.last.run()
        return (Code.cudaSuccess,)

    # Memory

    def _allocate(self, size: int) -> tuple[Code, int]:
        if (code := self._unless_capturing()) is not Code.cudaSuccess:
            return code, 0
        if size > self.free:
            return Code.cudaErrorMemoryAllocation, 0
        array = np.full(size, 0x7F, np.uint8)  # nobody may count on zeros
        self.memory[array.ctypes.data] = array
        self.free -= size
        return Code.cudaSuccess, array.ctypes.data

    def cudaMalloc(self, size):  # noqa: N802
        return self._allocate(size)

    def cudaHostAlloc(self, size, flags):  # noqa: N802
        free, self.free = self.free, size  # it is the host's
        code, address = self._allocate(size)
        self.free = free
        self.pinned.add(address)
        return code, address

    def cudaFree(self, address):  # noqa: N802
        if (code := self._unless_capturing()) is not Code.cudaSuccess:
            return (code,)
        for stream in self.streams:  # it waits for the device
            stream.last.run()
        array = self.memory.pop(address)
        self.free += 0 if address in self.pinned else len(array)
        self.pinned.discard(address)
        array[:] = 0xEE
        self.freed[address] = array
        return (Code.cudaSuccess,)

    cudaFreeHost = cudaFree  # noqa: N815

    def cudaMemGetInfo(self):  # noqa: N802
        return Code.cudaSuccess, self.free, self.total

    def cudaMemsetAsync(self, address, value, size, stream):  # noqa: N802
        self.enqueue(stream, lambda: self.view(address, size).fill(value))
        return (Code.cudaSuccess,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):  # noqa: N802
        return self.cudaMemcpy2DAsync(target, size, source, size, size, 1, kind, stream)

    def cudaMemcpy2DAsync(self, target, tp, source, sp, width, rows, kind, stream):  # noqa: N802
        if self.capturing is not None and kind != "d2d" and not {target, source} & self.pinned:
            self.invalid = True
            return (Code.cudaErrorStreamCaptureUnsupported,)
        if kind == "d2d" and target < source + (rows - 1) * sp + width and source < target + (rows - 1) * tp + width:
            assert abs(target - source) % tp >= width, "source and target overlap"
            assert tp - abs(target - source) % tp >= width, "source and target overlap"
        device = [(target, tp)] * (kind != "d2h") + [(source, sp)] * (kind != "h2d")

        def copy() -> None:
            for address, pitch in device:
                self.view(address, (rows - 1) * pitch + width)
            for r in range(rows):
                ctypes.memmove(target + r * tp, source + r * sp, width)

        self.enqueue(stream, copy)
        return (Code.cudaSuccess,)


class SimulatedEngine:
    """A graph in ONNX Runtime whose passes are work on a stream."""

    def __init__(self, real: OrtEngine, device: CudaDevice):
        self.real, self.device, self.graph = real, device, real.graph

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Callable[..., None]:
        run = self.real.bind(*({name: on_host(b) for name, b in side.items()} for side in (inputs, outputs)))
        runtime, main, kept = self.device.cuda.api, self.device.cuda.stream, (inputs, outputs)
        return lambda stream=None: runtime.enqueue(stream or main, run) and kept and None


def on_host(buffer: Buffer) -> OrtBuffer:
    """The memory of a device buffer as ONNX Runtime sees it."""
    assert isinstance(buffer, CudaBuffer)
    raw = buffer.cuda.api.memory[buffer.address]
    view = OrtBuffer.__new__(OrtBuffer)
    view.array = raw.view(buffer.dtype).reshape(buffer.shape)
    view.value = ort.OrtValue.ortvalue_from_numpy(view.array, "cpu", 0)
    return view


class SimulatedBackend:
    def __init__(self, runtime: SimulatedRuntime):
        self.device = CudaDevice(Cuda(runtime))
        self.real = OrtBackend(EngineOptions())

    def computes(self, bundle: Bundle) -> Computing:
        return Computing("simulated CUDA", "host", "f32")

    def load(self, bundle: Bundle, name: str, beside: bool = False) -> SimulatedEngine:
        return SimulatedEngine(self.real.load(bundle, name), self.device)
