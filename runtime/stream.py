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
from collections.abc import Iterator
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ..engines.base import Backend, Buffer, EngineOptions
from ..engines.bundle import Bundle
from ..engines.errors import UserError
from ..engines.ort import OrtBackend
from .anchor import encode_anchor
from .chunks import BEGUN_FACTS, Chunk, Clock, Timings, restored
from .chunks import Begun as _Begun
from .noise import NoiseAhead, seed_of, whole_number
from .passes import Passes
from .prompts import PromptBank, Transition, check_transition
from .proof import require
from .recache import Standing
from .ring import RingLayout, Slot
from .rope import FARTHEST, frequencies_of
from .shots import shot_ring
from .sinks import check_distance, leaving, own_mode, sink_turn
from .whole import Whole


class Stream:
    """Endless video from one bundle. Iterate for chunks; change the prompt between them.

    Args:
        bundle: the verified bundle.
        prompt: a prompt of the bank; default its first.
        seed: 0 … 2^64−1. The same seed gives the same frames on one machine and backend.
        start: latent frame index of the first chunk, up to 10^13 (`rope.FARTHEST`).
        rope_mode: "absolute": sinks stay where they were made; "relative": they follow the window. Default the manifest's.
        sink_distance: latent frames from the first sink frame to the chunk's first; default the manifest's.
        jitter_sigma: strength of the multi-head RoPE jitter in [0, 1); default the manifest's.
        frequencies: temporal spectrum of every head, radians per latent frame [heads, channels/2], or every layer's own
            [layers, heads, channels/2], in place of the one that theta and jitter make; for studies.
        anchor: a picture uint8 [H, W, 3] or a clip [T, H, W, 3] that becomes the sinks: the stream starts with it and stays
            anchored to it. A clip that is too short stands still at its end, one that is too long is cut. Of a bundle that
            takes a picture as its first latent frame (Wan2.2's 5B), that frame. Needs a bundle with its encoder.
        probe: run the denoising passes through the bundle's probe graph, which tells the attention on the sinks.
        overlap: decode a chunk beside the denoising of the next one; a prompt change then takes effect one chunk later.
            Default: where the device gains by it, which a CPU does too.
        verify: hold the engines against the bundle's reference, the first time they meet on this machine.

    Raises UserError for bad arguments, files that cannot be loaded, and engines that compute something else.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        prompt: str | None = None,
        seed: int = 0,
        start: int = 0,
        rope_mode: Literal["absolute", "relative"] | None = None,
        sink_distance: int | None = None,
        jitter_sigma: float | None = None,
        frequencies: NDArray[np.float64] | None = None,
        anchor: NDArray[np.uint8] | None = None,
        probe: bool = False,
        overlap: bool | None = None,
        verify: bool = True,
        options: EngineOptions | None = None,
        backend: Backend | None = None,
    ):
        self._whole = Whole()
        self.set_seed(seed)
        start = whole_number("start", start, FARTHEST, "a latent frame index from 0 to 10^13")
        manifest = bundle.manifest
        rope = manifest.rope
        self.jitter_sigma = sigma = rope.jitter_sigma if jitter_sigma is None else jitter_sigma
        if not 0 <= sigma < 1:
            raise UserError(f"jitter sigma {sigma}: expected 0 <= sigma < 1")
        backend = backend or OrtBackend(options or EngineOptions())
        self.bank = PromptBank(bundle, backend)
        self.bundle, self.geometry, self.output = bundle, manifest.geometry, bundle.output
        self.layout = RingLayout.of(manifest.geometry)
        mode, note = own_mode(bundle) if rope_mode is None else (rope_mode, None)
        self.rope_mode = mode
        self.sink_distance = check_distance(bundle, mode, sink_distance)  # None: they stay where they were made
        self.frequencies = frequencies_of(rope, sigma, frequencies)
        self._prompt = self.bank.find(prompt) if prompt is not None else self.bank.prompts[0]
        self._pending: tuple[str, Transition | Literal["anew"]] | None = (self._prompt, "swap")

        if probe and "probe" not in manifest.graphs:
            raise UserError(f"{bundle.path}: has no probe graph; export it with --probe")
        self.overlap = not probe and (backend.device.overlaps if overlap is None else overlap)
        self._loop = Passes(backend, bundle, "probe" if probe else "step", lanes=2 if self.overlap else 1)
        if verify and not probe:
            require(self._loop, bundle, self.bank, backend)
        self._shots = shot_ring(bundle, self.layout)
        self._noise = NoiseAhead(self.geometry.latent_shape)
        self._sinks_made: int | None = None  # latent frame index of the first sink frame
        # What whoever runs this should be told.
        self.notices = [told for told in (note, self._loop.recache_note) if told is not None]
        self._anchors = deque([] if anchor is None else encode_anchor(backend, bundle, anchor))
        self._index = 0  # chunks made
        self._written = 0  # chunks committed since the ring was last emptied
        self._first = True  # nothing was denoised since then: the next chunk that is has the first one's schedule
        self._position = start  # latent frame index of the next chunk
        # The newest chunks, one more than the ring holds: as many as that say that the stream is longer than its window.
        self._recent: deque[Standing] = deque(maxlen=self.layout.chunks + 1)
        self._begun: _Begun | None = None  # the chunk that is being made

    @property
    def position(self) -> int:
        """Latent frame index of the chunk that `next_chunk` returns next."""
        return self._begun.position if self._begun else self._position

    @property
    def recache(self) -> Literal["window", "chunks", "none"]:
        """What `smooth` does: all frames of the ring in one pass, as LongLive does, or chunk by chunk: by a bundle without
        that graph, or on a device that has no room for it (`notices` says so); or what `swap` does."""
        none = self.bundle.manifest.recache == "none"
        return "none" if none else "chunks" if self._loop.recache is None else "window"

    @property
    def not_one_launch(self) -> str | None:
        """Why a GPU is given the passes of a chunk one by one, where it could not record them as one launch."""
        return self._loop.why_not_recorded

    @property
    def prompt(self) -> str:
        """The prompt of the next chunk."""
        return self._pending[0] if self._pending else self._prompt

    def set_prompt(self, prompt: str, transition: Transition = "smooth") -> None:
        """Change the prompt from the next chunk on that has not been begun; with overlap one has been, after the first.

        swap: the cross-attention keys and values change, the ring stays. smooth: also run the ring's clean latents again
        under the new prompt (LongLive's KV-recache; `recache` tells how). flush: keep only the sinks and the newest chunk
        (Infinity-RoPE's KV flush). cut: a new scene with new sinks; of a model of many shots the next shot of the stream,
        whose first chunk stays in the ring beside the sinks, which a prompt with the model's own prefix does too.

        Raises UserError when the prompt is not in the bank or the transition is unknown.
        """
        check_transition(transition)
        found, change = self.bank.change(prompt, transition)
        # A scene that is to begin anew does so under the newer prompt: what was in the ring is cleared already.
        anew = self._pending is not None and self._pending[1] == "anew"
        self._pending = (found, "anew" if anew else change)

    def set_seed(self, seed: int) -> None:
        """Draw the noise of the chunks to come from another seed. Raises UserError."""
        self.seed = seed_of(seed)

    def sizes(self) -> dict[str, int]:
        """Bytes of the stream's own device memory: ring, prompt (its keys and values), states (the decoder's)."""
        return self._loop.sizes()

    def cut_at_once(self) -> bool:
        """After `set_prompt` with a cut: let it take effect with the next chunk, also with overlap: the chunk that is being
        made already is forgotten. Returns whether it does; a model of many shots has that chunk in its ring already."""
        if self._pending is None or self._pending[1] not in ("cut", "anew") or (self._begun and self._shots):
            return False
        if self._begun is None:
            return True
        self._settle()
        self._index, self._position, self._begun = self._begun.index, self._begun.position, None
        self._pending = (self._pending[0], "anew")  # the forgotten chunk is in the ring: no order may keep it
        return True

    def begin_anew(self, prompt: str) -> None:
        """Empty everything and begin a new scene with the next chunk.

        For a stream whose numbers are not finite any more: they would spread from ring slots that count for nothing too.
        Raises UserError.
        """
        self._pending = (self.bank.find(prompt), "anew")
        self._settle()
        self._begun = None
        self._loop.clear()

    def _settle(self) -> None:
        """Let the chunk in flight be made: its passes write x0 and the ring, some of them not before they are waited for."""
        self._whole.check()
        if self._begun is not None:
            self._loop.made()

    def __iter__(self) -> Iterator[Chunk]:
        while True:
            yield self.next_chunk()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the engines and buffers; a closed stream makes no more chunks."""
        self._whole.close()
        loop = self.__dict__.pop("_loop", None)
        if loop is not None and self._begun is not None:
            loop.made()

    def next_chunk(self) -> Chunk:
        """Make the next chunk. Raises UserError where an earlier one was broken off, by Ctrl-C or an error."""
        with self._whole:
            began, loop = time.perf_counter(), self._loop
            this = self._begun or self._begin(anew=False)
            self._begun = None
            if self.overlap:  # the next chunk's, while this one is being made
                self._noise.draw(self.seed, self._index, loop.draws["make"])
            seconds = loop.made()
            clock = Clock()
            latent = loop.x0.read()[0]
            if this.written == 0 and loop.moving is not None:
                loop.moving.begin()
            # A copy, for the other is the caller's.
            self._recent.append(Standing(this.position, latent.copy()))
            if self.overlap:
                loop.show()
            host = this.host + clock.lap()
            if self.overlap:
                self._begun = self._begin(this.fresh)
            frames, beside = loop.shown()
            # With overlap the next chunk's passes are already writing there.
            watched = [] if self.overlap else loop.observed
            observed = [{name: buffer.read() for name, buffer in told.items()} for told in watched]
            total = time.perf_counter() - began
            timings = Timings.of(this.prompt_time, host, total, seconds + beside, loop.after)
            return Chunk(this.index, this.position, this.prompt, frames, latent, timings, observed, this.begins)

    def keep_chunk(self, latent: NDArray[np.float32]) -> Chunk:
        """Let the next chunk be this latent [C, F, h, w]: it is committed and decoded, not generated. Not with overlap."""
        if self.overlap:
            raise ValueError("keep_chunk needs a stream without overlap")
        self._anchors.appendleft(latent[None])
        self._first = False  # it was made, elsewhere
        return self.next_chunk()

    def _begin(self, anew: bool) -> _Begun:
        """Start the passes of the next chunk, and beside them, with overlap, the decoding of the one before, if it is to be
        shown. anew: whether the decoder starts anew with that one.
        """
        clock, loop, geometry = Clock(), self._loop, self.geometry
        before = self._shots is not None and self._shots.cut  # whether the last chunk begins a shot
        changes, fresh = self._pending is not None, self._apply_prompt()
        if changes:  # a card has only been told so far, and the time would be nobody's
            loop.device.wait()
        prompt_time = clock.lap()
        shot = self._shots is not None and self._shots.cut
        begun = _Begun(self._index, self._position, self._written, self._prompt, fresh, prompt_time)
        if self._written == 0:
            self._sinks_made = self._position
        self._place(self._position)
        given = self._anchors.popleft() if self._anchors else None
        if given is not None and given.shape[2] == geometry.chunk:
            kind = "keep"
            loop.x0.write(given)
        else:
            kind = "first" if self._first and "first" in loop.schedules else "make"
            self._first = False
            noise = self._noise.take(self.seed, self._index, loop.draws[kind])
            if given is not None:
                noise[0, :, :, : given.shape[2]] = given
            loop.hold(0 if given is None else given.shape[2])
            loop.write_noise(noise)
        if anew if self.overlap else fresh:
            loop.reset_decoder()
        loop.start(kind, before if self.overlap else shot)
        begun.host, begun.begins = clock.lap(), fresh or shot or self._index == 0
        self._index += 1
        self._written += 1
        self._position += geometry.chunk
        return begun

    def snapshot(self, twins: dict[str, Buffer] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Everything that the chunks to come depend on: tensors (ring, decoder states, recent latents) and plain
        facts. `restore` on a stream of the same bundle, seed and settings goes on bit for bit.

        twins: the large ones become copies on the device, in these buffers, which are made where they are missing and are
        for the next time too; else they are arrays. Raises UserError where the device has no room for twins.
        """
        self._settle()
        tensors: dict[str, Any] = dict(self._loop.tensors() if twins is None else self._loop.tensors_into(twins))
        if self._begun is not None:
            tensors["begun"] = self._loop.x0.read()
        tensors |= {f"recent_{i}": chunk.latent for i, chunk in enumerate(self._recent)}
        tensors |= {f"anchor_{i}": latent for i, latent in enumerate(self._anchors)}
        facts = {
            "index": self._index,
            "written": self._written,
            "first": self._first,
            "position": self._position,
            "prompt": self._prompt,
            "pending": self._pending,
            "recent": [chunk.position for chunk in self._recent],
            "sink_start": self._sinks_made,
            "anchors": len(self._anchors),
            "decoded": self._loop.decoded,
            "begun": self._begun and [getattr(self._begun, name) for name in BEGUN_FACTS],
            "shot": self._shots and self._shots.facts(),
        }
        return tensors, facts

    def shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of the large tensors of a `snapshot`, without reading them."""
        return self._loop.shapes()

    def restore(self, tensors: dict[str, NDArray], facts: dict[str, Any]) -> None:
        """Go on where `snapshot` was taken; where a prompt is not in the bank (UserError), the stream stays what it was."""
        prompt, pending = self.bank.find(facts["prompt"]), facts["pending"]
        pending = (self.bank.find(pending[0]), pending[1]) if pending else None
        self._settle()
        if facts["begun"]:
            self._loop.x0.write(tensors["begun"])
        self._index, self._written, self._position = facts["index"], facts["written"], facts["position"]
        self._prompt, self._first, self._pending = prompt, facts["first"], pending
        recent = (Standing(p, tensors[f"recent_{i}"]) for i, p in enumerate(facts["recent"]))
        self._recent = deque(recent, maxlen=self._recent.maxlen)
        self._sinks_made = facts["sink_start"]
        self._anchors = deque(tensors[f"anchor_{i}"] for i in range(facts["anchors"]))
        self._loop.load(tensors, facts["decoded"])
        self._loop.set_prompt(self.bank.embedding(self._prompt))
        if self._shots is not None and facts["shot"] is not None:
            self._shots.load(facts["shot"])
        self._begun = restored(facts["begun"], bool(self._shots and self._shots.cut)) if facts["begun"] else None

    def _place(self, position: int) -> None:
        """Point the step passes at the next slot, with the tables of the chunk at `position`."""
        slot = self._slot(self._written)
        jump = 0 if self._shots is None else self._shots.jump
        self._loop.write_place(position + jump, self.frequencies, slot, self._turn(position + jump))
        if self._loop.moving is not None and self._sinks_made is not None:
            gone = leaving(self.bundle, self.layout, self._written, position, self._sinks_made)
            self._loop.let_go(gone, self.frequencies)

    def _turn(self, position: int) -> int:
        """By how many latent frames the sinks are turned for the chunk at `position`."""
        if self.sink_distance is None or self._sinks_made is None:
            return 0
        return sink_turn(position, self._sinks_made, self.sink_distance)

    def _slot(self, written: int) -> Slot:
        return self._shots.place(written) if self._shots else self.layout.place(written, self._loop.portable)

    def _apply_prompt(self) -> bool:
        """Let a waiting prompt change take effect. Returns whether a new scene begins, with a decoder that knows nothing."""
        shots = self._shots
        if self._pending is None:
            if shots is not None and shots.cut:  # its prefix is the first chunk's alone
                shots.cut = False
                self._loop.set_prompt(self.bank.embedding(self._prompt))
            return False
        (self._prompt, transition), self._pending = self._pending, None
        if shots is not None:
            shots.cut = transition == "cut" and self._written > 0
            if shots.cut:
                self._loop.set_prompt(self.bank.shot_embedding(self._prompt))
                return False
        self._loop.set_prompt(self.bank.embedding(self._prompt))
        if self._index == 0 or transition == "swap" or (transition == "smooth" and self.recache == "none"):
            return False
        if transition in ("cut", "anew"):
            self._written, self._first = 0, True
            self._recent.clear()
            if shots is not None:
                shots.clear()
            return True
        if shots is not None:
            shots.flush(self._loop.move_chunk)
            return False
        if transition == "smooth" and self._loop.recache is not None:
            if self._written:
                turn = self._turn(self._recent[-1].position)
                anew = self._loop.recache.again(self._written, list(self._recent), self.frequencies, turn)
                if anew and self._loop.moving is not None:
                    self._loop.moving.begin()
        elif self._written > self.layout.sink_chunks:
            if transition == "flush":
                newest = self._slot(self._written - 1).start
                if newest not in (-1, self.layout.sink_tokens):  # it stands there already
                    self._loop.move_chunk(newest, self.layout.sink_tokens, self.layout.chunk_tokens)
                self._written = self.layout.sink_chunks + 1
            else:
                seen = min(self._written - self.layout.sink_chunks, self.layout.past_chunks)
                self._written = self.layout.sink_chunks
                for chunk in list(self._recent)[-seen:] if seen else []:
                    self._place(chunk.position)
                    self._loop.recommit(chunk.latent[None])
                    self._written += 1
        return False
