"""What a study found: the streams, the figures they are turned into, the record on disk, the plot.

Analytical part: `collapse_indices`. Measured part: the distance of every chunk's latents to the sinks (`Run`), which
`collapse` turns into the two figures of the study.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...engines.bundle import Bundle
from ...engines.errors import UserError
from ...engines.files import make_folder, reason, write_whole
from ...engines.text import quoted
from ..rope import mean_cosine, phase_concentration
from .plots import pyplot
from .spectra import LONGEST, spectra_table
from .statistics import NEIGHBOURHOOD, collapse_drop
from .variants import FOLLOWING, Variant

TOLD_ALWAYS = ("step_sha256", "latent_frames", "trained")  # the rest is not in records of before


@dataclass(frozen=True)
class Run:
    """One stream of the study, chunk by chunk."""

    variant: Variant
    prompt: str
    seed: int
    distance: list[float]  # to the sinks, in deviations of the latents; the sinks themselves left out
    motion: float  # mean over the run, grey levels a frame
    sharpness: float
    # share of attention on the sinks, mean over the denoising passes [chunks][L·H]; None without a probe graph
    sink_mass: list[list[float]] | None = None


@dataclass(frozen=True)
class Collapse:
    """Sink-collapse of one run, in percent: how far the distance to the sinks drops below its neighbourhood."""

    highest: float
    mean: float
    frame: int  # latent frame of the highest drop


def collapse_indices(frequencies: NDArray[np.float64], reach: int, neighbourhood: int = 30) -> list[tuple[int, float]]:
    """Distances Δ < reach at which the mean over heads of R(Δ) is largest within ± neighbourhood frames, with R(Δ),
    highest first. frequencies [heads, K], or of every layer."""
    distances = np.arange(reach)
    value = mean_cosine(frequencies.reshape(-1, frequencies.shape[-1]), distances).mean(0)
    peaks = [
        int(d)
        for d in distances[neighbourhood:-neighbourhood]
        if value[d] == value[d - neighbourhood : d + neighbourhood + 1].max()
    ]
    return sorted(((d, float(value[d])) for d in peaks), key=lambda peak: -peak[1])


def collapse(distance: ArrayLike, frames_per_chunk: int) -> Collapse:
    """The figures of one run.

    Highest and mean `collapse_drop`, against the chunks up to NEIGHBOURHOOD before and after each. The normalisation of the
    paper's is not published in what we could read, so these figures are comparable with each other only. The first
    NEIGHBOURHOOD chunks are not judged: a stream is near its sinks when it leaves them.
    """
    d = np.asarray(distance, np.float64)
    judged = range(min(NEIGHBOURHOOD, len(d) - 1), len(d))
    drop = np.array([collapse_drop(d[i], d[max(0, i - NEIGHBOURHOOD) : i + NEIGHBOURHOOD + 1]) for i in judged])
    worst = judged[int(drop.argmax())]
    return Collapse(100 * float(drop.max()), 100 * float(drop.mean()), (worst + 1) * frames_per_chunk)


def heads_together(mass: ArrayLike, heads: int) -> float:
    """Share of the chunks, in percent, in which every head at once gives the sinks more than its own mean and a standard
    deviation of it: the paper's second cause of collapse.

    mass [chunks, L·H]; the first NEIGHBOURHOOD chunks are left out. 0 where there are no others.
    """
    by_head = np.asarray(mass, np.float64)[NEIGHBOURHOOD:]
    if not len(by_head):
        return 0.0
    by_head = by_head.reshape(len(by_head), -1, heads).mean(1)
    return 100 * float((by_head > by_head.mean(0) + by_head.std(0)).all(1).mean())


def judged(by_chunk: ArrayLike) -> NDArray[np.float64]:
    """[chunks, …] without the first NEIGHBOURHOOD chunks, while which the ring fills and the sinks are most of it; of a
    stream that is no longer, all."""
    found = np.asarray(by_chunk, np.float64)
    return found[NEIGHBOURHOOD:] if len(found) > NEIGHBOURHOOD else found


def table(runs: Sequence[Run], frames_per_chunk: int, heads: int) -> list[dict[str, float | str]]:
    """Means over prompts and seeds, a row for each variant in order of appearance."""
    rows: list[dict[str, float | str]] = []
    for variant in dict.fromkeys(r.variant for r in runs):
        mine = [r for r in runs if r.variant == variant]
        drops = [collapse(r.distance, frames_per_chunk) for r in mine]
        row: dict[str, float | str] = {
            "variant": variant.label,
            "runs": len(mine),
            "collapse_max": float(np.mean([c.highest for c in drops])),
            "collapse_mean": float(np.mean([c.mean for c in drops])),
            # a stream that stays near its sinks the whole time does not drop from its neighbourhood either
            "distance": float(np.mean([judged(r.distance).mean() for r in mine])),
            "motion": float(np.mean([r.motion for r in mine])),
            "sharpness": float(np.mean([r.sharpness for r in mine])),
        }
        masses = [judged(r.sink_mass).mean(1) for r in mine if r.sink_mass is not None]  # mean over heads, by chunk
        if masses:
            row |= {"sink_mass": float(np.mean(masses)), "sink_mass_peak": float(np.mean([m.max() for m in masses]))}
            row["heads_together"] = float(np.mean([heads_together(r.sink_mass, heads) for r in mine if r.sink_mass]))
        rows.append(row)
    return rows


def record_file(folder: Path) -> Path:
    return folder / "sinks.json"


def read_runs(folder: Path, bundle: Bundle, frames: int, trained: int) -> list[Run]:
    """What sinks.json has of an earlier study of the same kind; nothing where there is none. Raises UserError."""
    file = record_file(folder)
    if not file.is_file():
        return []
    ours = told_of(bundle, frames, trained)
    try:
        record = json.loads(file.read_text())
        for name, value in ours.items():
            found = record[name] if name in TOLD_ALWAYS else record.get(name, value)
            wrong = differing(name, found, json.loads(json.dumps(value)))
            if wrong is not None:
                raise UserError(f"{file}: belongs to another {wrong}")
        return runs_of(record)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{file}: not a study's record: {error}") from None


def runs_of(record: dict[str, Any]) -> list[Run]:
    """The streams of a record. Raises KeyError, TypeError for what is none."""
    return [Run(**(run | {"variant": Variant(**run["variant"])})) for run in record["runs"]]


def told_of(bundle: Bundle, frames: int, trained: int) -> dict[str, Any]:
    """What a record says of its streams. Bases, sinks and the weights of large graphs are not in the step graph's file."""
    manifest = bundle.manifest
    return {
        "step_sha256": manifest.graphs["step"].model.sha256,
        "latent_frames": frames,
        "trained": trained,
        "step_digest": manifest.graphs["step"].digest,
        "rope": manifest.rope.model_dump(),
        "geometry": manifest.geometry.model_dump(),
    }


