"""A long run that watches itself: does the video stay what it was, and does the machine?

Statistics of every chunk are averaged over each minute of video; `verdict` holds them against the bounds below.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ...engines.errors import UserError
from ...engines.files import make_folder, reason
from ...engines.machine import resident_memory
from ..state import load_beside, load_state, save_state
from ..stream import Stream
from .statistics import NEIGHBOURHOOD, clip_stats, collapse_drop, latent_distance

DRIFT = 0.10  # largest monotone drift of colour and sharpness, as a share of their early value
MOTION = 0.5  # least motion, as a share of its early value
MEMORY = 0.02  # largest growth of resident memory after the second minute, process by process


@dataclass(frozen=True)
class Minute:
    """Means over one minute of video (the last may be shorter)."""

    minute: int
    colour: tuple[float, float, float]
    sharpness: float
    motion: float
    flicker: float
    sink_distance: float  # root mean square distance of the latents to the stream's first chunk
    sink_distance_min: float
    memory_bytes: int  # resident memory at the minute's end
    chunk_median_ms: float
    chunk_p99_ms: float
    process: int = 0  # which of the processes that made the run, where it was resumed
    # In percent, of the chunks whose neighbourhood was complete in this minute; None: of none, as in records of before.
    collapse_max: float | None = None
    collapse_mean: float | None = None
    chunks: int | None = None  # how many are in it; None in records of before


@dataclass(frozen=True)
class Soak:
    """What one run found."""

    settings: dict[str, Any]
    minutes: list[Minute]
    wall_seconds: float
    sheet: Sequence[NDArray[np.uint8]]  # one frame per `sheet_minutes` of video, and the last


class Sheet(Sequence[NDArray[np.uint8]]):
    """Frames in a file, so that a run of days takes no more memory than one of minutes."""

    def __init__(self, shape: tuple[int, ...], file: Path | None, kept: int = 0):
        """file: None: a temporary one. kept: frames that are there already and stay. Raises UserError."""
        self.shape, self.file, self.kept = shape, file, kept
        self.last: NDArray[np.uint8] | None = None  # of the run, which is no frame of its file: the run may go on
        try:
            self._open: IO[bytes] = tempfile.TemporaryFile() if file is None else self._opened(file)  # noqa: SIM115
        except OSError as error:
            raise UserError(f"{file}: {reason(error)}") from None

    def _opened(self, file: Path) -> IO[bytes]:
        make_folder(file.parent)
        if not self.kept:
            file.unlink(missing_ok=True)
            return open(file, "w+b")
        found = open(file, "r+b")  # noqa: SIM115
        size = found.seek(0, os.SEEK_END)
        if size < self.kept * self._bytes:
            raise UserError(f"{file}: found {size} bytes, expected {self.kept} frames of {self._bytes}")
        found.truncate(self.kept * self._bytes)  # those of a minute that was not kept are made again
        return found

    @property
    def _bytes(self) -> int:
        return int(np.prod(self.shape))

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Raises UserError."""
        try:
            self._open.seek(self.kept * self._bytes)
            self._open.write(np.ascontiguousarray(frame).data)
            self._open.flush()
        except OSError as error:
            raise UserError(f"{self.file or 'the sheet'}: cannot write: {reason(error)}") from None
        self.kept += 1

    def sync(self) -> None:
        os.fsync(self._open.fileno())

    def __len__(self) -> int:
        return self.kept + (self.last is not None)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        if at == self.kept:
            return self.last
        self._open.seek(at * self._bytes)
        return np.frombuffer(self._open.read(self._bytes), np.uint8).reshape(self.shape)


