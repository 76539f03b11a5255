"""Sinks that do not stay as they were committed: where they stand when they follow the window, and a mean that moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..engines.base import Backend, Buffer
from ..engines.bundle import Bundle, check_sink_distance
from ..engines.errors import UserError
from .noise import whole_number
from .ring import RingLayout
from .rope import FARTHEST, temporal_tables

OF_RING = ("k_", "v_", "sink_k_")  # what the sinks graph reads of the ring


def sink_distance(bundle: Bundle) -> int:
    """Latent frames from the first sink frame to the first of the chunk, where a bundle's sinks follow the window."""
    rope, geometry = bundle.manifest.rope, bundle.manifest.geometry
    return geometry.behind if rope.sink_distance is None else rope.sink_distance


def turns_sinks(bundle: Bundle) -> bool:
    """Whether its step graph turns sinks, so that they can follow the window. Before, the host did."""
    return any(spec.name == "sink_cos" for spec in bundle.manifest.graphs["step"].inputs)


def own_mode(bundle: Bundle) -> tuple[Literal["absolute", "relative"], str | None]:
    """How a bundle's sinks stand where nobody says, and what to tell if that is not what it was exported for."""
    mode = bundle.manifest.rope.mode
    if mode == "relative" and bundle.manifest.geometry.sink and not turns_sinks(bundle):
        return "absolute", (
            f"{bundle.path}: an earlier export, whose graphs do not turn sinks: they stay where they were made (rope "
            "absolute); export it anew for sinks that follow"
        )
    return mode, None


def check_distance(bundle: Bundle, mode: str, distance: int | None) -> int | None:
    """At what distance a stream's sinks follow the window; None: they do not. mode: absolute or relative; distance:
    what the stream is asked for, None for the bundle's own. Raises UserError."""
    if mode not in ("absolute", "relative"):
        raise UserError(f"rope {mode!r}: expected absolute or relative")
    if mode == "absolute" and distance is not None:
        raise UserError(f"sink_distance {distance}: expected rope relative with it")
    if not bundle.manifest.geometry.sink and distance is not None:
        raise UserError(f"sink_distance {distance}: {bundle.path} has no sinks")
    if mode == "absolute" or not bundle.manifest.geometry.sink:
        return None
    if not turns_sinks(bundle):
        raise UserError(
            f"{bundle.path}: rope relative: its step graph does not turn sinks; export it anew with --rope relative"
        )
    if distance is None:
        return sink_distance(bundle)
    number = whole_number("sink_distance", distance, FARTHEST, "a number of latent frames")
    try:
        check_sink_distance(bundle.manifest.geometry, number)
    except ValueError as error:
        raise UserError(f"{bundle.path}: {error}") from None
    return number


def sink_turn(position: int, made: int, distance: int) -> int:
    """By how many latent frames sinks are turned that were made at latent frame `made` and stand `distance` before the
    chunk at `position`: never before where they were made."""
    return max(0, position - distance - made)


@dataclass(frozen=True)
class Leaving:
    """A chunk that the ring lets go: where its tokens begin, and by how many latent frames its keys are turned to where the
    sinks were made."""

    start: int
    back: int


def leaving(bundle: Bundle, layout: RingLayout, written: int, position: int, made: int) -> Leaving | None:
    """The chunk that no other sees once the one at `position`, behind `written` others, is there, for sinks that move and
    were made at latent frame `made`; None while the ring has room for all."""
    if written + 1 < layout.chunks:
        return None
    portable = bundle.manifest.form == "portable"  # there the new one is stored where that one stands
    slot = layout.past_slot(written) if portable else layout.slot(written + 1)
    return Leaving(slot.start, made - position + (layout.ring_chunks - 1) * bundle.manifest.geometry.chunk)


class MovingSinks:
    """The sinks as a running mean of all chunks that have left the ring (Reward Forcing's EMA sink), on the device.

    A chunk is folded in as soon as no chunk to come will see it. mean: what the sinks are, float32, with keys as they would
    be where the first sink frame was made; the ring holds them rounded to its own type.
    """

    def __init__(self, backend: Backend, bundle: Bundle, ring: dict[str, Buffer]):
        manifest = bundle.manifest
        engine = backend.load(bundle, "sinks")
        zeros, layers = engine.device.zeros, range(manifest.network.layers)
        assert manifest.geometry.sink_ema is not None
        self.share, self.layers = manifest.geometry.sink_ema, layers
        specs = {spec.name: spec for spec in engine.graph.inputs}
        shape = specs["mean_k"].shape
        self.mean = {f"mean_{side}_{i}": zeros(shape, "float32") for i in layers for side in "kv"}
        small = {n: zeros(s.shape, s.dtype) for n, s in specs.items() if not n.startswith((*OF_RING, "mean"))}
        for table in small.keys() & {"there_cos"}:  # bundles of before could turn what goes into the ring
            small[table].write(np.ones(small[table].shape, np.float32))
        self._small = small
        self._made = {s.name: zeros(s.shape, s.dtype) for s in engine.graph.outputs}  # of one layer after the other

        def of_layer(name: str, layer: int) -> Buffer:
            """k_0 of the ring; with an INT8 ring k_0_scale too, and sink_k_0."""
            return ring[name.replace("_0", f"_{layer}", 1)]

        made = [name.removesuffix("_new") for name in self._made if name.endswith("_new")]
        self._into = {name: [of_layer(name, i) for i in layers] for name in made}
        read = [name for name in specs if name.startswith(OF_RING)]
        self._passes = []
        for i in layers:
            means = {f"mean_{side}": self.mean[f"mean_{side}_{i}"] for side in "kv"}
            self._passes.append(engine.bind(small | {n: of_layer(n, i) for n in read} | means, self._made))

    def clear(self) -> None:
        for buffer in self.mean.values():
            buffer.clear()

    def begin(self) -> None:
        """The ring's first chunk is the mean to begin with."""
        self._run(0.0, 0)

    def fold(self, chunk: Leaving, frequencies: NDArray[np.float64]) -> None:
        """frequencies [heads, channels/2], or every layer's own."""
        self._run(self.share, chunk.start, temporal_tables([chunk.back], frequencies))

    def _run(self, keep: float, leaving: int, back: tuple[NDArray, NDArray] | None = None) -> None:
        """back: tables that turn keys to where the sinks were made; without, they stand there."""
        small = self._small
        small["keep"].write(np.array([keep], np.float32))
        small["leaving"].write(np.array([leaving], np.int64))
        shape = small["back_cos"].shape
        cos, sin = (np.ones(shape, np.float32), np.zeros(shape, np.float32)) if back is None else back
        for i, run in zip(self.layers, self._passes, strict=True):
            if i == 0 or cos.ndim > 3:
                small["back_cos"].write(cos[i] if cos.ndim > 3 else cos)
                small["back_sin"].write(sin[i] if sin.ndim > 3 else sin)
            run()
            for side in "kv":
                self.mean[f"mean_{side}_{i}"].copy_tokens(0, self._made[f"mean_{side}_next"])
            for name, buffers in self._into.items():
                buffers[i].copy_tokens(0, self._made[f"{name}_new"])
