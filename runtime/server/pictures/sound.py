"""An AAC track beside a pushed picture: nothing heard, or a file over and over."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from ....engines.errors import UserError

RATE, FRAME = 48_000, 1024  # samples a second, samples of an AAC frame
BIT_RATE = {True: 64_000, False: 160_000}  # of silence, of a file


def check_sound(file: Path) -> None:
    """Raises UserError for a file that has no sound, before anything is started."""
    next(iter(samples(file)))


def samples(file: Path) -> Iterator[NDArray[np.float32]]:
    """Its sound from the beginning, over and over, in pieces [2, n]. Raises UserError."""
    while True:
        heard = False
        try:
            with av.open(str(file), "r") as container:
                if not container.streams.audio:
                    raise UserError(f"video.push_audio {file}: has no sound")
                resampler = av.AudioResampler("fltp", "stereo", RATE)
                for frame in container.decode(audio=0):
                    for piece in resampler.resample(frame):
                        heard = heard or piece.samples > 0
                        yield piece.to_ndarray().astype(np.float32, copy=False)
                for piece in resampler.resample(None):
                    yield piece.to_ndarray().astype(np.float32, copy=False)
        except (OSError, av.error.FFmpegError) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            raise UserError(f"video.push_audio {file}: cannot be read: {why}") from None
        if not heard:
            raise UserError(f"video.push_audio {file}: has no sound")


class Sound:
    """The track of one connection. file: what is heard; None: nothing, for services that take no video without one."""

    def __init__(self, container: Any, file: Path | None = None):
        self._container, self._samples = container, 0
        self._pieces = None if file is None else samples(file)
        self._rest = np.zeros((2, 0), np.float32)
        options = {"b": str(BIT_RATE[file is None])}
        self._stream = container.add_stream("aac", rate=RATE, layout="stereo", options=options)

    def until(self, seconds: Fraction) -> None:
        """As much of it as the video has."""
        while self._samples < seconds * RATE:
            frame = av.AudioFrame.from_ndarray(self._next(), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = RATE, self._samples, Fraction(1, RATE)
            self._container.mux(self._stream.encode(frame))
            self._samples += FRAME

    def _next(self) -> NDArray[np.float32]:
        if self._pieces is None:
            return np.zeros((2, FRAME), np.float32)
        while self._rest.shape[1] < FRAME:
            self._rest = np.concatenate([self._rest, next(self._pieces)], 1)
        out, self._rest = self._rest[:, :FRAME], self._rest[:, FRAME:]
        return np.ascontiguousarray(out)
