"""The web application: routes of all three jobs behind one guard.

Reading is open to whoever reaches the port (loopback by default); everything that changes something wants the bearer token.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, RedirectResponse

from .config import Server
from .guard import ANYWHERE, FRESH, Guard, Problem, Told, changing_routes
from .orders.api import order_routes
from .orders.guest_api import guest_routes
from .orders.overlay_api import overlay_routes
from .pictures.screens_api import screen_routes
from .pictures.transports import Live, transport_routes
from .pictures.whep import whep_routes
from .service import Service
from .survival.health import health_routes, tell_systemd
from .survival.logs import Tail
from .survival.notify import notify

PAGES = Path(__file__).parent / "pages"
KINDS = {".js": "text/javascript", ".css": "text/css"}
# sw.js rules over what is below its place.
PLACES = {"/": "player.html", "/operator": "operator.html", "/sw.js": "sw.js"}
GUEST = {"/guest": "guest.html"}


def create_app(service: Service, token: str, tail: Tail) -> FastAPI:
    """The application. Starting and stopping it starts and stops the service."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.live = live = Live(service)
        app.state.endless = [live.end]
        service.start()
        beat = asyncio.create_task(tell_systemd(service))
        notify("READY=1")
        yield
        if service.another is None:  # systemd is not told of a start within
            notify("STOPPING=1")
        await service.peers.close()
        await asyncio.to_thread(service.stop)  # may take minutes: systemd's watchdog is fed meanwhile
        beat.cancel()

    app = FastAPI(
        title="Everframe",
        version="1",
        openapi_url="/api/openapi.json",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # to an absolute address, which a proxy's path and scheme are not in
        lifespan=lifespan,
        responses={400: {"model": Problem, "description": "Wrong host name"}},
    )
    server = service.config.server
    app.add_middleware(Guard, server=server)
    changing = changing_routes(app, token, server.rate)
    for routes in (
        order_routes(service, tail, changing),
        overlay_routes(service, changing),
        health_routes(service),
        transport_routes(service),
        whep_routes(service.peers),
        screen_routes(service, changing),
        page_routes(PLACES | GUEST if service.guests else PLACES, server),
        *([guest_routes(service.guests, service, changing)] if service.guests else []),
    ):
        app.include_router(routes)
    return app


def page_routes(places: dict[str, str], server: Server) -> APIRouter:
    """The player, the operator's and the visitors' page, and what they load."""
    routes, framed = APIRouter(), Told()
    static = {f"/static/{file.name}": file.name for file in PAGES.iterdir() if file.suffix in KINDS}

    def page(name: str) -> Callable[[Request], Any]:
        async def get(request: Request) -> FileResponse:
            kind = KINDS.get(Path(name).suffix, "text/html")
            strange = request.headers.get("sec-fetch-site", "same-origin") != "same-origin"
            if strange and not server.embed and request.headers.get("sec-fetch-dest") in ("iframe", "frame"):
                framed.once(
                    "a page of another origin shows ours in a frame, which its browser refuses: see server.embed"
                )
            return FileResponse(PAGES / name, media_type=kind, headers=FRESH | ANYWHERE)

        return get

    # Scripts of a page in a sandboxed frame are asked for from no origin; these files are anybody's.
    for path, name in (places | static).items():
        routes.add_api_route(path, page(name), include_in_schema=False)

    def without_slash(path: str) -> Callable[[Request], Any]:
        async def get(request: Request) -> RedirectResponse:
            return RedirectResponse(f"..{path}" + (f"?{request.url.query}" if request.url.query else ""))

        return get

    for path in places.keys() - {"/"}:
        routes.add_api_route(f"{path}/", without_slash(path), include_in_schema=False)
    return routes
