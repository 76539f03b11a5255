"""`everframe export wan`: a published checkpoint of the Wan family, its VAE and its prompts -> an engine bundle."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from ..engines.bundle import Geometry, Shots, check_shots, describe, first_problem, parse_size
from ..engines.errors import UserError
from ..engines.progress import QUIET, Report
from .bundle import Parts, Recache, check_distance, check_form, check_target, write_bundle
from .checkpoint import RopeConfig
from .families import FAMILIES, SHOT_OFFSET, SHOT_PREFIX, Family, Sampler, family_of
from .lora import Lora, merge_loras
from .names import State, public_names
from .schedule import FALLING, Schedule, falling, warped_from
from .sources import Dictionary, check_fits, files_of, fit, half, place_of, read, single, wan_config
from .textgraph import fast_tokenizer
from .texts import MINILM, Umt5, encode_all, encoder_places, open_encoder, read_prompts
from .vaes import KINDS, VaeKind, load_vae
from .wan import Wan, WanConfig, fold
from .weightfile import WeightFile, scratch


@dataclass(frozen=True)
class WanSource:
    """What the command line names. Frames are latent frames. None: what the generator's family says, see `settled`."""

    generator: Path
    vae: Path
    text_encoder: str
    prompts: Path
    dictionary: Dictionary = None  # of a .pt file: generator_ema, generator …
    loras: tuple[Lora, ...] = ()  # merged in this order
    vae_kind: VaeKind = "auto"
    family: str | None = None  # a name of families.FAMILIES; None: by the generator's latent channels
    size: str | None = None
    chunk: int | None = None
    window: int | None = None
    sink: int | None = None
    sink_ema: float | None = None  # α of sinks that move; 0: they stay
    fps: int | None = None
    sampler: Sampler | None = None
    shots: bool | None = None  # whether a cut begins a shot of the same stream
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
    recache: Recache | None = None
    encoder: bool = False
    text_graph: bool = False
    origin: dict[str, str] = field(default_factory=dict)  # repository, path and commit of what came from the hub


def export_wan(
    source: WanSource, output: Path, *, chunks: int, force: bool, report: Report = QUIET, probe: bool = False
) -> None:
    """Read everything, then write the bundle as `command.write_bundle` does. Raises UserError."""
    check_target(output, force)
    source = settled(source, generator_family(source))
    check_choices(source, probe)
    with scratch(output) as weights:
        parts = read_parts(source, weights, report)
        write_bundle(parts, output, chunks=chunks, force=force, report=report, probe=probe)


def read_parts(source: WanSource, weights: WeightFile, report: Report = QUIET) -> Parts:
    """Everything that the settled source names, read; the transformer's large weights written to `weights` one after the
    other. That takes minutes and comes last, when nothing else can be wrong any more. Raises UserError."""
    dtype = half if source.precision == "fp16" else single
    geometry, rope, shots = geometry_of(source), rope_of(source), shots_of(source)
    prompts = read_prompts(source.prompts, shots)
    generator = open_generator(source, report)
    config = generator.config
    if config.latent_channels != geometry.latent_channels:
        raise UserError(
            f"--family {source.family}: has {geometry.latent_channels} latent channels, the generator {source.generator} "
            f"{config.latent_channels}"
        )
    decoders, encoder, latent_channels = load_vae(source.vae, dtype, source.vae_kind, report)
    if latent_channels != config.latent_channels:
        raise UserError(
            f"{source.vae}: {latent_channels} latent channels, the generator {source.generator} has "
            f"{config.latent_channels}"
        )
    told = prompts if shots is None else [*prompts, *(f"{shots.prefix}{prompt}" for prompt in prompts)]
    bank, made_by, text_encoder = read_bank(source, told, config, report)
    return Parts(
        name=name_of(source.generator),
        transformer=generator.transformer(source.generator, dtype, weights),
        geometry=geometry,
        schedule=schedule_of(source),
        rope=rope,
        decoders=decoders,
        encoder=encoder if source.encoder else None,
        prompts={prompt: bank[prompt] for prompt in prompts},
        shot_prompts={prompt: bank[prompt] for prompt in told[len(prompts) :]},
        provenance=provenance(source, made_by),
        precision=source.precision,
        form=source.form,
        recache=source.recache or "window",
        shots=shots,
        text_encoder=text_encoder,
        weights=weights,
    )


