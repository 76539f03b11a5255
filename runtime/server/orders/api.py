"""The control API: what is running, and every order that can be given over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from ...noise import MAX_SEED
from ..guard import Problem
from ..service import Service
from ..survival.logs import Tail
from .playlist import Change, Playlist
from .timetable import Timetable


class Seed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    seed: int = Field(ge=0, le=MAX_SEED)


def order_routes(service: Service, tail: Tail, changing: dict[str, Any]) -> APIRouter:
    """Routes below /api. changing: what routes that change something are declared with."""
    routes = APIRouter()
    add_facts(routes, service, tail, changing)
    add_orders(routes, service, changing)
    return routes


def add_facts(routes: APIRouter, service: Service, tail: Tail, changing: dict[str, Any]) -> None:
    """What is running."""
    reading: dict[str, Any] = {"response_model": dict[str, Any]}

    @routes.get("/api/state", **reading)
    async def state() -> dict[str, Any]:
        """What is running, and how fast."""
        return service.state()

    @routes.get("/api/history", **reading)
    async def history() -> dict[str, Any]:
        """Latency in seconds and real-time factor of the newest chunks, oldest first."""
        pairs = list(service.history)
        return {"seconds": [round(a, 4) for a, _ in pairs], "real_time_factor": [round(b, 3) for _, b in pairs]}

    @routes.get("/api/prompts", **reading)
    def prompts() -> dict[str, Any]:
        """The prompts of the bundle's bank."""
        return {"prompts": service.control.spelling.prompts, "pictures": sorted(service.thumbs.there())}

    @routes.get("/api/prompts/picture.jpg", response_class=Response, responses={404: {"model": Problem}})
    def picture(prompt: Annotated[str, Query(max_length=2000)]) -> Response:
        """A picture of a prompt of the bank, once the stream has shown it for some seconds."""
        data = service.thumbs.read(prompt)
        if data is None:
            raise HTTPException(404, "no such picture (yet)")
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "max-age=600"})

    @routes.get("/api/playlist")
    async def playlist() -> Playlist | None:
        """The playlist that is running; null: none."""
        return service.control.kept.playlist

    @routes.get("/api/schedule")
    async def schedule() -> Timetable:
        """The timetable."""
        return service.control.kept.timetable

    @routes.get("/api/log", **changing)
    async def log_tail(lines: Annotated[int, Query(ge=1, le=500)] = 100) -> dict[str, list[str]]:
        """The newest lines of the log."""
        return {"lines": tail.newest(lines)}


def add_orders(routes: APIRouter, service: Service, changing: dict[str, Any]) -> None:
    """What changes something. In threads: looking a prompt up, and writing the order down, must not hold up the pictures."""

    @routes.post("/api/prompt", **changing)
    def set_prompt(change: Change) -> Change:
        """Change the prompt from the next chunk on; a playlist ends with it."""
        return service.control.set_prompt(change)

    @routes.put("/api/playlist", **changing)
    def set_playlist(playlist: Playlist) -> Playlist | None:
        """Begin a playlist with the next chunk."""
        return service.control.set_playlist(playlist)

    @routes.delete("/api/playlist", status_code=204, **changing)
    def end_playlist() -> None:
        """End the playlist; the prompt stays."""
        visits = service.guests is not None and service.guests.showing  # a wish does not stay; it gives way to what was
        service.control.set_playlist(None, None if visits else service.facts.get("prompt"))

    @routes.post("/api/playlist/next", status_code=204, **changing)
    def next_item() -> None:
        """Go on to the playlist's next item."""
        service.control.skip()

    @routes.put("/api/schedule", **changing)
    def set_schedule(timetable: Timetable) -> Timetable:
        """Replace the timetable; the entry that is current takes effect at once."""
        service.control.set_timetable(timetable)
        return timetable

    @routes.post("/api/seed", **changing)
    def set_seed(seed: Seed) -> Seed:
        """Draw the noise to come from another seed."""
        service.control.set_seed(seed.seed)
        return seed

    @routes.post("/api/pause", status_code=204, **changing)
    def pause() -> None:
        """Stand still, and generate nothing."""
        service.control.pause(True)

    @routes.post("/api/resume", status_code=204, **changing)
    def resume() -> None:
        """Go on."""
        service.control.pause(False)
