"""How a benchmark's result is shown: a table, and one HTML file that needs nothing else."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...engines.files import write_whole
from .bench import Result

WIDTH, HEIGHT = 860, 200  # pixels of a plot


STAGE_COLUMNS = ("stage", "p50 ms", "p90 ms", "p99 ms", "max ms")


def title(result: Result) -> str:
    b = result.bundle
    width, height = b["size"]
    return f"{b['name']} {width}×{height}, window {b['window']}, {b['steps']} steps, {b['precision']}"


def stage_rows(result: Result) -> list[list[str]]:
    return [
        [name, *(f"{v:.1f}" for v in (spread.p50, spread.p90, spread.p99, spread.max))]
        for name, spread in result.steady.stages.items()
    ]


def write(result: Result, file: Path, as_page: bool = False) -> None:
    """As HTML where that is asked for or the name ends so, else as JSON. Raises UserError."""
    as_page = as_page or file.suffix.lower() in (".html", ".htm")
    text = page(result) if as_page else result.model_dump_json(indent=1) + "\n"
    write_whole(file, text.encode())


def summary(result: Result) -> list[tuple[str, str]]:
    s, c, m = result.steady, result.cold, result.memory
    rows = [
        ("real-time factor, with video encoding", f"{s.real_time_factor:.2f} ({s.fps:.1f} fps)"),
        ("jitter of chunks, p99 − p50", f"{s.interval_jitter_ms:.1f} ms"),
        (
            "late chunks for a viewer",
            f"{s.late_chunks} of {s.chunks}" + (f", by {s.latest_ms:.0f} ms" if s.late_chunks else ""),
        ),
        ("cold: load, first chunk", f"{c.load:.2f} s, {c.first_chunk:.2f} s"),
    ]
    if c.process_to_first_frame is not None:
        rows.append(("cold: process start to first frame", f"{c.process_to_first_frame:.2f} s"))
    rows += [(f"prompt change to first frame, {n}", f"{v:.0f} ms") for n, v in result.prompt_change_ms.items()]
    rows += [(f"memory: {n.replace('_', ' ')}", f"{v / 2**20:.1f} MiB") for n, v in m.items()]
    if result.not_one_launch is not None:
        rows.append(("passes one by one, not one launch a chunk", result.not_one_launch))
    if result.energy is not None:
        rows.append(("energy of a chunk", f"{result.energy.joules_per_chunk:.2f} J ({result.energy.source})"))
    return rows


def page(result: Result) -> str:
    """The report: tables, latency over time, histogram, and the JSON itself."""
    ms = result.chunk_ms
    stages = "".join(
        f"<tr><th>{html.escape(n)}<td>{s.p50:.1f}<td>{s.p90:.1f}<td>{s.p99:.1f}<td>{s.max:.1f}"
        for n, s in result.steady.stages.items()
    )
    facts = "".join(f"<tr><th>{html.escape(n)}<td>{html.escape(v)}" for n, v in summary(result))
    about = {"bundle": result.bundle, "settings": result.settings, "machine": result.machine}
    told = "".join(
        f"<tr><th>{html.escape(f'{part}: {n}')}<td>{html.escape(str(v))}"
        for part, d in about.items()
        for n, v in d.items()
    )
    raw = json.dumps(result.model_dump()).replace("</", "<\\/")  # must not end its own script element
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Everframe benchmark</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b2530; }}
table {{ border-collapse: collapse; margin: 1rem 0; }} th {{ text-align: left; font-weight: 500; padding-right: 2rem; }}
td {{ text-align: right; padding: .15rem .75rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }}
.about td {{ text-align: left; }} svg {{ width: 100%; height: auto; background: #f4f7fa; }}
text {{ font: 12px system-ui, sans-serif; fill: #45525f; }}
</style>
<h1>Everframe benchmark</h1>
<h2>Stages</h2><table><tr><th>stage<td>p50 ms<td>p90 ms<td>p99 ms<td>max ms{stages}</table>
<h2>Chunk latency over time</h2>{timeline(ms)}
<h2>Chunk latency, histogram</h2>{histogram(ms)}
<h2>Figures</h2><table>{facts}</table>
<h2>Setting</h2><table class="about">{told}</table>
<script type="application/json" id="result">{raw}</script>
</html>
"""


def timeline(ms: Sequence[float]) -> str:
    top = max(ms) * 1.1
    step = WIDTH / max(1, len(ms) - 1)
    points = " ".join(f"{i * step:.1f},{HEIGHT - v / top * HEIGHT:.1f}" for i, v in enumerate(ms))
    return _svg(
        f'<polyline points="{points}" fill="none" stroke="#1769aa" stroke-width="1.5"/>'
        f'<text x="6" y="14">{top:.0f} ms</text><text x="{WIDTH - 90}" y="{HEIGHT - 6}">{len(ms)} chunks</text>'
    )


def histogram(ms: Sequence[float]) -> str:
    counts, edges = np.histogram(ms, bins=min(40, max(5, len(ms) // 3)))
    bar = WIDTH / len(counts)
    bars = "".join(
        f'<rect x="{i * bar:.1f}" y="{HEIGHT - n / counts.max() * (HEIGHT - 20):.1f}" width="{max(1.0, bar - 1):.1f}" '
        f'height="{n / counts.max() * (HEIGHT - 20):.1f}" fill="#1769aa"/>'
        for i, n in enumerate(counts.tolist())
    )
    return _svg(
        f'{bars}<text x="6" y="14">{edges[0]:.0f} ms</text><text x="{WIDTH - 60}" y="14">{edges[-1]:.0f} ms</text>'
    )


def _svg(inside: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{inside}</svg>'
