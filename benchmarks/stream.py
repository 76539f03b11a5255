"""Real-time factor and stage medians of the demo on ONNX Runtime, beside the same chunk loop in eager PyTorch.

    python benchmarks/stream.py [--chunks 40] [--bundle B --checkpoint C] [--json out.json]

Measures only after the KV ring is full. "real time" counts everything a user waits for: noise, denoising, commit,
decoding, and H.264 encoding into a file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from everframe.engines.bundle import Bundle
from everframe.export.checkpoint import load
from everframe.export.graphs import PromptGraph, Ring, StepGraph
from everframe.export.taehv import zero_states
from everframe.export.taehvgraphs import DecodeGraph
from everframe.runtime import EngineOptions, Stream, open_bundle, open_output
from everframe.runtime.noise import chunk_noise
from everframe.runtime.outputs import Output
from everframe.runtime.prompts import PromptBank
from everframe.runtime.ring import RingLayout
from everframe.runtime.rope import head_frequencies, temporal_tables

Stages = dict[str, list[float]]  # stage -> seconds, one entry a chunk
DEMO_CHECKPOINT = Path(__file__).parent.parent / "training" / "demo"


def engine_loop(bundle: Bundle, chunks: int, warm: int, threads: int) -> Stages:
    stages: Stages = {}
    with scratch_video(bundle) as out, Stream(bundle, options=EngineOptions(threads=threads)) as stream:
        for i in range(chunks + warm):
            begin = time.perf_counter()
            chunk = stream.next_chunk()
            middle = time.perf_counter()
            out.write(chunk.frames)
            end = time.perf_counter()
            t = chunk.timings
            row = {"diffuse": sum(t.diffuse), "finalize": t.finalize, "decode": t.decode, "host": t.host}
            row |= {"chunk": middle - begin, "video encode": end - middle, "chunk + encode": end - begin}
            if i >= warm:
                add(stages, row)
    return stages


def eager_loop(bundle: Bundle, checkpoint: Path, chunks: int, warm: int, threads: int) -> Stages:
    """The same arithmetic in eager PyTorch, with the ring copied at each pass as plain PyTorch code does."""
    torch.set_num_threads(threads or os.cpu_count() or 1)
    loaded, g, rope = load(checkpoint), bundle.manifest.geometry, bundle.manifest.rope
    ring = Ring(g.chunk, g.sink, g.window, g.height // 16, g.width // 16)
    step = StepGraph(loaded.transformer, loaded.config.schedule, ring)
    decode, layout = DecodeGraph(loaded.autoencoder), RingLayout.of(g)
    frequencies = head_frequencies(rope, rope.jitter_sigma)
    n, c, stages = len(bundle.manifest.schedule.steps), loaded.config.transformer, {}
    bank = PromptBank(bundle)
    with torch.no_grad(), scratch_video(bundle) as out:
        context = list(PromptGraph(loaded.transformer)(torch.from_numpy(bank.embedding(bank.prompts[0]))))
        keys = [torch.zeros(1, c.heads, g.cache_tokens, c.head_dim) for _ in range(c.layers)]
        values = [torch.zeros_like(k) for k in keys]
        states = zero_states(loaded.autoencoder.decoder, 1, *g.latent_shape[3:], torch.zeros(()))
        for i in range(chunks + warm):
            marks = [time.perf_counter()]
            noise = torch.from_numpy(chunk_noise(0, i, n, g.latent_shape))
            tables = temporal_tables(np.arange(g.chunk) + float(i * g.chunk), frequencies)
            slot = layout.slot(i)
            turned = [torch.from_numpy(table) for table in tables]
            place = [torch.tensor([slot.start]), torch.tensor([slot.valid])]
            x = noise[0]
            marks.append(time.perf_counter())
            for s in range(n + 1):
                x0, after, *new = step(
                    x,
                    torch.tensor([s]),
                    noise[(s + 1) % n],
                    *turned,
                    place,
                    keys,
                    values,
                    context[: c.layers],
                    context[c.layers :],
                )
                keys, values = new[: c.layers], new[c.layers :]
                x = after if s < n - 1 else x0
                if s >= n - 1:
                    marks.append(time.perf_counter())
            frames, *states = decode(x, *states)
            pixels = frames.numpy()
            marks.append(time.perf_counter())
            out.write(pixels)
            marks.append(time.perf_counter())
            if i >= warm:
                names = ("host", "diffuse", "finalize", "decode", "video encode")
                spans = dict(zip(names, np.diff(marks).tolist(), strict=True))
                add(stages, spans | {"chunk": marks[-2] - marks[0], "chunk + encode": marks[-1] - marks[0]})
    return stages


@contextlib.contextmanager
def scratch_video(bundle: Bundle) -> Iterator[Output]:
    """An H.264 file of the bundle's size and rate that is gone afterwards."""
    g = bundle.manifest.geometry
    with tempfile.TemporaryDirectory() as folder, open_output(f"{folder}/x.mp4", g.width, g.height, g.fps) as out:
        yield out


def add(stages: Stages, row: dict[str, float]) -> None:
    for name, seconds in row.items():
        stages.setdefault(name, []).append(seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path, help="default: the shipped demo")
    parser.add_argument("--checkpoint", type=Path, default=DEMO_CHECKPOINT, help="the checkpoint it was exported from")
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--threads", type=int, default=0, help="0 = one per core")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    bundle = open_bundle(args.bundle)
    g = bundle.manifest.geometry
    warm = g.window // g.chunk + 1
    ours = engine_loop(bundle, args.chunks, warm, args.threads)
    eager = eager_loop(bundle, args.checkpoint, args.chunks, warm, args.threads)
    table = Table(
        title=f"{bundle.manifest.name} {g.width}×{g.height}, {args.chunks} chunks of {g.chunk_seconds * 1000:.0f} ms"
    )
    for name in ("stage", "median ms", "p99 ms", "eager PyTorch median ms", "ratio"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for name, seconds in ours.items():
        median, p99 = np.median(seconds) * 1000, np.percentile(seconds, 99) * 1000
        base = np.median(eager[name]) * 1000 if name in eager else None
        cells = (f"{base:.1f}", f"{base / median:.2f}×") if base else ("", "")
        table.add_row(name, f"{median:.1f}", f"{p99:.1f}", *cells)
    factor = g.chunk_seconds / float(np.mean(ours["chunk + encode"]))
    console = Console()
    console.print(table)
    console.print(f"real-time factor, video encoding included: {factor:.2f}")
    console.print("repeat with: python benchmarks/stream.py", highlight=False)
    if args.json:
        machine = {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        }
        machine |= {"onnxruntime": onnxruntime.__version__, "python": platform.python_version()}
        args.json.write_text(
            json.dumps({"machine": machine, "real_time_factor": factor, "ours": ours, "eager": eager}, indent=1)
        )


if __name__ == "__main__":
    main()
