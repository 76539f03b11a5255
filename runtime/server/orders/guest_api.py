"""The visitors' page over HTTP. What it can do it can do without the token, which is never on it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from ..guard import Problem, Rates
from ..service import Service
from .guests import Guests, WaitError
from .playlist import Text

RATE = 2.0  # requests a second from one address: a whole room may stand behind it
Visitor = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{8,64}$")]


class Wished(BaseModel):
    model_config = ConfigDict(extra="forbid")
    visitor: Visitor  # a name that the page has made up
    prompt: Text


class Verdict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    approve: bool


def guest_routes(guests: Guests, service: Service, changing: dict[str, Any]) -> APIRouter:
    """Routes, where visitors may wish. changing: what routes that want the token are declared with."""
    routes, rates = APIRouter(), Rates(RATE)
    refused: dict[int | str, dict[str, Any]] = {422: {"model": Problem}, 429: {"model": Problem}}

    def told(visitor: str) -> dict[str, Any]:
        pictures = service.thumbs.there()
        return {
            "prompts": [{"prompt": p, "picture": p in pictures} for p in guests.prompts],
            "free_text": guests.settings.free_text,
            "longest": guests.settings.longest,
        } | guests.place(visitor)

    @routes.get("/api/guest", response_model=dict[str, Any])
    def place(visitor: Annotated[Visitor, Query()]) -> dict[str, Any]:
        """What can be wished for, and where the visitor's own wish stands."""
        return told(visitor)

    @routes.post("/api/guest", response_model=dict[str, Any], responses=refused)
    def wish(wished: Wished, request: Request) -> dict[str, Any]:
        """Wish for a prompt."""
        wait = rates.wait(request.client.host if request.client else "")
        if wait > 0:
            raise HTTPException(429, "too many requests", {"Retry-After": str(int(wait) + 1)})
        try:
            guests.wish(wished.visitor, wished.prompt)
        except WaitError as error:
            raise HTTPException(429, str(error), {"Retry-After": str(int(error.seconds) + 1)}) from None
        return told(wished.visitor)

    @routes.delete("/api/guest", status_code=204, **changing)
    def clear() -> None:
        """Forget every wish that is not shown yet."""
        guests.clear()

    @routes.get("/api/guest/waiting", **changing)
    def waiting() -> dict[str, list[dict[str, Any]]]:
        """Free texts that wait for approval."""
        return {"wishes": [{"number": wish.number, "prompt": wish.prompt} for wish in guests.waiting]}

    @routes.post("/api/guest/waiting/{number}", status_code=204, **changing)
    def decide(number: int, verdict: Verdict) -> None:
        """Approve one, or not."""
        guests.decide(number, verdict.approve)

    return routes
