"""What a plan is asked about: a bundle's own graphs, or a model of the family at a geometry."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...engines.bundle import Bundle, Geometry, first_problem
from ...engines.cost import graph_flops, graph_memory
from ...engines.errors import UserError
from ...engines.post import times_of
from .decoders import Decoder, decode_cost
from .operations import GEOMETRIES, MODELS, NO_RECACHE, WEIGHT_BYTES, Request, wide_of


def check_precision(precision: str) -> None:
    """Raises UserError."""
    if precision not in WEIGHT_BYTES:
        raise UserError(f"--precision {precision!r}: expected one of {', '.join(WEIGHT_BYTES)}")


def of_bundle(path: Path, precision: str | None = None, int8_ring: bool = False, post: str | None = None) -> Request:
    """The bundle's network, geometry and steps, and the operations and memory of its decoder and of what runs behind it
    counted in the graphs. precision: default the bundle's own, FP16 where it was not quantised; a ring that is INT8 in it
    is so here. post: which of the graphs behind the decoder. Raises UserError."""
    opened = Bundle.open(path).with_post(post)
    manifest = opened.manifest
    if precision is None:
        precision = manifest.precision if manifest.precision in WEIGHT_BYTES else "fp16"
    check_precision(precision)
    wide = wide_of(precision)  # type: ignore[arg-type] - checked above
    inputs = {spec.name for spec in manifest.graphs["step"].inputs}
    try:
        flops = {name: sum(graph_flops(opened.graph_path(name)).values()) for name in ("decode", *opened.post)}
        decoder = decoder_in(opened, flops["decode"], wide)
        held = post_bytes(opened, wide)
    except ImportError:
        raise UserError("plan --bundle reads the graphs: pip install onnx") from None
    schedule = manifest.schedule
    return Request(
        network=manifest.network,
        geometry=manifest.geometry,
        passes=len(schedule.steps) + 1,
        first_passes=len(schedule.first_steps) + 1 if schedule.first_steps else None,
        precision=precision,  # type: ignore[arg-type] - checked above
        int8_ring=int8_ring or "k_0_scale" in inputs,
        following="sink_cos" in inputs,
        recache=manifest.recache,
        own_decoder=decoder,
        post_flops={name: flops[name] * runs_of(opened, name) for name in opened.post},
        post_bytes=held,
    )


def decoder_in(bundle: Bundle, flops: int, wide: int) -> Decoder:
    """What the bundle's decoder takes, with the first chunk's twin where it has one; values are of `wide` bytes."""
    graphs = bundle.manifest.graphs
    held = [graph_memory(bundle.graph_path(name), wide) for name in ("decode", "decode_first") if name in graphs]
    shapes = [s.shape for s in graphs["decode"].outputs if s.name.endswith("_next")]
    states = sum(map(math.prod, shapes))
    weights, live = sum(one.weights for one in held), max(one.live for one in held) // wide
    if any(len(shape) == 5 for shape in shapes):  # several frames each
        # A Wan VAE, whose engine keeps more than its graph has to; pruned ones have as much less as they have fewer states.
        public = decode_cost("wan", bundle.manifest.geometry)
        live = max(live, round(public.live * states / public.states))
    return Decoder(flops, weights // wide, states, live)


def post_bytes(bundle: Bundle, wide: int) -> int:
    """What the graphs behind the decoder take on the device. What they hand on is there twice, for the decoder's two turns,
    and `upscale` behind `smooth` hands on every part of its own. Their weights are never quantised."""
    total = 0
    for name in bundle.post:
        held = graph_memory(bundle.graph_path(name), wide)
        made = sum(math.prod(spec.shape) for spec in bundle.manifest.graphs[name].outputs)  # frames are bytes
        total += held.weights + held.live + 2 * runs_of(bundle, name) * made
    return total


def runs_of(bundle: Bundle, name: str) -> int:
    """How often a graph behind the decoder runs for a chunk: `upscale` behind `smooth` once a part."""
    return times_of(bundle.manifest.graphs) if name == "upscale" and "smooth" in bundle.post else 1


def of_model(
    name: str,
    geometry: dict[str, Any],
    steps: int,
    precision: str,
    int8_ring: bool,
    decoder: str,
    first_steps: int | None = None,
    rope: str = "absolute",
) -> Request:
    """geometry: fields of `Geometry`, the others are the model's own; first_steps: of the first chunk, where it has its
    own; rope: whether sinks follow the window. Raises UserError naming the flag."""
    check_precision(precision)
    if decoder not in ("taehv", "wan"):
        raise UserError(f"--decoder {decoder!r}: expected taehv or wan")
    if rope not in ("absolute", "relative"):
        raise UserError(f"--rope {rope!r}: expected absolute or relative")
    if name not in MODELS:
        raise UserError(f"--model {name!r}: expected one of {', '.join(MODELS)}, or --bundle")
    try:
        checked = Geometry(**(GEOMETRIES[name] | geometry))
    except ValidationError as error:
        raise UserError(first_problem(error)) from None
    return Request(
        network=MODELS[name],
        geometry=checked,
        passes=steps + 1,
        first_passes=None if first_steps is None else first_steps + 1,
        precision=precision,  # type: ignore[arg-type] - checked above
        int8_ring=int8_ring,
        following=rope == "relative",
        decoder=decoder,  # type: ignore[arg-type] - checked above
        recache="none" if name in NO_RECACHE else "window",
    )
