"""WebRTC by WHEP (draft-ietf-wish-whep): an SDP offer is posted, the answer comes back, and the video by UDP."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response

from ....engines.errors import UserError
from ..guard import FRESH, Problem
from .channel import Channel
from .fmp4 import Encoder

if TYPE_CHECKING:
    from .webrtc import Peer

SDP = "application/sdp"


def check_webrtc() -> None:
    """Raises UserError where `aiortc` is not installed."""
    try:
        from . import webrtc  # noqa: F401
    except ImportError:
        raise UserError("video.webrtc: needs aiortc: pip install 'everframe[webrtc]'") from None


class Peers:
    """Viewers by WebRTC. most: at a time; 0: it is off. Used on the event loop's thread."""

    def __init__(self, channel: Channel, most: int):
        self._fps, self._most = channel.fps, most
        self._peers: dict[str, tuple[Peer, bool]] = {}  # by name; with what is burned in, or without
        self._works: dict[str, asyncio.Task[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self.lost: Callable[[int], None] = lambda frames: None  # is told of what viewers do not get
        if most:
            channel.bare.append(self._from_channel)

    def __len__(self) -> int:
        return len(self._works)

    def check_room(self) -> None:
        """Raises HTTPException where there is none."""
        if not self._most:
            raise HTTPException(404, "WebRTC is off: see video.webrtc")
        if len(self) >= self._most:
            raise HTTPException(503, f"{self._most} viewers by WebRTC already: see video.webrtc")

    async def join(self, offer: str, burned: bool) -> tuple[str, str]:
        """A name for the new viewer, and the answer to its offer. Raises UserError, and HTTPException where there is no
        room."""
        self.check_room()
        from .webrtc import Peer

        self._loop = asyncio.get_running_loop()
        peer, name = Peer(self._fps), secrets.token_urlsafe(16)
        self._works[name] = asyncio.create_task(self._serve(name, peer))  # it counts from now on
        try:
            answer = await peer.answer(offer)
        except BaseException:  # also where the asking viewer has gone meanwhile
            peer.gone.set()
            raise
        self._peers[name] = peer, burned
        return name, answer

    async def leave(self, name: str) -> bool:
        """Whether there was such a viewer."""
        found = self._peers.get(name)
        if found is not None:
            found[0].gone.set()
            await self._works[name]
        return found is not None

    async def close(self) -> None:
        for peer, _ in self._peers.values():
            peer.gone.set()
        await asyncio.gather(*self._works.values())

    async def _serve(self, name: str, peer: Peer) -> None:
        try:
            await peer.gone.wait()
        finally:
            self._peers.pop(name, None)
            with contextlib.suppress(Exception):  # what cannot be closed any more is gone
                await peer.close()
            del self._works[name]

    def _from_channel(self, number: int, plain: Encoder, burned: Encoder) -> None:
        if self._peers and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._publish, number, plain, plain.bare, burned, burned.bare)

    def _publish(self, number: int, plain: Encoder, clean: list[Any], burned: Encoder, laid: list[Any]) -> None:
        for peer, with_overlay in self._peers.values():
            source, frames = (burned, laid) if with_overlay else (plain, clean)
            for frame in frames:
                self.lost(peer.pictures.put(number, source, frame))


def whep_routes(peers: Peers) -> APIRouter:
    """Routes."""
    routes = APIRouter()
    wrong: dict[int | str, dict[str, Any]] = {
        404: {"model": Problem, "description": "WebRTC is off, or no such viewer"},
        422: {"model": Problem, "description": "Not an offer that can be answered"},
        503: {"model": Problem, "description": "As many viewers as the configuration allows"},
    }
    offer = {"requestBody": {"required": True, "content": {SDP: {"schema": {"type": "string"}}}}}

    @routes.post("/whep", status_code=201, response_class=Response, responses=wrong, openapi_extra=offer)
    async def watch(request: Request, overlay: bool = True) -> Response:
        """WHEP: an SDP offer is answered; the viewer ends with DELETE of the Location. overlay: whether what lies above the
        picture is burned in."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != SDP:
            raise UserError(f"content-type: expected {SDP}")
        peers.check_room()
        name, answer = await peers.join((await request.body()).decode("utf-8", "replace"), overlay)
        # Relative to /whep as the browser asked for it, which may be below a path.
        return Response(answer, 201, {**FRESH, "Location": f"whep/{name}"}, SDP)

    @routes.options("/whep", status_code=204)
    async def about() -> Response:
        """What can be posted here."""
        return Response(status_code=204, headers={"Allow": "POST, OPTIONS", "Accept-Post": SDP})

    @routes.delete("/whep/{name}", responses={404: wrong[404]})
    async def leave(name: str) -> None:
        """The viewer goes."""
        if not await peers.leave(name):
            raise HTTPException(404, "no such viewer")

    return routes
