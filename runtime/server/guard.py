"""What stands before every route: host names, sizes, HEAD, headers of answers; the token and the rate of changes."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import threading
import time
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..overlay.layer import LARGEST_FILE
from .addresses import LOOPBACK, asked_name, in_url, is_loopback
from .answers import plain, refusals
from .config import Server

log = logging.getLogger(__name__)

MAX_BODY = 256 << 10  # bytes of a request
LARGER = {"/api/overlay/logo": LARGEST_FILE}  # of one that says its length, whose body is read when the token is right
BODY, SLOWEST = 60.0, 16 << 10  # seconds that it may take, and bytes a second beyond these
MAX_TOLD, DAY = 100, 86400.0  # lines of one kind within a day
FRESH = {"Cache-Control": "no-store"}
ANYWHERE = {"Access-Control-Allow-Origin": "*"}  # a page in a sandboxed frame has no origin, and asks too
POLICY = (
    "default-src 'self'; media-src 'self' blob:; img-src 'self' blob: data:; "
    "connect-src 'self' ws: wss:; frame-ancestors {ancestors}; base-uri 'none'; form-action 'none'"
)
SECURITY = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}

BEARER = HTTPBearer(auto_error=False, description="The token of the configuration, or of state_dir/token.")


class Problem(BaseModel):
    """What every refused request says."""

    detail: Any


def allowed_hosts(host: str, named: list[str]) -> set[str] | None:
    """Names that a request may ask for; None: any. Guards a loopback server against pages that rebind their name to it."""
    if "*" in named or (not is_loopback(host) and not named):
        return None
    own = {in_url(host.lower())} if is_loopback(host) else set()
    return {*LOOPBACK, *own, *named}


def headers_of(server: Server) -> list[tuple[bytes, bytes]]:
    """What every answer carries."""
    ancestors = "*" if "*" in server.embed else " ".join(["'self'", *server.embed])
    found = {"content-security-policy": POLICY.format(ancestors=ancestors), **SECURITY}
    return [(name.encode(), value.encode()) for name, value in found.items()]


def changing_routes(app: FastAPI, token: str, rate: float) -> dict[str, Any]:
    """What every route that changes something is declared with: the token, the rate, and their answers. What is refused
    becomes 422 in the whole application."""
    rates, wrong = Rates(rate), Rates(rate)
    refusals(app)

    def may_change(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]
    ) -> None:
        right = credentials is not None and hmac.compare_digest(credentials.credentials.encode(), token.encode())
        # Behind a proxy everybody may have one address: who guesses must not lock out who knows.
        address = request.client.host if request.client else ""
        wait = (rates if right else wrong).wait(address)
        if wait > 0:
            raise HTTPException(429, "too many requests", {"Retry-After": str(int(wait) + 1)})
        if not right:
            raise HTTPException(401, "the bearer token is missing or wrong", {"WWW-Authenticate": "Bearer"})

    return {
        "dependencies": [Depends(may_change)],
        "responses": {
            401: {"model": Problem, "description": "No bearer token, or a wrong one"},
            413: {"model": Problem, "description": "Larger than 256 KiB, a logo than 8 MiB"},
            422: {"model": Problem, "description": "Not what the schema says, or a prompt that the bank does not have"},
            429: {"model": Problem, "description": "Too many requests from this address"},
        },
    }


class Rates:
    """A token bucket for every address: `rate` requests a second, bursts of twice that."""

    def __init__(self, rate: float):
        self.rate, self.burst = rate, max(1.0, 2 * rate)
        self._buckets: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()  # routes ask in the threads of a pool

    def wait(self, address: str) -> float:
        """Seconds until the next request is allowed; 0: this one is. Any thread."""
        with self._lock:
            now = time.monotonic()
            level, then = self._buckets.pop(address, (self.burst, now))
            level = min(self.burst, level + (now - then) * self.rate)
            allowed = level >= 1
            self._buckets[address] = (level - 1 if allowed else level, now)  # newest last
            while len(self._buckets) > 1000:
                del self._buckets[next(iter(self._buckets))]
        return 0.0 if allowed else (1 - level) / self.rate


class Guard:
    """Host names, sizes of requests, HEAD, and headers of answers."""

    def __init__(self, app: ASGIApp, server: Server):
        self.app, self.hosts, self.headers = app, allowed_hosts(server.host, server.hosts), headers_of(server)
        self.told = Told()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {k.lower(): v for k, v in scope["headers"]}
        name = asked_name(headers.get(b"host", b"").decode("latin-1"))
        if self.hosts is not None and name not in self.hosts:
            why = f"host {plain(name, 100)!r} is not served here: see server.hosts"
            self.told.once(f"refused: {why} (a reverse proxy has to pass the Host that the browser sent)")
            return await self._refuse(scope, receive, send, 400, why)
        if scope["type"] == "websocket":
            return await self.app(scope, receive, send)
        length, most = headers.get(b"content-length", b"0"), LARGER.get(scope["path"], MAX_BODY)
        if not length.isdigit() or len(length) > 20 or int(length) > most:
            return await self._refuse(scope, receive, send, 413, f"larger than {most >> 10} KiB")
        receive, answered = _in_time(receive, int(length) or MAX_BODY), False

        async def dressed(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                message = {**message, "headers": [*message.get("headers", []), *self.headers]}
            await send(message)

        try:
            if b"transfer-encoding" in headers:  # no length to believe: read it all first, up to the limit
                body = await _whole(receive)
                if body is None:
                    return await self._refuse(scope, receive, send, 413, f"larger than {MAX_BODY >> 10} KiB")
                receive = _replayed(body, receive)
            if scope["method"] == "HEAD":
                return await _without_body(self.app, scope, receive, dressed)
            await self.app(scope, receive, dressed)
        except HTTPException as error:  # of a body that was read here; those of routes are answered there
            await JSONResponse({"detail": error.detail}, error.status_code, error.headers)(scope, receive, send)
        except ClientDisconnect:  # in the middle of a body: nobody is there to be answered
            if not answered:
                await self._refuse(scope, receive, send, 400, "the body is not whole")

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, status: int, why: str) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": why[:100]})
        else:
            await JSONResponse({"detail": why}, status)(scope, receive, send)


class Told:
    """Lines of the log about things that come with every request of a wrong setup: each once a day, and not more of them
    than somebody reads. Whoever makes up others uses up a day's lines, not those of the weeks after."""

    def __init__(self) -> None:
        self._lines: dict[str, float] = {}

    def once(self, line: str, now: float | None = None) -> None:
        now = time.monotonic() if now is None else now
        while self._lines and now - next(iter(self._lines.values())) > DAY:
            del self._lines[next(iter(self._lines))]
        if line not in self._lines and len(self._lines) < MAX_TOLD:
            self._lines[line] = now
            log.warning("%s", line)


