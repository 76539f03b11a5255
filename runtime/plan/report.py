"""How a plan is told: lines and the rows of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .devices import CLASSES
from .operations import Request, decode_flops, memory, recache_pass, step_pass
from .roofline import Verdict


def costs(request: Request) -> list[str]:
    """What the model takes, wherever it runs."""
    g, work, parts = request.geometry, step_pass(request.network, request.geometry), memory(request)
    total = request.passes * work.total + decode_flops(request)
    first = (
        []
        if request.first_passes is None
        else [
            f"the first chunk of a stream, and the first after a cut: {request.first_passes} passes in place of "
            f"{request.passes}, {(request.first_passes * work.total + decode_flops(request)) / 1e12:.1f} TFLOP"
        ]
    )
    listed = [k for k in vars(parts) if k != "recache" and (k != "post" or request.post_flops)]
    gigabytes = {k: getattr(parts, k) / 1e9 for k in listed} | {"in all": parts.total / 1e9}
    smooth = f"smooth prompt changes: {'as swap' if request.recache == 'none' else 'chunk by chunk'}"
    if request.recache == "window":
        smooth = (
            f"smooth prompt changes: one pass over the window, {recache_pass(request.network, g).total / 1e12:.1f} TFLOP "
            f"and {parts.recache / 1e9:.2f} GB more; chunk by chunk on a card that cannot hold it"
        )
    return [
        f"{g.width}x{g.height}, window {g.window}, sink {g.sink}, {request.precision}: {g.chunk_tokens} tokens a chunk, "
        f"{g.cache_tokens} in the ring, {work.total / 1e12:.2f} TFLOP a pass, {total / 1e12:.1f} TFLOP a chunk, "
        f"{total / g.chunk_seconds / 1e12:.1f} TFLOP/s for {g.fps} fps",
        *first,
        *(f"{name}: {flops / 1e12:.3f} TFLOP a chunk" for name, flops in request.post_flops.items()),
        ", ".join(f"{name} {value:.2f} GB" for name, value in gigabytes.items()),
        smooth,
    ]


def columns(request: Request) -> list[str]:
    return ["device", "best", "worst", "smooth", "memory", f"real time at {request.geometry.fps} fps", "what to change"]


def rows(verdicts: Sequence[Verdict]) -> list[list[str]]:
    return [
        [v.device, cell(v.best), cell(v.worst), smooth_cell(v), f"{v.memory_share:.0%}", v.real_time, v.advice]
        for v in verdicts
    ]


def cell(seconds: float) -> str:
    return f"{seconds:.2f}" if math.isfinite(seconds) else "–"


def smooth_cell(verdict: Verdict) -> str:
    if verdict.smooth == "none":
        return "–"
    return cell(verdict.smooth_worst) + (" by chunks" if verdict.smooth == "chunks" else "")


def shares() -> list[str]:
    """Whose figures the factors are."""
    return [
        "Share of the peak, by class of card (predictions; nothing was measured here):",
        *(f"  {kind.lowest:.0%} to {kind.highest:.0%}: {kind.why}" for kind in CLASSES.values()),
    ]