def differing(name: str, found: Any, ours: Any) -> str | None:
    """What is not the same, in words. Of what has parts, the first such part; one that an earlier record lacks is ours."""
    if isinstance(found, dict) and isinstance(ours, dict):
        parts = (differing(f"{name} {part}", found.get(part, value), value) for part, value in ours.items())
        return next((part for part in parts if part is not None), None)
    return None if found == ours else f"{name} ({quoted(str(found))[1:-1]}, here {quoted(str(ours))[1:-1]})"


def write_record(folder: Path, bundle: Bundle, runs: Sequence[Run], frames: int, trained: int) -> None:
    """Write sinks.json (every run so far, the table, the predictions up to LONGEST), whole. Raises UserError."""
    chunk, reach = bundle.manifest.geometry.chunk, min(frames, LONGEST)
    spectra = spectra_of(bundle, runs, frames, trained)
    record = {
        "bundle": bundle.manifest.name,
        **told_of(bundle, frames, trained),
        "spectra": spectra_table(bundle, reach),
        "predicted": {label: collapse_indices(spectrum, reach)[:5] for label, spectrum in spectra.items()},
        "designed_reach": reach,
        "table": table(runs, chunk, bundle.manifest.network.heads),
        "runs": [asdict(r) for r in runs],
    }
    make_folder(folder)
    write_whole(record_file(folder), (json.dumps(record) + "\n").encode())


