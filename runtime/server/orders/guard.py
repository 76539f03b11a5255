"""What stands before every route: host names, sizes of requests, headers of answers; the token and the rate of changes."""

from __future__ import annotations

import hmac
import time
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ....engines.errors import UserError

MAX_BODY = 256 << 10  # bytes of a request
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
FRESH = {"Cache-Control": "no-store"}
SECURITY = {
    "content-security-policy": "default-src 'self'; media-src 'self' blob:; img-src 'self' blob: data:; "
    "connect-src 'self' ws: wss:; frame-ancestors 'self'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


BEARER = HTTPBearer(auto_error=False, description="The token of the configuration, or of state_dir/token.")


class Problem(BaseModel):
    """What every refused request says."""

    detail: Any


def allowed_hosts(host: str, named: list[str]) -> set[str] | None:
    """Names that a request may ask for; None: any. Guards a loopback server against pages that rebind their name to it."""
    if "*" in named or (host not in (*LOOPBACK, "::1") and not named):
        return None
    return {*LOOPBACK, *(name.lower() for name in named)}


def changing_routes(app: FastAPI, token: str, rate: float) -> dict[str, Any]:
    """What every route that changes something is declared with: the token, the rate, and their answers. Orders that are
    refused (UserError) become 422 in the whole application."""
    rates = Rates(rate)

    def may_change(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]
    ) -> None:
        wait = rates.wait(request.client.host if request.client else "")
        if wait > 0:
            raise HTTPException(429, "too many requests", {"Retry-After": str(int(wait) + 1)})
        if credentials is None or not hmac.compare_digest(credentials.credentials.encode(), token.encode()):
            raise HTTPException(401, "the bearer token is missing or wrong", {"WWW-Authenticate": "Bearer"})

    @app.exception_handler(UserError)
    async def refused(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    return {
        "dependencies": [Depends(may_change)],
        "responses": {
            401: {"model": Problem, "description": "No bearer token, or a wrong one"},
            413: {"model": Problem, "description": "Larger than 256 KiB"},
            422: {"model": Problem, "description": "Not what the schema says, or a prompt that the bank does not have"},
            429: {"model": Problem, "description": "Too many requests from this address"},
        },
    }


class Rates:
    """A token bucket for every address: `rate` requests a second, bursts of twice that."""

    def __init__(self, rate: float):
        self.rate, self.burst = rate, max(1.0, 2 * rate)
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait(self, address: str) -> float:
        """Seconds until the next request is allowed; 0: this one is."""
        now = time.monotonic()
        level, then = self._buckets.pop(address, (self.burst, now))
        level = min(self.burst, level + (now - then) * self.rate)
        allowed = level >= 1
        self._buckets[address] = (level - 1 if allowed else level, now)  # newest last
        while len(self._buckets) > 1000:
            del self._buckets[next(iter(self._buckets))]
        return 0.0 if allowed else (1 - level) / self.rate


class Guard:
    """Host names, sizes of requests, and headers of answers."""

    def __init__(self, app: ASGIApp, hosts: set[str] | None):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {k.lower(): v for k, v in scope["headers"]}
        name = headers.get(b"host", b"").decode("latin-1").lower()
        name = name.rsplit(":", 1)[0] if not name.endswith("]") else name
        if self.hosts is not None and name not in self.hosts:
            return await self._refuse(scope, receive, send, 400, f"host {name!r} is not served here: see server.hosts")
        if scope["type"] == "websocket":
            return await self.app(scope, receive, send)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY:
            return await self._refuse(scope, receive, send, 413, f"larger than {MAX_BODY >> 10} KiB")
        if b"transfer-encoding" in headers:  # no length to believe: read it all first, up to the limit
            parts, more = [], True
            while more:
                message = await receive()
                parts.append(message.get("body", b""))
                more = message.get("more_body", False)
                if sum(map(len, parts)) > MAX_BODY:
                    return await self._refuse(scope, receive, send, 413, f"larger than {MAX_BODY >> 10} KiB")
            waiting: list[Message] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]
            rest = receive

            async def replayed() -> Message:
                return waiting.pop() if waiting else await rest()

            receive = replayed

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(k.encode(), v.encode()) for k, v in SECURITY.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        await self.app(scope, receive, dressed)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, status: int, why: str) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": why})
        else:
            await JSONResponse({"detail": why}, status)(scope, receive, send)
