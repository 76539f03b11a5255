"""The channel: a frame every 1/fps, whatever the generator does, to everyone who watches.

One thread keeps the beat by the monotonic clock. It takes frames from a small queue; where there is none (the generator
restarts or is paused) it shows the last one again. A generator that is slower than real time is shown in slow motion, which
looks better than a picture that stops at every chunk. Everything behind it takes what it is given and drops what
it cannot take, so nobody who watches can slow the generator or make memory grow.
"""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .fmp4 import Encoder, Fragment
from .hls import HlsWindow, Numbers

log = logging.getLogger(__name__)

RENEW = 5.0  # seconds until another encoder is tried where none could be had
LATE = 1.0  # seconds behind the beat after which it starts anew instead of hurrying
JPEG_QUALITY = 85
AGES = {
    "PNG": 0.3,
    "JPEG": 0.0,
}  # seconds that one is shown to whoever asks: a large PNG takes longer to make than a frame lasts
SLOWEST = 0.2  # of real time, that a slow generator is shown at


class Channel(threading.Thread):
    """encoder: makes a new Encoder; called again when one has failed. first: [H, W, 3], shown before the first frame."""

    def __init__(
        self,
        width: int,
        height: int,
        fps: int,
        encoder: Callable[[], Encoder],
        hls_segments: int,
        numbers: Numbers | None = None,
        first: NDArray[np.uint8] | None = None,
    ):
        super().__init__(name="channel", daemon=True)
        self.size, self.fps = (width, height), fps
        self.room = fps // 2  # frames in the queue below which another chunk is wanted
        self.shown = 0  # frames, repeated ones included
        self.repeated = 0  # of them, those that were the one before again
        self.beat = time.monotonic()  # when the last frame was shown
        self.held = False  # paused: the picture stands, and what is queued waits
        self.epoch = 0  # counts encoders: a viewer of an older one has to begin anew
        self.fragments: list[Callable[[int, Fragment], None]] = []  # takers, called from this thread
        # The same frames bare, with their numbers and the encoders that made them: plain, and with what is burned in.
        self.bare: list[Callable[[int, Encoder, Encoder], None]] = []
        self.frames: list[Callable[[NDArray[np.uint8]], None]] = []
        # What lies above the picture, for whoever is not a page that shows it itself; the frame itself where nothing does.
        self.burn: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] = lambda frame: frame
        self._make_encoder, self.hls = encoder, HlsWindow(hls_segments, fps, numbers)
        self.pace = 1.0  # new frames a beat: less than 1 where the generator is too slow
        self._credit, self._starved = 0.0, False
        self._queue: deque[NDArray[np.uint8]] = deque()
        self._frame = self._burned = calm_picture(width, height) if first is None else first
        self._burning: Encoder | None = None  # HLS's own, while something is burned in
        self._unburned = False  # it could not be, which is told once
        self._unburnt_hls = False  # HLS could not have an encoder of its own
        # Of which frame, and until when it is good enough for the next one who asks (monotonic).
        self._pictures: dict[str, tuple[int, float, bytes]] = dict.fromkeys(AGES, (-1, 0.0, b""))
        self._drawing = {kind: threading.Lock() for kind in self._pictures}
        self._ending = threading.Event()
        self._renew()

    def _renew(self) -> None:
        """Begin with a new encoder, the old ones closed first: a card may have room for no more."""
        for old in (self._burning, getattr(self, "encoder", None)):
            if old is not None:
                with contextlib.suppress(Exception):
                    old.close()
        self._burning = None
        self.encoder = self._make_encoder()
        self.hls.begin(self.encoder.init)
        self.epoch += 1
        self._at = 0.0, time.monotonic()

    def media(self) -> tuple[float, float]:
        """Media time of the frame that is shown now, in seconds of the pages' encoder, and since when (monotonic)."""
        return self._at

    def wants_more(self) -> bool:
        return len(self._queue) <= self.room

    def offer(self, frames: NDArray[np.uint8], at_once: bool = False) -> None:
        """Queue a chunk's frames [T, H, W, 3]; at once: in the place of all that wait."""
        if at_once:
            self._queue.clear()
        # A queue that ran empty before this chunk came asks for a slower pace, one that did not for a faster one.
        self.pace = max(SLOWEST, 0.87 * self.pace) if self._starved else min(1.0, 1.03 * self.pace)
        self._starved = False
        self._queue.extend(frames)

    @property
    def bare_frame(self) -> NDArray[np.uint8]:
        """What is shown now [H, W, 3], without what lies above it."""
        return self._frame

    @property
    def frame(self) -> NDArray[np.uint8]:
        """What is shown now [H, W, 3], with what lies above it."""
        return self._burned

    def png(self) -> bytes:
        """What is shown now, or was AGES before, as a file, made once for all who ask."""
        return self._picture("PNG")

    def jpeg(self) -> bytes:
        return self._picture("JPEG")

    def _picture(self, kind: str) -> bytes:
        with self._drawing[kind]:  # anybody may ask, and all who watch Motion JPEG ask at once
            number, (made, good, data) = self.shown, self._pictures[kind]
            if made != number and time.monotonic() > good:
                data = _image(self._burned, kind)
                self._pictures[kind] = number, time.monotonic() + AGES[kind], data
            return data

    def stop(self) -> None:
        self._ending.set()
        if self.is_alive():
            self.join(5)

    def run(self) -> None:
        due = time.monotonic()
        while not self._ending.is_set():
            due += 1 / self.fps
            wait = due - time.monotonic()
            if wait < -LATE:  # the machine slept, or is far too slow
                due = time.monotonic()
            if wait > 0:
                self._ending.wait(wait)
            try:
                self._show()
            except Exception:  # an encoder that fails is replaced, the picture goes on
                log.exception("encoder")
                self._replace_encoder()
                self._ending.wait(1)
        with contextlib.suppress(Exception):  # it may be the one that failed
            self.encoder.close()

    def _replace_encoder(self) -> None:
        """Until there is one again: a driver may be resetting."""
        while not self._ending.is_set():
            try:
                return self._renew()
            except Exception as error:
                log.error("no new encoder: %s: %s; trying again in %g s", type(error).__name__, error, RENEW)
                self._ending.wait(RENEW)

    def _show(self) -> None:
        self.beat = time.monotonic()
        self._credit = min(1.0, self._credit + self.pace)
        frame = None
        if self._credit >= 1 and not self.held:
            with contextlib.suppress(IndexError):  # empty, or emptied just now by a cut
                frame = self._queue.popleft()
        if frame is not None:
            self._frame = frame
            self._credit -= 1
        else:
            self.repeated += 1
            self._starved = self._starved or not self._queue
        self._burned = self._burn()
        plain = self._burned is self._frame
        if plain:
            self._unburnt_hls = False
        if plain != (self._burning is None) and not self._unburnt_hls:
            self._change_hls(plain)
        for fragment in self.encoder.encode(self._frame):
            if self._burning is None:
                self.hls.add(fragment)
            for take in self.fragments:
                take(self.epoch, fragment)
        if self._burning is not None:
            for fragment in self._burning.encode(self._burned):
                self.hls.add(fragment)
        for give in self.bare:
            give(self.shown, self.encoder, self._burning or self.encoder)
        self._at = (self.encoder.frames - 1) / self.fps, self.beat
        self.shown += 1
        for show in self.frames:
            show(self._burned)

    def _burn(self) -> NDArray[np.uint8]:
        """What lies above the picture must not cost the picture."""
        try:
            burned = self.burn(self._frame)
            self._unburned = False
            return burned
        except Exception:
            if not self._unburned:
                log.exception("the overlay cannot be burned in")
            self._unburned = True
            return self._frame

    def _change_hls(self, plain: bool) -> None:
        """Its segments come from the pages' encoder, or, while something lies above the picture, from one of their own."""
        if self._burning is not None:
            self._burning.close()
            self._burning = None
        if not plain:
            try:
                self._burning = self._make_encoder()
            except Exception:  # as where no second session of a card's encoder is to be had
                log.exception("HLS is without what lies above the picture: it has no encoder of its own")
                self._unburnt_hls = True
                return
        self.hls.begin((self._burning or self.encoder).init)


