"""`everframe post add` and `remove`: the post graphs of a bundle that exists (everframe.engines.post)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from onnx.checker import ValidationError

from ..engines.bundle import Bundle, Graph, Manifest, describe, write_manifest
from ..engines.errors import UserError
from ..engines.graphfile import EMBED_UP_TO, describe_graph
from ..engines.post import POST, TIMES
from ..engines.progress import QUIET, Report
from ..engines.text import first_line
from .anew import anew
from .onnxfile import store_small
from .postgraph import smooth_graph, upscale_graph
from .postnet import Kind, read_net

REFUSALS = (ValidationError, ValueError, LookupError, TypeError)  # of onnx, about a stranger's nodes


def add(
    path: Path,
    upscale: Path | None,
    smooth: Path | None,
    times: int | None = None,
    report: Report = QUIET,
    off: bool | None = None,
) -> Bundle:
    """Write the graphs that are given into the bundle, in place of those that it has; returns it anew. The bundle
    is replaced as a whole, its large files as hard links: it is never half-written.

    times: of the frame rate, by `smooth`; None: 2. off: its post graphs run only where they are asked for; None: as the
    bundle says of those that it has. Raises UserError for a bad bundle or file, naming what was found.
    """
    files: dict[Kind, Path] = {}
    if smooth is not None:
        files["smooth"] = smooth
    if upscale is not None:
        files["upscale"] = upscale
    if not files:
        raise UserError("post add: give --upscale FILE, --smooth FILE or both")
    if times is not None and smooth is None:
        raise UserError(f"--times {times}: expected --smooth FILE with it")
    times = 2 if times is None else times
    if times not in TIMES:
        raise UserError(f"--times {times}: expected 2 or 4")
    bundle = Bundle.open(path)
    geometry = bundle.manifest.geometry
    if off is None:
        off = bundle.manifest.post == "none"
    nets = {}
    for kind, file in files.items():
        report.step(f"{kind}: reading {file.name}", 0, None)
        nets[kind] = read_net(file, kind, geometry.height, geometry.width, report)
    with changed(bundle, tuple(files), "none" if off else "all") as (part, graphs, provenance):
        for kind, (net, what) in nets.items():
            report.step(f"{kind}: writing {what}", 0, None)
            for suffix in ("", "_first"):
                if (decoder := bundle.manifest.graphs.get(f"decode{suffix}")) is None:
                    continue
                shape = next(spec.shape for spec in decoder.outputs if spec.name == "frames")
                try:
                    model = upscale_graph(net, shape) if kind == "upscale" else smooth_graph(net, shape, times)
                    graphs[f"{kind}{suffix}"] = save(model, part / f"{kind}{suffix}.onnx")
                except REFUSALS as error:
                    raise UserError(f"{files[kind]}: no graph can be made of it: {first_line(error)}") from None
            provenance[kind] = {"from": what, "sha256": describe(files[kind]).sha256}
            report.line(f"{kind}: {what}")
    return Bundle.open(path)


def remove(path: Path) -> list[str]:
    """Take the bundle's post graphs out; returns which it had. Raises UserError."""
    bundle = Bundle.open(path)
    if not (had := bundle.with_post("all").post):
        raise UserError(f"{path}: has no post graphs")
    with changed(bundle, POST):
        pass
    return list(had)


@contextmanager
def changed(
    bundle: Bundle, without: tuple[str, ...], default: str = "all"
) -> Iterator[tuple[Path, dict[str, Graph], dict[str, Any]]]:
    """The bundle anew without these of its post graphs, and with this choice of those that it has then: yields its new
    folder, its graphs and where its post graphs came from, which may be added to, and puts the folder in its place."""
    manifest = bundle.manifest
    gone = {f"{name}{suffix}" for name in without for suffix in ("", "_first")}
    graphs = {name: graph for name, graph in manifest.graphs.items() if name not in gone}
    post = {name: of for name, of in manifest.provenance.get("post", {}).items() if name not in without}
    files = {ref.file for name in gone & set(manifest.graphs) for ref in _files(manifest.graphs[name])}
    with anew(bundle, files) as part:
        yield part, graphs, post
        told = {k: v for k, v in manifest.provenance.items() if k != "post"} | ({"post": post} if post else {})
        made = manifest.model_copy(update={"graphs": graphs, "provenance": told, "post": default})
        write_manifest(part, Manifest.model_validate(made.model_dump()))  # the copy is not checked


def _files(graph: Graph) -> list[Any]:
    return [graph.model, *graph.data]


def save(model: onnx.ModelProto, file: Path) -> Graph:
    """Weights that float16 holds exactly as such, large ones in a file of their own."""
    store_small(model)
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > EMBED_UP_TO
    data = [f"{file.name}.data"] if large else []
    onnx.save(model, file, save_as_external_data=large, location=data[0] if data else None)
    return describe_graph(file, data)
