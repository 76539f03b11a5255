"""The bound passes of one stream and the buffers they share: what a chunk is to the engines.

A chunk is a chain of passes (denoising, commit, decode, copy to the host) that depends on nothing but its buffers, so that
a device may record it once and replay it. In two lanes, the decoding of a chunk runs beside the denoising of the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.base import HIDDEN, Backend, Buffer, Device, Engine, Launch
from ..engines.bundle import Bundle, Geometry
from ..engines.errors import UserError
from .post import Decoding, Post
from .recache import load_recache
from .ring import Slot
from .rope import temporal_tables
from .sinks import Leaving, MovingSinks


class Passes:
    """Buffers allocated once, passes bound once.

    lanes: 1 runs a chunk's passes one after the other; 2 decodes a chunk beside the denoising of the next.
    """

    def __init__(self, backend: Backend, bundle: Bundle, step_graph: str, lanes: int):
        manifest = bundle.manifest
        g, net = manifest.geometry, manifest.network
        n, first_steps = len(manifest.schedule.steps), len(manifest.schedule.first_steps or [])
        # Indices into the step graph's schedule of a chunk's denoising passes, by what kind of chunk it is: see `start`.
        self.schedules = {"make": range(n), "keep": range(0)}
        if first_steps:
            self.schedules["first"] = range(n + 1, n + 1 + first_steps)
        self._commit = n
        self.portable, self._folds = manifest.form == "portable", "sinks" in manifest.graphs
        self.lanes = lanes
        self.layers = range(net.layers)
        prompt = backend.load(bundle, "prompt")
        step, decode = (backend.load(bundle, name, beside=lanes == 2) for name in (step_graph, "decode"))
        self.device, zeros = step.device, step.device.zeros
        # The ring is every input that comes out again: in place it is input and output at once, in the portable form the
        # outputs are the chunk's own part. Keys, values, and with an INT8 ring their scales: tokens on axis 2.
        suffix = "_new" if self.portable else "_next"
        after = {spec.name.removesuffix(suffix): spec for spec in step.graph.outputs if spec.name.endswith(suffix)}
        self.ring = {s.name: zeros(s.shape, s.dtype) for s in step.graph.inputs if s.name in after}
        self.keys = [self.ring[f"k_{i}"] for i in self.layers]
        self.own = {name: zeros(s.shape, s.dtype) for name, s in after.items()} if self.portable else {}
        updated = {f"{name}{suffix}": b for name, b in (self.own or self.ring).items()}
        text_shape = (1, net.heads, net.text_len, net.head_dim)
        kind = _dtype(step, "prompt_k_0")
        self.prompt_kv = {f"prompt_{s}_{i}": zeros(text_shape, kind) for s in "kv" for i in self.layers}
        self._sampler_buffers(step, g)
        self._latents = [zeros(g.latent_shape, "float32") for _ in range(2)]  # x_t of even and odd steps
        self.x0, spare = zeros(g.latent_shape, "float32"), zeros(g.latent_shape, "float32")
        # What the decoder reads: with two lanes a copy, because x0 is being overwritten meanwhile.
        self._shown = zeros(g.latent_shape, "float32") if lanes == 2 else self.x0
        # Tables of the chunk, and of the sinks where the graph turns them to follow the window.
        tables = ("rope_cos", "rope_sin", "sink_cos", "sink_sin")
        self.tables = {s.name: zeros(s.shape, s.dtype) for s in step.graph.inputs if s.name in tables}
        self.slot, self.valid = zeros((1,), "int64"), zeros((1,), "int64")
        self.mask = zeros((1, 1, 1, g.cache_tokens), "float32")
        indices = [zeros((1,), "int64") for _ in range(n + 1 + first_steps)]
        for i, index in enumerate(indices):
            index.write(np.array([i], np.int64))
        self._told, self._told_beside = self._watched(step, decode, set(updated), len(indices))
        self._store = Store([(self.ring[name], own) for name, own in self.own.items()])
        works = self._bind_steps(step, indices, updated, spare)

        self.text = zeros((1, net.text_len, net.text_dim), "float32")
        self._encode_prompt = prompt.bind({"text": self.text}, self.prompt_kv)
        self._post = Post(backend, bundle, beside=lanes == 2)
        self._turns = self._decoder(backend, bundle, decode)
        self.after = self._turns[0].names  # what the passes behind the step graph's are called
        self._chains = self._chained(step.device, works, [turn.passes for turn in self._turns])
        self.moving = MovingSinks(backend, bundle, self.ring) if self._folds else None
        # Last: it is left out where what all else leaves free is not enough.
        self.recache, self.recache_note = load_recache(backend, bundle, self.ring, self.prompt_kv)
        self._leaves: tuple[Leaving, NDArray[np.float64]] | None = None  # when the chunk that is being made is there
        self._running: Launch | None = None
        self._kind = "keep"
        self._turn: int | None = None
        self._shows = False
        self.decoded = 0  # chunks since the decoder's states were zero

    def _sampler_buffers(self, step: Engine, g: Geometry) -> None:
        """What the sampler reads in a pass: fresh noise, or the flows that the chunk's earlier passes predicted."""
        zeros, read = step.device.zeros, {s.name for s in step.graph.inputs}
        self.draws = {k: max(1, len(s)) if "noise" in read else 1 for k, s in self.schedules.items()}
        self.noise = [zeros(g.latent_shape, "float32") for _ in range(max(self.draws.values()))]
        self._flows = [zeros(g.latent_shape, "float32") for name in read if name.startswith("flow_")]
        self._no_flow, self._lost = (zeros(g.latent_shape if self._flows else (1,), "float32") for _ in range(2))
        self.still = zeros((g.chunk,), "int64") if "still" in read else None  # frames that are given

    def _chained(
        self, device: Device, works: dict[str, list[Callable[[], None]]], turns: list[list[Callable[[], None]]]
    ) -> dict[tuple[str, int | None], Launch]:
        """What is started for every kind of chunk and every turn of the decoder; with two lanes also without decoding."""
        if self.lanes == 1:
            return {(k, t): device.chain([*work, *turns[t]]) for k, work in works.items() for t in range(3)}
        chains: dict[tuple[str, int | None], Launch] = {(k, None): device.chain(work) for k, work in works.items()}
        return chains | {(k, t): device.chain(work, turns[t]) for k, work in works.items() for t in range(3)}

    def _watched(
        self, step: Engine, decode: Engine, updated: set[str], passes: int
    ) -> tuple[list[dict[str, Buffer]], dict[str, Buffer]]:
        """What instrumented graphs tell beyond the contract, for every index of the schedule, and for decoding."""
        told = [spec for spec in step.graph.outputs if spec.name not in {"x0", "next", "flow", *updated}]
        beside = [s for s in decode.graph.outputs if s.name != "frames" and not s.name.endswith("_next")]
        zeros = step.device.zeros
        rows = [{s.name: zeros(s.shape, s.dtype) for s in specs} for specs in (*[told] * passes, beside)]
        return rows[:-1], rows[-1]

    @property
    def observed(self) -> list[dict[str, Buffer]]:
        """What they told of the last chunk that was started: its denoising passes, its commit pass, its decoding."""
        return [*(self._told[i] for i in (*self.schedules[self._kind], self._commit)), self._told_beside]

    def _bind_steps(
        self, step: Engine, indices: list[Buffer], updated: dict[str, Buffer], spare: Buffer
    ) -> dict[str, list[Callable[[], None]]]:
        """The passes of every kind of chunk; also the one that commits a given latent again."""
        latents = self._latents
        place = {"mask": self.mask} if self.portable else {"slot": self.slot, "kv_len": self.valid}
        shared = {**self.tables, **place, **self.ring, **self.prompt_kv}

        def bound(
            index: int, latent: Buffer, made: int, noise: Buffer, x0: Buffer, after: Buffer
        ) -> Callable[[], None]:
            read, left = self._sampled(step, made, noise)
            inputs = {"latent": latent, "step": indices[index], **read, **shared}
            return step.bind(inputs, {"x0": x0, "next": after, **left, **updated, **self._told[index]})

        # Pass 0 starts from pure noise; pass i reads what pass i − 1 made: re-noised with its noise, draw i, for example.
        def denoise(schedule: range) -> list[Callable[[], None]]:
            n, draws = len(schedule), len(self.noise)
            return [
                bound(
                    index,
                    self.noise[0] if i == 0 else latents[i % 2],
                    i,
                    self.noise[(i + 1) % min(n, draws)],
                    self.x0,
                    latents[(i + 1) % 2] if i < n - 1 else spare,
                )
                for i, index in enumerate(schedule)
            ]

        scratch = step.device.zeros(self.x0.shape, "float32")
        every = len(self._flows)
        commit = bound(self._commit, self.x0, every, self.noise[0], scratch, spare)
        # A part of committing, but where moving sinks take in what stands there first.
        self._stores_inside = self.portable and not self._folds
        if self._stores_inside:
            commit = Stored(commit, self._store)
        self._clean = step.device.zeros(self.x0.shape, "float32")
        self._recommit = bound(self._commit, self._clean, every, self.noise[0], scratch, spare)
        return {kind: [*denoise(schedule), commit] for kind, schedule in self.schedules.items()}

    def _sampled(self, step: Engine, made: int, noise: Buffer) -> tuple[dict[str, Buffer], dict[str, Buffer]]:
        """What the sampler reads and leaves in a pass behind `made` others of its chunk: fresh noise, or flows. One that no
        pass has left yet is zero, and one that none reads is left where the next is."""
        names = {spec.name for spec in step.graph.inputs}
        read = {f"flow_{j}": flow if j < made else self._no_flow for j, flow in enumerate(self._flows)}
        left = {"flow": self._flows[made] if made < len(self._flows) else self._lost} if self._flows else {}
        own = {"noise": noise, "still": self.still}
        return read | {name: b for name, b in own.items() if name in names and b is not None}, left

    def _decoder(self, backend: Backend, bundle: Bundle, decode: Engine) -> list[Decoding]:
        """A state is read and written in one pass, so two sets take turns; a first chunk has a decoder of its own."""
        specs, zeros = [s for s in decode.graph.inputs if s.name != "latent"], decode.device.zeros
        self._states = [{s.name: zeros(s.shape, s.dtype) for s in specs} for _ in range(2)]
        own = "decode_first" in bundle.manifest.graphs
        first = backend.load(bundle, "decode_first", self.lanes == 2) if own else decode
        return [self._bind_decode(decode, 0), self._bind_decode(decode, 1), self._bind_decode(first, 0, True)]

    def _bind_decode(self, engine: Engine, turn: int, first: bool = False) -> Decoding:
        """The decoding pass, those behind it, then the copy of the frames to the host."""
        old, new = self._states[turn], self._states[turn ^ 1]
        spec = next(s for s in engine.graph.outputs if s.name == "frames")
        frames = engine.device.zeros(spec.shape, spec.dtype)
        told = (
            self._told_beside if engine.graph.outputs[-1].name in self._told_beside else {}
        )  # a first chunk's does not
        outputs = {"frames": frames, **{f"{name}_next": buffer for name, buffer in new.items()}, **told}
        read = {s.name for s in engine.graph.inputs}  # a first chunk's decoder need not read all states
        inputs = {name: buffer for name, buffer in ({"latent": self._shown} | old).items() if name in read}
        return self._post.bind(engine.bind(inputs, outputs), frames, turn, first)

    def show(self) -> None:
        """With two lanes: what stands in x0 is decoded beside the chunk that is started next."""
        if self.lanes == 2:
            self._shown.copy(self.x0)
            self._shows = True

    def start(self, kind: str, cut: bool = False) -> None:
        """Start a chunk: "make" denoises and commits one, "first" does so by the first chunk's own schedule (only where
        the bundle has one), "keep" commits the latent in x0. With one lane its decoding follows; with two, what `show` was
        called for is decoded beside it. cut: what is decoded begins a new picture, as it does with a decoder that is new."""
        if self.lanes == 1 or self._shows:
            self._post.start(cut or self.decoded == 0)
            self._turn = self.decoded % 2 if self.decoded else 2
            self.decoded += 1
        else:
            self._turn = None
        self._shows = False
        self._kind, self._running = kind, self._chains[kind, self._turn]
        self._running.start(self._store.at if self._stores_inside else 0)

    def made(self) -> list[float]:
        """Wait for the first lane. Its clean keys and values stand in the ring then. Returns the seconds of each pass, with
        one lane those of decoding and of the host copy too."""
        if self._running is None:  # a restored chunk: made in another process
            return [0.0]
        seconds = self._running.main()
        if self.moving is not None and self._leaves is not None:  # before its slot is written over
            self.moving.fold(*self._leaves)
        self._leaves = None
        if self._stores_inside:
            self._store.at = -1
        else:
            self._store()
        return seconds

    def shown(self) -> tuple[NDArray[np.uint8], list[float]]:
        """Wait for the frames. Returns them, and with two lanes the seconds of decoding and of the host copy."""
        assert self._running is not None
        assert self._turn is not None
        seconds = self._running.side()
        parts = [part.fetched() for part in self._turns[self._turn].frames]
        return parts[0] if len(parts) == 1 else np.concatenate(parts), seconds

    def decoded_frames(self) -> NDArray[np.uint8]:
        """What the decoder made of the frames that `shown` returned last, uint8 [N, H, W, 3]."""
        assert self._turn is not None
        return self._turns[self._turn].decoded.read()

    def _kept(self, decoded: int) -> dict[str, Buffer]:
        """What lives on between chunks: the ring, moving sinks, and the set of decoder states that is read next."""
        states = self._states[decoded % 2] | self._post.kept(decoded)
        return self.ring | states | (self.moving.mean if self.moving is not None else {})

    def shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of every tensor of `tensors`."""
        return {name: (buffer.shape, buffer.dtype) for name, buffer in self._kept(self.decoded).items()}

    def tensors(self) -> dict[str, NDArray]:
        return {name: buffer.read() for name, buffer in self._kept(self.decoded).items()}

    def tensors_into(self, twins: dict[str, Buffer]) -> dict[str, Buffer]:
        """The same as copies on the device, in buffers that `twins` keeps for the next time. Raises UserError where they
        would take more than half of what is free there."""
        kept = self._kept(self.decoded)
        free, wanted = self.device.free(), sum(_bytes(buffer) for name, buffer in kept.items() if name not in twins)
        if free is not None and 2 * wanted > free:
            raise UserError(f"copies of the stream's state want {wanted} bytes, {free} are free on the device")
        for name, buffer in kept.items():
            if name not in twins:
                twins[name] = self.device.zeros(buffer.shape, str(buffer.dtype))
            twins[name].copy(buffer)
        self.device.wait()
        return {name: twins[name] for name in kept}

    def load(self, tensors: dict[str, NDArray], decoded: int) -> None:
        self.decoded = decoded
        self._post.load(tensors, decoded)
        for name, buffer in self._kept(decoded).items():
            buffer.write(tensors[name])

    def hold(self, frames: int) -> None:
        """So many frames of the next chunk are given: their latents stand where its noise is written."""
        if self.still is not None:
            self.still.write((np.arange(self.still.shape[0]) < frames).astype(np.int64))

    def write_noise(self, noise: NDArray[np.float32]) -> None:
        for buffer, values in zip(self.noise, noise, strict=False):  # a schedule may be the shorter one
            buffer.write(values)

    def let_go(self, chunk: Leaving | None, frequencies: NDArray[np.float64]) -> None:
        """Which chunk no other will see once the one that is to be made is there: moving sinks take it in."""
        self._leaves = None if chunk is None else (chunk, frequencies)

    def write_place(self, position: int, frequencies: NDArray[np.float64], slot: Slot, turn: int = 0) -> None:
        """Point the step passes at the chunk whose first frame is latent frame `position`. frequencies: radians per latent
        frame, [heads, channels/2] or every layer's own [layers, heads, channels/2]; turn: latent frames from where the
        sinks were made to where they stand."""
        frames = np.arange(self.tables["rope_cos"].shape[-2]) + float(position)
        for name, places in (("rope", frames), ("sink", [turn])):
            for part, table in zip(("cos", "sin"), temporal_tables(places, frequencies), strict=True):
                if (buffer := self.tables.get(f"{name}_{part}")) is not None:
                    buffer.write(np.ascontiguousarray(np.broadcast_to(table, buffer.shape)))
        if self.portable:
            own = self.mask.shape[-1] - self.keys[0].shape[2]  # the chunk's own tokens stand behind the ring's
            seen = np.arange(self.mask.shape[-1]) < slot.valid
            seen[-own:] = True
            self.mask.write(np.where(seen, 0.0, HIDDEN).astype(np.float32).reshape(self.mask.shape))
            self._store.at = slot.start
        else:
            self.slot.write(np.array([slot.start], np.int64))
            self.valid.write(np.array([slot.valid], np.int64))

    def set_prompt(self, embedding: NDArray[np.float32]) -> None:
        self.text.write(embedding)
        self._encode_prompt()

    def recommit(self, latent: NDArray[np.float32]) -> None:
        self._clean.write(latent)
        self._recommit()
        self._store()

    def reset_decoder(self) -> None:
        for states in self._states:
            for buffer in states.values():
                buffer.clear()
        self._post.restart(self.decoded)
        self.decoded = 0

    @property
    def why_not_recorded(self) -> str | None:
        """A GPU's reason for not recording a chunk's passes as one launch; None where it did, and elsewhere."""
        return next((why for chain in self._chains.values() if (why := getattr(chain, "why_not", None))), None)

    def sizes(self) -> dict[str, int]:
        """Bytes of what a stream holds beside its engines."""
        states = [buffer for turn in self._states for buffer in turn.values()]
        ring = [*self.ring.values(), *(self.moving.mean.values() if self.moving is not None else ())]
        parts = {"ring": ring, "prompt": self.prompt_kv.values(), "states": states}
        return {k: sum(_bytes(buffer) for buffer in v) for k, v in parts.items()}

    def clear(self) -> None:
        """Zeros in the ring and in the decoder's states."""
        for buffer in self.ring.values():
            buffer.clear()
        if self.moving is not None:
            self.moving.clear()
        self._store.at = -1
        self._post.clear()
        self.reset_decoder()

    def move_chunk(self, source: int, target: int, tokens: int) -> None:
        """Copy one chunk's part of the ring to another slot of the ring."""
        for buffer in self.ring.values():
            if target < buffer.shape[2]:  # the float sinks beside an INT8 ring are not longer
                buffer.copy_tokens(target, buffer, source, tokens)


class Store:
    """Copies a committed chunk's keys and values to their slot of the portable form's ring: to token `at`, once; nowhere
    where that is −1. parts: pairs of a ring buffer and the chunk's own."""

    def __init__(self, parts: list[tuple[Buffer, Buffer]]):
        self._parts, self.at = parts, -1

    def copy(self) -> None:
        for ring, own in self._parts if self.at >= 0 else ():
            if self.at < ring.shape[2]:  # the float sinks beside an INT8 ring are not longer
                ring.copy_tokens(self.at, own)

    def __call__(self) -> None:
        self.copy()
        self.at = -1


class Stored:
    """A committing pass, and behind it the copies to the ring on the main stream."""

    def __init__(self, work: Callable[..., None], store: Store):
        self._work, self._store = work, store

    def __call__(self, *stream: Any) -> None:
        self._work(*stream)
        self._store.copy()

    def why_not_recorded(self) -> str | None:
        return getattr(self._work, "why_not_recorded", lambda: None)()


def _bytes(buffer: Buffer) -> int:
    return math.prod(buffer.shape) * buffer.dtype.itemsize


def _dtype(engine: Engine, name: str) -> str:
    return next(spec.dtype for spec in engine.graph.inputs if spec.name == name)
