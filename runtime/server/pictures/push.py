"""The picture pushed to a mixer or a media server: RTMP, SRT, MPEG-TS over UDP, by PyAV.

A thread of its own for each address, with a short queue. A peer that is gone or slow costs frames, never the picture.
Addresses carry keys: what is shown of them is where they lead.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from ....engines.errors import UserError
from ...video import add_video, encoding_frame
from ..discretion import redacted
from .sound import Sound

log = logging.getLogger(__name__)

FORMATS = {"rtmp": "flv", "rtmps": "flv", "srt": "mpegts", "udp": "mpegts"}
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
WAITING = 64 << 20  # bytes of frames that wait for a peer, two seconds of them at most
LIFE = 20 * 86400  # seconds of a connection: RTMP counts milliseconds in 31 bits, which end after 24.8 days


def check_protocols(targets: list[str]) -> None:
    """Raises UserError for a target whose protocol this PyAV does not speak, before anything is started."""
    for target in targets:
        scheme = target.split("://")[0]
        if not speaks(scheme):
            raise UserError(
                f"video.push {redacted(target)}: the FFmpeg inside PyAV {av.__version__} is built without {scheme}; "
                f"use {'rtmp:// or ' if scheme != 'rtmp' else ''}udp://, or install a PyAV whose FFmpeg has it"
            )


def speaks(scheme: str) -> bool:
    """Whether libav knows a protocol: it is asked to open port 0, which none of them connects to."""
    try:
        with av.open(f"{scheme}://127.0.0.1:0/x", "w", format=FORMATS[scheme], timeout=(1.0, 1.0)) as container:
            add_video(container, "libx264", (64, 64), 16, {}, 16)
            container.start_encoding()
    except av.error.ProtocolNotFoundError:
        return False
    except (OSError, ValueError, av.error.FFmpegError):
        pass
    return True


@dataclass(frozen=True)
class PushSettings:
    """heard: an audio track beside the picture, of the file `sound` or silent. kbits: a constant bit rate of the picture;
    None: constant quality."""

    heard: bool = False
    sound: Path | None = None
    kbits: int | None = None

    @property
    def encoding(self) -> dict[str, str]:
        options = {"preset": "veryfast", "tune": "zerolatency", "bf": "0"}
        if self.kbits is None:
            return options | {"crf": "23"}
        rate = f"{self.kbits}k"
        return options | {"b": rate, "minrate": rate, "maxrate": rate, "bufsize": rate, "x264-params": "nal-hrd=cbr"}


class Push(threading.Thread):
    """Give it to a channel's `frames`: calling it never waits."""

    def __init__(self, target: str, width: int, height: int, fps: int, settings: PushSettings):
        self.place = redacted(target)
        super().__init__(name=f"push {self.place}", daemon=True)
        self.size, self.fps, self.settings = (width, height), fps, settings
        self.connected, self.dropped = False, 0
        self._target = target
        room = max(2, min(2 * fps, WAITING // (3 * width * height)))
        self._frames: queue.Queue[NDArray[np.uint8]] = queue.Queue(maxsize=room)
        self._ending = threading.Event()

    def __call__(self, frame: NDArray[np.uint8]) -> None:
        while True:
            try:
                return self._frames.put_nowait(frame)
            except queue.Full:  # what is old goes: a peer that comes back sees what is now
                self.dropped += 1
                with contextlib.suppress(queue.Empty):
                    self._frames.get_nowait()

    def stop(self) -> None:
        self._ending.set()
        if self.is_alive():
            self.join(5)

    def run(self) -> None:
        wait = FIRST_WAIT
        while not self._ending.is_set():
            try:
                self._send()
                wait = FIRST_WAIT
            except Exception as error:  # of libav, or of what it was given: the next try may find a peer
                if self.connected:
                    wait = FIRST_WAIT
                log.warning("push %s: %s; again in %.0f s", self.place, why(error), wait)
                self.connected = False
                self._ending.wait(wait)
                wait = min(2 * wait, LONGEST_WAIT)

    def _send(self) -> None:
        options = {"rw_timeout": "10000000"}  # µs: a peer that stops reading is an error, not a hang
        kind = FORMATS[self._target.split("://")[0]]
        with av.open(self._target, "w", format=kind, options=options, timeout=(10.0, 10.0)) as container:
            stream = add_video(container, "libx264", self.size, self.fps, self.settings.encoding, 2 * self.fps)
            sound = Sound(container, self.settings.sound) if self.settings.heard else None
            number = 0
            while not self._ending.is_set() and number < LIFE * self.fps:
                try:
                    image = self._frames.get(timeout=0.5)
                except queue.Empty:
                    continue
                container.mux(stream.encode(encoding_frame(image, number, self.fps)))
                number += 1
                if sound is not None:
                    sound.until(Fraction(number, self.fps))
                self.connected = True


def why(error: Exception) -> str:
    """What an error says, without the address in it."""
    if isinstance(error, UserError):  # a sentence of ours, about a file
        return str(error)
    with contextlib.suppress(AttributeError):
        return str(error.strerror or type(error).__name__)  # type: ignore[attr-defined]
    return type(error).__name__