def spectra_of(bundle: Bundle, runs: Sequence[Run], frames: int, trained: int) -> dict[str, NDArray[np.float64]]:
    """The temporal spectrum of every variant among the runs whose sinks stay, by its label: those that follow are always at
    one distance."""
    rope, staying = bundle.manifest.rope, dict.fromkeys(r.variant for r in runs if r.variant.method not in FOLLOWING)
    return {variant.label: variant.frequencies(rope, trained, frames) for variant in staying}


def write_report(folder: Path, bundle: Bundle, runs: Sequence[Run], frames: int, trained: int) -> list[Path]:
    """Write sinks.json and, with matplotlib, sinks.png. Raises UserError."""
    write_record(folder, bundle, runs, frames, trained)
    spectra = spectra_of(bundle, runs, frames, trained)
    try:
        drawn = plot(folder / "sinks.png", spectra, runs, frames, bundle.manifest.geometry.chunk)
    except OSError as error:
        raise UserError(f"{folder}: cannot write: {reason(error)}") from None
    return [record_file(folder), *([folder / "sinks.png"] if drawn else [])]


def curves(
    runs: Sequence[Run], chunk: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64] | None]:
    """Of streams of one length, chunk by chunk: latent frames, and the means of the distance to the sinks and of the
    attention on them (over runs, heads and layers; None without a probe graph). The first chunk is the sinks."""
    distance = np.mean([r.distance for r in runs], 0)
    masses = [np.mean(r.sink_mass, 1) for r in runs if r.sink_mass is not None]
    return chunk * (1 + np.arange(len(distance))), distance, np.mean(masses, 0) if masses else None


def plot(file: Path, spectra: dict[str, NDArray[np.float64]], runs: Sequence[Run], frames: int, chunk: int) -> bool:
    """From above: phase concentration and mean cosine, mean over heads, of sinks that stay, up to LONGEST; the measured
    distance to the sinks, a line a variant (mean over runs); where the bundle has a probe, the attention on the sinks.
    False without matplotlib."""
    if (plt := pyplot()) is None:
        return False

    distances = np.arange(min(frames, LONGEST))
    titles = ["phase concentration C(Δ), mean over heads", "mean cosine R(Δ), mean over heads", "distance to the sinks"]
    if probed := all(r.sink_mass is not None for r in runs):
        titles.append("attention on the sinks, mean over heads and layers")
    figure, axes = plt.subplots(len(titles), 1, figsize=(11, 3 * len(titles)), sharex=True)
    for place, label in enumerate(dict.fromkeys(r.variant.label for r in runs)):
        look = {"color": f"C{place % 10}", "linestyle": ("-", "--", ":")[place // 10 % 3]}  # a cycle has ten colours
        if label in spectra:
            spectrum = spectra[label].reshape(-1, spectra[label].shape[-1])
            axes[0].plot(distances, phase_concentration(spectrum, distances).mean(0), **look)
            axes[1].plot(distances, mean_cosine(spectrum, distances).mean(0), **look)
        at, distance, attention = curves([r for r in runs if r.variant.label == label], chunk)
        axes[2].plot(at, distance, label=label, **look)
        if probed:
            axes[3].plot(at, attention, **look)
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title)
        ax.grid(alpha=0.3)
    axes[-1].set_xlabel("latent frame")
    axes[2].legend(ncols=5, fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=90)
    plt.close(figure)
    return True
