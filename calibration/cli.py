"""`everframe calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..engines.errors import UserError
from ..runtime.cli import options
from ..runtime.cli.console import needs_extra, reporting, show_quality

app = typer.Typer()


def check_acts(explicit: set[str], precision: str, method: str) -> None:
    """Raises UserError for options that the user names and that would do nothing beside the others."""
    if precision.endswith("weights"):
        for name in ("method", "alpha", "chunks"):
            if name in explicit:
                raise UserError(
                    f"--{name}: expected --precision int8 or fp8 with it: {precision} quantises no activations"
                )
    if "alpha" in explicit and method != "smoothquant":
        raise UserError(f"--alpha: expected --method smoothquant with it, not {method}")


@app.command()
def calibrate(
    ctx: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="The bundle to quantise; it stays as it is.")],
    output: options.NewBundle,
    precision: Annotated[str, typer.Option(help="int8, fp8, int8-weights or int4-weights.")] = "int8",
    method: Annotated[str, typer.Option(help="minmax, entropy, percentile or smoothquant.")] = "smoothquant",
    alpha: Annotated[
        float, typer.Option(help="How much of the activations' range SmoothQuant moves to weights.")
    ] = 0.5,
    prompts: Annotated[
        list[str] | None, typer.Option(help="Prompts to calibrate with; default: every second of the bank.")
    ] = None,
    held_out: Annotated[list[str] | None, typer.Option(help="Prompts to judge with; default: two others.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds to calibrate with; default 0.")] = None,
    chunks: Annotated[int, typer.Option(min=1, max=1_000_000, help="Chunks of every prompt and seed.")] = 32,
    ring: Annotated[str, typer.Option(help="float, or int8 (portable form): keys and values in INT8.")] = "float",
    decoder: Annotated[bool, typer.Option("--decoder", help="Quantise the decoder's convolutions too.")] = False,
    sensitivity: Annotated[
        bool, typer.Option(help="Quantise each layer alone first, and leave out those that cost too much.")
    ] = True,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Part of a layer's name to leave in float, for example ffn.2.")
    ] = None,
    gate_chunks: Annotated[int, typer.Option(min=1, max=1_000_000, help="Lock-step chunks of the quality gate.")] = 12,
    gate_minutes: Annotated[float, typer.Option(min=0, help="Minutes of free-running video of the gate.")] = 2,
    threads: options.Threads = 0,
    force: options.Force = False,
) -> None:
    """Quantise a bundle by real streams and measure what it lost.

    The exit code is 1 when the gate is not passed. Needs the extra `calibrate`. Ctrl-C keeps what was gathered; the same
    command goes on from there.
    """
    check_acts(options.explicit(ctx), precision, method)
    with needs_extra("calibrate"):
        from .calibrate import Settings
        from .calibrate import calibrate as run
    settings = Settings(
        precision=precision,
        method=method,
        alpha=alpha,
        prompts=tuple(prompts or ()),
        held_out=tuple(held_out or ()),
        seeds=tuple(seed or (0,)),
        chunks=chunks,
        ring=ring,
        decoder=decoder,
        sensitivity=sensitivity,
        exclude=tuple(exclude or ()),
        gate_chunks=gate_chunks,
        gate_minutes=gate_minutes,
        threads=threads,
    )
    with reporting() as report:
        quality = run(bundle, output, settings, force, report)
    show_quality(quality)
