"""`everframe build` and `everframe inspect`: engines into a bundle, and what a bundle holds."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..engines import store
from ..engines.bundle import Bundle
from ..engines.trtbuild import BuildOptions, build_graph, check_options, options_record
from .console import say

PACKAGES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}


def installed_backends() -> dict[str, str]:
    """TensorRT backends of this environment and their versions, without importing them."""
    found = {}
    for backend, package in PACKAGES.items():
        try:
            found[backend] = version(package)
        except PackageNotFoundError:
            continue
    return found


def build_engines(path: Path, options: BuildOptions, console: Console) -> None:
    """Compile every graph of the bundle and store the engines in it. Ctrl-C stops and leaves nothing behind.

    Raises UserError as `trtbuild.build_graph` does.
    """
    trt = check_options(options)
    bundle = Bundle.open(path)
    names = [name for name in bundle.manifest.graphs if name != "text"]  # the text encoder stays with ONNX Runtime
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[phase]}"), TimeElapsedColumn())

    with Progress(*columns, console=console, transient=True) as bars:

        def compiled() -> Iterator[tuple[str, bytes, dict[str, Any]]]:
            for name in names:
                task = bars.add_task(name, total=None, phase="parsing")

                def tell(phase: str, step: int, steps: int, task=task) -> bool:
                    bars.update(task, phase=phase, completed=step, total=steps or None)
                    return True

                began = time.perf_counter()
                built = build_graph(bundle, name, options, tell)
                seconds = time.perf_counter() - began
                bars.remove_task(task)
                say(
                    console,
                    f"{name}: {len(built.engine) / 2**20:.1f} MiB, {built.layers} layers, {built.attentions} attentions, "
                    f"{built.quantised} quantisations, "
                    f"{seconds:.1f} s",
                )
                facts = {
                    "layers": built.layers,
                    "attentions": built.attentions,
                    "quantised": built.quantised,
                    "seconds": round(seconds, 2),
                    "memory": built.memory,
                }
                yield name, built.engine, facts

        result = store.write(bundle, trt.__version__, options_record(options), compiled)
    say(console, f"{result.folder}: {options.backend} {trt.__version__}, {options.precision}")


def inspect_bundle(bundle: Bundle, as_json: bool) -> None:
    """Print graphs and engines on standard output."""
    m = bundle.manifest
    engines = store.stored(bundle, installed_backends())
    if as_json:
        record = {
            "name": m.name,
            "geometry": m.geometry.model_dump(),
            "rope": m.rope.model_dump(),
            "prompts": len(m.prompts),
            "graphs": {k: g.model_dump() for k, g in m.graphs.items()},
            "engines": [
                {
                    "fingerprint": e.fingerprint,
                    "problem": e.problem,
                    "record": e.record.model_dump() if e.record else None,
                }
                for e in engines
            ],
        }
        print(json.dumps(record, indent=1))
        return
    out = Console()
    g = m.geometry
    say(
        out,
        f"{m.name}: {g.width}x{g.height} at {g.fps} fps, chunk {g.chunk}, sink {g.sink}, window {g.window}, "
        f"{len(m.prompts)} prompts, rope {m.rope.mode} with jitter {m.rope.jitter_sigma:g}",
    )
    table = Table("graph", "MiB", "inputs", "outputs")
    for name, graph in m.graphs.items():
        size = sum(f.bytes for f in (graph.model, *graph.data)) / 2**20
        table.add_row(name, f"{size:.1f}", str(len(graph.inputs)), str(len(graph.outputs)))
    out.print(table)
    if not engines:
        say(out, "no compiled engines: ONNX Runtime runs the graphs; everframe build compiles for TensorRT")
    for e in engines:
        state = "cannot be used here: " + e.problem if e.problem else "valid for the backend installed here"
        made = f"{e.record.backend} {e.record.version} {e.record.options.get('precision')}" if e.record else "?"
        say(out, f"engines/{e.fingerprint}: {made}: {state}")
