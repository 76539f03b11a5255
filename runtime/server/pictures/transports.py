"""How frames reach screens: fragmented MP4 over WebSocket, HLS, Motion JPEG, and a still; WebRTC is in `whep.py`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, HTTPException, Request, WebSocket
from fastapi.responses import Response, StreamingResponse

from ..answers import plain
from ..guard import ANYWHERE, FRESH, Problem, Told, same_origin
from ..service import Service
from .channel import Queue
from .connection import Connection
from .fmp4 import Fragment
from .hls import answer
from .screens import MAX_VIEWERS

MAX_JPEGS = 50
PLAYERS, CONFIGURED = Told(), Told()  # of screens: a crowd of others keeps no configured one's reason from the log


class Live:
    """The event loop's side of the channel: fragments to viewers' queues, frames to MJPEG's."""

    def __init__(self, service: Service):
        self.service = service
        self.queues: dict[Queue, asyncio.Event] = {}
        self.jpegs = 0  # viewers of Motion JPEG
        self.ending = False
        self.loop = asyncio.get_running_loop()
        self.epoch = service.channel.epoch
        self.tick = asyncio.Event()  # set at the next frame, and replaced
        service.channel.fragments.append(self._from_channel)
        service.channel.frames.append(self._frame)

    def end(self) -> None:
        """Nobody waits for the next frame any more: the server is about to stop."""
        self.ending = True
        self._next_frame()

    def _frame(self, _: Any) -> None:
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._next_frame)

    def _next_frame(self) -> None:
        old, self.tick = self.tick, asyncio.Event()
        old.set()

    def _from_channel(self, epoch: int, fragment: Fragment) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._publish, epoch, fragment)

    def _publish(self, epoch: int, fragment: Fragment) -> None:
        self.epoch = epoch
        for queue, event in self.queues.items():
            self.service.metrics.dropped.inc(queue.put(fragment))
            event.set()


def transport_routes(service: Service) -> APIRouter:
    """Every way to see the stream. The application's state holds its `Live` once it runs."""
    routes = APIRouter()

    @routes.get("/api/snapshot.png", response_class=Response, responses={200: {"content": {"image/png": {}}}})
    async def snapshot() -> Response:
        """What is shown now."""
        return Response(await asyncio.to_thread(service.channel.png), media_type="image/png", headers=FRESH)

    @routes.websocket("/ws/video")
    async def watch(socket: WebSocket, screen: str = "", preview: bool = False, via: str = "", why: str = "") -> None:
        """Fragmented MP4: a JSON greeting, the initialisation segment, then a fragment a message, the first a keyframe. The
        page reports {"shown", "buffered", "visible"} every two seconds and may be told {"type": "reload"}. Where the
        greeting says "via": "webrtc", the page fetches the picture by /whep and nothing but words comes here. why: the
        reason for which a page did not take the way that it should have."""
        if not same_origin(socket, service.config.server):
            return await socket.close(1008)
        viewer = service.screens.join(screen[:64] or "unnamed", not preview, via)
        if viewer is None:
            PLAYERS.once(f"refused: {MAX_VIEWERS} pages watch already; others show HLS or Motion JPEG")
            return await socket.close(1013)
        if why:
            tell_why(viewer.screen.name, why, service)
        try:
            await socket.accept()
            await Connection(socket, viewer, service, socket.app.state.live).serve()
        finally:
            service.viewers.leave(viewer)

    upgrade: dict[int | str, dict[str, Any]] = {426: {"model": Problem, "description": "Not a WebSocket"}}

    @routes.get("/ws/video", status_code=426, response_model=Problem, responses=upgrade)
    async def no_socket(request: Request, response: Response) -> Problem:
        """Where a proxy takes the Upgrade off a WebSocket's request, which the log tells. Pages ask for it too, to learn
        whether it is the server that does not answer."""
        response.headers.update(ANYWHERE | {"Upgrade": "websocket"})
        why = "a request for the video's WebSocket came without Upgrade: a proxy has to pass Upgrade and Connection on"
        if "sec-websocket-key" in request.headers:
            PLAYERS.once(f"refused: {why}")
        return Problem(detail=why)

    @routes.get(
        "/video.mjpeg", response_class=Response, responses={200: {"content": {"multipart/x-mixed-replace": {}}}}
    )
    async def mjpeg(request: Request) -> Response:
        """Motion JPEG, for whatever plays nothing better."""
        live: Live = request.app.state.live
        if live.jpegs >= MAX_JPEGS:
            raise HTTPException(503, f"{MAX_JPEGS} viewers of Motion JPEG already")
        kind = "multipart/x-mixed-replace; boundary=frame"
        return StreamingResponse(jpegs(live), media_type=kind, headers=FRESH)

    @routes.get("/hls/{name}", response_class=Response, responses={404: {"model": Problem}})
    async def hls(name: str) -> Response:
        """HLS: live.m3u8, a sliding window of segments, and what it names."""
        data = service.channel.hls.file(name)
        if data is None:
            raise HTTPException(404, f"{name[:60]!r}: not there (any more, or yet)")
        return answer(name, data)

    return routes


def tell_why(screen: str, why: str, service: Service) -> None:
    """In the log: why a page did not take the way to the picture that it should have."""
    told = CONFIGURED if screen in service.screens.views else PLAYERS
    told.once(f"screen {plain(screen, 64)!r}: {plain(why, 200)}")


async def jpegs(live: Live) -> AsyncIterator[bytes]:
    """Every frame that the reader keeps up with, until the server stops."""
    live.jpegs += 1
    try:
        while not live.ending:
            data = await asyncio.to_thread(live.service.channel.jpeg)
            yield (
                f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data + b"\r\n"
            )
            await live.tick.wait()
    finally:
        live.jpegs -= 1
