"""The sink-collapse study: where a temporal spectrum predicts collapse, and what the engines do there.

Analytical part: `collapse_indices`. Measured part: `run` streams a bundle with one `Variant` of the temporal tables and
records the distance of every chunk's latents to the sinks; `collapse` turns that into the two figures of the study.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...engines.base import EngineOptions
from ...engines.bundle import Bundle, Geometry, RopeSpec
from ...engines.errors import UserError
from ...engines.files import make_folder, reason, write_whole
from ...engines.ort import OrtBackend
from ...engines.text import quoted
from ..prompts import PromptBank
from ..rope import (
    axis_frequencies,
    head_frequencies,
    head_thetas,
    mean_cosine,
    phase_concentration,
    stretched_frequencies,
)
from ..stream import Stream
from .plots import pyplot
from .spectra import LONGEST, epsilon_of, spectra_lines, spectra_table
from .statistics import clip_stats, latent_distance

SIGMAS = (0.0, 0.2, 0.5, 0.8)  # jitter strengths
STRETCHED = ("pi", "ntk", "yarn", "riflex")
FOLLOWING = ("relative", "relative-jitter", "horizon")  # by a bundle exported with --rope relative
JITTERED = ("heads", "layers", "designed")  # by a bundle with tables of every layer, --jitter-by layer
BY_SIGMA = ("relative-jitter", *JITTERED)  # at the bundle's own strength
OTHERS = (*STRETCHED, *FOLLOWING, *JITTERED)
TOLD_ALWAYS = ("step_sha256", "latent_frames", "trained")  # the rest is not in records of before
NEIGHBOURHOOD = 10  # chunks on either side that a chunk is compared with


@dataclass(frozen=True)
class Variant:
    """One way to fill the temporal tables.

    jitter: the bundle's own ε at strength sigma. heads: the paper's draw, a base a head; layers: the stratified draw, a base
    for every head of every layer; designed: searched up to the length of the stream; these at the bundle's strength.
    relative: sinks right behind the window, without jitter; relative-jitter: with the bundle's; horizon: without, at the end
    of what the model was trained to reach. pi, ntk, yarn, riflex: the spectrum stretched.
    """

    method: str
    sigma: float = 0.0  # of the jitter

    @property
    def label(self) -> str:
        return f"jitter {self.sigma:g}" if self.method == "jitter" else self.method

    def frequencies(self, rope: RopeSpec, trained: int, reach: int) -> NDArray[np.float64]:
        """ω of every head, [heads, channels/2], or of every head of every layer, [layers, heads, channels/2]."""
        if self.method in STRETCHED:
            stretched = stretched_frequencies(self.method, rope.theta, rope.channels, trained, reach)
            return np.repeat(stretched[None], np.shape(rope.epsilon)[-1], 0)
        if self.method in ("jitter", "relative", "horizon"):
            return head_frequencies(rope, self.sigma)
        if self.method == "relative-jitter":
            return head_frequencies(rope, rope.jitter_sigma)
        layers, heads = np.shape(rope.epsilon)
        epsilon = epsilon_of(self.method, rope, layers, heads, reach)
        return axis_frequencies(head_thetas(rope.theta, rope.jitter_sigma, epsilon), rope.channels)

    def distance(self, geometry: Geometry, trained: int) -> int | None:
        """Of sinks that follow the window; None: right behind it."""
        return max(geometry.behind, trained - geometry.chunk) if self.method == "horizon" else None


def variants(sigmas: Sequence[float], others: Sequence[str]) -> list[Variant]:
    """Raises UserError for a sigma out of range or an unknown method."""
    for sigma in sigmas:
        if not 0 <= sigma < 1:
            raise UserError(f"sigma {sigma}: expected 0 <= sigma < 1")
    for other in others:
        if other not in OTHERS:
            raise UserError(f"method {other!r}: expected one of {', '.join(OTHERS)}")
    return [*(Variant("jitter", s) for s in sigmas), *(Variant(o) for o in others)]


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

    For chunk c with distance d_c to the sinks and m_c the median distance of the chunks up to NEIGHBOURHOOD before and
    after it, the drop is max(0, 1 − d_c/m_c). The paper's SC-Max and SC-Avg are drops of a normalised distance too; its
    normalisation is not published in what we could read, so these figures are comparable with each other only. The first
    NEIGHBOURHOOD chunks are not judged: a stream is near its sinks when it leaves them.
    """
    d = np.asarray(distance, np.float64)
    judged = range(min(NEIGHBOURHOOD, len(d) - 1), len(d))
    around = np.array([np.median(d[max(0, i - NEIGHBOURHOOD) : i + NEIGHBOURHOOD + 1]) for i in judged])
    drop = np.maximum(0, 1 - d[judged.start :] / np.maximum(around, 1e-12))
    worst = judged[int(drop.argmax())]
    return Collapse(100 * float(drop.max()), 100 * float(drop.mean()), (worst + 1) * frames_per_chunk)


