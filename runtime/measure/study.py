"""The sink-collapse study: a stream for every variant of the temporal tables, prompt and seed."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from ...engines.base import EngineOptions
from ...engines.bundle import Bundle
from ...engines.errors import UserError
from ...engines.ort import OrtBackend
from ..noise import seed_of
from ..prompts import PromptBank
from ..stream import Stream
from .spectra import LONGEST, spectra_lines
from .statistics import clip_stats, latent_distance
from .study_report import Run, collapse, judged, read_runs, record_file, write_record, write_report
from .variants import FOLLOWING, OTHERS, SIGMAS, Variant, fitting, lack, variants


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


def end_with_parent() -> None:
    """In a worker: a study that is killed, by whatever signal, leaves none streaming on for hours."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), end_with_parent) as pool:
        single = EngineOptions(threads=1)
        futures = [pool.submit(run, bundle, *one, frames, trained, single) for one in wanted]
        try:
            for future in as_completed(futures):
                tell(future.result())
        except BaseException:  # else all that wait, and are for nothing now, would be made before it is told
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


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
    # All that can be refused is refused first: the searches of the spectra take minutes, and the streams hours.
    if frames < 3 * (chunk := bundle.manifest.geometry.chunk):
        raise UserError(f"--frames {frames}: expected three chunks at least, {3 * chunk} latent frames of this bundle")
    if not bundle.manifest.geometry.sink:
        raise UserError(f"{bundle.path}: has no sinks that a stream could fall back to; export it with --sink above 0")
    methods = fitting(bundle, OTHERS) if methods is OTHERS else methods
    compared = variants(sigmas, methods)
    for method in methods:
        if why := lack(bundle, method):
            raise UserError(f"method {method}: {bundle.path} {why}")
    bank = PromptBank(bundle, OrtBackend(EngineOptions()))
    texts = [bank.find(text) for text in prompts or bank.prompts[:1]]
    drawn = [seed_of(seed) for seed in seeds]
    so_far = read_runs(output, bundle, frames, trained) if resume else []
    there = {(run.variant, run.prompt, run.seed) for run in so_far}
    # What was asked for twice counts once.
    everything = list(dict.fromkeys((v, text, seed) for v in compared for text in texts for seed in drawn))
    wanted = [one for one in everything if one not in there]
    if there:
        tell(f"{len(there)} streams were made before, {len(wanted)} are to be made")
    else:  # else --resume would go on with the study that is replaced, until the first stream is there
        record_file(output).unlink(missing_ok=True)
    for line in spectra_lines(bundle, min(frames, LONGEST)):
        tell(line)

    def keep(done: Run) -> None:
        so_far.append(done)
        write_record(output, bundle, so_far, frames, trained)
        figures = collapse(done.distance, bundle.manifest.geometry.chunk)
        tell(
            f"{done.variant.label:12} seed {done.seed} · collapse max {figures.highest:5.1f} % at frame {figures.frame} · "
            f"mean {figures.mean:4.1f} % · distance {judged(done.distance).mean():4.2f} · motion {done.motion:4.2f} · "
            f"{done.prompt}"
        )

    run_all(bundle, wanted, frames, trained, jobs, keep)
    order = {one: place for place, one in enumerate(everything)}
    so_far.sort(key=lambda run: order.get((run.variant, run.prompt, run.seed), len(order)))
    return write_report(output, bundle, so_far, frames, trained)
