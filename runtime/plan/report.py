"""What `everframe plan` takes from the command line, and how it prints."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from ..engines.bundle import Bundle, Geometry, first_problem
from ..engines.cost import graph_flops
from ..engines.errors import UserError
from .console import say
from .plan import FACTORS, MODELS, WEIGHT_BYTES, Request, decode_flops, find_devices, judge, memory, record, step_pass


def request_of(
    bundle: Path | None,
    model: str,
    size: str,
    chunk: int,
    window: int,
    sink: int,
    fps: int,
    steps: int,
    precision: str,
    int8_ring: bool,
    decoder: str,
) -> Request:
    """Raises UserError naming the flag."""
    if precision not in WEIGHT_BYTES:
        raise UserError(f"--precision {precision!r}: expected one of {', '.join(WEIGHT_BYTES)}")
    if decoder not in ("taehv", "wan"):
        raise UserError(f"--decoder {decoder!r}: expected taehv or wan")
    if bundle is not None:
        opened = Bundle.open(bundle)
        manifest = opened.manifest
        try:
            flops = sum(graph_flops(opened.graph_path("decode")).values())
        except ImportError:
            raise UserError("plan --bundle reads the graphs: pip install onnx") from None
        passes = len(manifest.schedule.steps) + 1
        return Request(manifest.network, manifest.geometry, passes, precision, int8_ring, "taehv", flops)  # type: ignore[arg-type]
    if model not in MODELS:
        raise UserError(f"--model {model!r}: expected one of {', '.join(MODELS)}, or --bundle")
    match = re.fullmatch(r"(\d+)x(\d+)", size)
    if not match:
        raise UserError(f"--size {size!r}: expected WIDTHxHEIGHT, for example 832x480")
    try:
        geometry = Geometry(
            width=int(match[1]),
            height=int(match[2]),
            fps=fps,
            latent_channels=16,
            chunk=chunk,
            sink=sink,
            window=window,
        )
    except ValidationError as error:
        raise UserError(first_problem(error)) from None
    return Request(MODELS[model], geometry, steps + 1, precision, int8_ring, decoder)  # type: ignore[arg-type]


def show(request: Request, names: Sequence[str], as_json: bool) -> None:
    """Print the plan on standard output."""
    verdicts = [judge(request, device) for device in find_devices(names)]
    if as_json:
        print(json.dumps(record(request, verdicts), indent=1))
        return
    out = Console()
    if not out.is_terminal:
        out = Console(width=120)  # a file or a pipe has no width of its own
    g, work, parts = request.geometry, step_pass(request.network, request.geometry), memory(request)
    total = request.passes * work.total + decode_flops(request)
    say(
        out,
        f"{g.width}x{g.height}, window {g.window}, sink {g.sink}, {request.precision}: {g.chunk_tokens} tokens a chunk, "
        f"{g.cache_tokens} in the ring, {work.total / 1e12:.2f} TFLOP a pass, {total / 1e12:.1f} TFLOP a chunk, "
        f"{total / g.chunk_seconds / 1e12:.1f} TFLOP/s for {g.fps} fps",
    )
    gigabytes = {name: value / 1e9 for name, value in vars(parts).items()} | {"in all": parts.total / 1e9}
    say(out, ", ".join(f"{name} {value:.2f} GB" for name, value in gigabytes.items()))
    table = Table(title=f"Predicted seconds for a chunk of {g.chunk_seconds:.2f} s")
    for column in ("device", "best", "worst", "memory", f"real time at {g.fps} fps", "what to change"):
        table.add_column(column, justify="right" if column in ("best", "worst", "memory") else "left")
    for v in verdicts:
        table.add_row(v.device, f"{v.best:.2f}", f"{v.worst:.2f}", f"{v.memory_share:.0%}", v.real_time, v.advice)
    out.print(table)
    say(out, "Share of the peak, by class of card (predictions; nothing was measured here):")
    for low, high, why in FACTORS.values():
        say(out, f"  {low:.0%} to {high:.0%}: {why}")
