"""Clients that cost room and ask for nothing, over real sockets to uvicorn as `everframe serve` runs it."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from fastapi import FastAPI, Request, WebSocket

from everframe.runtime.server import connections, guard
from everframe.runtime.server.config import Server
from everframe.runtime.server.guard import Guard
from everframe.runtime.server.start import prepare

from serving import wait_for


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a small application behind the guard; who is silent has a second."""
    monkeypatch.setattr(connections, "FIRST", 1.0)
    monkeypatch.setattr(connections, "UNREAD", 1 << 20)
    monkeypatch.setattr(guard, "BODY", 1.0)
    app = FastAPI()
    app.add_middleware(Guard, server=Server(host="127.0.0.1"))

    @app.post("/take")
    async def take(request: Request) -> int:
        return len(await request.body())

    @app.websocket("/ws")
    async def listen(socket: WebSocket) -> None:
        await socket.accept()
        while True:
            await socket.send_text(await socket.receive_text())

    server = prepare(app, Server())
    with socket.create_server(("127.0.0.1", 0)) as bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        wait_for(lambda: server.started)
        yield bound.getsockname()[1]
        server.should_exit = True
        thread.join(20)


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 20)


def asking(length: int) -> bytes:
    return f"POST /take HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()


def answer(s: socket.socket) -> bytes:
    """One that has a body."""
    got = b""
    while not got.partition(b"\r\n\r\n")[2]:
        got += s.recv(1000)
    return got


def frame(kind: int, data: bytes) -> bytes:
    """A masked WebSocket frame, RFC 6455 section 5.2, with a mask of zeros."""
    return bytes([0x80 | kind, 0x80 | len(data)]) + bytes(4) + data


def upgraded(port: int, receiving: int | None = None) -> socket.socket:
    s = socket.socket()
    if receiving is not None:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receiving)
    s.settimeout(20)
    s.connect(("127.0.0.1", port))
    key = base64.b64encode(os.urandom(16)).decode()
    s.sendall(
        f"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    assert s.recv(1000).startswith(b"HTTP/1.1 101")
    return s


def test_who_asks_for_nothing_goes(port: int) -> None:
    with connected(port) as silent, connected(port) as slow:
        slow.sendall(b"GET / HTT")  # a request that does not end
        assert silent.recv(10) == slow.recv(10) == b""


def test_who_has_asked_stays(port: int) -> None:
    with connected(port) as s, upgraded(port) as page:
        for _ in range(4):
            s.sendall(asking(2) + b"ab")
            assert answer(s).endswith(b"2")
            threading.Event().wait(0.5)
        page.sendall(frame(1, b"still here"))
        assert page.recv(100).endswith(b"still here")


def test_a_body_that_does_not_come(port: int) -> None:
    with connected(port) as s:
        s.sendall(asking(100) + b"ten bytes.")
        assert s.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_body_that_is_cut_off_is_no_traceback(port: int, caplog: pytest.LogCaptureFixture) -> None:
    with connected(port) as s:
        s.sendall(asking(100) + b"ten bytes.")
    with connected(port) as s:
        s.sendall(asking(0))
        assert answer(s).endswith(b"0")
    assert "Traceback" not in caplog.text
    assert "Exception" not in caplog.text


def test_pings_whose_answers_are_not_read(port: int) -> None:
    """They are answered into memory; such a client is cut off. One that reads is answered."""
    with upgraded(port) as page:
        page.sendall(frame(9, b"there?"))
        assert page.recv(100) == b"\x8a\x06there?"
    with upgraded(port, receiving=4096) as page:
        sent, many = 0, frame(9, b"x" * 125) * 1000
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while sent < 64 << 20:
                page.sendall(many)
                sent += len(many)
    assert sent < 32 << 20
