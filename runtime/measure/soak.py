"""A long run that watches itself: does the video stay what it was, and does the machine?

Statistics of every chunk are averaged over each minute of video; `verdict` holds them against the bounds below.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from ...engines.errors import UserError
from ...engines.files import reason, write_whole
from ...engines.machine import resident_memory
from ..stream import Stream
from .plots import pyplot
from .statistics import clip_stats, latent_distance

DRIFT = 0.10  # largest monotone drift of colour and sharpness, as a share of their early value
MOTION = 0.5  # least motion, as a share of its early value
MEMORY = 0.02  # largest growth of resident memory


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


@dataclass(frozen=True)
class Soak:
    """What one run found."""

    settings: dict[str, Any]
    minutes: list[Minute]
    wall_seconds: float
    sheet: list[NDArray[np.uint8]]  # one frame per `sheet_minutes` of video


def line(m: Minute) -> str:
    """One minute for people."""
    return (
        f"minute {m.minute:4d} · motion {m.motion:5.2f} · sharpness {m.sharpness:7.1f} · "
        f"to the sinks {m.sink_distance:4.2f} · {m.memory_bytes / 2**20:.0f} MiB · {m.chunk_median_ms:.0f} ms"
    )


def soak(
    stream: Stream, minutes: float, sheet_minutes: float = 5.0, watch: Callable[[Soak], None] = lambda so_far: None
) -> Soak:
    """Run a stream for so many minutes of video. `watch` is given what was found so far after every minute, so that a run
    that is cut off has not been for nothing."""
    g = stream.geometry
    per_minute = max(1, round(60 / g.chunk_seconds))
    chunks = max(1, round(60 * minutes / g.chunk_seconds))
    per_sheet = max(1, round(60 * sheet_minutes / g.chunk_seconds))
    settings = {
        "bundle": stream.bundle.manifest.name,
        "step_sha256": stream.bundle.manifest.graphs["step"].model.sha256,
        "prompt": stream.prompt,
        "seed": stream.seed,
        "start": stream.position,
        "rope": stream.rope_mode,
        "sink_distance": stream.sink_distance,
        "jitter_sigma": stream.jitter_sigma,
        "size": [g.width, g.height],
        "fps": g.fps,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "onnxruntime": onnxruntime.__version__,
    }
    done: list[Minute] = []
    rows: list[dict[str, Any]] = []
    sheet, before, sink, begin = [], None, None, time.monotonic()
    for index in range(chunks):
        chunk = stream.next_chunk()
        sink = chunk.latent if sink is None else sink
        rows.append(
            asdict(clip_stats(chunk.frames, before))
            | {"distance": latent_distance(chunk.latent, sink), "ms": 1000 * chunk.timings.total}
        )
        before = chunk.frames[-2:]
        if index % per_sheet == 0 or index == chunks - 1:
            sheet.append(chunk.frames[-1].copy())  # a view would keep the whole chunk
        if len(rows) == per_minute or index == chunks - 1:
            done.append(summary(len(done), rows))
            watch(Soak(settings, list(done), time.monotonic() - begin, sheet))
            rows = []
    return Soak(settings, done, time.monotonic() - begin, sheet)


def summary(minute: int, rows: Sequence[dict[str, Any]]) -> Minute:
    def mean(name: str) -> float:
        return float(np.mean([row[name] for row in rows]))

    red, green, blue = np.mean([row["colour"] for row in rows], 0).tolist()
    times = [row["ms"] for row in rows]
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
    )


def verdict(minutes: Sequence[Minute]) -> list[str]:
    """The bounds that a run breaks, one line each; none if it holds.

    Early and late are the means over the first and last fifth of the run (at least one minute). A quantity drifts when
    its late value and the straight line fitted through all minutes both leave the early value by more than DRIFT.
    """
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
    memory = [m.memory_bytes for m in minutes]
    if max(memory) > (1 + MEMORY) * memory[0]:
        problems.append(
            f"memory grows by {max(memory) / memory[0] - 1:.1%} after the first minute (bound {MEMORY:.0%})"
        )
    return problems


def write_report(folder: Path, result: Soak) -> list[Path]:
    """Write soak.json, soak.png (the plot; needs matplotlib) and sheet.png into folder. Raises UserError."""
    try:
        write_record(folder, result)
        Image.fromarray(contact_sheet(result.sheet)).save(folder / "sheet.png", optimize=True)
        written = [folder / "soak.json", folder / "sheet.png"]
        if plot(result.minutes, folder / "soak.png"):
            written.append(folder / "soak.png")
    except OSError as error:
        raise UserError(f"{folder}: cannot write: {reason(error)}") from None
    return written


def write_record(folder: Path, result: Soak) -> None:
    """Write soak.json alone, whole. Raises UserError."""
    record = {
        "settings": result.settings,
        "wall_seconds": result.wall_seconds,
        "video_minutes": len(result.minutes),
        "problems": verdict(result.minutes),
        "minutes": [asdict(m) for m in result.minutes],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make the folder: {reason(error)}") from None
    write_whole(folder / "soak.json", (json.dumps(record, indent=1) + "\n").encode())


def contact_sheet(frames: Sequence[NDArray[np.uint8]], columns: int = 4) -> NDArray[np.uint8]:
    """Frames [H, W, 3] in reading order; the last row is filled up with black."""
    blank = np.zeros_like(frames[0])
    padded = [*frames, *[blank] * (-len(frames) % columns)]
    rows = [np.concatenate(padded[i : i + columns], 1) for i in range(0, len(padded), columns)]
    return np.concatenate(rows, 0)


def plot(minutes: Sequence[Minute], file: Path) -> bool:
    """Draw the curves; False when matplotlib is not installed."""
    if (plt := pyplot()) is None:
        return False

    x = [m.minute for m in minutes]
    figure, axes = plt.subplots(2, 3, figsize=(12, 5.5), sharex=True)
    for channel, name in enumerate(("red", "green", "blue")):
        axes[0, 0].plot(x, [m.colour[channel] for m in minutes], color=name)
    series = (
        ("sharpness", [m.sharpness for m in minutes]),
        ("motion", [m.motion for m in minutes]),
        ("distance to the sinks", [m.sink_distance for m in minutes]),
        ("chunk latency, ms (median)", [m.chunk_median_ms for m in minutes]),
        ("resident memory, MiB", [m.memory_bytes / 2**20 for m in minutes]),
    )
    axes[0, 0].set_title("mean colour")
    for ax, (title, values) in zip(list(axes.flat)[1:], series, strict=True):
        ax.plot(x, values, color="black")
        ax.set_title(title)
    for ax in axes.flat:
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3)
    for ax in axes[1]:
        ax.set_xlabel("minute of video")
    figure.tight_layout()
    figure.savefig(file, dpi=90)
    plt.close(figure)
    return True
