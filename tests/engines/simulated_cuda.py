"""CUDA's rules about order, without a GPU: streams, events, capture and graphs over host memory.

It stands in for `cuda.bindings.runtime`, and its engines are the real ones of ONNX Runtime working on the addresses that
were "allocated". Work is put off until somebody waits for it, and then only what that wait needs is done, in the order that
the waits and events promise and no more: a missing event shows as a wrong frame. What CUDA forbids during a capture is
answered with its error.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np

from everframe.engines.base import Buffer, Computing, EngineOptions
from everframe.engines.bundle import Bundle
from everframe.engines.cuda import Cuda, CudaBuffer, CudaDevice
from everframe.engines.ort import OrtBackend, OrtBuffer, OrtEngine


class Code(Enum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorStreamCaptureUnsupported = 900  # noqa: N815
    cudaErrorStreamCaptureUnjoined = 904  # noqa: N815


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
    last: Op = field(default_factory=lambda: Op(nothing, [], True))

    def __int__(self) -> int:
        return self.number


@dataclass(eq=False)
class Event:
    op: Op | None = None


@dataclass(eq=False)
class Graph:
    ops: list[Op]
    last: Op
    events: list[tuple[Event, Op]]  # external records


class SimulatedRuntime:
    """What `Cuda` calls. `log` has every call by name."""

    cudaError_t = Code  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815
    cudaEventRecordExternal = 1  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(  # noqa: N815
        cudaMemcpyHostToDevice="h2d", cudaMemcpyDeviceToHost="d2h", cudaMemcpyDeviceToDevice="d2d"
    )

    def __init__(self, eager: bool = False, memory: int = 1 << 40, captures: bool = True):
        self.eager, self.free, self.captures = eager, memory, captures
        self.streams: list[FakeStream] = []
        self.memory: dict[int, np.ndarray] = {}
        self.pinned: set[int] = set()
        self.log: list[str] = []
        self.alive: set[Event | Graph] = set()  # events, graphs and what was instantiated of them
        self.capturing: list[Op] | None = None
        self.captured_streams: dict[FakeStream, Op] = {}  # and what each stood at before
        self.external: list[tuple[Event, Op]] = []

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("cuda") and callable(found) and name != "cudaError_t":
            self.log.append(name)
        return found

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
        return Code.cudaSuccess if self.capturing is None else Code.cudaErrorStreamCaptureUnsupported

    def cudaGetDeviceCount(self):  # noqa: N802
        return Code.cudaSuccess, 1

    def cudaStreamCreateWithFlags(self, flags):  # noqa: N802
        self.streams.append(FakeStream(len(self.streams)))
        return Code.cudaSuccess, self.streams[-1]

    def cudaEventCreate(self):  # noqa: N802
        self.alive.add(event := Event())
        return Code.cudaSuccess, event

    def cudaEventRecordWithFlags(self, event, stream, flags):  # noqa: N802
        op = self.enqueue(stream, nothing)
        event.op = op
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
        self.alive.add(graph := Graph(ops, last, events))
        return (Code.cudaSuccess if joined else Code.cudaErrorStreamCaptureUnjoined), graph

    def cudaGraphInstantiate(self, graph, flags):  # noqa: N802
        assert graph in self.alive
        ready = Graph(graph.ops, graph.last, graph.events)
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
        if self.capturing is not None:
            return Code.cudaErrorStreamCaptureUnsupported, 0
        if size > self.free:
            return Code.cudaErrorMemoryAllocation, 0
        array = np.full(size, 0x7F, np.uint8)  # nobody may count on zeros
        self.memory[array.ctypes.data] = array
        self.free -= size
        return Code.cudaSuccess, array.ctypes.data

    def cudaMalloc(self, size):  # noqa: N802
        return self._allocate(size)

    def cudaHostAlloc(self, size, flags):  # noqa: N802
        code, address = self._allocate(size)
        self.pinned.add(address)
        return code, address

    def cudaFree(self, address):  # noqa: N802
        self.free += len(self.memory.pop(address))
        return (Code.cudaSuccess,)

    cudaFreeHost = cudaFree  # noqa: N815

    def cudaMemGetInfo(self):  # noqa: N802
        return Code.cudaSuccess, self.free, 1 << 40

    def cudaMemsetAsync(self, address, value, size, stream):  # noqa: N802
        self.enqueue(stream, lambda: ctypes.memset(address, value, size))
        return (Code.cudaSuccess,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):  # noqa: N802
        return self.cudaMemcpy2DAsync(target, size, source, size, size, 1, kind, stream)

    def cudaMemcpy2DAsync(self, target, tp, source, sp, width, rows, kind, stream):  # noqa: N802
        if self.capturing is not None and kind != "d2d" and not {target, source} & self.pinned:
            return (Code.cudaErrorStreamCaptureUnsupported,)
        # Pageable memory that is read from is staged at once; it may be gone afterwards.
        staged = [ctypes.string_at(source + r * sp, width) for r in range(rows)] if kind == "h2d" else None

        def copy() -> None:
            for r in range(rows):
                ctypes.memmove(target + r * tp, staged[r] if staged else source + r * sp, width)

        self.enqueue(stream, copy)
        return (Code.cudaSuccess,)


class SimulatedEngine:
    """A graph in ONNX Runtime whose passes are work on a stream."""

    def __init__(self, real: OrtEngine, device: CudaDevice):
        self.real, self.device, self.graph = real, device, real.graph

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Callable[..., None]:
        run = self.real.bind(*({name: on_host(b) for name, b in side.items()} for side in (inputs, outputs)))
        runtime, main = self.device.cuda.api, self.device.cuda.stream
        return lambda stream=None: runtime.enqueue(stream or main, run) and None


def on_host(buffer: Buffer) -> OrtBuffer:
    """The memory of a device buffer as ONNX Runtime sees it."""
    assert isinstance(buffer, CudaBuffer)
    raw = buffer.cuda.api.memory[buffer.address]
    view = OrtBuffer.__new__(OrtBuffer)
    view.shape, view.dtype = buffer.shape, buffer.dtype
    view._host = raw.view(buffer.dtype).reshape(buffer.shape)
    import onnxruntime as ort

    view.value = ort.OrtValue.ortvalue_from_numpy(view._host, "cpu", 0)
    return view


class SimulatedBackend:
    def __init__(self, runtime: SimulatedRuntime):
        self.device = CudaDevice(Cuda(runtime))
        self.real = OrtBackend(EngineOptions())

    def computes(self, bundle: Bundle) -> Computing:
        return Computing("simulated CUDA", "host", "f32")

    def load(self, bundle: Bundle, name: str, beside: bool = False) -> SimulatedEngine:
        return SimulatedEngine(self.real.load(bundle, name), self.device)