@dataclass
class _Progress:
    """What a run that goes on needs of the run so far, at the end of a minute."""

    settings: dict[str, Any]
    sheet: Sheet
    sheet_minutes: float
    process: int = 0
    minutes: list[Minute] = field(default_factory=list)
    wall_seconds: float = 0.0
    sink: NDArray[np.float32] | None = None  # the first chunk's latents
    before: NDArray[np.uint8] | None = None  # the last two frames
    near: list[float] = field(default_factory=list)  # the newest distances to the sinks, which are none themselves

    def collapse(self, distance: float) -> float | None:
        """The newest distance makes the neighbourhood of the chunk NEIGHBOURHOOD before complete: that one's drop, in
        percent. None: the stream has only just left its sinks."""
        whole = 2 * NEIGHBOURHOOD + 1
        self.near = [*self.near, distance][-whole:]
        return 100 * collapse_drop(self.near[NEIGHBOURHOOD], self.near) if len(self.near) == whole else None

    def save(self, stream: Stream, file: Path) -> None:
        assert self.sink is not None
        assert self.before is not None
        found = {"settings": self.settings, "process": self.process, "wall_seconds": self.wall_seconds}
        found["minutes"] = [asdict(m) for m in self.minutes]
        found |= {"sheet": self.sheet.kept, "sheet_minutes": self.sheet_minutes, "near": self.near}
        self.sheet.sync()
        beside = {"sink": self.sink, "before": self.before}
        save_state(stream, file, {"soak": found}, beside)

    @classmethod
    def resumed(cls, stream: Stream, file: Path, computed_by: str, sheet_minutes: float) -> _Progress:
        """Raises UserError."""
        start = stream.position
        found, beside = load_state(stream, file).get("soak"), load_beside(file)
        if found is None:
            raise UserError(f"{file}: a stream's state, but no soak's")
        if found["settings"]["start"] != start:
            raise UserError(f"{file}: belongs to another start ({found['settings']['start']}, here {start})")
        if "sheet" not in found:
            raise UserError(f"{file}: of an earlier version, which kept the sheet in it; --force begins anew")
        if (asked := found.get("sheet_minutes", sheet_minutes)) != sheet_minutes:  # states of before do not say
            raise UserError(f"{file}: its sheet has a frame every {asked:g} minutes, here every {sheet_minutes:g}")
        minutes = [Minute(**(m | {"colour": tuple(m["colour"])})) for m in found["minutes"]]
        settings = found["settings"]
        settings["computed_by"] = list(dict.fromkeys([*settings["computed_by"], computed_by]))
        return cls(
            settings,
            Sheet(_shape(stream), sheet_file(file), found["sheet"]),
            sheet_minutes,
            found["process"] + 1,
            minutes,
            found["wall_seconds"],
            beside["sink"],
            beside["before"],
            found.get("near", []),  # states of before have none
        )


def line(m: Minute) -> str:
    """One minute for people."""
    falls = "" if m.collapse_max is None else f" (falls {m.collapse_max:.0f} %)"
    return (
        f"minute {m.minute:4d} · motion {m.motion:5.2f} · sharpness {m.sharpness:7.1f} · "
        f"to the sinks {m.sink_distance:4.2f}{falls} · {m.memory_bytes / 2**20:.0f} MiB · {m.chunk_median_ms:.0f} ms"
    )


def soak(
    stream: Stream,
    minutes: float,
    sheet_minutes: float = 5.0,
    watch: Callable[[Soak], None] = lambda so_far: None,
    computed_by: str = "",
    keep: Path | None = None,
    resume: bool = False,
) -> Soak:
    """Run a stream for so many minutes of video.

    watch: is given what was found so far after every minute, so that a run that is cut off has not been for nothing.
    computed_by: backend, device and precision, for the record. keep: a file that gets everything that the run needs to go
    on, after every minute; resume: go on from there, up to `minutes` over all. A resumed run finds what an uninterrupted one
    does, bit for bit, but for times and memory. Raises UserError for a state that is not this stream's soak's.
    """
    g = stream.geometry
    per_minute = max(1, round(60 / g.chunk_seconds))
    chunks = max(1, round(60 * minutes / g.chunk_seconds))
    per_sheet = max(1, round(60 * sheet_minutes / g.chunk_seconds))
    if resume and keep is not None:
        run = _Progress.resumed(stream, keep, computed_by, sheet_minutes)
    else:
        sheet = Sheet(_shape(stream), keep and sheet_file(keep))
        run = _Progress(_settings(stream, computed_by), sheet, sheet_minutes)
    rows: list[dict[str, Any]] = []
    spent, begin = run.wall_seconds, time.monotonic()

    def found() -> Soak:
        run.wall_seconds = spent + time.monotonic() - begin
        return Soak(run.settings, list(run.minutes), run.wall_seconds, run.sheet)

    if len(run.minutes) * per_minute >= chunks and (chunks - 1) % per_sheet:  # it was complete, but for its sheet
        run.sheet.last = run.before[-1] if run.before is not None else None
    for index in range(len(run.minutes) * per_minute, chunks):
        chunk = stream.next_chunk()
        run.sink = chunk.latent if run.sink is None else run.sink
        distance = latent_distance(chunk.latent, run.sink)
        rows.append(
            asdict(clip_stats(chunk.frames, run.before))
            | {"distance": distance, "collapse": run.collapse(distance) if index else None}
            | {"ms": 1000 * chunk.timings.total}
        )
        run.before = chunk.frames[-2:].copy()
        if index % per_sheet == 0:
            run.sheet.add(chunk.frames[-1])
        elif index == chunks - 1:
            run.sheet.last = chunk.frames[-1].copy()  # a view would keep the whole chunk
        if len(rows) == per_minute or index == chunks - 1:
            run.minutes.append(summary(len(run.minutes), rows, run.process))
            watch(found())
            if keep is not None and len(rows) == per_minute:
                run.save(stream, keep)
            rows = []
    return found()


