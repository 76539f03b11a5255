"""What a stream hands out: one chunk of video, and what it took."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Timings:
    """Seconds spent on one chunk, by the field's stage names."""

    prompt: float  # a prompt change taking effect; 0 for most chunks
    host: float  # from the passes of one chunk to the start of the next: noise, RoPE tables, copies, the launch
    diffuse: tuple[float, ...]  # denoising passes, by step
    finalize: float  # the commit pass
    decode: float
    copy: float  # frames to the host
    total: float  # wall clock of the call that returned the chunk; less than the sum of the stages where they overlap


@dataclass(frozen=True)
class Chunk:
    """One chunk of video. Its arrays belong to the caller."""

    index: int  # 0, 1, 2 … since the stream began
    position: int  # latent frame index of its first frame
    prompt: str
    frames: NDArray[np.uint8]  # [4F, H, W, 3] RGB; fewer in a stream's first chunk where the decoder says so
    latent: NDArray[np.float32]  # [C, F, h, w], x0
    timings: Timings
    # What instrumented graphs tell beside their contract, by name, for every pass: denoising, then commit, then decode.
    observed: list[dict[str, NDArray]] = field(default_factory=list)

    @property
    def sink_mass(self) -> NDArray[np.float32] | None:
        """Share of attention on the sinks [steps, L, H]; None without the probe graph of `export --probe`."""
        told = [values["sink_mass"] for values in self.observed[:-2] if "sink_mass" in values]
        return np.stack(told) if told else None


@dataclass
class Begun:
    """A chunk whose passes have been started."""

    index: int
    position: int
    written: int  # chunks in the ring before it
    prompt: str
    fresh: bool  # the decoder starts anew with it
    prompt_time: float = 0.0
    host: float = 0.0


BEGUN_FACTS = ("index", "position", "written", "prompt", "fresh")  # what a saved state keeps of it


class Clock:
    """Seconds from lap to lap."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        spent, self._last = now - self._last, now
        return spent
