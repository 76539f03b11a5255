"""What a stream hands out: one chunk of video, and what it took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

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
    smooth: float = 0.0  # frames between frames, and
    upscale: float = 0.0  # larger ones, where the bundle has the graphs

    @classmethod
    def of(cls, prompt: float, host: float, total: float, seconds: Sequence[float], after: Sequence[str]) -> Self:
        """seconds: of all passes in order, of which the last are those that `after` names."""
        *diffuse, finalize = seconds[: len(seconds) - len(after)]
        spent: dict[str, float] = {}
        for name, one in zip(after, seconds[len(seconds) - len(after) :], strict=True):
            spent[name] = spent.get(name, 0.0) + one
        return cls(prompt, host, tuple(diffuse), finalize, total=total, **spent)


@dataclass(frozen=True)
class Chunk:
    """One chunk of video. Its arrays belong to the caller."""

    index: int  # 0, 1, 2 … since the stream began
    position: int  # latent frame index of its first frame
    prompt: str
    # [4F, H, W, 3] RGB; fewer in a stream's first chunk where the decoder says so; by `Bundle.output` with post graphs.
    frames: NDArray[np.uint8]
    latent: NDArray[np.float32]  # [C, F, h, w], x0
    timings: Timings
    # What instrumented graphs tell beside their contract, by name, for every pass: denoising, then commit, then decode.
    observed: list[dict[str, NDArray]] = field(default_factory=list)
    begins: bool = False  # whether a scene begins with it: the stream itself, or what a cut asked for

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
    begins: bool = False  # a scene, or a shot of a model of many


BEGUN_FACTS = ("index", "position", "written", "prompt", "fresh")  # what a saved state keeps of it


def restored(facts: Sequence[Any], cut: bool) -> Begun:
    """What was begun when a state was saved, by those facts; cut: it begins a shot."""
    begun = Begun(*facts)
    begun.begins = begun.fresh or cut or begun.index == 0
    return begun


class Clock:
    """Seconds from lap to lap."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        spent, self._last = now - self._last, now
        return spent
