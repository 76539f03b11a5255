"""Buffers in host memory, and chains of passes that run on the CPU beside each other in threads."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from .base import Buffer
from .post import decodes


class HostBuffer:
    """A NumPy array whose address never changes."""

    def __init__(self, shape: Sequence[int], dtype: str):
        self.array = np.zeros(tuple(shape), np.dtype(dtype))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    def write(self, values: np.ndarray) -> None:
        if values.shape != self.shape or values.dtype != self.dtype:
            raise ValueError(f"cannot write {values.dtype} {values.shape} into {self.dtype} {self.shape}")
        self.array[...] = values

    def clear(self) -> None:
        self.array[...] = 0

    def read(self) -> np.ndarray:
        return self.array.copy()

    def write_tokens(self, start: int, values: np.ndarray) -> None:
        self.array[:, :, start : start + values.shape[2]] = values

    def read_tokens(self, start: int, stop: int) -> np.ndarray:
        return self.array[:, :, start:stop].copy()

    def copy_tokens(self, start: int, source: Buffer, begin: int = 0, count: int | None = None) -> None:
        assert isinstance(source, HostBuffer)
        self.write_tokens(start, source.array[:, :, begin:][:, :, :count])

    def copy(self, source: Buffer) -> None:
        assert isinstance(source, HostBuffer)
        self.array[...] = source.array

    def parts(self) -> Iterator[np.ndarray]:
        yield self.array.reshape(-1).view(np.uint8)

    def fetch(self) -> None:
        self._fetched = self.read()

    def fetched(self) -> np.ndarray:
        return self._fetched


class HostDevice:
    """A CPU. threads: what passes may use together. With one, passes side by side take turns.

    Two passes with half of the cores each are faster than one after the other with all: no operator keeps every core busy.
    """

    overlaps = True

    def __init__(self, threads: int):
        self.threads = threads

    def free(self) -> int | None:
        return None

    def zeros(self, shape: Sequence[int], dtype: str) -> HostBuffer:
        return HostBuffer(shape, dtype)

    def wait(self) -> None: ...

    def chain(self, passes: Sequence[Callable[[], None]], beside: Sequence[Callable[[], None]] = ()) -> HostLaunch:
        return HostLaunch(passes, beside, threaded=bool(beside) and self.threads > 1)


def share(threads: int, name: str, beside: bool) -> int:
    """Threads of graph `name`: all, or half of them where it runs beside another; an odd one goes to the passes of the step
    graph, which take longer."""
    if not beside:
        return threads
    half = threads // 2
    return max(1, half if decodes(name) else threads - half)


class HostLaunch:
    """Passes that run in a thread from the start on, or when they are waited for; others beside them, when those are."""

    def __init__(self, passes: Sequence[Callable[[], None]], beside: Sequence[Callable[[], None]], threaded: bool):
        self.passes, self.beside, self.threaded = list(passes), list(beside), threaded
        self._done: list[float] | None = None
        self._started: Future[list[float]] | None = None

    def start(self, variant: int = 0) -> None:
        self._done = None
        self._started = _thread().submit(_timed, self.passes) if self.threaded else None

    def main(self) -> list[float]:
        if self._done is None:
            self._done = self._started.result() if self._started else _timed(self.passes)
        return self._done

    def side(self) -> list[float]:
        return _timed(self.beside)


@functools.cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="passes")


if hasattr(os, "register_at_fork"):  # a forked child has the pool without its threads, and would wait for ever
    os.register_at_fork(after_in_child=_thread.cache_clear)


def _timed(passes: Sequence[Callable[[], None]]) -> list[float]:
    marks = [time.perf_counter()]
    for one in passes:
        one()
        marks.append(time.perf_counter())
    return [after - before for before, after in pairwise(marks)]
