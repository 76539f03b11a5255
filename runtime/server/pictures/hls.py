"""The sliding window of segments that HLS wants (RFC 8216), and their numbers, which never go back."""

from __future__ import annotations

import json
import logging
import math
import re
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from fastapi.responses import Response

from ....engines.errors import UserError
from ....engines.files import write_whole
from ..guard import ANYWHERE, FRESH
from .fmp4 import Fragment

log = logging.getLogger(__name__)

AHEAD = 1000  # numbers reserved at a time: with segments of two seconds the file is written every quarter of an hour
EPOCH = 1_735_689_600  # 2025-01-01 in Unix time
LARGEST = 2**53  # what players hold exactly


class Numbers:
    """Numbers of segments and of timelines (encoders) over all lives of the server.

    A player that saw segment 94 takes no segment 0: after a restart the numbers go on. They are ahead of the clock and of
    what was reserved in the state folder, a block at a time: a killed server need not have written its last one down, and
    neither a full disk nor a clock that was set back makes them repeat.
    """

    def __init__(self, file: Path | None = None):
        self._file, self._writing, self._told = file, threading.Lock(), 0
        kept = _read(file)
        clock = max(0, round(time.time() - EPOCH)) if file else 0
        self.next = max(kept.get("next", 0), 2 * clock)  # no segment is shorter than half a second
        self.timelines = kept.get(
            "timelines", clock
        )  # these are counted one by one: the clock only where the count is lost
        self._reserved = self.next + AHEAD
        self._write(self.timelines + 1)

    def take(self) -> int:
        number, self.next = self.next, self.next + 1
        if self._reserved - number < AHEAD // 2:
            self._reserved = number + AHEAD
            self._write_beside()
        return number

    def timeline(self) -> int:
        """The next encoder's."""
        self.timelines += 1
        self._write_beside()
        return self.timelines

    def _write_beside(self) -> None:
        if self._file is not None:  # whoever shows pictures does not wait for a disk
            threading.Thread(target=self._write, args=(self.timelines,), name="hls numbers", daemon=True).start()

    def _write(self, timelines: int) -> None:
        if self._file is None:
            return
        with self._writing:  # a thread that comes late takes nothing back
            self._told = max(self._told, timelines)
            try:
                write_whole(self._file, json.dumps({"next": self._reserved, "timelines": self._told}).encode() + b"\n")
            except UserError as error:  # a full disk must not stop the picture
                log.warning("numbers of HLS segments are not kept: %s", error)


def _read(file: Path | None) -> dict[str, int]:
    try:
        found = json.loads(file.read_bytes()) if file else {}
        return {k: found[k] for k in ("next", "timelines") if type(found[k]) is int and 0 <= found[k] < LARGEST}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        log.warning("%s: not readable; HLS segments are numbered by the clock", file)
        return {}


@dataclass(frozen=True)
class Segment:
    number: int
    seconds: float
    data: bytes
    timeline: int  # of one encoder: another one begins at 0 again and has its own initialisation
    begins: bool  # the timeline's first


class HlsWindow:
    """The newest segments, in memory: nothing is written to a disk.

    Called from one thread, asked from another: what is asked for is a snapshot that is replaced as a whole.
    """

    def __init__(self, segments: int, fps: int, numbers: Numbers | None = None):
        self._fps, self._numbers = fps, numbers or Numbers()
        self._segments: deque[Segment] = deque(maxlen=segments)
        self._snapshot: tuple[Segment, ...] = ()
        self._inits: dict[int, bytes] = {}  # of the timelines in the window
        self._timeline = self._numbers.timelines
        self._new: bytes | None = None  # initialisation of a timeline that has no segment yet
        self._parts: list[bytes] = []
        self._frames = 0

    def begin(self, init: bytes) -> None:
        """A new encoder's fragments come from now on."""
        self._new = init
        self._parts, self._frames = [], 0

    def add(self, fragment: Fragment) -> None:
        if fragment.key and self._parts:
            self._append(self._frames / self._fps, b"".join(self._parts))
            self._parts, self._frames = [], 0
        if fragment.key or self._parts:
            self._parts.append(fragment.data)
            self._frames += 1

    def _append(self, seconds: float, data: bytes) -> None:
        begins = self._new is not None
        if self._new is not None:
            self._timeline = self._numbers.timeline()
            shown = {s.timeline for s in self._segments}
            self._inits = {k: v for k, v in self._inits.items() if k in shown} | {self._timeline: self._new}
            self._new = None
        self._segments.append(Segment(self._numbers.take(), seconds, data, self._timeline, begins))
        self._snapshot = tuple(self._segments)

    def playlist(self) -> str | None:
        """The media playlist; None before there is a segment."""
        segments = self._snapshot
        if not segments:
            return None
        first = segments[0]
        lines = [
            "#EXTM3U",
            "#EXT-X-VERSION:7",
            "#EXT-X-INDEPENDENT-SEGMENTS",
            f"#EXT-X-TARGETDURATION:{math.ceil(max(s.seconds for s in segments))}",
            f"#EXT-X-MEDIA-SEQUENCE:{first.number}",
            # The mark stands before a timeline's first segment while that is in the window, and is counted when it has gone.
            f"#EXT-X-DISCONTINUITY-SEQUENCE:{first.timeline - first.begins}",
        ]
        for segment in segments:
            if segment.begins:
                lines.append("#EXT-X-DISCONTINUITY")
            if segment.begins or segment is first:
                lines.append(f'#EXT-X-MAP:URI="init-{segment.timeline}.mp4"')
            lines += [f"#EXTINF:{segment.seconds:.3f},", f"{segment.number}.m4s"]
        return "\n".join(lines) + "\n"

    def segment(self, number: int) -> bytes | None:
        return next((s.data for s in self._snapshot if s.number == number), None)

    def init(self, timeline: int | None = None) -> bytes | None:
        """A timeline's initialisation segment; without a number the newest one's."""
        if timeline is None:
            return self._new or self._inits.get(self._timeline)
        return self._inits.get(timeline)

    def file(self, name: str) -> bytes | None:
        """live.m3u8, init.mp4, init-N.mp4 or N.m4s; None: there is no such thing now."""
        if name == "live.m3u8":
            text = self.playlist()
            return None if text is None else text.encode()
        found = re.fullmatch(r"(?P<init>init(-(?P<timeline>[0-9]{1,18}))?\.mp4)|(?P<number>[0-9]{1,18})\.m4s", name)
        if found is None:
            return None
        if found["init"]:
            return self.init(int(found["timeline"]) if found["timeline"] else None)
        return self.segment(int(found["number"]))


KINDS = {".m3u8": "application/vnd.apple.mpegurl", ".mp4": "video/mp4", ".m4s": "video/iso.segment"}


def answer(name: str, data: bytes) -> Response:
    """A file of the window for whoever asks, from whatever origin: players of other pages read segments by scripts too. A
    segment's number never comes twice, all else is asked for again."""
    kind = name[name.rindex(".") :]
    return Response(data, media_type=KINDS[kind], headers=ANYWHERE if kind == ".m4s" else FRESH | ANYWHERE)
