"""Where a chunk's keys and values go: sink slots that stay for good, then a ring of chunk-sized slots.

Nothing ever moves. A chunk is written over the oldest one that is not a sink; attention does not care in which order
the keys stand, because each carries its own rotation.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..engines.bundle import Geometry


@dataclass(frozen=True)
class Slot:
    """Token index where the chunk's keys and values start, and how many ring tokens are valid once they are written."""

    start: int
    valid: int


@dataclass(frozen=True)
class RingLayout:
    """Slots of a KV ring, counted in chunks."""

    sink_chunks: int
    ring_chunks: int  # the current chunk included
    chunk_tokens: int

    @classmethod
    def of(cls, geometry: Geometry) -> RingLayout:
        sink = geometry.sink // geometry.chunk
        return cls(sink, geometry.window // geometry.chunk - sink, geometry.chunk_tokens)

    @property
    def chunks(self) -> int:
        return self.sink_chunks + self.ring_chunks

    @property
    def past_chunks(self) -> int:
        """Chunks before the current one that it sees, sinks apart, once the ring is full."""
        return self.ring_chunks - 1

    @property
    def sink_tokens(self) -> int:
        return self.sink_chunks * self.chunk_tokens

    @property
    def past_tokens(self) -> int:
        """Tokens of a ring that holds the past only (the portable form)."""
        return (self.chunks - 1) * self.chunk_tokens

    def past_slot(self, written: int) -> Slot:
        """In a ring that holds the past only: where the next chunk goes once it is committed, and how many tokens are
        valid while it is made. A chunk that will never be seen again (a window of one chunk) goes nowhere: start −1."""
        past_sinks = written - self.sink_chunks
        if past_sinks < 0:
            place = written
        elif self.past_chunks:
            place = self.sink_chunks + past_sinks % self.past_chunks
        else:
            return Slot(-1, min(written, self.chunks - 1) * self.chunk_tokens)
        return Slot(place * self.chunk_tokens, min(written, self.chunks - 1) * self.chunk_tokens)

    def place(self, written: int, past: bool) -> Slot:
        """The slot of the next chunk. past: in the portable form, whose ring holds the past only."""
        return self.past_slot(written) if past else self.slot(written)

    def standing(self, written: int, past: bool) -> list[int | None]:
        """Which of the `written` chunks stands in each slot, None in an empty one. past: in a ring that holds the past
        only, with one place more at the end for the chunk that was overwritten last."""
        slots: list[int | None] = [None] * self.chunks
        for chunk in range(min(written, self.sink_chunks)):
            slots[chunk] = chunk
        for chunk in range(max(self.sink_chunks, written - self.ring_chunks), written):
            start = self.place(chunk, past).start
            gone = past and chunk == written - self.ring_chunks
            slots[-1 if gone else start // self.chunk_tokens] = chunk
        return slots

    def slot(self, written: int) -> Slot:
        """The slot of the next chunk when `written` chunks have been committed since the ring was last emptied."""
        past_sinks = written - self.sink_chunks
        place = written if past_sinks < 0 else self.sink_chunks + past_sinks % self.ring_chunks
        return Slot(place * self.chunk_tokens, min(written + 1, self.chunks) * self.chunk_tokens)
