"""HTTP and WebSocket: pages, transports, API, health, metrics.

Reading is open to whoever reaches the port (loopback by default); everything that changes something wants the bearer token.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException, Query, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from ..stream import MAX_SEED
from .channel import Queue
from .fmp4 import Fragment
from .guard import Guard, Problem, allowed_hosts, changing_routes
from .logs import Tail
from .notify import notify, watchdog_seconds
from .playlist import Change, Playlist, Timetable
from .service import DEAD_BEAT, Service
from .viewers import Viewer

PAGES = Path(__file__).parent / "pages"
FILES = {
    "player.js": "text/javascript",
    "screen.js": "text/javascript",
    "operator.js": "text/javascript",
    "style.css": "text/css",
}
MAX_VIEWERS, MAX_JPEGS = 200, 50


class Seed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    seed: int = Field(ge=0, le=MAX_SEED)


class Live:
    """The event loop's side of the channel: fragments to viewers' queues, frames to MJPEG's."""

    def __init__(self, service: Service):
        self.service = service
        self.queues: dict[Queue, asyncio.Event] = {}
        self.jpegs = 0  # viewers of Motion JPEG
        self.loop = asyncio.get_running_loop()
        self.epoch = service.channel.epoch
        self.tick = asyncio.Event()  # set at the next frame, and replaced
        service.channel.fragments.append(self._from_channel)
        service.channel.frames.append(self._frame)

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
            queue.put(fragment)
            event.set()


