"""Who is watching, and whose picture stands still.

The player reports how many frames its screen has shown and how much it has buffered. A screen whose count has not moved
for longer than its buffer explains is frozen: the server tells its page to reload. All times are monotonic seconds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any, Literal

GRACE = 6.0  # seconds beyond the buffer before a still picture counts as frozen
BEGIN = 20.0  # the same for a page that has shown nothing yet: a slow box told to reload would begin for ever
SILENCE = 20.0  # seconds without a report after which a connection is given up
MANY = 3  # reloads within HOUR that make a screen a problem
HOUR = 3600.0
KEPT = 200  # screens whose history is remembered

Word = Literal["ok", "reload", "gone"]


@dataclass
class Screen:
    """A page, by the name it gives itself: it keeps it over reloads."""

    name: str
    reloads: deque[float] = field(default_factory=deque)

    def reloads_within_the_hour(self, now: float) -> int:
        while self.reloads and now - self.reloads[0] > HOUR:
            self.reloads.popleft()
        return len(self.reloads)

    def frozen_often(self, now: float) -> bool:
        return self.reloads_within_the_hour(now) >= MANY


@dataclass(eq=False)
class Viewer:
    """One connection of a screen."""

    screen: Screen
    judged: bool  # a preview in a background tab may stand still
    heard: float
    moved: float  # when its count of shown frames last grew; before the first report nothing is judged
    shown: int = -1
    buffered: float = 0.0
    visible: bool = True
    skew: float | None = None  # milliseconds that a screen in step with others is late
    via: Literal["mse", "webrtc"] = "mse"  # how it gets the picture
    fps: float | None = None  # frames that were put on the screen in a second, between the last two reports
    orders: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)  # what the page is to be told

    def report(self, shown: int, buffered: float, visible: bool, now: float, skew: float | None = None) -> None:
        if self.shown >= 0 and now > self.heard and shown >= self.shown:
            self.fps = round((shown - self.shown) / (now - self.heard), 1)
        self.skew = skew
        if shown != self.shown or not visible or not self.visible:
            self.moved, self.shown = now, shown
        self.heard, self.buffered, self.visible = now, buffered, visible

    def word(self, now: float) -> Word:
        """What the server should say to it."""
        if now - self.heard > SILENCE:
            return "gone"
        patience = self.buffered + (GRACE if self.shown > 0 else BEGIN)
        if self.shown >= 0 and self.judged and self.visible and now - self.moved > patience:
            return "reload"
        return "ok"


class Viewers:
    """All connections. Used on the event loop's thread."""

    def __init__(self) -> None:
        self.watching: set[Viewer] = set()
        self.lasting: Container[str] = ()  # screens whose history stays however many others come
        self.screens: dict[str, Screen] = {}

    def join(self, name: str, judged: bool, now: float) -> Viewer:
        screen = self.screens.pop(name, None) or Screen(name)
        self.screens[name] = screen  # newest last
        if len(self.screens) > KEPT:
            there = {one.screen.name for one in self.watching} | {name}
            spare = next((one for one in self.screens if one not in there and one not in self.lasting), None)
            if spare is not None:
                del self.screens[spare]
        viewer = Viewer(screen, judged, now, now)
        self.watching.add(viewer)
        return viewer

    def leave(self, viewer: Viewer) -> None:
        self.watching.discard(viewer)

    def reload(self, viewer: Viewer, now: float) -> None:
        """The viewer is being told to reload."""
        viewer.screen.reloads.append(now)
        viewer.moved = now  # time to do it

    def problems(self, now: float) -> list[str]:
        """Screens that keep freezing."""
        return [
            f"screen {s.name!r}: reloaded {len(s.reloads)} times within the hour, its picture keeps standing still"
            for s in self.screens.values()
            if s.frozen_often(now)
        ]
