"""`everframe bench`: latency per chunk by stage, as the field quotes it, with everything needed to repeat it.

Steady figures are taken after the KV ring has been full for a chunk. Stages: encode (a prompt's keys and values), diffuse by
step, finalize (the commit pass), decode, smooth and upscale (where the bundle has them), host copy, host (noise, tables),
video encode.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from ...engines.base import Backend
from ...engines.bundle import Bundle, first_problem
from ...engines.errors import UserError
from ...engines.machine import find_cores, find_gpu, peak_memory, resident_memory
from ...engines.post import Output
from ...engines.text import read_text
from ..prompts import TRANSITIONS
from ..proof import proven
from ..recache import recache_bytes
from ..server.pictures.fmp4 import Encoder
from ..state import identity
from ..stream import Stream
from ..video import choose_encoder
from .energy import Looks, energy_meter

FORMAT = 1
PACKAGES = (
    *("everframe", "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "openvino", "tensorrt_rtx", "tensorrt"),
    *("numpy", "av"),
)


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Spread(Part):
    """Milliseconds over the measured chunks."""

    p50: float
    p90: float
    p99: float
    max: float
    mean: float


class Cold(Part):
    """Seconds, of the first chunk of this process."""

    load: float  # the backend's package imported, engines loaded and bound
    first_chunk: float
    process_to_first_frame: float | None  # since the process began, the interpreter's start and imports included


class Steady(Part):
    chunks: int
    stages: dict[str, Spread]
    fps: float  # frames made a second, video encoding included
    real_time_factor: float
    interval_jitter_ms: float  # p99 − p50 of the time between chunks
    late_chunks: int  # of a viewer who starts with the first measured chunk and shows every frame on time
    latest_ms: float  # by how much the latest of them


class Energy(Part):
    joules_per_chunk: float
    source: str


class Result(Part):
    """What bench.json says."""

    format: int = FORMAT
    bundle: dict[str, Any]
    settings: dict[str, Any]
    machine: dict[str, Any]
    cold: Cold
    steady: Steady
    prompt_change_ms: dict[str, float]  # from set_prompt to the first frame made under it, by transition
    memory: dict[str, int]  # bytes, by part
    energy: Energy | None
    not_one_launch: str | None = None  # why a GPU is given a chunk's passes one by one, if it is
    chunk_ms: list[float]  # every measured chunk, for the plot


def spread(seconds: Sequence[float]) -> Spread:
    ms = 1000 * np.asarray(seconds, np.float64)
    p50, p90, p99 = np.percentile(ms, (50, 90, 99)).tolist()
    return Spread(p50=p50, p90=p90, p99=p99, max=float(ms.max()), mean=float(ms.mean()))


def lateness(arrivals: Sequence[float], frames: int, fps: float) -> tuple[int, float]:
    """Chunks that come too late for a viewer, and the latest's delay in seconds.

    Chunk i of `frames` frames is complete at arrivals[i]; the viewer shows its first frame when chunk 0 is there and every
    other one 1/fps after the one before; a chunk that is not there in time is late, and the rest move with it.
    """
    due, late, worst = arrivals[0], 0, 0.0
    for arrival in arrivals:
        if arrival > due + 1e-9:
            late, worst, due = late + 1, max(worst, arrival - due), arrival
        due += frames / fps
    return late, worst


def bench(
    bundle: Bundle,
    backend: Callable[[], Backend],
    chunks: int,
    seed: int = 0,
    prompt: str | None = None,
    settings: Mapping[str, Any] | None = None,
    verify: bool = True,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """Run it. Raises UserError."""
    g, here = bundle.output, machine()
    engines, opening, proving = opened(bundle, backend, verify)
    began = time.perf_counter()
    with Stream(bundle, seed=seed, prompt=prompt, verify=False, backend=engines) as stream:
        loaded = time.perf_counter()
        first = stream.next_chunk()
        cold = Cold(
            load=opening + loaded - began,
            first_chunk=time.perf_counter() - loaded,
            process_to_first_frame=None if (age := process_age()) is None else age - proving,
        )
        name, _ = choose_encoder("auto", g.width, g.height)
        encoder = Encoder(g.width, g.height, g.fps, name, 20, 2.0)
        for _ in range(stream.layout.chunks):  # the ring is full from here on
            encode(encoder, stream.next_chunk().frames)
        computes = engines.computes(bundle)
        meter = energy_meter(computes)
        start_energy = meter and meter[0]()
        look = Looks()

        def made(done: int, total: int) -> None:
            if meter and look.due():
                meter[0]()
            tell(done, total)

        rows, arrivals = measured(stream, encoder, chunks, made)
        joules = meter[0]() - start_energy if meter and start_energy is not None else None
        changes, encodes, again = prompt_changes(stream)
        encoder.close()
        taken = memory(bundle, stream)  # before the card is asked for its name, which takes room in this process
        gpu, _ = find_gpu()
        return Result(
            bundle=facts_of(bundle),
            settings={
                "chunks": chunks,
                "seed": seed,
                "prompt": first.prompt,
                "video_encoder": name,
                "computed_by": str(computes),
                **(settings or {}),
            },
            machine=here | {"gpu": gpu and gpu.name},
            cold=cold,
            steady=steady_figures(rows, arrivals, {"encode": encodes, f"recache by {stream.recache}": again}, g),
            prompt_change_ms=changes,
            memory=taken,
            not_one_launch=stream.not_one_launch,
            energy=Energy(joules_per_chunk=joules / chunks, source=meter[1]) if joules is not None and meter else None,
            chunk_ms=[round(1000 * row["chunk"], 3) for row in rows],
        )


def opened(bundle: Bundle, backend: Callable[[], Backend], verify: bool) -> tuple[Backend, float, float]:
    """Engines to run; the seconds that their package took to be there; and those of a proof, which is made once a machine
    and is no part of what a start costs. Raises UserError."""
    began = time.perf_counter()
    engines = backend()
    opening = time.perf_counter() - began
    if not verify or proven(bundle, engines):
        return engines, opening, 0.0
    began = time.perf_counter()
    Stream(bundle, backend=engines).close()
    engines = backend()  # loads anew, as a start does
    return engines, opening, time.perf_counter() - began


def facts_of(bundle: Bundle) -> dict[str, Any]:
    """What the figures are of."""
    m, g = bundle.manifest, bundle.manifest.geometry
    return {
        "name": m.name,
        "identity": identity(bundle),
        "size": [bundle.output.width, bundle.output.height],
        "fps": bundle.output.fps,
        "post": list(bundle.post),
        "window": g.window,
        "sink": g.sink,
        "steps": len(m.schedule.steps),
        "first_steps": len(m.schedule.first_steps or m.schedule.steps),  # of the chunk that the cold start ends with
        "precision": m.precision,
        "form": m.form,
    }


def measured(
    stream: Stream, encoder: Encoder, chunks: int, tell: Callable[[int, int], None]
) -> tuple[list[dict[str, float]], list[float]]:
    """Seconds of every stage of every chunk, and when each was made and encoded."""
    rows, arrivals = [], []
    for i in range(chunks):
        chunk = stream.next_chunk()
        before = time.perf_counter()
        encode(encoder, chunk.frames)
        arrivals.append(time.perf_counter())
        t = chunk.timings
        rows.append(
            {f"diffuse {s + 1}": v for s, v in enumerate(t.diffuse)}
            | {"diffuse": sum(t.diffuse), "finalize": t.finalize, "decode": t.decode}
            | {name: getattr(t, name) for name in stream.bundle.post}
            | {"host copy": t.copy}
            | {"host": t.host, "chunk": t.total, "video encode": arrivals[-1] - before}
        )
        tell(i + 1, chunks)
    return rows, arrivals


def steady_figures(
    rows: Sequence[Mapping[str, float]], arrivals: Sequence[float], changes: Mapping[str, Sequence[float]], g: Output
) -> Steady:
    """changes: seconds of the stages that only chunks with a prompt change have."""
    late, worst = lateness(arrivals, g.chunk_frames, g.fps)
    each = spread(np.diff(arrivals).tolist())
    stages = {n: spread([row[n] for row in rows]) for n in rows[0]}
    return Steady(
        chunks=len(rows),
        stages={**stages, "interval": each, **{n: spread(s) for n, s in changes.items()}},
        fps=g.chunk_frames / (each.mean / 1000),
        real_time_factor=g.chunk_seconds / (each.mean / 1000),
        interval_jitter_ms=each.p99 - each.p50,
        late_chunks=late,
        latest_ms=1000 * worst,
    )


def encode(encoder: Encoder, frames: NDArray[np.uint8]) -> None:
    for frame in frames:
        encoder.encode(frame)


def prompt_changes(stream: Stream, times: int = 3) -> tuple[dict[str, float], list[float], list[float]]:
    """Milliseconds from set_prompt to the first frame made under it; the seconds that the prompt's keys and values took,
    and with them the window's, which `smooth` makes anew."""
    found: dict[str, list[float]] = {t: [] for t in TRANSITIONS}
    encodes, again, prompts = [], [], stream.bank.prompts
    for _ in range(times):
        for transition in TRANSITIONS:
            now = prompts.index(stream.prompt) if stream.prompt in prompts else -1
            began = time.perf_counter()
            stream.set_prompt(prompts[(now + 1) % len(prompts)], transition)
            if stream.overlap:  # the chunk that is being made already, of the prompt before
                stream.next_chunk()
            chunk = stream.next_chunk()
            found[transition].append(1000 * (time.perf_counter() - began))
            if transition == "swap":
                encodes.append(chunk.timings.prompt)
            elif transition == "smooth":
                again.append(chunk.timings.prompt)
            for _ in range(stream.layout.chunks):  # a full window again
                stream.next_chunk()
    return {name: float(np.median(ms)) for name, ms in found.items()}, encodes, again


