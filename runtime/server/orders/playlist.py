"""Playlists, which count the stream's own time, and the timetable, which counts the wall clock's."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ..stream import Transition

Text = Annotated[str, Field(min_length=1, max_length=2000)]
WEEK = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Change(Part):
    """A prompt and how the stream gets there."""

    prompt: Text
    transition: Transition = "smooth"
    crossfade: float = Field(default=0, ge=0, le=10)  # seconds over which a cut's first frames fade in


class Item(Change):
    """A prompt and how long it stays, in seconds of video."""

    seconds: float = Field(default=60, gt=0, le=7 * 86400)


class Playlist(Part):
    """Prompts one after the other; without loop, the last one stays."""

    items: list[Item] = Field(min_length=1, max_length=500)
    loop: bool = True


class Director:
    """Where in its playlist a stream is, counted in chunks: the same chunks always get the same prompts."""

    def __init__(self, chunk_seconds: float):
        self.chunk_seconds = chunk_seconds
        self.playlist: Playlist | None = None
        self.item, self.left = -1, 0

    def follow(self, playlist: Playlist | None) -> None:
        """Begin a playlist with the next chunk; None: stay where the stream is."""
        self.playlist, self.item, self.left = playlist, -1, 0

    def skip(self) -> None:
        """Let the next item begin with the next chunk."""
        self.left = 0

    def next(self) -> Change | None:
        """Called before every chunk: the change that is due with it."""
        if self.playlist is None:
            return None
        items, change = self.playlist.items, None
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
        }

    def restore(self, facts: dict[str, Any]) -> None:
        kept = facts.get("playlist")
        self.playlist = None if kept is None else Playlist.model_validate(kept)
        self.item, self.left = facts.get("item", -1), facts.get("left", 0)


def _days(names: list[str]) -> list[str]:
    for name in names:
        first, dash, last = name.partition("-")
        if first not in WEEK or (dash and last not in WEEK):
            raise ValueError(f"{name!r}: expected {', '.join(WEEK)} or a span such as mon-fri")
    return names


def _at(text: str) -> str:
    try:
        dt.time.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r}: expected a time of day such as 08:30") from None
    return text


class Entry(Part):
    """What begins at a time of day: a prompt, a playlist, or a pause."""

    days: Annotated[list[str], Field(min_length=1, max_length=7), AfterValidator(_days)] = ["mon-sun"]
    at: Annotated[str, AfterValidator(_at)]
    prompt: Text | None = None
    transition: Transition = "smooth"
    crossfade: float = Field(default=0, ge=0, le=10)
    playlist: Playlist | None = None
    pause: Literal[True] | None = None

    @model_validator(mode="after")
    def _one(self) -> Entry:
        if sum(v is not None for v in (self.prompt, self.playlist, self.pause)) != 1:
            raise ValueError("expected exactly one of prompt, playlist and pause = true")
        return self

    def weekdays(self) -> set[int]:
        """0 = Monday."""
        found = set()
        for name in self.days:
            first, _, last = name.partition("-")
            a, b = WEEK.index(first), WEEK.index(last or first)
            found |= {(a + i) % 7 for i in range((b - a) % 7 + 1)}
        return found


class Timetable(Part):
    """Entries of a week in one time zone.

    An occurrence is a moment: its local date and time in the zone, turned into UTC. A time that daylight saving skips
    comes as much later as the clocks were put forward; one that comes twice counts the first time.
    """

    timezone: str = "UTC"
    entries: list[Entry] = Field(default=[], max_length=500)

    @model_validator(mode="after")
    def _zone_is_known(self) -> Timetable:
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"timezone {self.timezone!r}: not known; expected a name such as Europe/Berlin") from None
        return self

    def current(self, now: dt.datetime) -> tuple[dt.datetime, Entry] | None:
        """The occurrence that began last, in UTC, and its entry; of two at the same moment, the later in the list."""
        found = max(self._between(now, range(-8, 2)), key=lambda one: one[0], default=None)
        return None if found is None else (found[0], self.entries[found[1]])

    def _between(self, now: dt.datetime, days: Sequence[int]) -> list[tuple[dt.datetime, int]]:
        zone = ZoneInfo(self.timezone)
        today = now.astimezone(zone).date()
        found = []
        for i in range(len(self.entries) - 1, -1, -1):  # of equal moments, max() takes the first
            weekdays, at = self.entries[i].weekdays(), dt.time.fromisoformat(self.entries[i].at)
            for offset in days:
                day = today + dt.timedelta(offset)
                moment = dt.datetime.combine(day, at, zone).astimezone(dt.UTC)
                if day.weekday() in weekdays and moment <= now:
                    found.append((moment, i))
        return found
