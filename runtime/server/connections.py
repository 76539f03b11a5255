"""Connections that cost room and ask for nothing: uvicorn's protocols with a bound on each.

uvicorn waits for a first request for ever, and counts who says nothing among its clients; and it answers pings of a client
that reads no answers, into memory.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol

FIRST = 20.0  # seconds in which a connection has to ask for something
UNREAD = 16 << 20  # bytes that wait for a client which sends pings; the largest keyframes are smaller


class Http(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        asyncio.get_running_loop().call_later(FIRST, self._late, cast(Any, transport))

    def _late(self, transport: Any) -> None:
        asked = getattr(self, "cycle", None) is not None or transport.get_protocol() is not self  # a WebSocket's by now
        if not asked and not transport.is_closing():
            transport.close()


class Socket(AutoWebSocketsProtocol):  # type: ignore[misc, valid-type]
    def handle_ping(self, *event: Any) -> None:
        if self.transport.get_write_buffer_size() > UNREAD:
            self.transport.abort()
        else:
            super().handle_ping(*event)
