"""A checkpoint folder of our own (`checkpoint.py`) -> an engine bundle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from ..engines.bundle import Geometry, describe, first_problem, parse_size
from ..engines.errors import UserError
from ..engines.progress import QUIET, Report
from .bundle import Parts, Recache, check_target, decoders_of, write_bundle
from .checkpoint import CheckpointConfig, RopeConfig, load
from .taehvgraphs import EncodeGraph


@dataclass(frozen=True)
class Overrides:
    """What the command line may change in a checkpoint's config; None keeps it."""

    size: str | None = None
    window: int | None = None
    sink: int | None = None
    sink_ema: float | None = None
    steps: int | None = None  # how many, evenly spaced from 1000
    rope: str | None = None
    sink_distance: int | None = None
    jitter: float | None = None
    jitter_seed: int | None = None
    jitter_by: str | None = None
    jitter_design: int | None = None
    encoder: bool = False
    form: Literal["in-place", "portable"] = "in-place"
    recache: Recache = "window"


def export_checkpoint(
    folder: Path,
    output: Path,
    overrides: Overrides,
    *,
    chunks: int,
    force: bool,
    report: Report = QUIET,
    probe: bool = False,
) -> None:
    """Export a checkpoint folder of our own. Arguments and errors as `write_bundle`."""
    check_target(output, force)
    checkpoint = load(folder)
    config = override(checkpoint.config, overrides)
    parts = Parts(
        name=config.name,
        transformer=checkpoint.transformer,
        geometry=config.geometry,
        schedule=config.schedule,
        rope=config.rope,
        decoders=decoders_of(checkpoint.autoencoder),
        encoder=EncodeGraph(checkpoint.autoencoder) if overrides.encoder else None,
        prompts=checkpoint.prompts,
        form=overrides.form,
        recache=overrides.recache,
        provenance={
            "checkpoint": {
                f.name: describe(f).sha256 for f in sorted(folder.iterdir()) if f.suffix in (".safetensors", ".json")
            }
        },
    )
    write_bundle(parts, output, chunks=chunks, force=force, report=report, probe=probe)


def _ring(given: Overrides) -> tuple[tuple[str, float | None], ...]:
    return ("window", given.window), ("sink", given.sink), ("sink_ema", given.sink_ema)


def override(config: CheckpointConfig, given: Overrides) -> CheckpointConfig:
    """The config with the command line's changes, validated again."""
    geometry, rope = config.geometry.model_dump(), config.rope.model_dump()
    if given.size is not None:
        width, height = parse_size(given.size)
        geometry |= {"width": width, "height": height}
    geometry |= {k: v for k, v in _ring(given) if v is not None}
    geometry["sink_ema"] = geometry["sink_ema"] or None  # 0: the sinks stay, whatever the folder says
    choices = (
        ("mode", given.rope),
        ("sink_distance", given.sink_distance),
        ("jitter_sigma", given.jitter),
        ("jitter_seed", given.jitter_seed),
        ("jitter_by", given.jitter_by),
        ("jitter_design", given.jitter_design),
    )
    # What the folder says of what is overruled goes with it.
    if given.rope == "absolute" or geometry["sink"] == 0:
        rope["sink_distance"] = None
    if given.jitter_by is not None or given.jitter == 0:
        rope["jitter_design"] = None
    rope |= {k: v for k, v in choices if v is not None}
    asked = given.jitter_design is None and (given.jitter_seed is not None or given.jitter_by == "layer")
    if asked and not rope["jitter_sigma"]:
        raise UserError("--jitter-by and --jitter-seed: expected a --jitter above 0 with them")
    schedule = config.schedule
    if given.steps is not None:
        schedule = replace(schedule, steps=tuple(1000 - 1000 * i // given.steps for i in range(given.steps)))
    try:
        changes = {"geometry": Geometry(**geometry), "rope": RopeConfig(**rope), "schedule": schedule}
        return config.model_copy(update=changes)
    except ValidationError as error:
        raise UserError(first_problem(error)) from None
