"""One address for all streams of a fleet."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException
from fastapi.responses import Response

from ..config import Server
from ..guard import FRESH, Guard, changing_routes
from ..orders.playlist import Change
from ..pictures.hls import answer
from .actors import Fleet


def create_gateway(fleet: Fleet, server: Server, token: str) -> FastAPI:
    """One address for all streams."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(fleet.stop)

    app = FastAPI(
        title="Everframe fleet",
        version="1",
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(Guard, server=server)
    changing = changing_routes(app, token, server.rate)
    app.include_router(stream_routes(fleet, changing))
    return app


def stream_routes(fleet: Fleet, changing: dict[str, Any]) -> APIRouter:
    """What the gateway passes on to the streams."""
    routes = APIRouter()

    @routes.get("/api/streams")
    async def streams() -> dict[str, Any]:
        """Every stream's state, and on which node it runs; null where it does not answer."""

        return {name: None if isinstance(found, HTTPException) else found for name, found in (await asked()).items()}

    async def asked() -> dict[str, dict[str, Any] | HTTPException]:
        async def one(name: str) -> Any:
            try:
                return await fleet.ask(name, "state")
            except HTTPException as error:
                return error

        states = await asyncio.gather(*(one(name) for name in fleet.actors))
        return dict(zip(fleet.actors, states, strict=True))

    @routes.get("/api/streams/{name}")
    async def state(name: str) -> dict[str, Any]:
        """One stream's state."""
        return await fleet.ask(name, "state")

    @routes.post("/api/streams/{name}/prompt", **changing)
    async def prompt(name: str, change: Change) -> Change:
        """Change a stream's prompt."""
        return await fleet.ask(name, "prompt", change)

    @routes.get("/streams/{name}/snapshot.png", response_class=Response)
    async def snapshot(name: str) -> Response:
        """What a stream shows now."""
        return Response(await fleet.ask(name, "snapshot"), media_type="image/png", headers=FRESH)

    @routes.get("/streams/{name}/hls/{file}", response_class=Response)
    async def hls(name: str, file: str) -> Response:
        """A stream as HLS, from live.m3u8 on."""
        data = await fleet.ask(name, "hls", file)
        if data is None:
            raise HTTPException(404, f"{file[:60]!r}: not there (any more, or yet)")
        return answer(file, data)

    @routes.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """degraded: a stream does not answer, or is not running; and why."""
        bad = []
        for name, found in (await asked()).items():
            if isinstance(found, HTTPException):
                bad.append(str(found.detail))
            elif not found["ready"]:
                bad.append(": ".join(filter(None, (f"stream {name!r}", found["generator"], found["why"]))))
        return {"status": "degraded" if bad else "ok", "problems": bad}

    return routes
