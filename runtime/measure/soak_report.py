"""What a long run found, as files: its record, its curves, a sheet of its frames."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...engines.errors import UserError
from ...engines.files import make_folder, reason, write_whole
from .plots import pyplot
from .soak import Minute, Soak, verdict


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
    counted = [m.chunks for m in result.minutes if m.chunks is not None]  # of minutes of before nobody knows
    whole = len(counted) == len(result.minutes) and "chunk_seconds" in result.settings
    record = {
        "settings": result.settings,
        "wall_seconds": result.wall_seconds,
        "video_minutes": round(sum(counted) * result.settings["chunk_seconds"] / 60, 3)
        if whole
        else len(result.minutes),
        "problems": verdict(result.minutes),
        "minutes": [asdict(m) for m in result.minutes],
    }
    make_folder(folder)
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
