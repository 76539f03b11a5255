"""On which cards a model runs in real time.

A roofline: a pass takes as long as its arithmetic at the card's peak times a factor, or as its bytes at the card's
bandwidth, whichever is longer. One factor for all cards would lie, so every class of card has a range, and the table says
where it comes from. Nothing here was measured by us on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from .devices import CLASSES, Device
from .operations import Pass, Request, decode_flops, live_values, memory, recache_pass, step_pass, step_weights, wide_of

BANDWIDTH_SHARE = 0.8  # of the peak that a stream of large reads reaches
# Of either family: those that are no multiples of 32 are not for latents of 16 pixels.
SIZES = (
    *((1280, 704), (960, 544), (832, 480), (640, 368), (640, 352), (480, 272), (480, 256), (416, 240)),
    *((320, 192), (256, 144)),
)


@dataclass(frozen=True)
class Verdict:
    """A request on a device. Seconds for one chunk: with the class's best and worst factor; of the first chunk, which may
    have other steps, with the worst. smooth: how a smooth prompt change runs the window again there, and its seconds."""

    device: str
    best: float
    worst: float
    first: float
    smooth: Literal["window", "chunks", "none"]
    smooth_worst: float
    memory_share: float
    real_time: Literal["yes", "perhaps", "no", "too large"]
    advice: str


def chunk_seconds(request: Request, device: Device, factor: float) -> float:
    """Roofline time of a chunk: every pass and the decoder, one after the other."""
    once = pass_seconds(request, device, factor)
    return request.passes * once + decode_flops(request) / (half_or_less(request, device) * 1e12 * factor)


def half_or_less(request: Request, device: Device) -> float:
    """TFLOP/s of what no quantised form computes in eight bits: attention and the decoder."""
    return min(device.fp16, peak(request, device) or device.fp16)


def peak(request: Request, device: Device) -> float:
    """TFLOP/s of the linear layers in the request's precision; 0 where the card has none. float32 is taken as a quarter of
    FP16: between a card's TF32 and its plain float32."""
    known = {"fp32": device.fp16 / 4, "fp8": device.fp8 or 0, "int8": device.int8}
    return known.get(request.precision, device.fp16)


def pass_seconds(request: Request, device: Device, factor: float, work: Pass | None = None) -> float:
    """Roofline time of one pass: of the step graph, or of as much `work` over the window."""
    parts, g = memory(request), request.geometry
    tokens = g.chunk_tokens if work is None else g.cache_tokens
    live = live_values(request.network, tokens, wide_of(request.precision))
    work = work or step_pass(request.network, g)
    fast = peak(request, device)
    if not fast:
        return math.inf
    attention = work.self_attention + work.cross_attention
    arithmetic = (work.linear / fast + attention / half_or_less(request, device)) / 1e12 / factor
    turned = parts.ring if request.following else 0  # its half, the keys, once more read and written, the sinks' turned
    read = step_weights(request) + parts.ring + turned + parts.prompt
    traffic = (read + 2 * request.network.layers * live) / 1e9
    return max(arithmetic, traffic / device.bandwidth / BANDWIDTH_SHARE)


def judge(request: Request, device: Device) -> Verdict:
    kind = CLASSES[device.kind]
    best, worst = (chunk_seconds(request, device, f) for f in (kind.highest, kind.lowest))
    more = (request.first_passes or request.passes) - request.passes
    first = worst + more * pass_seconds(request, device, kind.lowest) if more and math.isfinite(worst) else worst
    parts, room = memory(request), 0.9 * device.memory * 1e9  # a tenth is the system's
    share, smooth, seconds = parts.total / room, *smooth_change(request, device, kind.lowest)
    budget = request.geometry.chunk_seconds
    real_time = "too large" if share > 1 else "yes" if worst <= budget else "perhaps" if best <= budget else "no"
    if math.isinf(worst):
        advice = f"it has no {request.precision.upper()}"
    else:
        advice = "" if real_time == "yes" else advise(request, device)
    return Verdict(device.name, best, worst, first, smooth, seconds, share, real_time, advice)  # type: ignore[arg-type]


def smooth_change(request: Request, device: Device, factor: float) -> tuple[Literal["window", "chunks", "none"], float]:
    """How a smooth prompt change runs the window again, and the seconds of that: in one pass where that fits."""
    parts, g = memory(request), request.geometry
    if request.recache == "none":
        return "none", 0.0
    if request.recache == "window" and parts.total + parts.recache <= 0.9 * device.memory * 1e9:
        return "window", pass_seconds(request, device, factor, recache_pass(request.network, g))
    past = (g.window - g.sink) // g.chunk - 1
    return "chunks", past * pass_seconds(request, device, factor) if past else 0.0


def advise(request: Request, device: Device) -> str:
    """The least change that makes it real time by the class's worst factor and fits."""
    low = CLASSES[device.kind].lowest
    for size in SIZES:
        g = request.geometry
        if size[0] * size[1] > g.width * g.height or any(side % (2 * g.space_scale) for side in size):
            continue
        own, share = request.own_decoder, size[0] * size[1] / (g.width * g.height)
        for precision in dict.fromkeys((request.precision, "int8")):
            tried = replace(
                request,
                precision=precision,
                int8_ring=request.int8_ring or precision == "int8",
                geometry=request.geometry.model_copy(update={"width": size[0], "height": size[1]}),
                own_decoder=None if own is None else own.at(share),
                post_flops={name: round(share * flops) for name, flops in request.post_flops.items()},
                post_bytes=round(share * request.post_bytes),  # hardly any of it are weights
            )
            fits = memory(tried).total <= 0.9 * device.memory * 1e9
            if fits and chunk_seconds(tried, device, low) <= tried.geometry.chunk_seconds:
                changed = [] if precision == request.precision else [precision.upper()]
                same = size == (request.geometry.width, request.geometry.height)
                return " ".join([*([] if same else [f"{size[0]}x{size[1]}"]), *changed])
    return "fewer frames per second or fewer steps"


def record(request: Request, verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """Everything the plan says, for JSON."""
    work = step_pass(request.network, request.geometry)
    return {
        "geometry": request.geometry.model_dump(),
        "network": request.network.model_dump(),
        "precision": request.precision,
        "passes": request.passes,
        "first_passes": request.first_passes or request.passes,
        "flops_per_pass": asdict(work) | {"total": work.total},
        "flops_decode": decode_flops(request),
        "memory": asdict(memory(request)) | {"total": memory(request).total},
        "devices": [asdict(v) for v in verdicts],
        "factors": {name: asdict(kind) for name, kind in CLASSES.items()},
    }