def memory(bundle: Bundle, stream: Stream) -> dict[str, int]:
    """Bytes by part. weights: of the graphs' files, as they are stored; recache: what the pass of a smooth change wants
    beside all else, its activations included (`recache_bytes`)."""
    running = ("step", "prompt", "decode", "decode_first", *(f"{n}{s}" for n in bundle.post for s in ("", "_first")))
    used = [g for n, g in bundle.manifest.graphs.items() if n in running]
    files = {ref.file: ref.bytes for g in used for ref in (g.model, *g.data)}
    return {
        "weights": sum(files.values()),
        **stream.sizes(),
        "recache": recache_bytes(bundle) if stream.recache == "window" else 0,
        "process": resident_memory(),
        "process_peak": peak_memory(),
    }


def process_age() -> float | None:
    """Seconds since this process was started; None where /proc does not tell."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
    except (OSError, AttributeError, IndexError, ValueError):
        return None
    return uptime - ticks / os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, Any]:
    """What the figures were taken on, but for a card."""

    def read(path: str) -> str | None:
        try:
            return Path(path).read_text().strip()
        except OSError:
            return None

    lines = [line.partition(":") for line in (read("/proc/cpuinfo") or "").splitlines()]
    facts = {key.strip(): value.strip() for key, _, value in reversed(lines)}  # the first core's win
    cpu, flags = facts.get("model name", ""), facts.get("flags", facts.get("Features", ""))
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    cores = find_cores()
    return {
        "cpu": cpu or platform.processor() or platform.machine(),
        "vector": [w for w in ("avx2", "avx512f", "avx512_bf16", "amx_tile", "asimd") if w in flags.split()],
        "cores": os.cpu_count(),
        "cores_allowed": cores.allowed,
        "cores_quota": cores.quota,
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions,
    }


def read_result(file: Path) -> Result:
    """Raises UserError."""
    try:
        result = Result.model_validate(json.loads(read_text(file)))
    except ValidationError as error:
        raise UserError(f"{file}: not a result of everframe bench: {first_problem(error)}") from None
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error})") from None
    if "chunk" not in result.steady.stages or "process_peak" not in result.memory:
        raise UserError(
            f"{file}: not a result of everframe bench: steady.stages.chunk or memory.process_peak is missing"
        )
    return result


def ratios(a: Result, b: Result) -> list[tuple[str, float, float, float]]:
    """(figure, a, b, b/a) of everything both have; milliseconds but where the name says otherwise."""
    rows = [(f"{n} p50", s.p50, b.steady.stages[n].p50) for n, s in a.steady.stages.items() if n in b.steady.stages]
    rows += [("chunk p99", a.steady.stages["chunk"].p99, b.steady.stages["chunk"].p99)]
    changes = ((n, v, b.prompt_change_ms.get(n)) for n, v in a.prompt_change_ms.items())
    rows += [(f"prompt change, {n}", v, w) for n, v, w in changes if w is not None]
    rows += [
        ("fps", a.steady.fps, b.steady.fps),
        ("first chunk, s", a.cold.first_chunk, b.cold.first_chunk),
        ("peak memory, MiB", a.memory["process_peak"] / 2**20, b.memory["process_peak"] / 2**20),
    ]
    return [(name, x, y, y / x if x else float("nan")) for name, x, y in rows]
