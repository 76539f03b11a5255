"""`everframe compare`: how far a changed bundle (quantised, another precision, another form) is from its source.

Lock-step: both make every chunk from the same history, namely the first bundle's latents, which the second commits in place
of its own; so an error is that of one chunk and cannot grow. Free-running: both stream on their own, and what is compared is
what the video is like, not its pixels.

The two are never loaded together, since one may fill the memory: the first makes all its streams, what lock-step needs of
them waits in a temporary file, then the second makes its own.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...engines.base import Backend, EngineOptions
from ...engines.bundle import Bundle
from ...engines.errors import UserError
from ...engines.files import write_whole
from ...engines.ort import OrtBackend
from ..prompts import PromptBank
from ..stream import Stream
from .statistics import clip_stats, psnr, ssim

PSNR, DEVIATION = 35.0, 0.05  # the gate: lock-step PSNR of every prompt and seed in dB, free-running statistics
SPARE = 1 << 28  # bytes of the temporary folder that stay free
BEST = 99.0  # what equal clips count as, dB


@dataclass(frozen=True)
class LockStep:
    """One prompt and seed, chunk by chunk."""

    prompt: str
    seed: int
    psnr: list[float]  # of decoded frames, dB
    ssim: list[float]
    latent: list[float]  # root mean square error of x0, in deviations of the latents

    @property
    def pooled(self) -> float:
        """PSNR of the mean squared error over its chunks: equal ones do not pay for ruined ones."""
        return -10 * math.log10(np.mean(10 ** (-np.array(self.psnr) / 10)))


@dataclass(frozen=True)
class FreeRun:
    """Means over one stream of each bundle."""

    prompt: str
    seed: int
    minutes: float
    first: dict[str, Any]
    second: dict[str, Any]

    @property
    def deviations(self) -> dict[str, float]:
        """Relative differences; colour's is the largest channel's, relative to the mean grey level."""
        a, b = self.first, self.second
        colour = np.abs(np.subtract(a["colour"], b["colour"])).max() / max(float(np.mean(a["colour"])), 1e-9)
        others = {name: abs(b[name] - a[name]) / max(a[name], 1e-9) for name in ("sharpness", "motion")}
        return {"colour": float(colour), **others}


@dataclass(frozen=True)
class Comparison:
    lockstep: list[LockStep]
    free: list[FreeRun]

    def summary(self) -> dict[str, Any]:
        """Figures over all runs, and whether the gate is passed."""
        values = np.concatenate([run.psnr for run in self.lockstep])
        similar = np.concatenate([run.ssim for run in self.lockstep])
        latents = np.concatenate([run.latent for run in self.lockstep])
        worst = {
            name: max(run.deviations[name] for run in self.free)
            for name in ("colour", "sharpness", "motion")
            if self.free  # else nothing is known of them
        }
        pooled = min(run.pooled for run in self.lockstep)
        return {
            "chunks": len(values),
            "psnr": round(float(values.mean()), 2),
            "psnr_least": round(float(values.min()), 2),
            "psnr_worst_run": round(pooled, 2),
            "ssim": round(float(similar.mean()), 4),
            "latent_error": round(float(latents.mean()), 4),
            "free_minutes": sum(run.minutes for run in self.free),
            **{f"free_{name}": round(share, 4) for name, share in worst.items()},
            "passed": bool(pooled >= PSNR and all(share <= DEVIATION for share in worst.values())),
        }

    def record(self) -> dict[str, Any]:
        return {
            "summary": self.summary(),
            "bounds": {"psnr": PSNR, "free": DEVIATION},
            "lockstep": [asdict(run) for run in self.lockstep],
            "free": [asdict(run) | {"deviations": run.deviations} for run in self.free],
        }


def comparable(a: Bundle, b: Bundle) -> None:
    """Raise UserError unless both bundles make the same kind of video."""
    for what in ("geometry", "schedule", "rope"):
        if getattr(a.manifest, what) != getattr(b.manifest, what):
            raise UserError(f"{b.path}: another {what} than {a.path}: these cannot be compared")


def compare(
    a: Bundle,
    b: Bundle,
    prompts: Sequence[str],
    seeds: Sequence[int],
    chunks: int,
    minutes: float,
    backends: tuple[Backend, Backend] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Lock-step over `chunks` chunks of every prompt and seed; free-running for `minutes` of every prompt, first seed.

    Raises UserError for bundles of another geometry, schedule or RoPE, and for prompts that one of them lacks.
    """
    comparable(a, b)
    engines = backends or (OrtBackend(EngineOptions()), OrtBackend(EngineOptions()))
    for bundle in (a, b):  # now, not after the other's whole run; with its text encoder it takes any
        for prompt in prompts if "text" not in bundle.manifest.graphs else ():
            PromptBank(bundle).find(prompt)
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]

    def stream(which: int, prompt: str, seed: int) -> Stream:
        return Stream((a, b)[which], prompt=prompt, seed=seed, overlap=False, verify=False, backend=engines[which])

    def free_runs(which: int) -> list[dict[str, Any]]:
        found = []
        for prompt in prompts if minutes else ():
            with stream(which, prompt, seeds[0]) as one:
                found.append(free_run(one, minutes))
            tell(f"{minutes:g} free minutes of the {('first', 'second')[which]} bundle: {prompt}")
        return found

    steps = []
    check_room(a, len(pairs) * chunks)
    with tempfile.TemporaryFile() as kept:
        for prompt, seed in pairs:
            with stream(0, prompt, seed) as one:
                keep(one, chunks, kept)
            tell(f"{chunks} chunks of the first bundle: seed {seed}, {prompt}")
        first = free_runs(0)
        kept.seek(0)
        for prompt, seed in pairs:
            with stream(1, prompt, seed) as other:
                steps.append(lockstep(other, chunks, kept))
            tell(f"lock-step: {np.mean(steps[-1].psnr):5.1f} dB, seed {seed}, {prompt}")
        second = free_runs(1)
    runs = []
    for prompt, *ends in zip(prompts, first, second, strict=False):  # none, when there are no minutes
        runs.append(FreeRun(prompt, seeds[0], minutes, *ends))
        told = ", ".join(f"{name} {share:.1%}" for name, share in runs[-1].deviations.items())
        tell(f"free-running: {told}, {prompt}")
    return Comparison(steps, runs)


