"""What a plan is asked about: a bundle's own graphs, or a model of the family at a geometry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...engines.bundle import Bundle, Geometry, first_problem
from ...engines.cost import graph_flops
from ...engines.errors import UserError
from .operations import MODELS, WEIGHT_BYTES, Request


def check_precision(precision: str) -> None:
    """Raises UserError."""
    if precision not in WEIGHT_BYTES:
        raise UserError(f"--precision {precision!r}: expected one of {', '.join(WEIGHT_BYTES)}")


def of_bundle(path: Path, precision: str, int8_ring: bool) -> Request:
    """The bundle's network, geometry and steps, and its decoder's operations counted in the graph. Raises UserError."""
    check_precision(precision)
    opened = Bundle.open(path)
    manifest = opened.manifest
    try:
        flops = sum(graph_flops(opened.graph_path("decode")).values())
    except ImportError:
        raise UserError("plan --bundle reads the graphs: pip install onnx") from None
    passes = len(manifest.schedule.steps) + 1
    return Request(manifest.network, manifest.geometry, passes, precision, int8_ring, "taehv", flops)  # type: ignore[arg-type]


def of_model(name: str, geometry: dict[str, Any], steps: int, precision: str, int8_ring: bool, decoder: str) -> Request:
    """geometry: the fields of `Geometry`. Raises UserError naming the flag."""
    check_precision(precision)
    if decoder not in ("taehv", "wan"):
        raise UserError(f"--decoder {decoder!r}: expected taehv or wan")
    if name not in MODELS:
        raise UserError(f"--model {name!r}: expected one of {', '.join(MODELS)}, or --bundle")
    try:
        checked = Geometry(**geometry)
    except ValidationError as error:
        raise UserError(first_problem(error)) from None
    return Request(MODELS[name], checked, steps + 1, precision, int8_ring, decoder)  # type: ignore[arg-type]
