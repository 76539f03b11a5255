"""The chunk loop: an endless stream of video from the engines of one bundle.

    with Stream(open_bundle(), prompt="a calm sea under an orange sunset sky", seed=7) as stream:
        for chunk in stream:
            show(chunk.frames)          # uint8 [4F, H, W, 3]

All buffers are allocated in `Stream.__init__` and every pass is bound to them once; a chunk writes a few small inputs
(noise, RoPE tables, slot, valid length) and runs n + 1 step passes and one decode pass.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ..engines.base import Backend, Buffer, Engine, EngineOptions
from ..engines.bundle import Bundle
from ..engines.errors import UserError
from ..engines.ort import OrtBackend
from .noise import chunk_noise
from .prompts import PromptBank
from .ring import RingLayout, Slot
from .rope import axis_frequencies, head_thetas, temporal_tables

Transition = Literal["swap", "smooth", "flush", "cut"]
TRANSITIONS: tuple[Transition, ...] = ("swap", "smooth", "flush", "cut")
MAX_SEED = 2**64 - 1
HIDDEN = -1e9  # added to the attention score of a slot that holds nothing yet: its weight is exactly 0


@dataclass(frozen=True)
class Timings:
    """Seconds spent on one chunk, by the field's stage names."""

    prompt: float  # a prompt change taking effect; 0 for most chunks
    host: float  # noise, RoPE tables, copies
    diffuse: tuple[float, ...]  # denoising passes, by step
    finalize: float  # the commit pass
    decode: float

    @property
    def total(self) -> float:
        return self.prompt + self.host + sum(self.diffuse) + self.finalize + self.decode


@dataclass(frozen=True)
class Chunk:
    """One chunk of video. Its arrays belong to the caller."""

    index: int  # 0, 1, 2 … since the stream began
    position: int  # latent frame index of its first frame
    prompt: str
    frames: NDArray[np.uint8]  # [4F, H, W, 3] RGB; fewer in a stream's first chunk where the decoder says so
    latent: NDArray[np.float32]  # [C, F, h, w], x0
    timings: Timings
    sink_mass: NDArray[np.float32] | None = None  # [steps, L, H], share of attention on the sinks; with probe only