def check_room(bundle: Bundle, chunks: int) -> None:
    """Raises UserError where so many chunks, as keep() writes them, do not fit into the temporary folder."""
    shown, place = bundle.output, tempfile.gettempdir()
    each = 3 * shown.width * shown.height * shown.chunk_frames + 4 * math.prod(bundle.manifest.geometry.latent_shape)
    needed, free = chunks * each, shutil.disk_usage(place).free
    if needed + SPARE > free:
        raise UserError(
            f"{place}: {needed / 1e9:.1f} GB of frames to keep, {free / 1e9:.1f} GB free; TMPDIR names another folder"
        )


def keep(stream: Stream, chunks: int, file: IO[bytes]) -> None:
    """Write the stream's chunks for lockstep(): frames and latent, one after the other."""
    for _ in range(chunks):
        chunk = stream.next_chunk()
        np.save(file, chunk.frames)
        np.save(file, chunk.latent)


def lockstep(stream: Stream, chunks: int, file: IO[bytes]) -> LockStep:
    """The stream's chunks against those of another one that keep() wrote; both fresh, of the same prompt and seed, without
    overlap."""
    found = LockStep(stream.prompt, stream.seed, [], [], [])
    for _ in range(chunks):
        frames, latent = np.load(file), np.load(file)
        tensors, facts = stream.snapshot()
        made = stream.next_chunk()
        stream.restore(tensors, facts)
        stream.keep_chunk(latent)
        found.psnr.append(min(psnr(frames, made.frames), BEST))
        found.ssim.append(ssim(frames, made.frames))
        found.latent.append(float(np.sqrt(np.mean((latent - made.latent) ** 2)) / max(latent.std(), 1e-9)))
    return found


def free_run(stream: Stream, minutes: float) -> dict[str, Any]:
    """Mean statistics of so many minutes of video."""
    rows, before = [], None
    for _ in range(max(1, round(60 * minutes / stream.geometry.chunk_seconds))):
        frames = stream.next_chunk().frames
        rows.append(clip_stats(frames, before))
        before = frames[-2:]
    return {
        "colour": np.mean([row.colour for row in rows], 0).tolist(),
        **{name: float(np.mean([getattr(row, name) for row in rows])) for name in ("sharpness", "motion", "flicker")},
    }


def write_record(file: Path, comparison: Comparison, of: dict[str, Any]) -> None:
    """of: what was compared, where. Raises UserError."""
    write_whole(file, (json.dumps(of | comparison.record(), indent=1) + "\n").encode())
