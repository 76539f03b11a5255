"""The timetable, which counts the wall clock's time."""

from __future__ import annotations

import datetime as dt
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, model_validator

from ...prompts import Transition
from .playlist import Part, Playlist, Text

log = logging.getLogger(__name__)

LOCALTIME, TIMEZONE = Path("/etc/localtime"), Path("/etc/timezone")
LOCAL = "localtime"  # the system's zone where only its rules are known, not its name
WEEK = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def _days(names: list[str]) -> list[str]:
    for name in names:
        first, dash, last = name.partition("-")
        if first not in WEEK or (dash and last not in WEEK):
            raise ValueError(f"{name!r}: expected {', '.join(WEEK)} or a span such as mon-fri")
    return names


def _at(text: str) -> str:
    """Local time in the timetable's zone: an offset of its own would be ignored, so it is refused."""
    try:
        if re.fullmatch(r"[0-9]{2}:[0-9]{2}(:[0-9]{2})?", text):
            dt.time.fromisoformat(text)
            return text
    except ValueError:
        pass
    raise ValueError(f"{text!r}: expected a time of day such as 08:30; its zone is the timetable's timezone")


def zone_of(name: str) -> ZoneInfo:
    """Raises ValueError for a name that is not known."""
    try:
        if name == LOCAL:
            with open(LOCALTIME, "rb") as f:
                return ZoneInfo.from_file(f, LOCAL)
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"timezone {name[:100]!r}: not known; expected a name such as Europe/Berlin") from None


def system_zone() -> str:
    """The name of the zone that this machine's clock shows: TZ, else what /etc/localtime links to or /etc/timezone says."""
    asked = os.environ.get("TZ")
    told = None if asked is None else asked.removeprefix(":")
    if told is not None and not told.startswith("/"):
        names = [told]
    else:
        file = LOCALTIME if told is None else Path(told)
        _, found, linked = os.path.realpath(file).partition("/zoneinfo/")
        names = [linked] if found else []
        if file == LOCALTIME:
            if not names and TIMEZONE.is_file():
                names = [TIMEZONE.read_text(encoding="ascii", errors="replace").strip()]
            names.append(LOCAL)
    for name in names:
        try:
            return zone_of(name).key or name
        except ValueError:
            continue
    if told:
        log.warning("TZ=%r: expected a zone's name such as Europe/Berlin; times of day are taken for UTC's", asked)
    return "UTC"


class Entry(Part):
    """What begins at a time of day: a prompt, a playlist, or a pause."""

    days: Annotated[list[str], Field(min_length=1, max_length=7), AfterValidator(_days)] = Field(default=["mon-sun"])
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

    timezone: str = Field(default_factory=system_zone)
    entries: list[Entry] = Field(default=[], max_length=500)

    @model_validator(mode="after")
    def _zone_is_known(self) -> Timetable:
        zone_of(self.timezone)
        return self

    def current(self, now: dt.datetime) -> tuple[dt.datetime, Entry] | None:
        """The occurrence that began last, in UTC, and its entry; of two at the same moment, the later in the list."""
        found = max(
            (one for one in self._around(now, range(-8, 2)) if one[0] <= now), key=lambda one: one[0], default=None
        )
        return None if found is None else (found[0], self.entries[found[1]])

    def next(self, now: dt.datetime) -> tuple[dt.datetime, Entry] | None:
        """The occurrence that begins next, in UTC, and its entry."""
        found = min(
            (one for one in self._around(now, range(-1, 9)) if one[0] > now),
            key=lambda one: (one[0], -one[1]),
            default=None,
        )
        return None if found is None else (found[0], self.entries[found[1]])

    def _around(self, now: dt.datetime, days: Sequence[int]) -> list[tuple[dt.datetime, int]]:
        """Occurrences on these days, counted from today."""
        zone = zone_of(self.timezone)
        today = now.astimezone(zone).date()
        found = []
        for i in range(len(self.entries) - 1, -1, -1):  # of equal moments, max() takes the first
            weekdays, at = self.entries[i].weekdays(), dt.time.fromisoformat(self.entries[i].at)
            for offset in days:
                day = today + dt.timedelta(offset)
                moment = dt.datetime.combine(day, at, zone).astimezone(dt.UTC)
                if day.weekday() in weekdays:
                    found.append((moment, i))
        return found
