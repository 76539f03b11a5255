"""What a smooth prompt change runs where the bundle has the graph for it: the whole window again, in one pass.

LongLive's KV-recache: the clean latents of all frames of the ring see each other both ways, and the sinks, under the new
prompt, at timestep 0. The sinks keep their keys and values unless the stream is not longer than its window yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..engines.base import HIDDEN, Backend, Buffer
from ..engines.bundle import Bundle
from .ring import RingLayout
from .rope import temporal_tables


@dataclass(frozen=True)
class Standing:
    """A chunk that stands in the ring: latent frame index of its first frame, and its clean latent [C, F, 2h, 2w]."""

    position: int
    latent: NDArray[np.float32]


class Recache:
    """The bound pass with buffers of its own. ring: what it rewrites; prompt: the keys and values that it reads."""

    def __init__(self, backend: Backend, bundle: Bundle, ring: Mapping[str, Buffer], prompt: Mapping[str, Buffer]):
        manifest = bundle.manifest
        self.layout, self.chunk = RingLayout.of(manifest.geometry), manifest.geometry.chunk
        # A chunk flows into sinks that move while the last one that sees it is made, so these are made anew one chunk less.
        self.alone = self.layout.chunks - (manifest.geometry.sink_ema is not None)
        self.portable = manifest.form == "portable"
        engine = backend.load(bundle, "recache")
        self.ring, zeros = ring, engine.device.zeros
        inputs = {s.name: prompt.get(s.name) or zeros(s.shape, s.dtype) for s in engine.graph.inputs}
        self.own = {name: buffer for name, buffer in inputs.items() if name not in prompt}
        self._run = engine.bind(inputs, {f"{name}_next": buffer for name, buffer in ring.items()})

    def again(self, written: int, recent: Sequence[Standing], frequencies: NDArray[np.float64], turn: int) -> bool:
        """The ring after `written` chunks under the new prompt, in one pass; the sinks too while they are the first chunks
        and nothing else, as long as all are in the window, which is returned. recent: the newest chunks, one more than the
        ring holds; the others as `run`."""
        sinks = self.layout.sink_chunks
        anew = len(recent) <= self.alone
        standing: list[Standing | None] = []
        for chunk in self.layout.standing(written, self.portable):
            if chunk is None or (chunk < sinks and not anew):
                standing.append(None)
            else:
                standing.append(recent[chunk if chunk < sinks else chunk - written])
        self.run(standing, frequencies, keep_sinks=not anew, turn=turn)
        return anew

    def run(
        self,
        standing: Sequence[Standing | None],
        frequencies: NDArray[np.float64],
        keep_sinks: bool,
        turn: int = 0,
    ) -> None:
        """Make the ring anew. standing: by slot, None where none stands (or a sink that stays), as `RingLayout.standing`
        orders them; frequencies [heads, channels/2] of the temporal tables, or every layer's own; turn: latent frames from
        where the sinks were made to where the frames are to see them."""
        own, chunk, layout = self.own, self.chunk, self.layout
        latents = np.zeros(own["latents"].shape, np.float32)
        positions = np.zeros(len(standing) * chunk)
        for i, one in enumerate(standing):
            if one is not None:
                latents[0, :, i * chunk : (i + 1) * chunk] = one.latent
                positions[i * chunk : (i + 1) * chunk] = one.position + np.arange(chunk)
        own["latents"].write(latents)
        for name, places in (("rope", positions), ("sink", [turn])):
            for part, table in zip(("cos", "sin"), temporal_tables(places, frequencies), strict=True):
                if (buffer := own.get(f"{name}_{part}")) is not None:  # not every bundle turns its sinks
                    buffer.write(np.ascontiguousarray(np.broadcast_to(table, buffer.shape)))
        there = np.array([one is not None or (keep_sinks and i < layout.sink_chunks) for i, one in enumerate(standing)])
        if self.portable:
            mask = np.where(np.repeat(there, layout.chunk_tokens), 0.0, HIDDEN).astype(np.float32)
            own["mask"].write(mask.reshape(own["mask"].shape))
        else:
            own["kv_len"].write(np.array([there.sum() * layout.chunk_tokens], np.int64))
        if "keep" in own:
            own["keep"].write(np.array([int(keep_sinks)], np.int64))
        for name, buffer in own.items():
            if name.startswith(("sink_k_", "sink_v_")):  # float beside an INT8 ring, else the ring's own
                source = self.ring[name if name in self.ring else name.removeprefix("sink_")]
                buffer.copy_tokens(0, source, count=layout.sink_tokens)
        self._run()


def recache_bytes(bundle: Bundle) -> int:
    """Device memory that the pass wants beside a stream's own: its graph's weights as they are stored, copies of the sinks,
    and the widest place of a block for all frames of the window."""
    manifest = bundle.manifest
    graph, net, g = manifest.graphs["recache"], manifest.network, manifest.geometry
    wide = {"float32": 4, "int8": 1}
    own = sum(int(np.prod(s.shape)) * wide.get(s.dtype, 2) for s in graph.inputs if s.name.startswith(("sink_", "lat")))
    live = g.cache_tokens * (net.ffn_dim + 4 * net.dim) * 2
    return sum(ref.bytes for ref in (graph.model, *graph.data)) + own + live


def load_recache(
    backend: Backend, bundle: Bundle, ring: dict[str, Buffer], prompt: dict[str, Buffer]
) -> tuple[Recache | None, str | None]:
    """The pass of a smooth prompt change, if the bundle has its graph and the device room for it (asked when all else is
    loaded); and what to tell where it has not."""
    if bundle.manifest.recache != "window":
        return None, None
    free, wanted = backend.device.free(), recache_bytes(bundle)
    if free is not None and wanted > free:
        return None, (
            f"{bundle.path}: smooth prompt changes go chunk by chunk: the pass over the whole window wants "
            f"{wanted / 1e9:.1f} GB, {free / 1e9:.1f} GB are free on the device"
        )
    return Recache(backend, bundle, ring, prompt), None
