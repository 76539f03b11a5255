"""`everframe verify`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ...engines.base import EngineOptions
from ...engines.errors import UserError
from ..choice import open_engines
from ..demo import open_bundle
from ..passes import Passes
from ..prompts import PromptBank
from ..proof import prove
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
    as_json: options.Json = False,
) -> None:
    """Hold a backend against the two chunks that PyTorch made at export.

    Every stream does that by itself the first time; the exit code is 1 when the engines compute something else.
    """
    opened = open_bundle(bundle)
    if opened.manifest.reference is None:
        raise UserError(f"{opened.path}: has no reference: an earlier version exported it, or one with --chunks 0")
    with status("loading engines …") as update:
        engines = open_engines(opened, backend, EngineOptions(provider, threads, device, precision), say)
        loop = Passes(engines, opened, "step", lanes=2 if engines.device.overlaps else 1)
        update("making the reference's two chunks …")
        proof = prove(loop, opened, PromptBank(opened, engines), engines.computes(opened))
    assert proof is not None
    if as_json:
        tell_json(asdict(proof) | {"holds": proof.holds})
    else:
        tell(f"{'right' if proof.holds else 'WRONG'}: {proof}")
    if not proof.holds:
        raise typer.Exit(1)
