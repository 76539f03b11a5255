"""What a bundle holds, and which of its compiled engines can be used here."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from . import store
from .bundle import Bundle

# The package itself, or one of those for a CUDA that it would install.
PACKAGES = {
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_cu13", "tensorrt_rtx_cu12"),
    "tensorrt": ("tensorrt", "tensorrt_cu13", "tensorrt_cu12"),
}
# The base install has the CPU's package, and the two write over each other's files.
ORT_GPU = "pip uninstall -y onnxruntime; pip install --force-reinstall onnxruntime-gpu cuda-python"
ORT_CPU = "pip uninstall -y onnxruntime-gpu; pip install --force-reinstall onnxruntime"
GRAPH_COLUMNS = ("graph", "MiB", "inputs", "outputs")


def installed_backends() -> dict[str, str]:
    """TensorRT backends of this environment and their versions, without importing them."""
    found = {}
    for backend, packages in PACKAGES.items():
        for package in packages:
            with contextlib.suppress(PackageNotFoundError):
                found.setdefault(backend, version(package))
    return found


def engines_of(bundle: Bundle) -> list[store.Stored]:
    """All compiled engines of the bundle, newest first, each with what keeps it from being used here."""
    return store.stored(bundle, installed_backends())


def record(bundle: Bundle, engines: Sequence[store.Stored]) -> dict[str, Any]:
    """Everything, for JSON."""
    m = bundle.manifest
    return {
        "name": m.name,
        "geometry": m.geometry.model_dump(),
        "rope": m.rope.model_dump(),
        "prompts": len(m.prompts),
        "post": {"there": list(bundle.with_post("all").post), "default": m.post},
        "graphs": {k: g.model_dump() for k, g in m.graphs.items()},
        "engines": [
            {"fingerprint": e.fingerprint, "problem": e.problem, "record": e.record.model_dump() if e.record else None}
            for e in engines
        ],
    }


def headline(bundle: Bundle) -> str:
    m, g = bundle.manifest, bundle.manifest.geometry
    return (
        f"{m.name}: {g.width}x{g.height} at {g.fps} fps, chunk {g.chunk}, sink {g.sink}, window {g.window}, "
        f"{len(m.prompts)} prompts, rope {m.rope.mode} with jitter {m.rope.jitter_sigma:g}{post_words(bundle)}"
    )


def post_words(bundle: Bundle) -> str:
    """What the graphs behind the decoder show, and whether it has to be asked for."""
    every = bundle.with_post("all")
    if not every.post:
        return ""
    out, asked = every.output, "with --post all " if bundle.manifest.post == "none" else ""
    return f"; {asked}{out} by {' and '.join(every.post)}"


def graph_rows(bundle: Bundle) -> list[list[str]]:
    rows = []
    for name, graph in bundle.manifest.graphs.items():
        size = sum(f.bytes for f in (graph.model, *graph.data)) / 2**20
        rows.append([name, f"{size:.1f}", str(len(graph.inputs)), str(len(graph.outputs))])
    return rows


def engine_lines(engines: Sequence[store.Stored]) -> list[str]:
    if not engines:
        return ["no compiled engines: ONNX Runtime runs the graphs; everframe build compiles for TensorRT"]
    lines = []
    for e in engines:
        state = "cannot be used here: " + e.problem if e.problem else "valid for the backend installed here"
        made = f"{e.record.backend} {e.record.version} {e.record.options.get('precision')}" if e.record else "?"
        lines.append(f"engines/{e.fingerprint}: {made}: {state}")
    return lines
