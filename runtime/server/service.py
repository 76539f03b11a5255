"""Everything the server runs, put together: generator, channel, orders, timetable, viewers' problems, health."""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engines.bundle import Bundle
from ...engines.errors import UserError
from ...engines.machine import resident_memory
from ..anchor import require_encoder
from ..choice import check_engines
from ..overlay.layer import Layer
from ..sinks import check_distance, own_mode
from ..video import choose_encoder
from .config import Config, Video
from .discretion import shortened
from .orders.control import Control
from .orders.guests import Guests, allowed
from .orders.overlays import Overlays
from .orders.spelling import Spelling
from .orders.timetable import zone_of
from .pictures.channel import Channel
from .pictures.fmp4 import Encoder
from .pictures.hls import Numbers
from .pictures.push import Push, check_protocols
from .pictures.screens import Screens
from .pictures.sound import check_sound
from .pictures.still import keep_still, kept_still
from .pictures.thumbs import Thumbs
from .pictures.viewers import Viewers
from .pictures.whep import Peers, check_webrtc
from .survival.metrics import Metrics, gpu_gauges
from .survival.seen import Replacement, Seen
from .survival.supervisor import Supervisor
from .survival.worker import Job

log = logging.getLogger(__name__)

HISTORY = 300  # chunks that the operator's chart shows
DEAD_BEAT = 5.0  # seconds without a frame from the channel after which the server calls itself unhealthy
HURRY = 10.0  # seconds that a cut is waited for
TICK = 0.5  # seconds between looks at the timetable
LOOK = 2.0  # seconds between looks at the bundle's folder
LONGEST = 500  # characters of a reason that health tells
STILL = "last.png"  # in state_dir
QUIET = ("saved", "stopped", "busy", "later")  # events that only who debugs wants to read


