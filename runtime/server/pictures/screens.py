"""The screens by their names: what each shows, when it was last there, and which one is missing.

Kept over restarts are the names and when each was last heard of. Used on the event loop's thread, `problems` from any.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import logging
import math
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ....engines.errors import UserError
from ....engines.files import write_whole
from .viewers import Viewer, Viewers

log = logging.getLogger(__name__)

WIDEST, LARGEST = 640, 48_000  # of a screen's own picture: pixels, characters as it comes
ASKING = 45.0  # seconds in which a page without a connection asks for its view again
DARK = 4.0  # mean grey level below which a picture is dark
MAX_VIEWERS = 200  # pages that watch
FORGOTTEN = 7 * 86400.0  # seconds after which an unnamed screen that is gone is forgotten
MOST = 500  # names that are kept
WRITE = 300.0  # seconds between writings of the list: disks wear


class View(BaseModel):
    """How a screen shows the picture. x, y, w, h: its part of a wall in percent of the whole picture."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    fit: Literal["cover", "contain", "fill"] = "cover"
    rotate: Literal[0, 90, 180, 270] = 0
    x: float = Field(default=0, ge=0, le=99)
    y: float = Field(default=0, ge=0, le=99)
    w: float = Field(default=100, ge=1, le=100)
    h: float = Field(default=100, ge=1, le=100)
    shift: int = Field(default=0, ge=0, le=50)  # pixels that the picture wanders around, against burn-in
    sync: bool = False  # in step with the other screens of a wall
    via: Literal["mse", "webrtc"] = "mse"

    @model_validator(mode="after")
    def _in_step(self) -> View:
        if self.sync and self.via != "mse":
            raise ValueError('sync: screens are kept in step by MSE only; expected via = "mse"')
        return self


@dataclass
class Known:
    """A screen that was here once. Times are monotonic seconds: the clock may be set."""

    seen: float
    asked: float = -math.inf  # for its view: by a page that has no connection to report by
    picture: bytes = b""  # JPEG
    pictured: float = 0.0
    dark: bool = False


