"""`everframe bench --sweep`: a grid of settings, each measured in a process of its own.

threads needs nothing but the bundle. window, sink, size and steps are baked into graphs, precision comes from calibration:
for those a checkpoint is exported (and calibrated) anew for every point, by the same commands a user would give.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...engines.errors import UserError
from ...engines.files import keep_record, kept_records, reason
from ...engines.machine import card_name
from ..demo import DEMO_BUNDLE
from ..server.survival.seen import digest_of
from .bench import Result, machine, read_result

EXPORTED = ("window", "sink", "size", "steps")
KEYS = ("threads", *EXPORTED, "precision")
MADE = "sweep.made"  # of what every file of the folder was made
Point = dict[str, str]


def grid(words: Sequence[str]) -> list[Point]:
    """['window=6,12', 'threads=1,2'] -> four points. Raises UserError."""
    axes: dict[str, list[str]] = {}
    for word in words:
        key, _, values = word.partition("=")
        if key not in KEYS or not all(values.split(",")):
            raise UserError(f"--sweep {word!r}: expected one of {', '.join(KEYS)}, =, and values with commas")
        if key in axes:
            raise UserError(f"--sweep {word!r}: {key} is there twice")
        axes[key] = values.split(",")
    if not axes:
        raise UserError("--sweep: nothing to vary; for example window=6,12 threads=1,2")
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def sweep(
    points: Sequence[Point],
    bundle: Path | None,
    checkpoint: Path | None,
    folder: Path,
    chunks: int,
    tell: Callable[[Point, Result, bool], None],
    options: Sequence[str] = (),
) -> list[tuple[Point, Result]]:
    """Measure every point. Bundles and results stay in `folder`, and are not made again while what they are made of is the
    same, and what they are made by. tell: of every point its result, and whether it was there already. options: of
    `everframe bench`, for every point. Raises UserError."""
    if checkpoint is None and any(set(p) - {"threads"} for p in points):
        raise UserError(
            f"--sweep: {', '.join((*EXPORTED, 'precision'))} are baked into the graphs; name a --checkpoint"
        )
    if checkpoint is not None and not any(set(p) - {"threads"} for p in points):
        raise UserError(f"--checkpoint {checkpoint}: nothing of this sweep is exported anew; name a bundle, or an axis")
    if bundle is not None and all(set(p) - {"threads"} for p in points):
        raise UserError(f"{bundle}: this sweep exports its bundles from --checkpoint; expected one or the other")
    folder.mkdir(parents=True, exist_ok=True)
    source = "" if checkpoint is None else digest_of_files(checkpoint)
    found = []
    for point in points:
        file = folder / f"{_name(point)}.json"
        made = bundle if not set(point) - {"threads"} else _bundle(point, checkpoint, source, folder)
        words = ["--chunks", str(chunks), *options]
        if "threads" in point:
            words += ["--threads", point["threads"]]
        of = {"bundle": digest_of(DEMO_BUNDLE if made is None else made), "options": words, "here": here()}
        if not (kept := _is_made(file, of)):
            _everframe("bench", *([] if made is None else [str(made)]), *words, "-o", str(file))
            keep_record(folder / MADE, file.name, of)
        found.append((point, result := read_result(file)))
        tell(point, result, kept)
    return found


def here() -> dict[str, Any]:
    """What else decides a figure: the processor, the card that CUDA sees first, and the versions of what computes."""
    facts = machine()
    told = {name: facts[name] for name in ("cpu", "cores_allowed", "cores_quota", "versions")}
    return told | {"cards": os.environ.get("CUDA_VISIBLE_DEVICES"), "card": card_name()}


def digest_of_files(place: Path) -> str:
    """SHA-256 of a file, or of all in a folder with their names. Raises UserError."""
    found = hashlib.sha256()
    try:
        files = sorted(one for one in place.rglob("*") if one.is_file()) if place.is_dir() else [place]
        for file in files:
            with open(file, "rb") as f:
                found.update(f"{file.relative_to(place)}\n{hashlib.file_digest(f, 'sha256').hexdigest()}\n".encode())
    except OSError as error:
        raise UserError(f"--checkpoint {place}: {reason(error)}") from None
    return found.hexdigest()


def _is_made(file: Path, of: dict[str, object]) -> bool:
    """Whether it is there, and was made of this."""
    return file.exists() and kept_records(file.parent / MADE).get(file.name) == of


def _bundle(point: Point, checkpoint: Path | None, source: str, folder: Path) -> Path:
    """source: the checkpoint's digest."""
    exported = {k: v for k, v in point.items() if k in EXPORTED}
    path = folder / f"{_name(exported) or 'plain'}.everframe"
    if not _is_made(path, of := {"checkpoint": source, "by": version("everframe")}):
        options = [word for k, v in exported.items() for word in (f"--{k}", v)]
        _everframe("export", str(checkpoint), *options, "--chunks", "0", "--force", "-o", str(path))
        keep_record(folder / MADE, path.name, of)
    precision = point.get("precision", "fp32")
    if precision == "fp32":
        return path
    quantised = folder / f"{path.stem}-{precision}.everframe"
    if not _is_made(quantised, of):
        fast = ("--force", "--no-sensitivity", "--gate-chunks", "1", "--gate-minutes", "0")
        if not precision.endswith("-weights"):  # for which no activations are gathered
            fast += ("--chunks", "8")
        _everframe("calibrate", str(path), "--precision", precision, *fast, "-o", str(quantised), accepted=(0, 1))
        keep_record(folder / MADE, quantised.name, of)
    return quantised


def _name(point: Point) -> str:
    return "-".join(f"{k}{v}" for k, v in sorted(point.items()))


def _everframe(*words: str, accepted: tuple[int, ...] = (0,)) -> None:
    """Run a command of ours in a process of its own. Raises UserError with what it said last."""
    done = subprocess.run([sys.executable, "-m", "everframe.runtime.cli", *words], capture_output=True, text=True)
    if done.returncode not in accepted:
        said = (done.stderr.strip().splitlines() or ["no reason"])[-1].removeprefix("error: ")
        raise UserError(f"everframe {' '.join(words)}: {said}")
