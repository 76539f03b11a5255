"""Chunks on a GPU: passes in a row on two streams, recorded once as a CUDA graph so that a chunk is one launch."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any, Protocol

from .base import Launch
from .cuda import Cuda, CudaBuffer, free_with, memory_of
from .errors import RunError, UserError

try:
    import nvtx  # type: ignore[import-not-found]
except ImportError:
    nvtx = None


class Pass(Protocol):
    """What CUDA can put into a chain: something that enqueues itself on the stream it is given."""

    def __call__(self, stream: Any = None) -> None: ...


class CudaDevice:
    overlaps = True

    def __init__(self, cuda: Cuda):
        self.cuda = cuda
        # Whose memory is free still, and wanted at the first run. Weakly: a cycle would keep it on the card.
        self.workspaces: weakref.WeakSet[Workspace] = weakref.WeakSet()

    def free(self) -> int | None:
        return memory_of(self.cuda.api)[0] - sum(one.promised() for one in self.workspaces)

    def zeros(self, shape: Sequence[int], dtype: str) -> CudaBuffer:
        return CudaBuffer(self.cuda, shape, dtype)

    def wait(self) -> None:
        self.cuda.wait()

    def chain(self, passes: Sequence[Callable[[], None]], beside: Sequence[Callable[[], None]] = ()) -> Launch:
        return CudaLaunch(self.cuda, passes, beside)


class Workspace:
    """Scratch memory of engines that never run at the same time: one piece, as large as the largest of them wants."""

    def __init__(self, device: CudaDevice):
        self.device, self.size = device, 0
        self._piece: CudaBuffer | None = None
        device.workspaces.add(self)

    def promised(self) -> int:
        """Bytes that will be taken at the next run."""
        return max(0, self.size - (0 if self._piece is None else self._piece.bytes))

    def reserve(self, size: int) -> None:
        self.size = max(self.size, size)

    def take(self) -> CudaBuffer:
        """The memory, as it is: clearing it would be the main stream's work, and who takes it may run on the other already.
        Who took an earlier, smaller piece keeps it."""
        if self._piece is None or self._piece.bytes < self.size:
            self._piece = CudaBuffer(self.device.cuda, (self.size,), "uint8", clear=False)
        return self._piece


def new_event(owner: object, cuda: Cuda) -> Any:
    """An event that goes with its owner."""
    event = cuda.call("cudaEventCreateWithFlags", cuda.api.cudaEventBlockingSync)  # who waits for it sleeps
    free_with(owner, cuda, "cudaEventDestroy", event)
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
    that a chunk is one launch, for every variant; plainly for ever where capture fails (`why_not` says why).
    """

    def __init__(self, cuda: Cuda, passes: Sequence[Callable[[], None]], beside: Sequence[Callable[[], None]] = ()):
        self.cuda = cuda
        self._main = _Lane(cuda, cuda.stream, passes)
        self._side = _Lane(cuda, cuda.beside, beside) if beside else None
        # Order between the streams, inside a graph too: no timing, no meaning outside.
        self._fork, self._join = (new_event(self, cuda) for _ in range(2))
        self.graphs: dict[int, Any] = {}  # by the variant
        self.why_not: str | None = None
        self._runs = 0
        self._done: list[float] | None = None

    def start(self, variant: int = 0) -> None:
        if self._runs and variant not in self.graphs and self.why_not is None:
            self._record(variant)
        with named("chunk"):
            if variant in self.graphs:
                self.cuda.call("cudaGraphLaunch", self.graphs[variant], self.cuda.stream)
            else:
                self._enqueue(0)
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

    def _record(self, variant: int) -> None:
        cuda, api = self.cuda, self.cuda.api
        for one in (*self._main.passes, *(self._side.passes if self._side else ())):
            self.why_not = getattr(one, "why_not_recorded", lambda: None)()
            if self.why_not:
                return
        mode = api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        collecting = gc.isenabled()
        if not self.graphs:
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
                kinds = api.cudaGraphInstantiateFlags
                flags = int(kinds.cudaGraphInstantiateFlagUseNodePriority)  # else the streams' priorities are lost
                ready = cuda.call("cudaGraphInstantiate", recorded, flags)
            finally:
                cuda.call("cudaGraphDestroy", recorded)
            free_with(self, cuda, "cudaGraphExecDestroy", ready)
            cuda.call(
                "cudaGraphUpload", ready, cuda.stream
            )  # what the card has no room for shows here, not in a launch
            self.graphs[variant] = ready
        except (UserError, RunError) as error:
            self.why_not = str(error)
        finally:
            if collecting:
                gc.enable()


def named(name: str) -> AbstractContextManager[Any]:
    """An NVTX range, for Nsight Systems; nothing where the package nvtx is not installed."""
    return contextlib.nullcontext() if nvtx is None else nvtx.annotate(name, domain="everframe")
