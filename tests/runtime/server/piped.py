"""The generator of a server in this process, with a pipe that keeps what it says."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everframe.runtime.server.config import StreamSettings
from everframe.runtime.server.survival.worker import Generator, Job


class Pipe:
    """Hears what is told it, and is gone after so many chunks where `gone` says so."""

    def __init__(self, gone: int | None = None) -> None:
        self.orders: deque[tuple[Any, ...]] = deque()
        self.events: list[tuple[str, str]] = []
        self.chunks: list[tuple[dict[str, Any], np.ndarray]] = []
        self.gone = gone

    def send(self, message: tuple[Any, ...]) -> None:
        kind, *values = message
        if kind == "event":
            self.events.append((values[0], values[1]))
        elif kind == "chunk":
            if len(self.chunks) == self.gone:
                raise BrokenPipeError
            self.chunks.append((values[0], np.empty(0, np.uint8)))

    def send_bytes(self, data: memoryview) -> None:
        facts, _ = self.chunks[-1]
        self.chunks[-1] = facts, np.frombuffer(bytes(data), np.uint8).reshape(facts["frames"])

    def poll(self, seconds: float) -> bool:
        return bool(self.orders)

    def recv(self) -> tuple[Any, ...]:
        return self.orders.popleft()


def generator(pipe: Pipe, bundle: Path, state: Path, **settings: Any) -> Generator:
    fixed = {"bundle": bundle, "threads": 1, "verify": False, "save_seconds": 0}
    return Generator(pipe, Job(StreamSettings(**fixed | settings), state))  # type: ignore[arg-type]


def next_one_broken(running: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    made = running.stream.next_chunk

    def broken() -> Any:
        monkeypatch.setattr(running.stream, "next_chunk", made)
        chunk = made()
        chunk.latent[:] = np.nan
        return chunk

    monkeypatch.setattr(running.stream, "next_chunk", broken)