class Stream:
    """Endless video from one bundle. Iterate for chunks; change the prompt between them.

    Args:
        bundle: the verified bundle.
        prompt: a prompt of the bank; default its first.
        seed: 0 … 2^64−1. The same seed gives the same frames on one machine and backend.
        start: latent frame index of the first chunk, as far out as you like.
        rope_mode: "absolute" or "relative"; default the manifest's.
        jitter_sigma: strength of the multi-head RoPE jitter in [0, 1); default the manifest's.
        frequencies: temporal spectrum of every head, radians per latent frame [heads, channels/2], in place of the one
            that theta and jitter make; for studies.
        anchor: a picture uint8 [H, W, 3] or a clip [T, H, W, 3] that becomes the sinks: the stream starts with it and stays
            anchored to it. A clip that is too short stands still at its end, one that is too long is cut. Needs a
            bundle with its encoder.
        probe: run the denoising passes through the bundle's probe graph, which tells the attention on the sinks.

    Raises UserError for bad arguments or files that cannot be loaded.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        prompt: str | None = None,
        seed: int = 0,
        start: int = 0,
        rope_mode: Literal["absolute", "relative"] | None = None,
        jitter_sigma: float | None = None,
        frequencies: NDArray[np.float64] | None = None,
        anchor: NDArray[np.uint8] | None = None,
        probe: bool = False,
        options: EngineOptions | None = None,
        backend: Backend | None = None,
    ):
        if not 0 <= seed <= MAX_SEED:
            raise UserError(f"seed {seed}: expected 0 to {MAX_SEED}")
        if not 0 <= start <= 2**52:
            raise UserError(f"start {start}: expected a latent frame index from 0 to 2^52")
        manifest = bundle.manifest
        rope = manifest.rope
        self.jitter_sigma = sigma = rope.jitter_sigma if jitter_sigma is None else jitter_sigma
        if not 0 <= sigma < 1:
            raise UserError(f"jitter sigma {sigma}: expected 0 <= sigma < 1")
        if rope_mode not in (None, "absolute", "relative"):
            raise UserError(f"rope {rope_mode!r}: expected absolute or relative")
        backend = backend or OrtBackend(options or EngineOptions())
        self.bank = PromptBank(bundle, backend)
        self.bundle, self.geometry, self.seed = bundle, manifest.geometry, seed
        self.layout = RingLayout.of(manifest.geometry)
        self.rope_mode = rope_mode or rope.mode
        if frequencies is None:
            frequencies = axis_frequencies(head_thetas(rope.theta, sigma, rope.epsilon), rope.channels)
        self.frequencies = frequencies
        self._prompt = self.bank.find(prompt) if prompt is not None else self.bank.prompts[0]
        self._pending: tuple[str, Transition] | None = (self._prompt, "swap")

        if probe and "probe" not in manifest.graphs:
            raise UserError(f"{bundle.path}: has no probe graph; export it with --probe")
        self._loop = _Passes(backend, bundle, "probe" if probe else "step")
        self._anchors = deque([] if anchor is None else encode_anchor(backend, bundle, anchor))
        self._index = 0  # chunks made
        self._written = 0  # chunks committed since the ring was last emptied
        self._position = start  # latent frame index of the next chunk
        self._recent: deque[tuple[int, NDArray[np.float32]]] = deque(maxlen=max(1, self.layout.past_chunks))
        self._sinks = _SinkKeys(self.layout.sink_tokens)

    @property
    def position(self) -> int:
        """Latent frame index of the next chunk."""
        return self._position

    @property
    def prompt(self) -> str:
        """The prompt of the next chunk."""
        return self._pending[0] if self._pending else self._prompt

    def set_prompt(self, prompt: str, transition: Transition = "smooth") -> None:
        """Change the prompt from the next chunk on.

        swap: the cross-attention keys and values change, the ring stays. smooth: also re-commit the window's clean
        latents under the new prompt (LongLive's KV-recache). flush: keep only the sinks and the newest chunk
        (Infinity-RoPE's KV flush). cut: a new scene with new sinks.

        Raises UserError when the prompt is not in the bank or the transition is unknown.
        """
        if transition not in TRANSITIONS:
            raise UserError(f"transition {transition!r}: expected one of {', '.join(TRANSITIONS)}")
        self._pending = (self.bank.find(prompt), transition)

    def __iter__(self) -> Iterator[Chunk]:
        while True:
            yield self.next_chunk()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the engines and buffers; a closed stream makes no more chunks."""
        self.__dict__.pop("_loop", None)

    def next_chunk(self) -> Chunk:
        """Make the next chunk."""
        clock = _Clock()
        self._apply_prompt()
        prompt_time = clock.lap()
        loop, geometry = self._loop, self.geometry
        self._place(self._position)
        if self._anchors:
            loop.x0.write(self._anchors.popleft())
            host = clock.lap()
            *diffuse, finalize, decode = loop.keep_chunk()
        else:
            loop.write_noise(chunk_noise(self.seed, self._index, loop.steps, geometry.latent_shape))
            host = clock.lap()
            *diffuse, finalize, decode = loop.make_chunk()
        clock.lap()
        latent = loop.x0.read()[0]
        frames = loop.frames.read()
        if self._written < self.layout.sink_chunks:
            self._sinks.remember(self._position, self._written, loop.keys)
        self._recent.append((self._position, latent))
        host += clock.lap()
        chunk = Chunk(
            self._index,
            self._position,
            self._prompt,
            frames,
            latent,
            Timings(prompt_time, host, tuple(diffuse), finalize, decode),
            np.stack([mass.read() for mass in loop.masses]) if loop.masses else None,
        )
        self._index += 1
        self._written += 1
        self._position += geometry.chunk
        return chunk

    def snapshot(self) -> tuple[dict[str, NDArray], dict[str, Any]]:
        """Everything that the chunks to come depend on: tensors (ring, decoder states, recent latents, sink keys) and plain
        facts. `restore` on a stream of the same bundle, seed and settings goes on bit for bit."""
        tensors = self._loop.tensors()
        for i, (_, latent) in enumerate(self._recent):
            tensors[f"recent_{i}"] = latent
        for i, keys in enumerate(self._sinks.keys):
            tensors[f"sink_{i}"] = keys
        for i, latent in enumerate(self._anchors):
            tensors[f"anchor_{i}"] = latent
        facts = {
            "index": self._index,
            "written": self._written,
            "position": self._position,
            "prompt": self._prompt,
            "pending": self._pending,
            "recent": [position for position, _ in self._recent],
            "sink_start": self._sinks.start,
            "sinks": len(self._sinks.keys),
            "anchors": len(self._anchors),
            "decoded": self._loop.decoded,
        }
        return tensors, facts

    def restore(self, tensors: dict[str, NDArray], facts: dict[str, Any]) -> None:
        """Go on where `snapshot` was taken."""
        self._index, self._written, self._position = facts["index"], facts["written"], facts["position"]
        self._prompt = self.bank.find(facts["prompt"])
        self._pending = tuple(facts["pending"]) if facts["pending"] else None  # type: ignore[assignment]
        self._recent.clear()
        self._recent.extend((p, tensors[f"recent_{i}"]) for i, p in enumerate(facts["recent"]))
        self._sinks.start = facts["sink_start"]
        self._sinks.keys = [tensors[f"sink_{i}"] for i in range(facts["sinks"])]
        self._anchors = deque(tensors[f"anchor_{i}"] for i in range(facts["anchors"]))
        self._loop.load(tensors, facts["decoded"])
        self._loop.set_prompt(self.bank.embedding(self._prompt))

    def _place(self, position: int) -> None:
        """Point the step passes at the next slot, with the tables of the chunk at `position`."""
        slot = self._slot(self._written)
        cos, sin = temporal_tables(np.arange(self.geometry.chunk) + float(position), self.frequencies)
        self._loop.write_place(cos, sin, slot)
        if self.rope_mode == "relative":
            behind = self.layout.past_chunks * self.geometry.chunk + self.geometry.sink
            self._sinks.follow(position - behind, self.frequencies, self._loop.keys)

    def _slot(self, written: int) -> Slot:
        return self.layout.past_slot(written) if self._loop.portable else self.layout.slot(written)

    def _apply_prompt(self) -> None:
        if self._pending is None:
            return
        (self._prompt, transition), self._pending = self._pending, None
        self._loop.set_prompt(self.bank.embedding(self._prompt))
        if self._index == 0 or transition == "swap":
            return
        if transition == "cut":
            self._written = 0
            self._recent.clear()
            self._sinks.forget()
            self._loop.reset_decoder()
        elif self._written > self.layout.sink_chunks:
            if transition == "flush":
                newest = self._slot(self._written - 1).start
                if newest >= 0:
                    self._loop.move_chunk(newest, self.layout.sink_tokens, self.layout.chunk_tokens)
                self._written = self.layout.sink_chunks + 1
            else:
                recent = (
                    list(self._recent)[-(self._written - self.layout.sink_chunks) :] if self.layout.past_chunks else []
                )
                self._written = self.layout.sink_chunks
                for position, latent in recent:
                    self._place(position)
                    self._loop.recommit(latent[None])
                    self._written += 1


def encode_anchor(backend: Backend, bundle: Bundle, frames: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """A picture or clip -> latent chunks [1, C, F, h, w] for the sinks. Raises UserError."""
    if "encode" not in bundle.manifest.graphs:
        raise UserError(f"{bundle.path}: has no encoder for an anchor; export it with --encoder")
    engine = backend.load(bundle, "encode")
    spec, out = engine.graph.inputs[0], engine.graph.outputs[0]
    clip = frames[None] if frames.ndim == 3 else frames
    if clip.ndim != 4 or not len(clip) or list(clip.shape[1:]) != spec.shape[1:] or clip.dtype != np.uint8:
        raise UserError(
            f"anchor: found {frames.dtype} {list(frames.shape)}, expected uint8 {spec.shape[1:]} or a clip of such frames"
        )
    length = spec.shape[0]
    clip = np.concatenate([clip[:length], *[clip[-1:]] * max(0, length - len(clip))])
    buffers = {s.name: engine.device.zeros(s.shape, s.dtype) for s in (spec, out)}
    buffers[spec.name].write(clip)
    engine.bind({spec.name: buffers[spec.name]}, {out.name: buffers[out.name]})()
    latents, chunk = buffers[out.name].read(), bundle.manifest.geometry.chunk
    return [latents[:, :, i : i + chunk] for i in range(0, latents.shape[2], chunk)]


class _Clock:
    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        spent, self._last = now - self._last, now
        return spent


class _SinkKeys:
    """The sinks' keys as they were committed, for `relative` mode: rewritten each chunk, turned to a fixed distance.

    A key committed at latent frame p and turned by (p′ − p)·ω is the key at p′, so the first copy serves for ever and no
    error accumulates.
    """

    def __init__(self, tokens: int):
        self.tokens = tokens
        self.forget()

    def forget(self) -> None:
        self.start: int | None = None
        self.keys: list[NDArray] = []

    def remember(self, position: int, written: int, ring: list[Buffer]) -> None:
        if written == 0:
            self.start = position
        self.keys = [buffer.read_tokens(0, self.tokens) for buffer in ring]

    def follow(self, position: int, frequencies: NDArray[np.float64], ring: list[Buffer]) -> None:
        """Write the sink keys as if the first sink frame stood at `position` (never before where it was made)."""
        if self.start is None or position <= self.start or not self.tokens:
            return
        cos, sin = temporal_tables(np.array([position - self.start]), frequencies)  # [H, 1, K]
        k = cos.shape[-1]
        for kept, buffer in zip(self.keys, ring, strict=True):
            half = kept.shape[-1] // 2
            a, b = kept[..., :k], kept[..., half : half + k]  # the temporal pairs come first in each half
            turned = kept.copy()
            turned[..., :k] = a * cos - b * sin
            turned[..., half : half + k] = b * cos + a * sin
            buffer.write_tokens(0, turned)


class _Passes:
    """The bound passes of one stream and the buffers they share."""

    def __init__(self, backend: Backend, bundle: Bundle, step_graph: str):
        manifest = bundle.manifest
        g, net = manifest.geometry, manifest.network
        self.steps = n = len(manifest.schedule.steps)
        self.portable = manifest.form == "portable"
        self.layers = range(net.layers)
        step, prompt, decode = (backend.load(bundle, name) for name in (step_graph, "prompt", "decode"))
        zeros = step.device.zeros
        held = g.cache_tokens - (g.chunk_tokens if self.portable else 0)
        ring_shape = (1, net.heads, held, net.head_dim)
        self.keys = [zeros(ring_shape, _dtype(step, f"k_{i}")) for i in self.layers]
        self.values = [zeros(ring_shape, _dtype(step, f"v_{i}")) for i in self.layers]
        text_shape = (1, net.heads, net.text_len, net.head_dim)
        kind = _dtype(step, "prompt_k_0")
        self.prompt_kv = {f"prompt_{s}_{i}": zeros(text_shape, kind) for s in "kv" for i in self.layers}
        self.noise = [zeros(g.latent_shape, "float32") for _ in range(n)]
        latents = [zeros(g.latent_shape, "float32") for _ in range(2)]  # x_t of even and odd steps
        self.x0, spare = zeros(g.latent_shape, "float32"), zeros(g.latent_shape, "float32")
        table = (net.heads, g.chunk, manifest.rope.channels // 2)
        self.cos, self.sin = zeros(table, "float32"), zeros(table, "float32")
        self.slot, self.valid = zeros((1,), "int64"), zeros((1,), "int64")
        self.mask = zeros((1, 1, 1, g.cache_tokens), "float32")
        self._store_at = -1  # where the portable form's chunk goes when it is committed
        indices = [zeros((1,), "int64") for _ in range(n + 1)]
        for i, index in enumerate(indices):
            index.write(np.array([i], np.int64))

        ring = {f"{s}_{i}": b for s, side in (("k", self.keys), ("v", self.values)) for i, b in enumerate(side)}
        # In place, the ring is input and output at once; the portable form hands out the chunk's own keys and values.
        own_shape = (1, net.heads, g.chunk_tokens, net.head_dim)
        self.own = {name: zeros(own_shape, _dtype(step, name)) for name in ring} if self.portable else {}
        updated = {f"{name}_new": b for name, b in self.own.items()} or {f"{name}_next": b for name, b in ring.items()}
        place = {"mask": self.mask} if self.portable else {"slot": self.slot, "kv_len": self.valid}
        shared = {"rope_cos": self.cos, "rope_sin": self.sin, **place, **ring, **self.prompt_kv}

        probed = [spec for spec in step.graph.outputs if spec.name == "sink_mass"]
        self.masses = [zeros(spec.shape, spec.dtype) for spec in probed for _ in range(n)]
        unread = {spec.name: zeros(spec.shape, spec.dtype) for spec in probed}

        def bound(index: int, latent: Buffer, noise: Buffer, x0: Buffer, after: Buffer) -> Callable[[], None]:
            inputs = {"latent": latent, "step": indices[index], "noise": noise, **shared}
            told = {"sink_mass": self.masses[index]} if probed and index < n else unread
            return step.bind(inputs, {"x0": x0, "next": after, **updated, **told})

        # Pass 0 starts from pure noise; pass i reads what pass i − 1 re-noised with its noise, draw i.
        self.denoise = [
            bound(
                i,
                self.noise[0] if i == 0 else latents[i % 2],
                self.noise[(i + 1) % n],
                self.x0,
                latents[(i + 1) % 2] if i < n - 1 else spare,
            )
            for i in range(n)
        ]
        scratch = zeros(g.latent_shape, "float32")
        self._commit = bound(n, self.x0, self.noise[0], scratch, spare)
        self._clean = zeros(g.latent_shape, "float32")
        self._recommit = bound(n, self._clean, self.noise[0], scratch, spare)

        self.text = zeros((1, net.text_len, net.text_dim), "float32")
        self._encode_prompt = prompt.bind({"text": self.text}, self.prompt_kv)
        self._states = [
            {s.name: zeros(s.shape, s.dtype) for s in decode.graph.inputs if s.name != "latent"} for _ in range(2)
        ]
        # A decoder state is read and written in one pass, so two sets take turns.
        first = backend.load(bundle, "decode_first") if "decode_first" in manifest.graphs else decode
        # Everything that a chunk runs on the device, and the buffer where its frames are then; a chunk whose latent is
        # given is only committed and decoded.
        decoders = [self._bind_decode(decode, 0), self._bind_decode(decode, 1), self._bind_decode(first, 0)]
        chain = step.device.chain
        self._making = [(chain([*self.denoise, self._commit, run]), frames) for run, frames in decoders]
        self._keeping = [(chain([self._commit, run]), frames) for run, frames in decoders]
        self.decoded = 0  # chunks since the decoder's states were zero

    def _kept(self, decoded: int) -> dict[str, Buffer]:
        """What lives on between chunks: the ring, and the set of decoder states that is read next."""
        rings = {f"{side}_{i}": b for side, ring in (("k", self.keys), ("v", self.values)) for i, b in enumerate(ring)}
        return rings | self._states[decoded % 2]

    def tensors(self) -> dict[str, NDArray]:
        return {name: buffer.read() for name, buffer in self._kept(self.decoded).items()}

    def load(self, tensors: dict[str, NDArray], decoded: int) -> None:
        self.decoded = decoded
        for name, buffer in self._kept(decoded).items():
            buffer.write(tensors[name])

    def _bind_decode(self, engine: Engine, turn: int) -> tuple[Callable[[], None], Buffer]:
        old, new = self._states[turn], self._states[turn ^ 1]
        spec = next(s for s in engine.graph.outputs if s.name == "frames")
        frames = engine.device.zeros(spec.shape, spec.dtype)
        outputs = {"frames": frames, **{f"{name}_next": buffer for name, buffer in new.items()}}
        return engine.bind({"latent": self.x0, **old}, outputs), frames

    def write_noise(self, noise: NDArray[np.float32]) -> None:
        for buffer, values in zip(self.noise, noise, strict=True):
            buffer.write(values)

    def write_place(self, cos: NDArray[np.float32], sin: NDArray[np.float32], slot: Slot) -> None:
        self.cos.write(cos)
        self.sin.write(sin)
        if self.portable:
            own = self.mask.shape[-1] - self.keys[0].shape[2]  # the chunk's own tokens stand behind the ring's
            seen = np.arange(self.mask.shape[-1]) < slot.valid
            seen[-own:] = True
            self.mask.write(np.where(seen, 0.0, HIDDEN).astype(np.float32).reshape(self.mask.shape))
            self._store_at = slot.start
        else:
            self.slot.write(np.array([slot.start], np.int64))
            self.valid.write(np.array([slot.valid], np.int64))

    def make_chunk(self) -> list[float]:
        """All denoising passes, the commit pass, whose clean keys and values stand in the ring afterwards, and the decoder,
        into self.frames. Returns the seconds of each."""
        return self._run(self._making)

    def keep_chunk(self) -> list[float]:
        """The same for a chunk whose latent is in x0 already: without the denoising passes."""
        return self._run(self._keeping)

    def _run(self, chains: list[tuple[Callable[[], list[float]], Buffer]]) -> list[float]:
        run, self.frames = chains[self.decoded % 2 if self.decoded else 2]
        seconds = run()
        self._store()
        self.decoded += 1
        return seconds

    def _store(self) -> None:
        if self._store_at >= 0:
            for ring, own in zip((*self.keys, *self.values), self.own.values(), strict=bool(self.own)):
                ring.write_tokens(self._store_at, own.read())

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
                buffer.write(np.zeros(buffer.shape, buffer.dtype))
        self.decoded = 0

    def move_chunk(self, source: int, target: int, tokens: int) -> None:
        """Copy one chunk's keys and values to another slot of the ring."""
        for buffer in (*self.keys, *self.values):
            buffer.write_tokens(target, buffer.read_tokens(source, source + tokens))


def _dtype(engine: Engine, name: str) -> str:
    return next(spec.dtype for spec in engine.graph.inputs if spec.name == name)
