"""`everframe serve` and `everframe fleet`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import needs_extra, tell

app = typer.Typer()


@app.command()
def serve(
    bundle: Annotated[Path | None, typer.Argument(help="Engine bundle; default: the configured one.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; default 127.0.0.1: this machine alone.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on; default 8080.")] = None,
    config: Annotated[Path | None, typer.Option(help="Configuration in TOML; see docs/deploy/everframe.toml.")] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Folder for the saved state and the token; default everframe-state.")
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Make the pictures that prompts on the pages lack, and end.")
    ] = False,
) -> None:
    """Show one endless stream to many screens, with a control API.

    Runs until it is told to stop. Needs the extra `serve`.
    """
    with needs_extra("serve"):
        from ..server.start import configure, make_pictures
        from ..server.start import serve as run

        work = make_pictures if pictures else run
        work(configure(config, bundle, host, port, state_dir), tell)


@app.command()
def fleet(
    config: Annotated[
        Path, typer.Argument(help="The fleet's TOML file: streams, cluster, state_dir. See docs/fleet.md.")
    ],
) -> None:
    """Many streams on a Ray cluster behind one gateway.

    Each is started again where its node dies. Needs the extra `fleet`.
    """
    with needs_extra("fleet"):
        from ..server.fleet.start import serve_fleet

        serve_fleet(config, tell)
