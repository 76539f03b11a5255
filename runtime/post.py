"""What runs behind the decoder, in its lane and on its device: frames between frames, then larger ones.

Contracts: everframe.engines.post. All that is kept from chunk to chunk is the last frame, which waits for the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..engines.base import Backend, Buffer, Engine
from ..engines.bundle import Bundle
from ..engines.post import CUT, FIRST, GOES_ON

LAST = "last_frame"  # in a saved state
Pass = Callable[[], None]


@dataclass(frozen=True)
class Decoding:
    """The passes from a latent to frames on the host, what each is called, and where the frames are."""

    passes: list[Pass]
    names: list[str]
    decoded: Buffer  # the decoder's own [N, H, W, 3]
    frames: list[Buffer]  # what is shown, part by part


class Post:
    """The bundle's post graphs, bound for every turn of the decoder's states."""

    def __init__(self, backend: Backend, bundle: Bundle, beside: bool):
        def load(name: str) -> tuple[Engine, Engine]:
            """Of a chunk, and of a stream's first one."""
            first = f"{name}_first" if f"{name}_first" in bundle.manifest.graphs else name
            return backend.load(bundle, name, beside), backend.load(bundle, first, beside)

        self._engines = {name: load(name) for name in bundle.post}
        self._last: list[Buffer] = []
        if "smooth" in self._engines:
            zeros = self._engines["smooth"][0].device.zeros
            one = next(s.shape for s in self._engines["smooth"][0].graph.inputs if s.name == "last")
            self._last, self._scene = [zeros(one, "uint8") for _ in range(2)], zeros((1,), "int64")
        self._waits = False  # whether there is a last frame

    def bind(self, decode: Pass, decoded: Buffer, turn: int, first: bool) -> Decoding:
        """What follows a decoding into `decoded`. turn: which of two sets of states it reads; first: by a first chunk's
        decoder."""
        passes, names, frames = [decode], ["decode"], [decoded]
        for name, engines in self._engines.items():
            engine, made = engines[first], []
            for part in frames:
                out = {
                    s.name: engine.device.zeros(s.shape, s.dtype) for s in engine.graph.outputs if s.name != "last_next"
                }
                read: dict[str, Buffer] = {"frames": part}
                left: dict[str, Buffer] = {}
                if name == "smooth":
                    read |= {"last": self._last[turn], "scene": self._scene}
                    left = {"last_next": self._last[turn ^ 1]}
                passes.append(engine.bind(read, {**out, **left}))
                names.append(name)
                made += out.values()
            frames = made
        return Decoding(passes + [f.fetch for f in frames], names + ["copy"] * len(frames), decoded, frames)

    def start(self, cut: bool) -> None:
        """Before a chunk is decoded. cut: a new picture begins with it."""
        if self._last:
            self._scene.write(np.array([(CUT if cut else GOES_ON) if self._waits else FIRST], np.int64))
            self._waits = True

    def restart(self, decoded: int) -> None:
        """The decoder's turns begin anew, after so many: what waits is where the first of them looks."""
        if self._last and decoded % 2:
            self._last[0].copy(self._last[1])

    def clear(self) -> None:
        self._waits = False

    def kept(self, decoded: int) -> dict[str, Buffer]:
        """What lives on between chunks, after so many of them."""
        return {LAST: self._last[decoded % 2]} if self._waits else {}

    def load(self, tensors: dict[str, np.ndarray], decoded: int) -> None:
        """A state that was saved without these graphs has no frame that waits."""
        self._waits = bool(self._last) and LAST in tensors
        if self._waits:
            self._last[decoded % 2].write(tensors[LAST])
