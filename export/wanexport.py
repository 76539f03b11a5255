"""`everframe export wan`: a published checkpoint of the Wan 1.3B family, its VAE and its prompts -> an engine bundle."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from ..engines.bundle import Geometry, describe, first_problem, parse_size
from ..engines.errors import UserError
from ..engines.progress import QUIET, Report
from .bundle import Parts, Recache, check_target, write_bundle
from .checkpoint import RopeConfig
from .families import MEAN
from .lora import Lora, merge_loras
from .names import public_names
from .schedule import Schedule, warped_from
from .sources import fit, half, read, single, wan_config
from .texts import Umt5, encode_all, open_encoder, read_prompts
from .vaes import KINDS, VaeKind, load_vae
from .wan import Wan, fold
from .weightfile import WeightFile, scratch


@dataclass(frozen=True)
class WanSource:
    """What the command line names. Frames are latent frames."""

    generator: Path
    vae: Path
    text_encoder: str
    prompts: Path
    dictionary: str | None = None  # of a .pt file: generator_ema, generator …
    loras: tuple[Lora, ...] = ()  # merged in this order
    vae_kind: VaeKind = "auto"
    size: str = "832x480"
    chunk: int = 3
    window: int = 12
    sink: int = 3
    sink_ema: float | None = None  # α of sinks that move
    fps: int = 16
    steps: tuple[int, ...] = (1000, 750, 500, 250)
    first_steps: tuple[int, ...] | None = None  # of the first chunk; None: as all others
    shift: float = 5.0
    rope: Literal["absolute", "relative"] = "absolute"
    sink_distance: int | None = None  # latent frames, see engines.bundle.RopeSpec
    jitter: float = 0.8
    jitter_seed: int = 0
    jitter_by: Literal["head", "layer"] = "head"
    jitter_design: int | None = None
    precision: Literal["fp32", "fp16"] = "fp16"
    form: Literal["in-place", "portable"] = "in-place"
    recache: Recache = "window"
    encoder: bool = False
    text_graph: bool = False
    origin: dict[str, str] = field(default_factory=dict)  # repository, path and commit of what came from the hub


def export_wan(
    source: WanSource, output: Path, *, chunks: int, force: bool, report: Report = QUIET, probe: bool = False
) -> None:
    """Read everything, then write the bundle as `command.write_bundle` does. Raises UserError."""
    check_target(output, force)
    check_choices(source)
    with scratch(output) as weights:
        parts = read_parts(source, weights, report)
        write_bundle(parts, output, chunks=chunks, force=force, report=report, probe=probe)


def read_parts(source: WanSource, weights: WeightFile, report: Report = QUIET) -> Parts:
    """Everything that the source names, read; the transformer's large weights written to `weights` one after the other.
    Raises UserError."""
    dtype = half if source.precision == "fp16" else single
    prompts = read_prompts(source.prompts)
    transformer = load_transformer(source, dtype, report, weights)
    decoders, encoder, latent_channels = load_vae(source.vae, dtype, source.vae_kind, report)
    config = transformer.config
    if latent_channels != config.latent_channels:
        raise UserError(
            f"{source.vae}: {latent_channels} latent channels, the generator {source.generator} has "
            f"{config.latent_channels}"
        )
    geometry, rope = geometry_of(source, latent_channels), rope_of(source)
    text_encoder = open_encoder(source.text_encoder, report)
    bank = encode_all(text_encoder, prompts, config.text_len)
    for embedding in bank.values():
        if embedding.shape[1] != config.text_dim:
            raise UserError(
                f"--text-encoder {source.text_encoder}: makes {embedding.shape[1]} channels, the generator wants "
                f"{config.text_dim}"
            )
    if source.text_graph and not isinstance(text_encoder, Umt5):
        raise UserError(f"--text-graph: {source.text_encoder} is no UMT5 encoder")
    return Parts(
        name=source.generator.stem,
        transformer=transformer,
        geometry=geometry,
        schedule=schedule_of(source),
        rope=rope,
        decoders=decoders,
        encoder=encoder if source.encoder else None,
        prompts=bank,
        provenance=provenance(source, text_encoder.name),
        precision=source.precision,
        form=source.form,
        recache=source.recache,
        text_encoder=text_encoder if source.text_graph else None,  # type: ignore[arg-type] - checked above
        weights=weights,
    )


def check_choices(source: WanSource) -> None:
    """Everything that can be wrong before a file is fetched or read. Raises UserError naming the flag."""
    check_schedule(source)
    geometry_of(source, latent_channels=len(MEAN))
    rope_of(source)
    if source.vae_kind not in KINDS:
        raise UserError(f"--vae-kind {source.vae_kind}: expected one of {', '.join(KINDS)}")
    for lora in source.loras:
        if not lora.path.exists():
            raise UserError(f"--lora {lora.path}: no such file or folder")
    read_prompts(source.prompts)


def geometry_of(source: WanSource, latent_channels: int) -> Geometry:
    """Raises UserError."""
    width, height = parse_size(source.size)
    frames: dict[str, Any] = {
        "chunk": source.chunk,
        "sink": source.sink,
        "window": source.window,
        "sink_ema": source.sink_ema,
    }
    try:
        return Geometry(width=width, height=height, fps=source.fps, latent_channels=latent_channels, **frames)
    except ValidationError as error:
        raise UserError(first_problem(error)) from None


def rope_of(source: WanSource) -> RopeConfig:
    """Raises UserError."""
    try:
        return RopeConfig(
            mode=source.rope,
            sink_distance=source.sink_distance,
            jitter_sigma=source.jitter,
            jitter_seed=source.jitter_seed,
            jitter_by=source.jitter_by,
            jitter_design=source.jitter_design,
        )
    except ValidationError as error:
        raise UserError(first_problem(error)) from None


def provenance(source: WanSource, text_encoder: str) -> dict[str, Any]:
    """For the manifest: hashes of all files of weights, LoRAs with their strengths, what came from where."""
    files = [f for f in (source.generator, *(lora.path for lora in source.loras), source.vae) if f.is_file()]
    out: dict[str, Any] = {"checkpoint": {f.name: describe(f).sha256 for f in files}, "text_encoder": text_encoder}
    if source.loras:
        out["loras"] = [f"{lora.path.name}:{lora.strength:g}" for lora in source.loras]
    return out | ({"hub": source.origin} if source.origin else {})


def schedule_of(source: WanSource) -> Schedule:
    first = None if source.first_steps == source.steps else source.first_steps
    return Schedule(source.steps, source.shift, first_steps=first)


def check_schedule(source: WanSource) -> None:
    """Raises UserError unless the steps fall from at most 1000 to above 0, and look as if no shift was in them yet."""
    if not 0 < source.shift < math.inf:
        raise UserError(f"--shift {source.shift}: expected a number above 0")
    for flag, steps in (("--steps", source.steps), ("--first-steps", source.first_steps)):
        if steps is not None:
            check_steps(flag, steps, source.shift)


def check_steps(flag: str, steps: tuple[int, ...], shift: float) -> None:
    told = ",".join(map(str, steps))
    if not steps or steps[0] > 1000 or steps[-1] < 1 or any(b >= a for a, b in itertools.pairwise(steps)):
        raise UserError(f"{flag} {told}: expected falling numbers from 1000 to 1")
    if shift != 1 and (found := warped_from(steps, shift)):
        plain, likely = found
        raise UserError(
            f"{flag} {told}: look like {','.join(map(str, plain))} after a shift of {likely:g}, and "
            f"--shift {shift:g} shifts them again; expected --shift 1 with these, or those with --shift {likely:g}"
        )


def load_transformer(source: WanSource, dtype, report: Report = QUIET, weights: WeightFile | None = None) -> Wan:
    """The generator's weights, LoRAs merged in, in the model's own convention; large ones live in `weights`, if that is
    given."""
    found = read(source.generator, source.dictionary, report=report)
    state = public_names(found.state)
    config = wan_config(state, found.config, source.generator)
    state = merge_loras(state, source.loras, report)
    with torch.device("meta"):
        model = Wan(config)

    def keep(name: str, weight: Tensor) -> Tensor:  # the time embedding's are baked into constants
        return weight if weights is None or name.startswith("time_") else weights.put(weight)

    fit(model, state, source.generator, dtype, lambda state: fold(state, config), keep)
    return model