class Service:
    """Made once; start() and stop() once each. Raises UserError for what can be known before.

    settled: called when the first generator is up, or had to be started again: the server stays. finish: where the server
    can end, what ends it; then `fatal` says why, or `another` is the bundle to start anew with.
    """

    finish: Callable[[], None] | None = None
    first_life = True  # else another bundle has taken the first one's place, and screens hang on it
    settled: Callable[[], None] | None = None

    def __init__(self, config: Config, seen: Seen):
        check_video(config.video)
        manifest = seen.bundle.manifest
        g = seen.bundle.with_post(config.stream.post).output
        self.config, self.geometry, self.name, self.seen = config, g, manifest.name, seen
        self.fatal: str | None = None
        self.another: Seen | None = None
        encoder, notice = choose_encoder(config.video.encoder, g.width, g.height)
        if notice:
            log.warning(notice)
        video = config.video
        if encoder == "libx264" and video.webrtc and not video.crf:
            raise UserError("video.crf: found 0, which is lossless; expected 1 or more beside video.webrtc")
        self.channel = Channel(
            g.width,
            g.height,
            g.fps,
            lambda: Encoder(
                g.width, g.height, g.fps, encoder, video.crf, video.keyframe_seconds, baseline=video.webrtc > 0
            ),
            video.hls_segments,
            Numbers(config.state_dir / "hls.json"),
            kept_still(config.state_dir / STILL, g.width, g.height),
        )
        self.supervisor = Supervisor(
            self._job,
            lambda: self.channel.wants_more() or self._hurries(),
            self._chunk,
            self._ready,
            self._event,
            config.stream.stall_seconds,
            config.stream.start_seconds,
            self._hopeless,
        )
        self.control = Control(config, seen.bundle, self._order)
        self.overlays = Overlays(config.overlay, config.state_dir, self.control, (g.width, g.height))
        self.guests = (
            Guests(config.guest, self.control, lambda: self.facts.get("prompt")) if config.guest.enabled else None
        )
        self.thumbs = Thumbs(config.state_dir / "pictures", seen.bundle)
        self.thumbs.tidy()
        self.channel.burn = lambda frame: self.overlays.layer.burned(frame, dt.datetime.now(dt.UTC))
        self.channel.held = self.control.kept.paused
        self.pushes = [Push(target, g.width, g.height, g.fps, video.push_settings) for target in video.push]
        self.channel.frames += self.pushes
        self.viewers, self.peers = Viewers(), Peers(self.channel, video.webrtc)
        kept = config.state_dir / "screens.json"
        self.screens = Screens(self.viewers, config.screens, config.server.missing_seconds, kept)
        self.facts: dict[str, Any] = {}  # of the newest chunk
        self._hurry = 0.0  # monotonic: until then a cut is waited for, and what comes before it is not shown
        self.history: deque[tuple[float, float]] = deque(maxlen=HISTORY)  # latency in seconds, real-time factor
        self.last_chunk: float | None = None  # monotonic
        self.started = time.monotonic()
        self._stop = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="timetable", daemon=True)
        self._looker = threading.Thread(target=self._look, name="bundle", daemon=True)
        self.metrics = self._gauges()
        self.peers.lost = self.metrics.dropped.inc

    def start(self) -> None:
        log.info("times of day are those of %s", self.control.kept.timetable.timezone)
        for thread in (self.channel, self.supervisor, self._ticker, self._looker, *self.pushes):
            thread.start()

    def stop(self) -> None:
        """Save the state and end everything."""
        self._stop.set()
        self.supervisor.stop()
        self.channel.stop()
        keep_still(self.config.state_dir / STILL, self.channel.bare_frame)
        self.screens.write(at_once=True)
        for push in self.pushes:
            push.stop()

    def problems(self) -> tuple[list[str], list[str]]:
        """What makes the server unhealthy, and what somebody should look at."""
        now = time.monotonic()
        dead = []
        if now - self.channel.beat > DEAD_BEAT:
            dead.append(f"channel: no frame for {now - self.channel.beat:.0f} s")
        if not self.supervisor.is_alive():
            dead.append("supervisor: its thread has ended")
        notes = self.viewers.problems(now) + self.screens.problems()
        if not self.ready():
            why = shortened(self.supervisor.why, LONGEST)
            notes.append(": ".join(filter(None, ("generator", self.supervisor.state, why))))
        notes += [f"push {p.place}: not connected" for p in self.pushes if not p.connected]
        return dead, notes

    def ready(self) -> bool:
        """Whether what is shown is what was asked for: a running stream, or a pause."""
        if self.control.kept.paused:
            return True
        patience = max(self.config.stream.stall_seconds, 5 * self.supervisor.slowest)
        return self.last_chunk is not None and time.monotonic() - self.last_chunk < patience

    def state(self) -> dict[str, Any]:
        """What /api/state says."""
        kept, facts = self.control.kept, self.facts
        history = list(self.history)  # in one step: another thread appends to it
        latencies = [latency for latency, _ in history]
        return {
            "name": self.name,
            "size": [self.geometry.width, self.geometry.height],
            "fps": self.geometry.fps,
            "generator": "paused" if kept.paused else self.supervisor.state,
            "restarts": self.supervisor.restarts,
            "prompt": facts.get("prompt"),
            "playlist_item": facts.get("item") if kept.playlist else None,
            "position": facts.get("position", 0),
            "seed": facts.get("seed", kept.seed),
            "paused": kept.paused,
            "free_text": self.control.spelling.free_text,
            "guests": self.guests is not None,
            "timetable": self._timetable(),
            "viewers": len(self.viewers.watching),
            "chunk_ms": round(1000 * float(np.median(latencies[-20:])), 1) if latencies else None,
            "real_time_factor": round(float(np.median([f for _, f in history[-20:]])), 2) if latencies else None,
            "frames_shown": self.channel.shown,
            "frames_repeated": self.channel.repeated,
            "uptime_seconds": round(time.monotonic() - self.started),
        }

    def _timetable(self) -> dict[str, Any]:
        """Its zone, the time there, and what comes next."""
        timetable = self.control.kept.timetable
        now, zone = dt.datetime.now(dt.UTC), zone_of(timetable.timezone)
        found = timetable.next(now)
        shown: dict[str, Any] = {"timezone": timetable.timezone, "time": now.astimezone(zone).isoformat("T", "seconds")}
        if found is None:
            return shown | {"next": None}
        moment, entry = found
        what = {"prompt": entry.prompt} if entry.prompt else {"pause": True} if entry.pause else {"playlist": True}
        return shown | {"next": {"at": moment.astimezone(zone).isoformat("T", "seconds")} | what}

    def _order(self, kind: str, value: Any) -> None:
        if kind == "pause":
            self.channel.held = value  # at once: chunks are under way
            if value:  # and it stands after a restart too
                keep_still(self.config.state_dir / STILL, self.channel.bare_frame)
        if kind in ("prompt", "lend") and value.at_once and not self.channel.held:
            self._hurry = time.monotonic() + HURRY
        self.supervisor.order(kind, value)

    def _hurries(self) -> bool:
        return time.monotonic() < self._hurry

    def _job(self) -> Job:
        settings, kept = self.config.stream, self.control.kept
        self.supervisor.forget_orders()  # what was ordered before is in `kept`
        self._hurry = 0.0
        return Job(
            settings.model_copy(
                update={"prompt": kept.prompt.prompt if kept.prompt else settings.prompt, "seed": kept.seed}
            ),
            self.config.state_dir / "state.safetensors",
            playlist=kept.playlist,
            paused=kept.paused,
            ordered=kept.prompt is not None,
            seen=self.seen,
        )

    def _hopeless(self, why: str) -> bool:
        """The first generator was refused what it asked for: the server ends with the reason, where it can end. One of a
        bundle that came later is tried again: the next one may be better."""
        if self.finish is None or not self.first_life:
            return False
        self.fatal = why
        self.finish()
        return True

    def _ready(self, facts: dict[str, Any]) -> None:
        log.info("generator ready%s", f", resumed at latent frame {facts['position']}" if facts["resumed"] else "")
        self.control.ready(facts)
        self._settle()

    def _chunk(self, facts: dict[str, Any], frames: NDArray[np.uint8]) -> None:
        self.facts, self.last_chunk = facts, time.monotonic()
        self.history.append((facts["stages"]["total"], facts["real_time_factor"]))
        self.metrics.chunk(facts)
        if facts["cut"]:
            self._hurry = 0.0
        elif self._hurries():
            return
        self.channel.offer(frames, at_once=facts["cut"])
        self.thumbs.seen(facts["prompt"], frames)

    def _settle(self) -> None:
        settled, self.settled = self.settled, None
        if settled is not None:
            settled()

    def _event(self, kind: str, text: str) -> None:
        if kind == "backoff":
            self._settle()
        self.metrics.event(kind)
        if kind in ("refused", "later", "died", "hung"):
            self._hurry = 0.0
        if kind in QUIET:
            log.debug("generator: %s %s", kind, text)
        elif kind != "alive":
            log.warning("generator: %s: %s", kind, text)

    def _tick(self) -> None:
        while not self._stop.wait(TICK):
            try:
                self.screens.write()
                self.control.tick(dt.datetime.now(dt.UTC))
                if self.guests is not None:
                    self.guests.tick()
            except Exception:  # one tick that fails must not end the thread
                log.exception("timetable")

    def _look(self) -> None:
        replacement = Replacement(self.seen, lambda bundle: check_fits(self.config, bundle, here=True))
        while self.finish is not None and not self._stop.wait(LOOK):
            try:
                self.another = replacement.there()
            except Exception:  # a disk that is being changed must not end the thread
                log.exception("bundle")
            if self.another is not None:
                return self.finish()

    def _gauges(self) -> Metrics:
        m, channel = Metrics(), self.channel
        m.gauge("fps", "Frames per second of the channel.", lambda: channel.fps)
        m.gauge("frames_shown", "Frames shown since the start, repeated ones included.", lambda: channel.shown)
        m.gauge("frames_repeated", "Frames shown again because the generator had none.", lambda: channel.repeated)
        m.gauge("real_time_factor", "Of the newest chunk.", lambda: self.history[-1][1] if self.history else 0)
        m.gauge("viewers", "Connected viewers.", lambda: len(self.viewers.watching))
        m.gauge("webrtc_viewers", "Viewers by WebRTC.", lambda: len(self.peers))
        m.gauge("generator_running", "1 while chunks come.", lambda: float(self.ready()))
        m.gauge("generator_restarts", "Restarts of the generator.", lambda: self.supervisor.restarts)
        m.gauge("frozen_screens", "Screens that keep freezing.", lambda: len(self.viewers.problems(time.monotonic())))
        m.gauge("memory_bytes", "Resident memory of the web process.", resident_memory)
        m.gauge("generator_memory_bytes", "Resident memory of the generator.", lambda: self.facts.get("memory", 0))
        m.gauge("push_dropped_frames", "Frames that push targets lost.", lambda: sum(p.dropped for p in self.pushes))
        gpu_gauges(m, self.config.stream.gpu)
        return m


def check_video(video: Video) -> None:
    """Raises UserError for a protocol that this FFmpeg does not have, WebRTC without its extra, a file without sound."""
    check_protocols(video.push)
    if video.webrtc:
        check_webrtc()
    if (sound := video.push_settings.sound) is not None:
        check_sound(sound)


def check_fits(config: Config, bundle: Bundle, here: bool = False) -> None:
    """Raises UserError for a bundle without what the configuration names: post graphs, prompts, an encoder for the anchor,
    sinks that stand as they are asked to. here: and engines and files, where this machine is the one that it will run on."""
    settings = config.stream
    shown = bundle.with_post(settings.post)
    if settings.anchor is not None:
        require_encoder(bundle)
    check_distance(bundle, settings.rope or own_mode(bundle)[0], settings.sink_distance)
    if here:
        check_engines(shown, settings.backend)
        check_video(config.video)
        Layer(config.overlay, lambda: dt.UTC, size=(shown.output.width, shown.output.height))
    spelling = Spelling(bundle)
    spelling.check_config(config)
    if config.guest.enabled:
        allowed(config.guest, spelling)
