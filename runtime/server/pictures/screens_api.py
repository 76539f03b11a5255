"""The screens over HTTP: a list, and what one of them can be told."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi.responses import Response

from ..guard import ANYWHERE, FRESH, Problem
from ..service import Service
from .viewers import Viewer


def screen_routes(service: Service, changing: dict[str, Any]) -> APIRouter:
    """Routes. changing: what routes that change something are declared with."""
    routes, screens = APIRouter(), service.screens
    lost: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "No such screen, or not there now"}}
    ordering = changing | {"responses": changing["responses"] | lost, "status_code": 204}

    def there(name: str) -> Viewer:
        viewer = screens.viewer(name)
        if viewer is None:
            raise HTTPException(404, f"screen {name[:60]!r} is not there")
        return viewer

    @routes.get("/api/screens", response_model=dict[str, Any])
    async def listed() -> dict[str, Any]:
        """Every screen that the configuration names or that was here lately."""
        return {"screens": screens.listed()}

    @routes.get("/api/screens/{name:path}/view", response_model=dict[str, Any])
    async def view(name: str, response: Response) -> dict[str, Any]:
        """What the configuration says of how a screen shows the picture. Asked for every ten seconds by pages that show HLS
        or Motion JPEG and have no connection to report by; they count as there. message: one covers the picture, which is
        to be read whole; life: of the server, another one after a restart."""
        response.headers.update(ANYWHERE)
        found = screens.view(name)
        about = {"life": screens.life, "message": service.overlays.kept.message is not None}
        return about | (found.model_dump(exclude_defaults=True) if found else {})

    @routes.get("/api/screens/{name:path}/picture.jpg", response_class=Response, responses=lost)
    async def picture(name: str) -> Response:
        """What the screen showed when it was last asked."""
        known = screens.known.get(name)
        if known is None or not known.picture:
            raise HTTPException(404, f"screen {name[:60]!r} has sent no picture")
        return Response(known.picture, media_type="image/jpeg", headers=FRESH)

    @routes.post("/api/screens/{name:path}/picture", **ordering)
    async def ask_picture(name: str) -> None:
        """Ask the screen for a picture of what it shows; it comes a moment later."""
        there(name).orders.put_nowait({"type": "picture"})

    @routes.post("/api/screens/{name:path}/reload", **ordering)
    async def reload(name: str) -> None:
        """Load the screen's page anew."""
        there(name).orders.put_nowait({"type": "reload"})

    @routes.delete("/api/screens/{name:path}", **ordering)
    async def forget(name: str) -> None:
        """Take a screen off the list, until it comes again."""
        if not screens.forget(name):
            raise HTTPException(404, f"screen {name[:60]!r} is not known")

    return routes
