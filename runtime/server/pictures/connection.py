"""One page's connection: what it is sent, and what it says."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import time
from typing import TYPE_CHECKING, Any

from fastapi import WebSocket, WebSocketDisconnect

from ..orders.overlay_api import overlay_news
from ..service import Service
from .channel import Queue
from .screens import picture_of
from .viewers import Viewer

if TYPE_CHECKING:
    from .transports import Live

PICTURE = 60.0  # seconds between a screen's pictures of what it shows, by which a dark one is found
LOOK = 0.5  # seconds between looks at what lies above the picture
CLOCK = 60.0  # seconds after which a page with a ticker hears the server's time again


class Connection:
    """A page and the tasks that serve it, until it leaves, says nothing any more, or has to begin anew."""

    def __init__(self, socket: WebSocket, viewer: Viewer, service: Service, live: Live):
        self.socket, self.viewer, self.service, self.live = socket, viewer, service, live
        self.queue, self.news = Queue(4 * service.channel.fps), asyncio.Event()
        self.epoch, self.encoder = service.channel.epoch, service.channel.encoder
        self.wanted = 0  # pictures of itself that the page was asked for and has not sent

    async def serve(self) -> None:
        works = (self.send, self.listen, self.judge, self.lay, self.relay, self.look)
        tasks = [asyncio.create_task(work()) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                with contextlib.suppress(WebSocketDisconnect, RuntimeError, ValueError, KeyError, TimeoutError):
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            self.live.queues.pop(self.queue, None)
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self.socket.close(1012), 2)

    async def send(self) -> None:
        """A greeting, the initialisation segment, then the fragments as they come; where these come by WebRTC the greeting
        alone."""
        channel, viewer = self.service.channel, self.viewer
        width, height = channel.size
        view = self.service.screens.views.get(viewer.screen.name) if viewer.judged else None
        greeting = {"type": "init", "mime": self.encoder.mime, "fps": channel.fps, "width": width, "height": height}
        greeting |= {"via": viewer.via, "view": view.model_dump(exclude_defaults=True) if view else {}}
        await self.socket.send_json(greeting)
        if viewer.via == "webrtc":
            await asyncio.Event().wait()  # until the page leaves
        await self.socket.send_bytes(self.encoder.init)
        self.live.queues[self.queue] = self.news
        while self.live.epoch == self.epoch:
            await self.news.wait()
            self.news.clear()
            for data in self.queue.take():
                await self.socket.send_bytes(data)

    async def listen(self) -> None:
        """Reports, questions after the clock, pictures of what the screen shows."""
        while True:
            told = await self.socket.receive_json()
            if not isinstance(told, dict):
                continue
            if "picture" in told:
                if not self.wanted:
                    continue
                self.wanted = 0
                picture = await asyncio.to_thread(picture_of, told["picture"])
                if picture is not None and self.viewer.judged:
                    self.service.screens.take_picture(self.viewer.screen.name, picture)
                continue
            hear(told, self.viewer, self.service)
            if "ping" in told:
                media, at = self.service.channel.media()
                pong = {"type": "pong", "ping": _number(told["ping"]), "media": media + time.monotonic() - at}
                await self.socket.send_json(pong)

    async def judge(self) -> None:
        """A page whose picture stands still is told to load anew."""
        while True:
            await asyncio.sleep(1)
            word = self.viewer.word(time.monotonic())
            if word == "gone":
                self.service.metrics.silent.inc()
                return
            if word == "reload":
                self.service.metrics.reloads.inc()
                self.service.viewers.reload(self.viewer, time.monotonic())
                await asyncio.wait_for(self.socket.send_json({"type": "reload"}), 5)

    async def lay(self) -> None:
        """What lies above the picture, whenever it changes; and now and then, for the clock that a ticker runs by."""
        told, when = None, 0.0
        while True:
            found, now = overlay_news(self.service, dt.datetime.now(dt.UTC)), time.monotonic()
            if found != told or (found["ticker"] is not None and now - when > CLOCK):
                await self.socket.send_json(found | {"now": time.time()})
                told, when = found, now
            await asyncio.sleep(LOOK)

    async def relay(self) -> None:
        """What the operator has for this screen."""
        while True:
            order = await self.viewer.orders.get()
            self.wanted += order["type"] == "picture"
            await self.socket.send_json(order)

    async def look(self) -> None:
        """Ask a screen for a picture of what it shows, now and then."""
        while True:
            await asyncio.sleep(PICTURE)
            if self.viewer.judged and self.viewer.visible:
                self.viewer.orders.put_nowait({"type": "picture"})


def hear(told: dict[str, Any], viewer: Viewer, service: Service) -> None:
    """A page's report."""
    shown, buffered = (_number(told.get(name)) for name in ("shown", "buffered"))
    skew = told.get("skew")
    late = round(skew, 1) if isinstance(skew, int | float) and -1e6 < skew < 1e6 else None  # NaN is not
    viewer.report(int(shown), min(buffered, 30.0), bool(told.get("visible", True)), time.monotonic(), late)
    if viewer.judged:
        service.screens.heard(viewer.screen.name)


def _number(value: Any) -> float:
    """A number of a page's report; 0 for anything else."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and 0 <= value < 1e15 else 0.0