def run(
    bundle: Bundle, variant: Variant, prompt: str, seed: int, frames: int, trained: int, options: EngineOptions
) -> Run:
    """Stream `frames` latent frames and record. `trained`: latent frames the model was trained to reach. A bundle that was
    exported with a probe graph is run through that."""
    g, rope = bundle.manifest.geometry, bundle.manifest.rope
    probe = "probe" in bundle.manifest.graphs
    with Stream(
        bundle,
        prompt=prompt,
        seed=seed,
        rope_mode="relative" if variant.method in FOLLOWING else "absolute",
        sink_distance=variant.distance(g, trained),
        frequencies=variant.frequencies(rope, trained, frames),
        probe=probe,
        options=options,
    ) as stream:
        sink = stream.next_chunk()
        distance: list[float] = []
        mass: list[list[float]] = []
        stats, before = [], sink.frames[-2:]
        for _ in range(frames // g.chunk - 1):
            chunk = stream.next_chunk()
            distance.append(latent_distance(chunk.latent, sink.latent))
            stats.append(clip_stats(chunk.frames, before))
            before = chunk.frames[-2:]
            if chunk.sink_mass is not None:
                mass.append(chunk.sink_mass.mean(0).ravel().astype(float).round(4).tolist())
    motion, sharpness = (float(np.mean([getattr(s, name) for s in stats])) for name in ("motion", "sharpness"))
    return Run(variant, prompt, seed, distance, motion, sharpness, mass or None)


def run_all(
    bundle: Bundle,
    wanted: Sequence[tuple[Variant, str, int]],
    frames: int,
    trained: int,
    jobs: int,
    tell: Callable[[Run], None],
) -> None:
    """Every (variant, prompt, seed), in so many processes of one thread each; with jobs = 1 here, with all cores."""
    if jobs == 1:
        for variant, prompt, seed in wanted:
            tell(run(bundle, variant, prompt, seed, frames, trained, EngineOptions()))
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        single = EngineOptions(threads=1)
        futures = [pool.submit(run, bundle, *one, frames, trained, single) for one in wanted]
        for future in as_completed(futures):
            tell(future.result())


def study_sinks(
    bundle: Bundle,
    output: Path,
    *,
    prompts: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1),
    sigmas: Sequence[float] = SIGMAS,
    methods: Sequence[str] = OTHERS,
    frames: int = 600,
    trained: int = 21,
    jobs: int = 1,
    resume: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Every variant on every prompt (default: the bank's first) and seed; what was found stands in `output` after each.

    methods: default all that the bundle has tables for. frames: latent frames of a stream; trained: latent frames that the
    model was trained to reach. resume: keep the streams that `output` has already, and run those that it lacks. Raises
    UserError.
    """
    methods = fitting(bundle, OTHERS) if methods is OTHERS else methods
    if missing := [method for method in methods if method in OTHERS and method not in fitting(bundle, methods)]:
        raise UserError(f"method {missing[0]}: {bundle.path} {lack(bundle, missing[0])}")
    for line in spectra_lines(bundle, min(frames, LONGEST)):
        tell(line)
    bank = PromptBank(bundle, OrtBackend(EngineOptions()))
    found = [bank.find(text) for text in prompts or bank.prompts[:1]]  # fail now, not in another process
    so_far = read_runs(output, bundle, frames, trained) if resume else []
    there = {(run.variant, run.prompt, run.seed) for run in so_far}
    everything = [(variant, text, seed) for variant in variants(sigmas, methods) for text in found for seed in seeds]
    wanted = [one for one in everything if one not in there]
    if there:
        tell(f"{len(there)} streams were made before, {len(wanted)} are to be made")

    def keep(done: Run) -> None:
        so_far.append(done)
        write_record(output, bundle, so_far, frames, trained)
        figures = collapse(done.distance, bundle.manifest.geometry.chunk)
        tell(
            f"{done.variant.label:12} seed {done.seed} · collapse max {figures.highest:5.1f} % at frame {figures.frame} · "
            f"mean {figures.mean:4.1f} % · motion {done.motion:4.2f} · {done.prompt}"
        )

    run_all(bundle, wanted, frames, trained, jobs, keep)
    order = {one: place for place, one in enumerate(everything)}
    so_far.sort(key=lambda run: order.get((run.variant, run.prompt, run.seed), len(order)))
    return write_report(output, bundle, so_far, frames, trained)


def read_runs(folder: Path, bundle: Bundle, frames: int, trained: int) -> list[Run]:
    """What sinks.json has of an earlier study of the same kind; nothing where there is none. Raises UserError."""
    file = folder / "sinks.json"
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
        return [Run(**(run | {"variant": Variant(**run["variant"])})) for run in record["runs"]]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{file}: not a study's record: {error}") from None


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


def fitting(bundle: Bundle, methods: Sequence[str]) -> list[str]:
    """The methods that the bundle's step graph has tables for, without those that its σ of 0 makes the same as others."""
    inputs = {spec.name: spec.shape for spec in bundle.manifest.graphs["step"].inputs}
    without = (() if "sink_cos" in inputs else FOLLOWING) + (() if len(inputs["rope_cos"]) == 4 else JITTERED)
    without += () if bundle.manifest.rope.jitter_sigma else BY_SIGMA
    return [method for method in methods if method not in without]


def lack(bundle: Bundle, method: str) -> str:
    """Why a method does not fit the bundle."""
    if method in BY_SIGMA and not bundle.manifest.rope.jitter_sigma:
        return "has a jitter of 0, at which it is no other; export it with --jitter above 0"
    return f"has no tables for it; export it with {'--rope relative' if method in FOLLOWING else '--jitter-by layer'}"


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
            "motion": float(np.mean([r.motion for r in mine])),
            "sharpness": float(np.mean([r.sharpness for r in mine])),
        }
        masses = [np.asarray(r.sink_mass).mean(1) for r in mine if r.sink_mass is not None]  # mean over heads, by chunk
        if masses:
            row |= {"sink_mass": float(np.mean(masses)), "sink_mass_peak": float(np.mean([m.max() for m in masses]))}
            row["heads_together"] = float(np.mean([heads_together(r.sink_mass, heads) for r in mine if r.sink_mass]))
        rows.append(row)
    return rows


def write_record(folder: Path, bundle: Bundle, runs: Sequence[Run], frames: int, trained: int) -> None:
    """Write sinks.json (every run so far, the table, the predictions), whole. Raises UserError."""
    chunk = bundle.manifest.geometry.chunk
    spectra = spectra_of(bundle, runs, frames, trained)
    record = {
        "bundle": bundle.manifest.name,
        **told_of(bundle, frames, trained),
        "spectra": spectra_table(bundle, min(frames, LONGEST)),
        "predicted": {label: collapse_indices(spectrum, frames)[:5] for label, spectrum in spectra.items()},
        "table": table(runs, chunk, bundle.manifest.network.heads),
        "runs": [asdict(r) for r in runs],
    }
    make_folder(folder)
    write_whole(folder / "sinks.json", (json.dumps(record) + "\n").encode())


def spectra_of(bundle: Bundle, runs: Sequence[Run], frames: int, trained: int) -> dict[str, NDArray[np.float64]]:
    """The temporal spectrum of every variant among the runs, by its label."""
    return {r.variant.label: r.variant.frequencies(bundle.manifest.rope, trained, frames) for r in runs}


def write_report(folder: Path, bundle: Bundle, runs: Sequence[Run], frames: int, trained: int) -> list[Path]:
    """Write sinks.json and, with matplotlib, sinks.png. Raises UserError."""
    write_record(folder, bundle, runs, frames, trained)
    spectra = spectra_of(bundle, runs, frames, trained)
    try:
        drawn = plot(folder / "sinks.png", spectra, runs, frames, bundle.manifest.geometry.chunk)
    except OSError as error:
        raise UserError(f"{folder}: cannot write: {reason(error)}") from None
    return [folder / "sinks.json", *([folder / "sinks.png"] if drawn else [])]


def plot(file: Path, spectra: dict[str, NDArray[np.float64]], runs: Sequence[Run], frames: int, chunk: int) -> bool:
    """From above: phase concentration and mean cosine, mean over heads; the measured distance to the sinks, a line a
    variant (mean over runs); where the bundle has a probe, the attention on the sinks. False without matplotlib."""
    if (plt := pyplot()) is None:
        return False

    distances = np.arange(frames)
    titles = ["phase concentration C(Δ), mean over heads", "mean cosine R(Δ), mean over heads", "distance to the sinks"]
    if probed := all(r.sink_mass is not None for r in runs):
        titles.append("attention on the sinks, mean over heads and layers")
    figure, axes = plt.subplots(len(titles), 1, figsize=(11, 3 * len(titles)), sharex=True)
    for label, of_heads in spectra.items():
        spectrum = of_heads.reshape(-1, of_heads.shape[-1])
        axes[0].plot(distances, phase_concentration(spectrum, distances).mean(0), label=label)
        axes[1].plot(distances, mean_cosine(spectrum, distances).mean(0), label=label)
        mine = [r for r in runs if r.variant.label == label]
        mean = np.mean([r.distance for r in mine], 0)
        at = chunk * (1 + np.arange(len(mean)))
        axes[2].plot(at, mean, label=label)
        if probed:
            axes[3].plot(at, np.mean([np.asarray(r.sink_mass).mean(1) for r in mine], 0), label=label)
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title)
        ax.grid(alpha=0.3)
    axes[-1].set_xlabel("latent frame")
    axes[0].legend(ncols=5, fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=90)
    plt.close(figure)
    return True
