"""`everframe verify`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ...engines.base import EngineOptions
from ..choice import open_engines
from ..demo import open_bundle
from ..passes import Passes
from ..prompts import PromptBank
from ..proof import prove
from ..reference import Reference
from . import options
from .console import say, status, tell, tell_json

app = typer.Typer()


@app.command()
def verify(
    bundle: Annotated[Path | None, typer.Argument(help="The bundle; default: the shipped demo.")] = None,
    threads: options.Threads = 0,
    provider: options.Provider = "cpu",
    backend: options.Backend = "onnxruntime",
    device: options.Device = "cpu",
    precision: options.Precision = "auto",
    gpu: options.Gpu = None,
    as_json: options.Json = False,
) -> None:
    """Hold a backend against the two chunks that PyTorch made at export.

    Every stream does that by itself the first time; the exit code is 1 when the engines compute something else.
    """
    opened = open_bundle(bundle)
    Reference.read(opened)  # fail before the engines are loaded
    with status("loading engines …") as update:
        engines = open_engines(opened, backend, EngineOptions(provider, threads, device, precision), say)
        loop = Passes(engines, opened, "step", lanes=2 if engines.device.overlaps else 1)
        update("making the reference's two chunks …")
        proof = prove(loop, opened, PromptBank(opened, engines), engines.computes(opened))
    if as_json:
        tell_json(asdict(proof) | {"holds": proof.holds, "not_one_launch": loop.why_not_recorded})
    else:
        tell(f"{'right' if proof.holds else 'WRONG'}: {proof}")
        if loop.why_not_recorded:
            tell(f"passes one by one, not one launch a chunk: {loop.why_not_recorded}")
    if not proof.holds:
        raise typer.Exit(1)