def read_bank(
    source: WanSource, prompts: Sequence[str], config: WanConfig, report: Report
) -> tuple[dict[str, Tensor], str, Umt5 | None]:
    """The embeddings, who made them, and the encoder where the bundle is to have it: else it is let go. Raises UserError."""
    encoder = open_encoder(source.text_encoder, report)
    kept = encoder if source.text_graph and isinstance(encoder, Umt5) else None
    if kept is not None:
        fast_tokenizer(kept)
    bank = encode_all(encoder, prompts, config.text_len)
    for embedding in bank.values():
        if embedding.shape[1] != config.text_dim:
            raise UserError(
                f"--text-encoder {source.text_encoder}: makes {embedding.shape[1]} channels, the generator wants "
                f"{config.text_dim}"
            )
    return bank, encoder.name, kept


def name_of(generator: Path) -> str:
    """A model's name by its file or folder; a folder's dots are of its name ("Wan2.1-T2V-1.3B")."""
    return generator.absolute().name if generator.is_dir() else generator.stem


def generator_family(source: WanSource) -> Family:
    """The family that is named, or whose latents the generator makes; its weights are not read. Raises UserError."""
    if source.family is not None:
        return named_family(source.family)
    found = read(source.generator, source.dictionary)
    channels = wan_config(public_names(found.state), found.config, source.generator).latent_channels
    family = family_of(channels)
    if family is None:
        known = " or ".join(f"{f.latent_channels} ({f.name})" for f in FAMILIES.values())
        raise UserError(f"{source.generator}: {channels} latent channels; expected {known}")
    return family


