"""Sinks whose keys and values do not stay as they were committed: turned to follow the window, or a mean that moves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..engines.base import Backend, Buffer
from ..engines.bundle import Bundle
from .rope import temporal_tables


class SinkKeys:
    """The sinks' keys as they were committed, for `relative` mode: rewritten each chunk, turned to a fixed distance.

    A key committed at latent frame p and turned by (p′ − p)·ω is the key at p′, so the first copy serves for ever and no
    error accumulates.
    """

    def __init__(self, tokens: int):
        self.tokens = tokens
        self.forget()

    def forget(self) -> None:
        self.start: int | None = None  # where they were made
        self.at: int | None = None  # where they stand; None: nowhere else
        self.keys: list[NDArray] = []

    def remember(self, position: int, written: int, ring: list[Buffer]) -> None:
        if written == 0:
            self.start = position
        self.keys = [buffer.read_tokens(0, self.tokens) for buffer in ring]

    def remember_again(self, ring: list[Buffer]) -> None:
        """They were made anew where they are."""
        if self.start is not None:
            self.keys = [buffer.read_tokens(0, self.tokens) for buffer in ring]

    def follow(self, position: int, frequencies: NDArray[np.float64], ring: list[Buffer]) -> None:
        """Write the sink keys as if the first sink frame stood at `position` (never before where it was made)."""
        if self.start is None or position <= self.start or not self.tokens:
            return
        self.at = position
        cos, sin = temporal_tables(np.array([position - self.start]), frequencies)  # [H, 1, K]
        k = cos.shape[-1]
        for kept, buffer in zip(self.keys, ring, strict=True):
            half = kept.shape[-1] // 2
            a, b = kept[..., :k], kept[..., half : half + k]  # the temporal pairs come first in each half
            turned = kept.copy()
            turned[..., :k] = a * cos - b * sin
            turned[..., half : half + k] = b * cos + a * sin
            buffer.write_tokens(0, turned)


@dataclass(frozen=True)
class Leaving:
    """A chunk that the ring lets go: where its tokens begin, and the latent frame index of its first frame."""

    start: int
    position: int


class MovingSinks:
    """The sinks as a running mean of all chunks that have left the ring (Reward Forcing's EMA sink), on the device.

    A chunk is folded in as soon as no chunk to come will see it. mean: what the sinks are, float32, with keys as they would
    be where the first sink frame was made; the ring holds them turned to where they stand now. Used in place of SinkKeys.
    """

    def __init__(self, backend: Backend, bundle: Bundle, ring: dict[str, Buffer]):
        manifest = bundle.manifest
        engine = backend.load(bundle, "sinks")
        zeros, layers = engine.device.zeros, range(manifest.network.layers)
        assert manifest.geometry.sink_ema is not None
        self.share, self.ring, self.layers = manifest.geometry.sink_ema, ring, layers
        specs = {spec.name: spec for spec in engine.graph.inputs}
        shape = specs["mean_k"].shape
        self.mean = {f"mean_{side}_{i}": zeros(shape, "float32") for i in layers for side in "kv"}
        small = {n: zeros(s.shape, s.dtype) for n, s in specs.items() if n[:2] not in ("k_", "v_") and n[:4] != "mean"}
        self._small = small
        self._made = {s.name: zeros(s.shape, s.dtype) for s in engine.graph.outputs}  # of one layer after the other
        held = [name for name in specs if name[:2] in ("k_", "v_")]  # k_0, with an INT8 ring k_0_scale too
        self._into = {name: [ring[name.replace("_0", f"_{i}", 1)] for i in layers] for name in held}
        self._passes = []
        for i in layers:
            mine = {name: buffers[i] for name, buffers in self._into.items()}
            means = {f"mean_{side}": self.mean[f"mean_{side}_{i}"] for side in "kv"}
            self._passes.append(engine.bind(small | mine | means, self._made))
        self.keys: list[NDArray] = []  # none on the host
        self.forget()

    def forget(self) -> None:
        self.start: int | None = None  # where the sinks were made
        self.at: int | None = None  # where they stand

    def clear(self) -> None:
        for buffer in self.mean.values():
            buffer.clear()

    def remember(self, position: int, written: int, ring: list[Buffer]) -> None:
        """The ring's first chunk is the mean to begin with."""
        self.start = self.at = position
        self._run(0.0, 0, 0, 0)

    def remember_again(self, ring: list[Buffer]) -> None:
        """They were made anew, where they first were."""
        if self.start is not None:
            self.remember(self.start, 0, ring)

    def follow(self, position: int, frequencies: NDArray[np.float64], ring: list[Buffer]) -> None:
        """Let the sinks stand as if their first frame was at `position` (never before where it was made)."""
        if self.start is None or self.at == max(position, self.start):
            return
        self.at = max(position, self.start)
        self._run(1.0, 0, 0, self.at - self.start, frequencies)

    def fold(self, chunk: Leaving, frequencies: NDArray[np.float64]) -> None:
        assert self.start is not None
        assert self.at is not None
        self._run(self.share, chunk.start, self.start - chunk.position, self.at - self.start, frequencies)

    def _run(
        self, keep: float, leaving: int, back: int, there: int, frequencies: NDArray[np.float64] | None = None
    ) -> None:
        """back, there: by how many latent frames keys are turned. Without frequencies they are not."""
        small = self._small
        small["keep"].write(np.array([keep], np.float32))
        small["leaving"].write(np.array([leaving], np.int64))
        for name, distance in (("back", back), ("there", there)):
            heads, _, pairs = small[f"{name}_cos"].shape
            spectrum = np.zeros((heads, pairs)) if frequencies is None else frequencies
            for part, table in zip(("cos", "sin"), temporal_tables([distance], spectrum), strict=True):
                small[f"{name}_{part}"].write(table)
        for i, run in zip(self.layers, self._passes, strict=True):
            run()
            for side in "kv":
                self.mean[f"mean_{side}_{i}"].copy_tokens(0, self._made[f"mean_{side}_next"])
            for name, buffers in self._into.items():
                buffers[i].copy_tokens(0, self._made[f"{name}_new"])