def calm_picture(width: int, height: int) -> NDArray[np.uint8]:
    """What is shown before the first frame: a dark, even gradient."""
    shade = np.linspace(18, 34, height)[:, None, None] * np.array([0.7, 0.85, 1.0])
    return np.broadcast_to(np.rint(shade), (height, width, 3)).astype(np.uint8)


def _image(frame: NDArray[np.uint8], kind: str) -> bytes:
    out = io.BytesIO()
    options = {"quality": JPEG_QUALITY} if kind == "JPEG" else {}
    Image.fromarray(frame).save(out, kind, **options)
    return out.getvalue()


class Queue:
    """A viewer's fragments, bounded: who lags more than `limit` frames loses everything up to the next keyframe.

    Used on one thread (the event loop's).
    """

    def __init__(self, limit: int):
        self._limit, self._items = limit, deque()
        self._waiting_for_key, self._begun = True, False

    _items: deque[bytes]

    def put(self, fragment: Fragment) -> int:
        """How many frames the viewer loses with it; what comes before its first keyframe is none of its."""
        lost = 0
        if len(self._items) >= self._limit:
            lost = len(self._items)
            self._items.clear()
            self._waiting_for_key = True
        if self._waiting_for_key and not fragment.key:
            return lost + self._begun
        self._waiting_for_key, self._begun = False, True
        self._items.append(fragment.data)
        return lost

    def take(self) -> Sequence[bytes]:
        items = list(self._items)
        self._items.clear()
        return items
