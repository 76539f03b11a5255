"""Whose fault a chunk is that is not finite, and with what the stream goes on.

An order of which nothing finite has come yet is to blame before the stream is, of whose prompt there were good chunks: it
is dropped, and a playlist tries its item once more, for it may have been the noise. The stream itself goes back to its
saved state, with other noise; if that leads there again, it begins a new scene.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from ....engines.errors import UserError
from ...chunks import Chunk
from ..orders.playlist import Director

TRIES = 2  # of an order, after which it is taken no more
MOST_BAD = 3  # failures of the stream itself before it gets further than they were


@dataclass(frozen=True)
class Plan:
    anew: bool  # not from the saved state
    prompt: str | None  # None: the bank's first
    director: Director | None  # None: where the saved state's was, and its prompt


class Blame:
    def __init__(self) -> None:
        self._good: str | None = None  # prompt of the last chunk that was finite
        self._shown: Director | None = None  # where the playlist was with it
        # The last chunk with which the stream itself failed, and how often it has since it was further: chunks that are made
        # again from a saved state, and are as good as they were, say nothing.
        self._broke, self._bad = -1, 0
        self._tried: dict[str, int] = {}  # orders of which no chunk was finite

    def refused(self, prompt: str) -> bool:
        return self._tried.get(prompt, 0) >= TRIES

    def finite(self, chunk: Chunk, ordered: str, director: Director) -> None:
        self._good = chunk.prompt
        self._tried.pop(chunk.prompt, None)
        if chunk.index > self._broke:
            self._bad = 0
        if chunk.prompt == ordered:  # else what it was ordered by has been replaced since
            self._shown = copy.copy(director)

    def not_finite(self, chunk: Chunk, ordered: str, director: Director) -> Plan:
        """ordered, director: as they are now, which may be after the chunk was begun. Raises UserError if nothing helps."""
        later = chunk.prompt != ordered  # the chunk had been begun before the order came
        if not later and self._good not in (None, ordered):
            return Plan(False, self._good, self._without(ordered, director))
        self._bad, self._broke = self._bad + 1, max(self._broke, chunk.index)
        if self._bad > MOST_BAD:
            raise UserError(f"{self._bad} chunks are not finite, and none after them")
        if self._bad == 1 and not later and self._good is None:
            return Plan(False, ordered, None)
        going_on = director if later else self._again(director)
        if self._bad < MOST_BAD or later:
            return Plan(self._bad > 1, ordered, going_on)
        return Plan(True, self._good, going_on)

    def _without(self, ordered: str, director: Director) -> Director:
        """Where the playlist is without an order."""
        self._tried[ordered] = self._tried.get(ordered, 0) + 1
        if director.lent:
            return director  # what it was lent for is dropped, and its time passes
        if director.playlist is None:
            return director if self._shown is None else _not_lent(self._shown)
        return director if self.refused(ordered) else self._again(director)

    def _again(self, director: Director) -> Director:
        """Where the playlist was before the chunk that broke: one that has been ordered since begins."""
        if self._shown is None:
            return director
        if self._shown.playlist == director.playlist:
            return copy.copy(self._shown) if director.lent else _not_lent(self._shown)
        anew = Director(director.chunk_seconds)
        anew.follow(director.playlist)
        return anew


def _not_lent(shown: Director) -> Director:
    director = copy.copy(shown)
    if director.lent:
        director.back()
    return director
