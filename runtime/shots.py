"""Models of many shots (LongLive 2.0): a ring in which the first chunk of the current shot stays beside the sinks.

A cut marks the chunk that it begins with. It is passed over once it has become the oldest, until the next cut marks another;
then it is one like all others. Everything else is as in `ring.RingLayout`: nothing moves, an old chunk is written over.
From a cut on, positions are further than the count of latent frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..engines.bundle import Bundle
from .ring import RingLayout, Slot


class ShotRing:
    """Which chunks stand where. slots: of each slot the number of its chunk, counted since the ring was empty, or None;
    kept: the number of the chunk that the current shot began with, None before a cut; cut: that is the newest chunk, or
    is to be the next; jump: latent frames by which positions are further than the count."""

    def __init__(self, layout: RingLayout, past: bool, offset: int):
        """past: in the portable form, whose ring holds the past only and takes a chunk in when it is committed. offset:
        latent frames that a cut adds to the jump."""
        self.layout, self.past, self.offset = layout, past, offset
        self.clear()

    def clear(self) -> None:
        self.slots: list[int | None] = [None] * (self.layout.chunks - self.past)
        self.kept: int | None = None
        self.cut, self.jump = False, 0

    def facts(self) -> dict[str, Any]:
        return {"slots": list(self.slots), "kept": self.kept, "cut": self.cut, "jump": self.jump}

    def load(self, facts: dict[str, Any]) -> None:
        """The facts stay as they are: a state may be restored again."""
        self.slots = list(facts["slots"])
        self.kept, self.cut, self.jump = facts["kept"], facts["cut"], facts["jump"]

    def place(self, chunk: int) -> Slot:
        """The next chunk's slot, which it then has; what `RingLayout.place` is for a model without shots."""
        seen = sum(slot is not None for slot in self.slots)
        if self.past and self.cut:  # it is written over what the chunk after it is not to see
            self.kept = chunk
        at = self._room(chunk)
        if at >= 0:
            self.slots[at] = chunk
        if self.cut:
            self.kept, self.jump = chunk, self.jump + self.offset
        if not self.past:
            seen = sum(slot is not None for slot in self.slots)
        return Slot(at * self.layout.chunk_tokens if at >= 0 else -1, seen * self.layout.chunk_tokens)

    def _room(self, chunk: int) -> int:
        """An empty slot, or that of the oldest chunk that need not stay; −1 where that is the chunk itself."""
        if None in self.slots:
            return self.slots.index(None)
        ages = [slot for slot in self.slots if slot is not None and not self._stays(slot)]
        if self.past and not self._stays(chunk):
            ages.append(chunk)
        oldest = min(ages)
        return self.slots.index(oldest) if oldest in self.slots else -1

    def _stays(self, chunk: int) -> bool:
        return chunk < self.layout.sink_chunks or chunk == self.kept

    def flush(self, move: Callable[[int, int, int], None]) -> None:
        """Forget all chunks but those that stay and the newest. move(from, to, tokens) copies part of the ring: those that
        are kept go to the front, and none is read after it was written."""
        newest = max((slot for slot in self.slots if slot is not None), default=None)
        left = [slot if slot is not None and (self._stays(slot) or slot == newest) else None for slot in self.slots]
        count = sum(slot is not None for slot in left)
        free = [i for i in range(count) if left[i] is None]
        far = [i for i in range(count, len(left)) if left[i] is not None]
        tokens = self.layout.chunk_tokens
        for source, target in zip(far, free, strict=True):
            move(source * tokens, target * tokens, tokens)
            left[target], left[source] = left[source], None
        self.slots = left


def shot_ring(bundle: Bundle, layout: RingLayout) -> ShotRing | None:
    """Of a bundle whose model knows shots."""
    shots = bundle.manifest.shots
    return None if shots is None else ShotRing(layout, bundle.manifest.form == "portable", shots.offset)