ORIGINS = Told()


def same_origin(socket: WebSocket, server: Server) -> bool:
    """Whether a WebSocket was opened by one of our own pages, or by something that is no browser; by its own Host, or by
    an origin that `server.origins` says is ours. Where pages may be embedded, also by one in a sandboxed frame, which has
    no origin."""
    origin, host = socket.headers.get("origin"), socket.headers.get("host", "")
    if origin is None or origin.partition("://")[2].lower() == host.lower() or (origin == "null" and server.embed):
        return True
    if origin.lower() in server.origins:
        return True
    ORIGINS.once(
        f"refused: a WebSocket of a page from origin {plain(origin, 100)!r}, asked for as host {plain(host, 100)!r}: a "
        "reverse proxy has to pass the browser's Host unchanged, with its port, or server.origins names that origin"
    )
    return False


def _in_time(receive: Receive, length: int) -> Receive:
    """A body of so many bytes that is slower than SLOWEST, with some patience, does not come: 408, and the connection's
    end."""
    until, whole = time.monotonic() + BODY + length / SLOWEST, False

    async def received() -> Message:
        nonlocal whole
        if whole:  # whether the client is still there: for as long as the answer takes
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
        except TimeoutError:
            raise HTTPException(408, "the body has not come", {"Connection": "close"}) from None
        whole = not message.get("more_body", False)
        return message

    return received


async def _whole(receive: Receive) -> bytes | None:
    """A body, unless it is too large. Raises ClientDisconnect where its end does not come."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        size, more = size + len(parts[-1]), message.get("more_body", False)
        if size > MAX_BODY:
            return None
    return b"".join(parts)


def _replayed(body: bytes, rest: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return waiting.pop() if waiting else await rest()

    return receive


async def _without_body(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """A HEAD request: what GET answers, up to its body, which may never end."""
    begun = asyncio.Event()

    async def head(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            begun.set()

    answering = asyncio.ensure_future(app({**scope, "method": "GET"}, receive, head))
    enough = asyncio.ensure_future(begun.wait())
    try:
        await asyncio.wait((answering, enough), return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            answering.result()  # or its exception
    finally:
        for task in (answering, enough):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
