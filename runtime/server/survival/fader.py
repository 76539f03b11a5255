"""Crossfades: the first frames of a new scene, blended with the last frame of the old one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Fader:
    """Takes every chunk's frames in the order in which they are shown."""

    def __init__(self, fps: int):
        self.fps = fps
        self._ordered = 0.0  # seconds, of the next scene
        self._last: NDArray[np.uint8] | None = None
        self._from: NDArray[np.float32] | None = None
        self._frames = self._done = 0

    def order(self, seconds: float) -> None:
        """Let the next scene fade in. With overlap a chunk of the old one comes first."""
        self._ordered = seconds

    def __call__(self, frames: NDArray[np.uint8], begins: bool) -> NDArray[np.uint8]:
        """begins: whether a scene begins with them."""
        if begins:
            self._frames, self._done, self._ordered = round(self._ordered * self.fps), 0, 0.0
            self._from = None if self._last is None or not self._frames else self._last.astype(np.float32)
        if self._from is not None:
            frames = frames.copy()
            for i in range(min(len(frames), self._frames - self._done)):
                share = (self._done + i + 1) / (self._frames + 1)
                frames[i] = np.rint(share * frames[i] + (1 - share) * self._from).astype(np.uint8)
            self._done += len(frames)
            if self._done >= self._frames:
                self._from = None
        self._last = frames[-1]
        return frames
