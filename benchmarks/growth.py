"""Does a chunk cost the same at chunk 100,000? And what does another stream on the same engines cost?

    python benchmarks/growth.py [--chunks 100000] [--out docs]

Drives the smallest bundle there is (random weights, 64×32) and writes growth.json and, with matplotlib, growth.png. Then the
demo: memory and latency of one to four streams that share one backend's engines.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from everframe.engines.base import EngineOptions
from everframe.engines.machine import resident_memory
from everframe.engines.ort import OrtBackend
from everframe.export.checkpointexport import Overrides, export_checkpoint
from everframe.runtime import Stream, open_bundle
from everframe.runtime.measure.plots import pyplot

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from helpers import write_checkpoint

BLOCK = 1000  # chunks that one point of the curve is the median of


def grow(chunks: int) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / "small")
        bundle = Path(folder) / "small.everframe"
        export_checkpoint(checkpoint, bundle, Overrides(), chunks=10, force=False)
        points = []
        with Stream(open_bundle(bundle), options=EngineOptions(threads=1)) as stream:
            for _ in range(10):
                stream.next_chunk()
            for first in range(10, chunks, BLOCK):
                ms = [1000 * stream.next_chunk().timings.total for _ in range(min(BLOCK, chunks - first))]
                point = {"chunk": first, "median_ms": float(np.median(ms)), "p99_ms": float(np.percentile(ms, 99))}
                points.append(point | {"mib": resident_memory() / 2**20})
                print(points[-1], flush=True)
        return points


def share(most: int = 4, chunks: int = 10) -> list[dict[str, float]]:
    """One to `most` streams of the demo on one backend, taking turns."""
    backend, streams, rows = OrtBackend(EngineOptions()), [], []
    before = resident_memory()
    for count in range(1, most + 1):
        streams.append(Stream(open_bundle(), seed=count, backend=backend))
        for _ in range(3):
            for stream in streams:
                stream.next_chunk()
        began = time.perf_counter()
        for _ in range(chunks):
            for stream in streams:
                stream.next_chunk()
        each = (time.perf_counter() - began) / chunks / count
        rows.append({"streams": count, "mib": (resident_memory() - before) / 2**20, "ms_per_chunk": 1000 * each})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "measured")
    args = parser.parse_args()
    points = grow(args.chunks)
    record: dict[str, Any] = {"growth": points, "shared_engines": share()}
    (args.out / "growth.json").write_text(json.dumps(record, indent=1) + "\n")
    if (plt := pyplot()) is not None:
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3))
        x = [p["chunk"] for p in points]
        left.plot(x, [p["median_ms"] for p in points], label="median")
        left.plot(x, [p["p99_ms"] for p in points], label="p99")
        left.set_title("chunk latency, ms")
        right.plot(x, [p["mib"] for p in points])
        right.set_title("resident memory, MiB")
        for ax in (left, right):
            ax.set_ylim(bottom=0)
            ax.set_xlabel("chunk")
            ax.grid(alpha=0.3)
        left.legend()
        figure.tight_layout()
        figure.savefig(args.out / "growth.png", dpi=90)


if __name__ == "__main__":
    main()
