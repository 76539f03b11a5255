"""`everframe prompts`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..demo import open_bundle
from . import options
from .console import needs_extra, say

app = typer.Typer()
prompts = typer.Typer()
app.add_typer(prompts, name="prompts")


@prompts.callback(invoke_without_command=True)
def show(context: typer.Context, bundle: options.Bundle = None) -> None:
    """List the prompts of a bundle, or add to them."""
    if context.invoked_subcommand is None:
        for prompt in open_bundle(bundle).manifest.prompts:
            print(prompt)


@prompts.command("add")
def add(
    bundle: Annotated[Path, typer.Argument(help="The bundle to add to.")],
    prompt: Annotated[list[str] | None, typer.Argument(help="Prompts.")] = None,
    text_encoder: Annotated[
        str, typer.Option(help="Folder or .pth of the UMT5 encoder, or 'minilm' for the demo's.")
    ] = "minilm",
    file: Annotated[Path | None, typer.Option("--prompts", help="File with a prompt a line.")] = None,
) -> None:
    """Add prompts to a bundle's bank (needs the extra `text`)."""
    with needs_extra("text"):
        from ...export.addprompts import add as put

        added = put(bundle, prompt or [], file, text_encoder)
    say(f"{bundle}: {added} prompts added")
