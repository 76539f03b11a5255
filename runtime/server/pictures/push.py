"""The picture pushed to a mixer or a media server: RTMP, SRT, MPEG-TS over UDP, by PyAV.

A thread of its own for each address, with a short queue. A peer that is gone or slow costs frames, never the picture.
"""

from __future__ import annotations

import logging
import queue
import threading

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from ...video import add_video, encoding_frame

log = logging.getLogger(__name__)

FORMATS = {"rtmp": "flv", "rtmps": "flv", "srt": "mpegts", "udp": "mpegts"}
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0


class Push(threading.Thread):
    """Give it to a channel's `frames`: calling it never waits."""

    def __init__(self, target: str, width: int, height: int, fps: int):
        super().__init__(name=f"push {target}", daemon=True)
        self.target, self.size, self.fps = target, (width, height), fps
        self.connected, self.dropped = False, 0
        self._frames: queue.Queue[NDArray[np.uint8]] = queue.Queue(maxsize=2 * fps)
        self._ending = threading.Event()

    def __call__(self, frame: NDArray[np.uint8]) -> None:
        try:
            self._frames.put_nowait(frame)
        except queue.Full:
            self.dropped += 1

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
            except (OSError, av.error.FFmpegError) as error:
                if self.connected:
                    wait = FIRST_WAIT
                log.warning("push %s: %s; again in %.0f s", self.target, error, wait)
                self.connected = False
                self._ending.wait(wait)
                wait = min(2 * wait, LONGEST_WAIT)

    def _send(self) -> None:
        options = {"rw_timeout": "10000000"}  # µs: a peer that stops reading is an error, not a hang
        kind = FORMATS[self.target.split("://")[0]]
        with av.open(self.target, "w", format=kind, options=options, timeout=(10.0, 10.0)) as container:
            encoding = {"preset": "veryfast", "tune": "zerolatency", "crf": "23", "bf": "0"}
            stream = add_video(container, "libx264", self.size, self.fps, encoding, 2 * self.fps)
            number = 0
            while not self._ending.is_set():
                try:
                    image = self._frames.get(timeout=0.5)
                except queue.Empty:
                    continue
                container.mux(stream.encode(encoding_frame(image, number, self.fps)))
                number += 1
                self.connected = True
