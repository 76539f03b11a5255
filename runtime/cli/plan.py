"""`everframe plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...engines.bundle import parse_size
from ..plan import report
from ..plan.devices import find_devices
from ..plan.request import of_bundle, of_model
from ..plan.roofline import judge, record
from . import options
from .console import show_table, tell, tell_json

app = typer.Typer()


@app.command()
def plan(
    bundle: Annotated[
        Path | None, typer.Option("--bundle", "-b", help="Plan for this bundle's own graphs; default: --model.")
    ] = None,
    model: Annotated[str, typer.Option(help="Without a bundle: wan2.1-1.3b, wan2.1-14b or wan2.2-5b.")] = "wan2.1-1.3b",
    size: options.Size = None,
    chunk: Annotated[
        int | None, typer.Option(help="Latent frames of a chunk; default, as of the next: the model's.")
    ] = None,
    window: options.Window = None,
    sink: options.Sink = None,
    fps: Annotated[int | None, typer.Option(help="Frames per second.")] = None,
    steps: Annotated[
        int, typer.Option(min=1, max=1000, help="Denoising passes a chunk; a commit pass comes on top.")
    ] = 4,
    first_steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Of the first chunk, where it has its own (Causal Forcing++).")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16, fp8 or int8 (linear layers).")] = "fp16",
    int8_ring: Annotated[bool, typer.Option("--int8-ring", help="Keys and values in INT8.")] = False,
    decoder: Annotated[str, typer.Option(help="taehv or wan.")] = "taehv",
    device: Annotated[list[str] | None, typer.Option(help="Part of a device's name; may be repeated.")] = None,
    as_json: options.Json = False,
) -> None:
    """Operations, memory, and which cards run it in real time: before anything is built."""
    if bundle is not None:
        request = of_bundle(bundle, precision, int8_ring)
    else:
        given = {"fps": fps, "chunk": chunk, "window": window, "sink": sink}
        numbers = {name: value for name, value in given.items() if value is not None}
        numbers |= dict(zip(("width", "height"), parse_size(size), strict=True)) if size else {}
        request = of_model(model, numbers, steps, precision, int8_ring, decoder, first_steps)
    verdicts = [judge(request, one) for one in find_devices(device or [])]
    if as_json:
        tell_json(record(request, verdicts))
        return
    for line in report.costs(request):
        tell(line)
    title = f"Predicted seconds for a chunk of {request.geometry.chunk_seconds:.2f} s"
    names = report.columns(request)
    show_table(names, report.rows(verdicts), title, left=names[5:])
    for line in report.shares():
        tell(line)
