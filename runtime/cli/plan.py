"""`everframe plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...engines.bundle import parse_size
from ...engines.errors import UserError
from ..plan import report
from ..plan.devices import find_devices
from ..plan.operations import WAN_1_3B
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
    model: Annotated[
        str | None,
        typer.Option(
            help="Without a bundle: wan2.1-1.3b (default), wan2.1-14b or wan2.2-5b. The sizes and steps are its."
        ),
    ] = None,
    size: options.Size = None,
    chunk: Annotated[
        int | None, typer.Option(help="Latent frames of a chunk; default, as of the next: the model's.")
    ] = None,
    window: options.Window = None,
    sink: options.Sink = None,
    fps: Annotated[int | None, typer.Option(help="Frames per second.")] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Denoising passes a chunk, default 4; a commit pass comes on top."),
    ] = None,
    first_steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Of the first chunk, where it has its own (Causal Forcing++).")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of the linear layers: fp32, fp16, fp8, int8, int8-weights or int4-weights; default: the bundle's, or fp16."
        ),
    ] = None,
    int8_ring: Annotated[bool, typer.Option("--int8-ring", help="Keys and values in INT8.")] = False,
    rope: Annotated[
        str | None,
        typer.Option(help="Without a bundle: absolute (default), or relative: sinks that follow the window."),
    ] = None,
    decoder: Annotated[str | None, typer.Option(help="Without a bundle: taehv (default) or wan.")] = None,
    post: options.Post = None,
    device: Annotated[list[str] | None, typer.Option(help="Part of a device's name; may be repeated.")] = None,
    as_json: options.Json = False,
) -> None:
    """Operations, memory, and which cards run it in real time: before anything is built."""
    given = {"fps": fps, "chunk": chunk, "window": window, "sink": sink}
    if bundle is not None:
        others = {"model": model, "size": size, "steps": steps, "first-steps": first_steps, "decoder": decoder}
        others["rope"] = rope
        for name, value in (others | given).items():
            if value is not None:
                raise UserError(f"--{name} {value}: is what the bundle says; expected it without --bundle")
        request = of_bundle(bundle, precision, int8_ring, post)
    else:
        if post is not None:
            raise UserError(f"--post {post}: is of a bundle's graphs; expected --bundle with it")
        numbers = {name: value for name, value in given.items() if value is not None}
        numbers |= dict(zip(("width", "height"), parse_size(size), strict=True)) if size else {}
        known = model or WAN_1_3B, numbers, steps or 4, precision or "fp16", int8_ring, decoder or "taehv"
        request = of_model(*known, first_steps, rope or "absolute")
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
