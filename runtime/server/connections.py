"""Connections that cost room and ask for nothing: uvicorn's protocols with a bound on each, and its server with an end of
what has none.

uvicorn waits for a first request for ever, and counts who says nothing among its clients; and it answers pings of a client
that reads no answers, into memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol
from uvicorn.server import HANDLED_SIGNALS

FIRST = 20.0  # seconds in which a connection has to ask for something
UNREAD = 16 << 20  # bytes that wait for a client which sends pings; the largest keyframes are smaller


class Http(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """One that has begun a request and does not end its head says nothing either, also after an earlier one."""

    _deadline: asyncio.TimerHandle | None = None

    transport: Any
    cycle: Any

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        """The deadline runs from when there is no request on, until there is one."""
        if not self._idle():
            if self._deadline is not None:
                self._deadline.cancel()
            self._deadline = None
        elif self._deadline is None:
            self._deadline = asyncio.get_running_loop().call_later(FIRST, self._late)

    def _idle(self) -> bool:
        if self.transport.is_closing() or self.transport.get_protocol() is not self:  # gone, or a WebSocket's by now
            return False
        return self.cycle is None or self.cycle.response_complete

    def _late(self) -> None:
        self._deadline = None
        if self._idle():
            self.transport.close()


class Web(uvicorn.Server):
    """uvicorn waits for answers that are on, for some seconds, before it tells the application to end: what never ends by
    itself (`app.state.endless`, called in the event loop) is ended before. A second Ctrl-C ends that waiting; uvicorn's own
    leaves the application's end out with it. `signals` are what came, for who runs it: raised again inside the event loop,
    as uvicorn does, they cut through that end too."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in HANDLED_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def signals(self) -> list[int]:
        return self._captured_signals

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for end in getattr(self.config.app.state, "endless", ()):  # type: ignore[union-attr]
            end()
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()


class Socket(AutoWebSocketsProtocol):  # type: ignore[misc, valid-type]
    def handle_ping(self, *event: Any) -> None:
        if self.transport.get_write_buffer_size() > UNREAD:
            self.transport.abort()
        else:
            super().handle_ping(*event)
