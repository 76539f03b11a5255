"""Changes of prompt and playlists, which count the stream's own time."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ...prompts import Transition

Text = Annotated[str, Field(min_length=1, max_length=2000)]
MOST_ITEMS = 500  # of a playlist


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Change(Part):
    """A prompt and how the stream gets there."""

    prompt: Text
    transition: Transition = "smooth"
    crossfade: float = Field(default=0, ge=0, le=10)  # seconds over which a cut's first frames fade in

    @property
    def at_once(self) -> bool:
        """An abrupt cut, ordered by somebody who waits for it: what is queued before it need not be shown."""
        return self.transition == "cut" and not self.crossfade


class Item(Change):
    """A prompt and how long it stays, in seconds of video."""

    seconds: float = Field(default=60, gt=0, le=7 * 86400)


class Playlist(Part):
    """Prompts one after the other; without loop, the last one stays."""

    items: list[Item] = Field(min_length=1, max_length=MOST_ITEMS)
    loop: bool = True


class Director:
    """Where in its playlist a stream is, counted in chunks: the same chunks always get the same prompts."""

    def __init__(self, chunk_seconds: float):
        self.chunk_seconds = chunk_seconds
        self.playlist: Playlist | None = None
        self.item, self.left = -1, 0
        self.lent = False  # something else is shown for a while; the item's time stands still
        self._again = False  # the item's own prompt has to come back

    def follow(self, playlist: Playlist | None) -> None:
        """Begin a playlist with the next chunk; None: stay where the stream is."""
        self.playlist, self.item, self.left = playlist, -1, 0
        self.lent = self._again = False

    def lend(self) -> None:
        """Let something else be shown, until `back`."""
        self.lent = True

    def back(self) -> None:
        """Go on with the next chunk where the playlist was."""
        self.lent, self._again = False, self.item >= 0

    def skip(self) -> None:
        """Let the next item begin with the next chunk."""
        self.left = 0

    def next(self) -> Change | None:
        """Called before every chunk: the change that is due with it."""
        if self.playlist is None or self.lent:
            return None
        items = self.playlist.items
        change = items[self.item] if self._again else None
        self._again = False
        if self.left == 0 and (self.playlist.loop or self.item + 1 < len(items)):
            before, self.item = self.item, (self.item + 1) % len(items)
            self.left = max(1, math.ceil(items[self.item].seconds / self.chunk_seconds - 1e-9))
            if self.item != before:  # a single item that loops has nothing to change to
                change = items[self.item]
        self.left = max(0, self.left - 1)
        return change

    def facts(self) -> dict[str, Any]:
        return {
            "playlist": self.playlist and self.playlist.model_dump(),
            "item": self.item,
            "left": self.left,
            "lent": self.lent or self._again,
        }

    def restore(self, facts: dict[str, Any]) -> None:
        kept = facts.get("playlist")
        self.playlist = None if kept is None else Playlist.model_validate(kept)
        self.item, self.left = facts.get("item", -1), facts.get("left", 0)
        if facts.get("lent"):  # the loan was the life's before
            self.back()