def sheet_file(keep: Path) -> Path:
    """Where the sheet's frames stand beside a run's state."""
    return keep.with_name(f"{keep.name}.sheet")


def _shape(stream: Stream) -> tuple[int, int, int]:
    return stream.output.height, stream.output.width, 3


def _settings(stream: Stream, computed_by: str) -> dict[str, Any]:
    g = stream.geometry
    return {
        "bundle": stream.bundle.manifest.name,
        "step_sha256": stream.bundle.manifest.graphs["step"].model.sha256,
        "prompt": stream.prompt,
        "seed": stream.seed,
        "start": stream.position,
        "rope": stream.rope_mode,
        "sink_distance": stream.sink_distance,
        "chunk_seconds": g.chunk_seconds,
        "jitter_sigma": stream.jitter_sigma,
        "size": [g.width, g.height],
        "fps": g.fps,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "computed_by": [computed_by],
    }


def summary(minute: int, rows: Sequence[dict[str, Any]], process: int = 0) -> Minute:
    def mean(name: str) -> float:
        return float(np.mean([row[name] for row in rows]))

    red, green, blue = np.mean([row["colour"] for row in rows], 0).tolist()
    times, drops = [row["ms"] for row in rows], [row["collapse"] for row in rows if row["collapse"] is not None]
    return Minute(
        minute=minute,
        colour=(red, green, blue),
        sharpness=mean("sharpness"),
        motion=mean("motion"),
        flicker=mean("flicker"),
        sink_distance=mean("distance"),
        # the sinks themselves, the first chunk of the stream, are at distance 0
        sink_distance_min=min((row["distance"] for row in rows if row["distance"] > 0), default=0.0),
        memory_bytes=resident_memory(),
        chunk_median_ms=float(np.median(times)),
        chunk_p99_ms=float(np.percentile(times, 99)),
        process=process,
        collapse_max=max(drops, default=None),
        collapse_mean=float(np.mean(drops)) if drops else None,
        chunks=len(rows),
    )


def verdict(minutes: Sequence[Minute]) -> list[str]:
    """The bounds that a run breaks, one line each; none if it holds.

    Early and late are the means over the first and last fifth of the run (at least one minute). A quantity drifts when
    its late value and the straight line fitted through all minutes both leave the early value by more than DRIFT. Memory is
    held against each process's second minute: the first ends before its state has been written, which takes room that stays.
    A last minute of less than half of one is left out: a calm second is no drift.
    """
    if len(minutes) > 1 and 2 * (minutes[-1].chunks or minutes[0].chunks or 0) < (minutes[0].chunks or 0):
        minutes = minutes[:-1]
    n = max(1, len(minutes) // 5)
    problems = []
    for name, series in (("sharpness", [[m.sharpness] for m in minutes]), ("colour", [m.colour for m in minutes])):
        values = np.asarray(series)  # [minutes, channels]
        early = values[:n].mean(0)
        late = values[-n:].mean(0) - early
        line = np.polyfit(np.arange(len(values)), values, 1)[0] * (len(values) - 1) if len(values) > 1 else 0 * early
        share = np.minimum(np.abs(late), np.abs(line)).max() / max(early.mean(), 1e-9)
        if share > DRIFT:
            problems.append(f"{name} drifts by {share:.0%} of its early value (bound {DRIFT:.0%})")
    motion = [m.motion for m in minutes]
    if min(motion) < MOTION * np.mean(motion[:n]):
        problems.append(
            f"motion falls to {min(motion) / np.mean(motion[:n]):.0%} of its early value (bound {MOTION:.0%})"
        )
    grown = 0.0
    for process in {m.process for m in minutes}:
        _, *later = (m.memory_bytes for m in minutes if m.process == process)
        if later:
            grown = max(grown, max(later) / max(1, later[0]) - 1)
    if grown > MEMORY:
        problems.append(f"memory grows by {grown:.1%} after the second minute (bound {MEMORY:.0%})")
    return problems