def named_family(name: str) -> Family:
    """Raises UserError."""
    if name not in FAMILIES:
        raise UserError(f"--family {name!r}: expected one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def settled(source: WanSource, family: Family) -> WanSource:
    """The source with the family's numbers where it names none."""
    names = ("size", "chunk", "window", "sink", "fps", "sampler", "shots", "recache")
    own = {name: getattr(family, name) for name in names if getattr(source, name) is None}
    return replace(source, family=family.name, **own)


def check_choices(source: WanSource, probe: bool = False) -> None:
    """Everything that can be wrong of a settled source before a file is fetched or read. Raises UserError naming the
    flag."""
    check_schedule(source)
    geometry = geometry_of(source)
    shots_of(source)
    check_distance(geometry, rope_of(source))
    check_form(source.form, geometry, probe)
    if source.vae_kind not in KINDS:
        raise UserError(f"--vae-kind {source.vae_kind}: expected one of {', '.join(KINDS)}")
    if source.text_graph and source.text_encoder == MINILM:
        raise UserError(f"--text-graph: expected a UMT5 encoder with it, not --text-encoder {MINILM}")
    check_places(source)
    read_prompts(source.prompts, shots_of(source))


def check_places(source: WanSource) -> None:
    """Raises UserError for what is named and not there. A recipe's own files, None, are yet to be fetched."""
    named = (("generator", source.generator), ("vae", source.vae), *(("lora", lora.path) for lora in source.loras))
    for flag, path in named:
        if path is not None and not path.exists():
            raise UserError(f"--{flag} {path}: no such file or folder")
    if source.text_encoder not in (None, MINILM):
        encoder_places(Path(source.text_encoder))


def geometry_of(source: WanSource) -> Geometry:
    """Of a settled source. Raises UserError."""
    family = named_family(source.family or "")
    width, height = parse_size(source.size or "")
    frames: dict[str, Any] = {name: getattr(source, name) for name in ("chunk", "sink", "window", "fps")}
    frames["sink_ema"] = source.sink_ema or None
    frames |= {"latent_channels": family.latent_channels, "space_scale": family.space_scale}
    try:
        return Geometry(width=width, height=height, **frames)
    except ValidationError as error:
        raise UserError(first_problem(error)) from None


def shots_of(source: WanSource) -> Shots | None:
    """Of a settled source. Raises UserError."""
    if not source.shots:
        return None
    for flag, value, expected in (("recache", source.recache, "none"), ("rope", source.rope, "absolute")):
        if value != expected:
            raise UserError(f"--{flag} {value}: expected {expected} with shots, or --no-shots")
    try:
        check_shots(geometry_of(source))
    except ValueError as error:
        raise UserError(str(error)) from None
    return Shots(offset=SHOT_OFFSET, prefix=SHOT_PREFIX)


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
    """For the manifest: hashes of all files that weights of generator, LoRAs and autoencoder were read from, LoRAs with
    their strengths, what came from where."""
    places = (
        place_of(source.generator, "transformer"),
        *(lora.path for lora in source.loras),
        place_of(source.vae, "vae"),
    )
    files = by_name(file for place in places for file in files_of(place))
    hashes = {name: describe(file).sha256 for name, file in files.items()}
    out: dict[str, Any] = {"checkpoint": hashes, "text_encoder": text_encoder}
    if source.loras:
        out["loras"] = [f"{lora.path.name}:{lora.strength:g}" for lora in source.loras]
    return out | ({"hub": source.origin} if source.origin else {})


def by_name(files: Iterable[Path]) -> dict[str, Path]:
    """Files by the ends of their paths, each as long as it takes to tell it from the others: those of diffusers' folders all
    have one name."""
    every, out = {file.absolute() for file in files}, {}
    for file in every:
        length = 1
        while any(file.parts[-length:] == other.parts[-length:] for other in every - {file}):
            length += 1
        out["/".join(file.parts[-length:])] = file
    return dict(sorted(out.items()))


def schedule_of(source: WanSource) -> Schedule:
    first = None if source.first_steps == source.steps else source.first_steps
    return Schedule(source.steps, source.shift, first_steps=first, sampler=source.sampler or "renoise")


def check_schedule(source: WanSource) -> None:
    """Raises UserError unless the steps fall from at most 1000 to above 0, and look as if no shift was in them yet."""
    if not 0 < source.shift < math.inf:
        raise UserError(f"--shift {source.shift}: expected a number above 0")
    if source.sampler not in (None, "renoise", "unipc"):
        raise UserError(f"--sampler {source.sampler!r}: expected renoise or unipc")
    if source.sampler == "unipc" and source.first_steps is not None:
        raise UserError("--first-steps: expected --sampler renoise with it: unipc samples every chunk alike")
    for flag, steps in (("--steps", source.steps), ("--first-steps", source.first_steps)):
        if steps is not None:
            check_steps(flag, steps, source.shift, source.sampler or "renoise")


def check_steps(flag: str, steps: tuple[int, ...], shift: float, sampler: Sampler) -> None:
    told = ",".join(map(str, steps))
    if not falling(steps):
        raise UserError(f"{flag} {told}: expected {FALLING}")
    if shift != 1 and (found := warped_from(steps, shift)):
        plain, likely = found
        # UniPC begins at 0.999 and scales all steps by it, before the shift: without one they are not these.
        either = "" if sampler == "unipc" else "--shift 1 with these, or "
        raise UserError(
            f"{flag} {told}: look like {','.join(map(str, plain))} after a shift of {likely:g}, and "
            f"--shift {shift:g} shifts them again; expected {either}those with --shift {likely:g}"
        )


@dataclass(frozen=True)
class Generator:
    """A transformer's weights under the public names, LoRAs merged in; none of them is made yet."""

    config: WanConfig
    state: State

    def transformer(self, file: Path, dtype, weights: WeightFile | None = None) -> Wan:
        """In the model's own convention; large weights live in `weights`, if that is given. Raises UserError."""
        model = _shell(self.config)

        def keep(name: str, weight: Tensor) -> Tensor:  # the time embedding's are baked into constants
            return weight if weights is None or name.startswith("time_") else weights.put(weight)

        fit(model, self.state, file, dtype, lambda state: fold(state, self.config), keep)
        return model


def open_generator(source: WanSource, report: Report = QUIET) -> Generator:
    """Names and shapes are checked, its own and its LoRAs'. Raises UserError."""
    found = read(source.generator, source.dictionary, report=report)
    state = public_names(found.state)
    config = wan_config(state, found.config, source.generator)
    check_fits(_shell(config), state, source.generator)
    return Generator(config, merge_loras(state, source.loras, report))


def _shell(config: WanConfig) -> Wan:
    with torch.device("meta"):
        return Wan(config)


def load_transformer(source: WanSource, dtype, report: Report = QUIET) -> Wan:
    """The generator as a model, LoRAs merged in. Raises UserError."""
    return open_generator(source, report).transformer(source.generator, dtype)