class Screens:
    """views: the configured ones. missing: seconds after which one of these that is not there is a problem; 0: never."""

    def __init__(self, viewers: Viewers, views: dict[str, View], missing: float, file: Path | None = None):
        self.viewers, self.views, self.missing, self._file = viewers, views, missing, file
        self.known = _read(file)
        viewers.lasting = views
        self.began, self._written, self._changed = time.monotonic(), -math.inf, False
        self.life = secrets.randbits(31)  # of the server: another one after a restart

    def heard(self, name: str) -> Known:
        """A screen has come, has reported, or has gone."""
        known = self.known.pop(name, None) or Known(0.0)
        known.seen = time.monotonic()
        self.known[name] = known  # newest last
        if len(self.known) > MOST:
            spare = next((one for one in self.known if one not in self.views), None)
            if spare is not None:
                del self.known[spare]
        self._changed = True
        return known

    def view(self, name: str) -> View | None:
        """What the configuration says of a screen, asked for by a page that cannot report: it is there, no more is known."""
        view = self.views.get(name)
        if view is not None:
            self.heard(name).asked = time.monotonic()
        return view

    def join(self, name: str, judged: bool, via: str) -> Viewer | None:
        """A page was loaded: what was dark before need not be now. None where there is no place: but a configured screen may
        watch twice (a page that reloads comes before it has gone) however many others do, so that a crowd does not keep it
        dark. (Who takes its name can: names are not authenticated.) via: the way to the picture that its address wants."""
        there = sum(v.judged and v.screen.name == name for v in self.viewers.watching)
        own = judged and name in self.views and there < 2
        if len(self.viewers.watching) >= MAX_VIEWERS and not own:
            return None
        viewer = self.viewers.join(name, judged, time.monotonic())
        viewer.via = self.way(viewer, via)
        if judged:
            self.heard(name).dark = False
        return viewer

    def take_picture(self, name: str, picture: tuple[bytes, bool]) -> None:
        """What `picture_of` made of what a screen sent of itself."""
        known = self.heard(name)
        (known.picture, known.dark), known.pictured = picture, time.monotonic()

    def forget(self, name: str) -> bool:
        """Whether there was such a screen."""
        self._changed = True
        return self.known.pop(name, None) is not None

    def way(self, viewer: Viewer, asked: str) -> Literal["mse", "webrtc"]:
        """How a page is to get the picture, by its address or the configuration. Only MSE keeps screens in step."""
        view = self.views.get(viewer.screen.name) if viewer.judged else None
        wanted = asked or (view.via if view else "mse")
        return "webrtc" if wanted == "webrtc" and not (view and view.sync) else "mse"

    def viewer(self, name: str) -> Viewer | None:
        """The newest connection of a screen."""
        found = [v for v in self.viewers.watching if v.judged and v.screen.name == name]
        return max(found, key=lambda v: v.heard, default=None)

    def listed(self) -> list[dict[str, Any]]:
        """Every screen, the configured ones first."""
        now = time.monotonic()
        for name in [n for n, k in self.known.items() if n not in self.views and now - k.seen > FORGOTTEN]:
            del self.known[name]
        names = [*self.views, *(n for n in sorted(self.known) if n not in self.views)]
        return [self.facts(name) for name in names]

    def facts(self, name: str) -> dict[str, Any]:
        known, viewer, now = self.known.get(name), self.viewer(name), time.monotonic()
        view = self.views.get(name)
        found: dict[str, Any] = {
            "name": name,
            "configured": view is not None,
            "state": self.state(name),
            "last_report_seconds": None if known is None else round(now - known.seen, 1),
            "picture_seconds": round(now - known.pictured, 1) if known and known.picture else None,
            "view": None if view is None else view.model_dump(exclude_defaults=True),
        }
        if viewer is None:
            return found
        return found | {
            "frames_shown": max(0, viewer.shown),
            "fps": viewer.fps,
            "via": viewer.via,
            "delay_seconds": round(viewer.buffered, 2),
            "skew_ms": viewer.skew,
            "visible": viewer.visible,
            "reloads_in_the_hour": viewer.screen.reloads_within_the_hour(now),
        }

    def state(self, name: str) -> str:
        """ok, dark, hidden, frozen, missing (a configured one that is not there) or gone."""
        viewer, known = self.viewer(name), self.known.get(name)
        if viewer is None:
            if known is not None and time.monotonic() - known.asked < ASKING:
                return "ok"
            return "missing" if name in self.views else "gone"
        if viewer.word(time.monotonic()) != "ok":
            return "frozen"
        if not viewer.visible:
            return "hidden"
        return "dark" if known is not None and known.dark else "ok"

    def problems(self) -> list[str]:
        """Configured screens that have been away for too long, or are dark."""
        now, found = time.monotonic(), []
        for name in self.views if self.missing else ():
            known = self.known.get(name)
            away = now - max(self.began, known.seen if known else self.began)
            if away > self.missing and self.state(name) == "missing":
                found.append(f"screen {name!r}: missing for {away:.0f} s")
        return found + [f"screen {name!r}: dark" for name in self.views if self.state(name) == "dark"]

    def write(self, at_once: bool = False) -> None:
        """Keep the list, if it has changed and some time has gone by since the last writing; not in the loop's thread."""
        now, clock = time.monotonic(), time.time()
        if self._file is None or not self._changed or (now - self._written < WRITE and not at_once):
            return
        self._written, self._changed = now, False
        there = [(n, now - k.seen) for n, k in list(self.known.items())]
        lately = {n: round(clock - ago, 1) for n, ago in there if n in self.views or ago < FORGOTTEN}
        try:
            write_whole(self._file, json.dumps({"screens": lately}, indent=1).encode() + b"\n")
        except UserError as error:  # a full disk must not stop the pictures
            log.warning("the list of screens is not kept: %s", error)


def picture_of(told: Any) -> tuple[bytes, bool] | None:
    """A picture that a screen sent of itself, a data URL, as JPEG, and whether it is dark; None for what is no small JPEG.
    For any thread."""
    start = "data:image/jpeg;base64,"
    if not isinstance(told, str) or not told.startswith(start) or len(told) > LARGEST:
        return None
    try:
        data = base64.b64decode(told.removeprefix(start), validate=True)
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if max(image.size) > WIDEST:
                return None
            return data, float(np.asarray(image.convert("L"), np.float32).mean()) < DARK
    except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _read(file: Path | None) -> dict[str, Known]:
    try:
        found = json.loads(file.read_bytes())["screens"] if file else {}
        now, clock = time.monotonic(), time.time()  # a screen of the future was here just now: the clock was wrong
        return {str(n)[:64]: Known(now - max(0.0, clock - float(seen))) for n, seen in list(found.items())[:MOST]}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        log.warning("%s: not readable; screens are listed as they come", file)
        return {}
