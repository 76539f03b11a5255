"""`everframe build`, `inspect` and `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..runtime.cli import options
from ..runtime.cli.console import reporting, show_table, tell, tell_json
from ..runtime.demo import open_bundle
from .base import EngineOptions
from .errors import RunError, UserError

app = typer.Typer()


@app.command()
def build(
    bundle: Annotated[Path, typer.Argument(help="The bundle to compile engines for; they are stored in it.")],
    backend: Annotated[str, typer.Option(help="tensorrt-rtx or tensorrt.")] = "tensorrt-rtx",
    precision: Annotated[str, typer.Option(help="fp16 or bf16.")] = "fp16",
    target: Annotated[
        str, typer.Option(help="Compute capabilities with commas, for example sm_86,sm_89,sm_120; TensorRT-RTX only.")
    ] = "",
    workspace: Annotated[
        int | None, typer.Option(min=1, max=1 << 24, help="MiB of scratch memory a layer may use.")
    ] = None,
    optimization_level: Annotated[int | None, typer.Option(min=0, max=5, help="0 (fast build) to 5.")] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Run on other versions of the backend too.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Run on every card from Ampere on; classic TensorRT only.")
    ] = False,
    strip_weights: Annotated[
        bool, typer.Option("--strip-weights", help="Leave the weights out; the device refits them from the bundle.")
    ] = False,
    weight_streaming: Annotated[
        bool, typer.Option("--weight-streaming", help="Allow weights to stay in host memory.")
    ] = False,
    post: options.Post = None,
    gpu: options.Gpu = None,
) -> None:
    """Compile a bundle's graphs into engines.

    Needs the extra `rtx`; TensorRT-RTX needs no GPU for this.
    """
    from .build import build_engines
    from .trtbuild import BuildOptions

    settings = BuildOptions(
        backend=backend,
        precision=precision,
        targets=tuple(part.strip() for part in target.split(",") if part.strip()),
        workspace_mib=workspace,
        optimization_level=optimization_level,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        strip_weights=strip_weights,
        weight_streaming=weight_streaming,
    )
    with reporting() as report:
        build_engines(bundle, settings, report, post)


@app.command()
def inspect(
    bundle: Annotated[Path | None, typer.Argument(help="The bundle; default: the shipped demo.")] = None,
    as_json: options.Json = False,
) -> None:
    """List what a bundle holds, which of its engines can be used here, and why not others."""
    from . import inspection

    opened = open_bundle(bundle)
    engines = inspection.engines_of(opened)
    if as_json:
        tell_json(inspection.record(opened, engines))
        return
    tell(inspection.headline(opened))
    show_table(inspection.GRAPH_COLUMNS, inspection.graph_rows(opened))
    for line in inspection.engine_lines(engines):
        tell(line)


@app.command()
def doctor(as_json: options.Json = False) -> None:
    """What this machine can run, and what is missing for each backend.

    The first time, every backend that works makes a few chunks of the demo, so that the fastest is known.
    """
    from ..runtime.choice import AUTO, open_engines
    from ..runtime.plan.devices import DEVICES
    from ..runtime.video import working_encoders
    from . import doctor as doctors

    found = doctors.diagnose(working_encoders(), [device.name for device in DEVICES])
    chosen: list[str] = []
    try:
        open_engines(open_bundle(None), AUTO, EngineOptions(), chosen.append)
    except (UserError, RunError) as error:
        chosen.append(str(error).removeprefix("--backend auto: "))
    if as_json:
        tell_json(doctors.as_record(found) | {"auto": chosen[0]})
        return
    for line in (*doctors.lines(found), f"--backend auto: {chosen[0]}"):
        tell(line)
