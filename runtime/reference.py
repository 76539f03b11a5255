"""A bundle's reference: what two of its own chunks are as PyTorch made them in float32, and how far a backend is from it.

Written at export. The first chunk stands alone in the ring; the late one follows a full ring, in which the reference's own
first latent has been committed again and again, so that an error is that of one chunk and cannot grow. Latents show the
prompt and step graphs at every stage of the ring, frames the decoder's, with and without what it remembers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ..engines.bundle import Bundle
from ..engines.errors import UserError
from .noise import chunk_noise
from .passes import Passes
from .prompts import PromptBank
from .ring import RingLayout
from .rope import head_frequencies
from .sinks import own_mode, sink_distance, sink_turn

FILE = "reference.safetensors"
SEED = 0
TURN = 1001  # latent frames by which sinks that follow are turned before the late chunk, as if the stream had run on
SAMPLES = 32_768  # values that are kept of the late latent and of each chunk's frames
PRIME = 2_654_435_761


@dataclass(frozen=True)
class Reference:
    """Tensors of the two chunks."""

    first: NDArray[np.float16]  # x0 [C, F, h, w] of the first chunk, whole: it is committed and decoded
    late: NDArray[np.float32]  # some values of the late chunk's x0
    first_frames: NDArray[np.uint8]  # some values of the decoded first latent
    late_frames: NDArray[np.uint8]  # the same of its decoding once more, by a decoder that remembers it
    turn: NDArray[np.int64]  # [1]: latent frames by which sinks that follow are turned before the late chunk, else 0

    @classmethod
    def read(cls, bundle: Bundle) -> Self:
        """Raises UserError, also for a bundle that has none."""
        ref = bundle.manifest.reference
        if (why := no_reference(bundle)) is not None or ref is None:
            raise UserError(f"{bundle.path}: has no reference{why}")
        file = bundle.path / ref.file
        try:
            tensors = load_file(file)
            tensors.setdefault(
                "turn", np.array([turned(bundle, RingLayout.of(bundle.manifest.geometry).chunks)])
            )  # before
            found = cls(*(tensors[name] for name in cls.__dataclass_fields__))
        except (SafetensorError, KeyError) as error:
            raise UserError(f"{file}: not a bundle's reference: {error}") from None
        shape = bundle.manifest.geometry.latent_shape[1:]
        graphs = bundle.manifest.graphs
        frames = [graphs.get("decode_first", graphs["decode"]), graphs["decode"]]
        expected = [shape, (min(SAMPLES, math.prod(shape)),)]
        expected += [*((min(SAMPLES, math.prod(graph.outputs[0].shape)),) for graph in frames), (1,)]
        for name, want in zip(cls.__dataclass_fields__, expected, strict=True):
            have = getattr(found, name).shape
            if have != want:
                raise UserError(f"{file}: {name} {list(have)}: expected {list(want)} for this bundle")
        return found

    def write(self, file: Path) -> None:
        file.write_bytes(save({name: np.ascontiguousarray(getattr(self, name)) for name in self.__dataclass_fields__}))


@dataclass(frozen=True)
class Deviation:
    """How far a backend is from a bundle's reference."""

    first: float  # root mean square error of x0, in the reference's own root mean square
    late: float
    first_frames: float  # root mean square error of frames, grey levels
    late_frames: float

    @property
    def latents(self) -> float:
        return float(np.max([self.first, self.late]))  # unlike max(), not finite where either is not

    @property
    def frames(self) -> float:
        return float(np.max([self.first_frames, self.late_frames]))


def no_reference(bundle: Bundle) -> str | None:
    """Why there is nothing to hold engines against; None where there is."""
    if bundle.manifest.reference is None:
        return ": an earlier version exported it, or one with --chunks 0"
    if own_mode(bundle)[1] is not None:
        return " for sinks that stay: an earlier version exported it, which turned them outside the graphs"
    return None


def sampled(values: NDArray) -> NDArray:
    """At most SAMPLES of the values in one row, spread over all channels, rows and columns: steps of a large prime."""
    flat = values.reshape(-1)
    if flat.size <= SAMPLES:
        return flat.copy()
    return flat[np.arange(SAMPLES, dtype=np.uint64) * np.uint64(PRIME) % np.uint64(flat.size)]


def turned(bundle: Bundle, written: int) -> int:
    """By how many latent frames a new stream's sinks are turned before its chunk number `written`."""
    position = written * bundle.manifest.geometry.chunk
    return sink_turn(position, 0, sink_distance(bundle)) if own_mode(bundle)[0] == "relative" else 0


def observe(loop: Passes, bundle: Bundle, bank: PromptBank, given: Reference | None = None) -> Reference:
    """The two chunks by the engines of `loop`, which is empty before and after. given: the reference, whose first latent is
    committed; None: the one that is made here is, which is how a reference comes to be."""
    g, rope = bundle.manifest.geometry, bundle.manifest.rope
    layout = RingLayout.of(g)
    frequencies = head_frequencies(rope, rope.jitter_sigma)
    loop.clear()
    loop.set_prompt(bank.embedding(bank.prompts[0]))

    def place(written: int, turn: int | None = None) -> None:
        turn = turned(bundle, written) if turn is None else turn
        loop.write_place(written * g.chunk, frequencies, layout.place(written, loop.portable), turn)

    def make(written: int, turn: int = 0) -> NDArray[np.float32]:
        place(written, turn)
        loop.write_noise(chunk_noise(SEED, written, len(loop.noise), g.latent_shape))
        loop.start("first" if written == 0 and "first" in loop.schedules else "make")
        loop.made()
        return loop.x0.read()[0]

    def decode(latent: NDArray[np.float32]) -> NDArray[np.uint8]:
        loop.x0.write(latent[None])
        loop.show()
        loop.start("keep")
        loop.made()
        loop.shown()
        return loop.decoded_frames()  # whatever runs behind the decoder

    first = make(0)
    kept = (first.astype(np.float16) if given is None else given.first).astype(np.float32)
    turn = int(given.turn[0]) if given is not None else TURN if own_mode(bundle)[0] == "relative" else 0
    for written in range(layout.chunks):
        place(written)
        loop.recommit(kept[None])
    late = make(layout.chunks, turn)
    loop.reset_decoder()
    place(0)
    first_frames, late_frames = decode(kept), decode(kept)
    loop.clear()
    frames = sampled(first_frames), sampled(late_frames)
    return Reference(first.astype(np.float16), sampled(late), *frames, np.array([turn]))


def deviation(found: Reference, reference: Reference) -> Deviation:
    """Not finite where the found values are not."""

    def error(a: NDArray, b: NDArray) -> float:
        return float(np.sqrt(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)))

    latents = (
        error(a, b) / max(float(np.sqrt(np.mean(b.astype(np.float64) ** 2))), 1e-9)
        for a, b in ((found.first, reference.first), (found.late, reference.late))
    )
    frames = (
        error(a, b)
        for a, b in ((found.first_frames, reference.first_frames), (found.late_frames, reference.late_frames))
    )
    return Deviation(*latents, *frames)
