"""The overlay over HTTP: as pictures for the pages, and orders."""

from __future__ import annotations

import asyncio
import datetime as dt
import io
from collections import OrderedDict
from typing import Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from PIL import Image

from ...overlay.draw import PAGE, strip_place
from ...overlay.layer import Layer
from ...overlay.parts import Message, Overlay
from ..guard import ANYWHERE, FRESH
from ..service import Service
from .overlays import Overlays

KEPT = 8  # pictures for pages
HEIGHTS = (360, 720, PAGE, 2160)  # that it is drawn at for pages
PNG: dict[str, Any] = {"response_class": Response, "responses": {200: {"content": {"image/png": {}}}}}


def overlay_routes(service: Service, changing: dict[str, Any]) -> APIRouter:
    """Routes. changing: what routes that change something are declared with."""
    routes = APIRouter()
    add_pictures(routes, service)
    add_orders(routes, service.overlays, changing)
    return routes


def add_pictures(routes: APIRouter, service: Service) -> None:
    """What pages lay above the video."""

    drawing = asyncio.Lock()  # one at a time: anybody may ask
    made: OrderedDict[tuple[object, ...], bytes] = OrderedDict()

    async def picture(height: int, kind: str) -> Response:
        g, layer, now = service.geometry, service.overlays.layer, dt.datetime.now(dt.UTC)
        tall = next((one for one in HEIGHTS if one >= height), HEIGHTS[-1])
        size = round(tall * g.width / g.height), tall
        key = id(layer), service.overlays.version, kind, size, layer.face(now) if kind == "still" else ""
        async with drawing:
            if key not in made:
                made[key] = await asyncio.to_thread(png_of, layer, size, now, kind)
                while len(made) > KEPT:
                    made.popitem(last=False)
            return Response(made[key], media_type="image/png", headers=FRESH | ANYWHERE)

    @routes.get("/overlay.png", **PNG)
    async def overlay_picture(height: int = Query(default=1080, ge=1, le=10_000)) -> Response:
        """What lies above the picture, transparent elsewhere, all but the ticker's words."""
        return await picture(height, "still")

    @routes.get("/overlay-ticker.png", **PNG)
    async def ticker_picture(height: int = Query(default=1080, ge=1, le=10_000)) -> Response:
        """The ticker's words in one line."""
        return await picture(height, "ticker")


def add_orders(routes: APIRouter, overlays: Overlays, changing: dict[str, Any]) -> None:
    """What is shown, and what changes it."""

    @routes.get("/api/overlay")
    async def overlay() -> Overlay:
        """What lies above the picture."""
        return overlays.shown()

    @routes.put("/api/overlay", **changing)
    def put_overlay(overlay: Overlay) -> Overlay:
        """Replace it."""
        overlays.put(overlay)
        return overlays.shown()

    @routes.delete("/api/overlay", status_code=204, **changing)
    def reset_overlay() -> None:
        """The configuration's again."""
        overlays.put(None)

    @routes.post("/api/overlay/message", status_code=204, **changing)
    def cover(message: Message) -> None:
        """Cover everything with a message."""
        overlays.tell(message)

    @routes.delete("/api/overlay/message", status_code=204, **changing)
    def uncover() -> None:
        """Show again what the message covers."""
        overlays.tell(None)

    image = {
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/png", "image/svg+xml")}
    }

    @routes.put("/api/overlay/logo", status_code=204, openapi_extra={"requestBody": image}, **changing)
    async def put_logo(request: Request) -> None:
        """Keep a logo, PNG, JPEG, WebP or SVG, and show it."""
        content = await request.body()
        await asyncio.to_thread(overlays.put_logo, content)


def overlay_news(service: Service, now: dt.datetime) -> dict[str, Any]:
    """What a page has to know to show the overlay: `version` changes whenever its pictures do; of the ticker where its
    words stand, as a share of the height, how fast they run, in widths a second, and how long they are, in widths; of a
    message what lies around it where the screen has another shape."""
    overlays = service.overlays
    layer = overlays.layer
    message, ticker, line = layer.overlay.message, layer.overlay.ticker, None
    if ticker is not None and message is None:
        line = {
            "top": strip_place(ticker, PAGE)[0] / PAGE,
            "speed": ticker.speed / 100,
            "width": layer.ticker_share,
            "version": overlays.version,
        }
    return {
        "type": "overlay",
        "version": f"{overlays.version} {layer.face(now)}",
        "shown": not layer.empty,
        "ticker": line,
        "message": None if message is None else {"ground": message.ground[:7]},
    }


def png_of(layer: Layer, size: tuple[int, int], now: dt.datetime, kind: str) -> bytes:
    """The still parts, or the ticker's words, as a file."""
    drawn, out = layer.drawn(size, now), io.BytesIO()
    if kind == "still":
        image = drawn.still()
    else:
        image = Image.new("RGBA", (1, 1)) if drawn.strip is None else Image.fromarray(drawn.strip.pixels, "RGBA")
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()