def create_app(service: Service, token: str, tail: Tail) -> FastAPI:
    """The application. Starting and stopping it starts and stops the service."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.live = Live(service)
        service.start()
        beat = asyncio.create_task(_watchdog(service))
        notify("READY=1")
        yield
        notify("STOPPING=1")
        beat.cancel()
        await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="Everframe",
        version="1",
        openapi_url="/api/openapi.json",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        responses={400: {"model": Problem, "description": "Wrong host name"}},
    )
    server = service.config.server
    app.add_middleware(Guard, hosts=allowed_hosts(server.host, server.hosts))
    changing = changing_routes(app, token, server.rate)
    reading: dict[str, Any] = {"response_model": dict[str, Any]}

    # --- state and orders -----------------------------------------------------------------------------------------

    @app.get("/api/state", **reading)
    async def state() -> dict[str, Any]:
        """What is running, and how fast."""
        return service.state()

    @app.get("/api/history", **reading)
    async def history() -> dict[str, Any]:
        """Latency in seconds and real-time factor of the newest chunks, oldest first."""
        pairs = list(service.history)
        return {"seconds": [round(a, 4) for a, _ in pairs], "real_time_factor": [round(b, 3) for _, b in pairs]}

    @app.get("/api/prompts", **reading)
    async def prompts() -> dict[str, Any]:
        """The prompts of the bundle's bank."""
        return {"prompts": service.control.prompts}

    @app.post("/api/prompt", **changing)
    async def set_prompt(change: Change) -> Change:
        """Change the prompt from the next chunk on; a playlist ends with it."""
        return service.control.set_prompt(change)

    @app.get("/api/playlist")
    async def playlist() -> Playlist | None:
        """The playlist that is running; null: none."""
        return service.control.kept.playlist

    @app.put("/api/playlist", **changing)
    async def set_playlist(playlist: Playlist) -> Playlist | None:
        """Begin a playlist with the next chunk."""
        return service.control.set_playlist(playlist)

    @app.delete("/api/playlist", status_code=204, **changing)
    async def end_playlist() -> None:
        """End the playlist; the prompt stays."""
        service.control.set_playlist(None)

    @app.post("/api/playlist/next", status_code=204, **changing)
    async def next_item() -> None:
        """Go on to the playlist's next item."""
        service.control.skip()

    @app.get("/api/schedule")
    async def schedule() -> Timetable:
        """The timetable."""
        return service.control.kept.timetable

    @app.put("/api/schedule", **changing)
    async def set_schedule(timetable: Timetable) -> Timetable:
        """Replace the timetable; the entry that is current takes effect at once."""
        service.control.set_timetable(timetable)
        return timetable

    @app.post("/api/seed", **changing)
    async def set_seed(seed: Seed) -> Seed:
        """Draw the noise to come from another seed."""
        service.control.set_seed(seed.seed)
        return seed

    @app.post("/api/pause", status_code=204, **changing)
    async def pause() -> None:
        """Stand still, and generate nothing."""
        service.control.pause(True)

    @app.post("/api/resume", status_code=204, **changing)
    async def resume() -> None:
        """Go on."""
        service.control.pause(False)

    @app.get("/api/log", **changing)
    async def log_tail(lines: Annotated[int, Query(ge=1, le=500)] = 100) -> dict[str, list[str]]:
        """The newest lines of the log."""
        return {"lines": tail.newest(lines)}

    @app.get("/api/snapshot.png", response_class=Response, responses={200: {"content": {"image/png": {}}}})
    async def snapshot() -> Response:
        """What is shown now."""
        return Response(await asyncio.to_thread(service.channel.png), media_type="image/png", headers=_fresh())

    # --- health -----------------------------------------------------------------------------------------------------

    @app.get("/healthz", responses={503: {"description": "Not healthy"}}, **reading)
    async def healthz(response: Response) -> dict[str, Any]:
        """Whether the server itself works. 200 with status "degraded" where somebody should look at something."""
        dead, notes = service.problems()
        response.status_code = 503 if dead else 200
        return {"status": "unhealthy" if dead else "degraded" if notes else "ok", "problems": dead + notes}

    @app.get("/readyz", responses={503: {"description": "No stream yet, or none at the moment"}}, **reading)
    async def readyz(response: Response) -> dict[str, Any]:
        """Whether a stream is running."""
        response.status_code = 200 if service.ready() else 503
        return {"ready": service.ready(), "generator": service.supervisor.state}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """For Prometheus."""
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    # --- transports ---------------------------------------------------------------------------------------------------

    @app.websocket("/ws/video")
    async def watch(socket: WebSocket, screen: str = "", preview: bool = False) -> None:
        """Fragmented MP4: a JSON greeting, the initialisation segment, then a fragment a message, the first a keyframe. The
        page reports {"shown", "buffered", "visible"} every two seconds and may be told {"type": "reload"}."""
        if not same_origin(socket) or len(service.viewers.watching) >= MAX_VIEWERS:
            await socket.close(1008 if not same_origin(socket) else 1013)
            return
        await socket.accept()
        viewer = service.viewers.join(screen[:64] or "unnamed", not preview, time.monotonic())
        try:
            await serve_viewer(socket, viewer, service, app.state.live)
        finally:
            service.viewers.leave(viewer)

    @app.get("/video.mjpeg", response_class=Response, responses={200: {"content": {"multipart/x-mixed-replace": {}}}})
    async def mjpeg() -> Response:
        """Motion JPEG, for whatever plays nothing better."""
        live: Live = app.state.live
        if live.jpegs >= MAX_JPEGS:
            raise HTTPException(503, f"{MAX_JPEGS} viewers of Motion JPEG already")
        kind = "multipart/x-mixed-replace; boundary=frame"
        return StreamingResponse(jpegs(live), media_type=kind, headers=_fresh())

    @app.get("/hls/live.m3u8", response_class=Response, responses={404: {"model": Problem}})
    async def hls() -> Response:
        """The HLS playlist: a sliding window of segments."""
        text = service.channel.hls.playlist()
        if text is None:
            raise HTTPException(404, "no segment yet")
        return Response(text, media_type="application/vnd.apple.mpegurl", headers=_fresh())

    @app.get("/hls/init.mp4", response_class=Response)
    async def hls_init() -> Response:
        """The segments' initialisation."""
        return Response(service.channel.encoder.init, media_type="video/mp4", headers=_fresh())

    @app.get("/hls/{number}.m4s", response_class=Response, responses={404: {"model": Problem}})
    async def hls_segment(number: int) -> Response:
        """A segment of the window."""
        data = service.channel.hls.segment(number)
        if data is None:
            raise HTTPException(404, f"segment {number} is not in the window")
        return Response(data, media_type="video/iso.segment")

    # --- pages --------------------------------------------------------------------------------------------------------

    def page(name: str, kind: str) -> Callable[[], Any]:
        async def get() -> FileResponse:
            return FileResponse(PAGES / name, media_type=kind, headers=_fresh())

        return get

    for path, name in (("/", "player.html"), ("/operator", "operator.html")):
        app.add_api_route(path, page(name, "text/html"), include_in_schema=False)
    app.add_api_route("/sw.js", page("sw.js", "text/javascript"), include_in_schema=False)
    for name, kind in FILES.items():
        app.add_api_route(f"/static/{name}", page(name, kind), include_in_schema=False)
    return app


async def serve_viewer(socket: WebSocket, viewer: Viewer, service: Service, live: Live) -> None:
    """Until the viewer leaves, says nothing any more, or has to begin anew."""
    channel = service.channel
    queue, news, epoch = Queue(4 * channel.fps), asyncio.Event(), channel.epoch
    width, height = channel.size
    encoder = channel.encoder

    async def send() -> None:
        greeting = {"type": "init", "mime": encoder.mime, "fps": channel.fps, "width": width, "height": height}
        await socket.send_json(greeting)
        await socket.send_bytes(encoder.init)
        live.queues[queue] = news
        while live.epoch == epoch:
            await news.wait()
            news.clear()
            for data in queue.take():
                await socket.send_bytes(data)

    async def listen() -> None:
        while True:
            told = await socket.receive_json()
            if isinstance(told, dict):
                shown, buffered = (_number(told.get(name)) for name in ("shown", "buffered"))
                viewer.report(int(shown), min(buffered, 30.0), bool(told.get("visible", True)), time.monotonic())

    async def judge() -> None:
        while True:
            await asyncio.sleep(1)
            word = viewer.word(time.monotonic())
            if word == "gone":
                service.metrics.silent.inc()
                return
            if word == "reload":
                service.metrics.reloads.inc()
                service.viewers.reload(viewer, time.monotonic())
                await asyncio.wait_for(socket.send_json({"type": "reload"}), 5)

    tasks = [asyncio.create_task(work()) for work in (send, listen, judge)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            with contextlib.suppress(WebSocketDisconnect, RuntimeError, ValueError, KeyError, TimeoutError):
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        live.queues.pop(queue, None)
        service.metrics.dropped.inc(queue.dropped)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(socket.close(1012), 2)


def _number(value: Any) -> float:
    """A number of a page's report; 0 for anything else."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and 0 <= value < 1e15 else 0.0


async def jpegs(live: Live) -> AsyncIterator[bytes]:
    """Every frame that the reader keeps up with."""
    live.jpegs += 1
    try:
        while True:
            data = await asyncio.to_thread(live.service.channel.jpeg)
            yield (
                f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data + b"\r\n"
            )
            await live.tick.wait()
    finally:
        live.jpegs -= 1


async def _watchdog(service: Service) -> None:
    """Tell systemd that we live, as long as the picture does."""
    interval = watchdog_seconds()
    while interval is not None:
        if time.monotonic() - service.channel.beat < DEAD_BEAT:
            notify("WATCHDOG=1")
        await asyncio.sleep(interval)


def _fresh() -> dict[str, str]:
    return {"Cache-Control": "no-store"}


def same_origin(socket: WebSocket) -> bool:
    """Whether a WebSocket was opened by one of our own pages, or by something that is no browser."""
    origin = socket.headers.get("origin")
    return origin is None or urlsplit(origin).netloc.lower() == socket.headers.get("host", "").lower()
