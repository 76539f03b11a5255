"""`everframe export wan`: a published checkpoint of the Wan 1.3B family, its VAE and its prompts -> an engine bundle."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError

from ..engines.bundle import Geometry, describe, first_problem, parse_size
from ..engines.errors import UserError
from ..engines.progress import QUIET, Report
from .bundle import Parts, check_target, decoders_of, write_bundle
from .checkpoint import RopeConfig
from .schedule import Schedule
from .sources import Source, State, fit, half, merge_lora, public_names, read, single, vae_names, wan_config
from .taehv import Taehv, TaehvConfig, public_weights
from .taehvgraphs import EncodeGraph
from .texts import Umt5, encode_all, open_encoder, read_prompts
from .wan import Wan, fold
from .wanvae import MEAN, STD, WanDecodeGraph, WanEncodeGraph, WanVae, WanVaeConfig


@dataclass(frozen=True)
class WanSource:
    """What the command line names. Frames are latent frames."""

    generator: Path
    vae: Path
    text_encoder: str
    prompts: Path
    dictionary: str | None = None  # of a .pt file: generator_ema, generator …
    lora: Path | None = None
    lora_alpha: float | None = None
    size: str = "832x480"
    chunk: int = 3
    window: int = 12
    sink: int = 3
    fps: int = 16
    steps: tuple[int, ...] = (1000, 750, 500, 250)
    shift: float = 5.0
    rope: Literal["absolute", "relative"] = "absolute"
    jitter: float = 0.8
    jitter_seed: int = 0
    precision: Literal["fp32", "fp16"] = "fp16"
    form: Literal["in-place", "portable"] = "in-place"
    encoder: bool = False
    text_graph: bool = False


def export_wan(
    source: WanSource, output: Path, *, chunks: int, force: bool, report: Report = QUIET, probe: bool = False
) -> None:
    """Read everything, then write the bundle as `command.write_bundle` does. Raises UserError."""
    check_target(output, force)
    width, height = parse_size(source.size)
    dtype = half if source.precision == "fp16" else single
    prompts = read_prompts(source.prompts)
    transformer = load_transformer(source, dtype)
    decoders, encoder, latent_channels = load_vae(source.vae, dtype)
    config = transformer.config
    if latent_channels != config.latent_channels:
        raise UserError(
            f"{source.vae}: {latent_channels} latent channels, the generator {source.generator} has "
            f"{config.latent_channels}"
        )
    try:
        geometry = Geometry(
            width=width,
            height=height,
            fps=source.fps,
            latent_channels=latent_channels,
            chunk=source.chunk,
            sink=source.sink,
            window=source.window,
        )
        rope = RopeConfig(mode=source.rope, jitter_sigma=source.jitter, jitter_seed=source.jitter_seed)
    except ValidationError as error:
        raise UserError(first_problem(error)) from None
    check_schedule(source)
    text_encoder = open_encoder(source.text_encoder)
    bank = encode_all(text_encoder, prompts, config.text_len)
    for embedding in bank.values():
        if embedding.shape[1] != config.text_dim:
            raise UserError(
                f"--text-encoder {source.text_encoder}: makes {embedding.shape[1]} channels, the generator wants "
                f"{config.text_dim}"
            )
    if source.text_graph and not isinstance(text_encoder, Umt5):
        raise UserError(f"--text-graph: {source.text_encoder} is no UMT5 encoder")
    files = [f for f in (source.generator, source.lora, source.vae) if f is not None and f.is_file()]
    parts = Parts(
        name=source.generator.stem,
        transformer=transformer,
        geometry=geometry,
        schedule=Schedule(source.steps, source.shift),
        rope=rope,
        decoders=decoders,
        encoder=encoder if source.encoder else None,
        prompts=bank,
        provenance={"checkpoint": {f.name: describe(f).sha256 for f in files}, "text_encoder": text_encoder.name},
        precision=source.precision,
        form=source.form,
        text_encoder=text_encoder if source.text_graph else None,  # type: ignore[arg-type] - checked above
    )
    del text_encoder  # unless it is exported, the largest thing in memory is done with
    write_bundle(parts, output, chunks=chunks, force=force, report=report, probe=probe)


def check_schedule(source: WanSource) -> None:
    """Raises UserError unless the steps fall from at most 1000 to above 0."""
    steps = source.steps
    if not steps or steps[0] > 1000 or steps[-1] < 1 or any(b >= a for a, b in itertools.pairwise(steps)):
        raise UserError(f"--steps {','.join(map(str, steps))}: expected falling numbers from 1000 to 1")
    if not source.shift > 0:
        raise UserError(f"--shift {source.shift}: expected a number above 0")


def load_transformer(source: WanSource, dtype) -> Wan:
    """The generator's weights, a LoRA merged in, in the model's own convention."""
    found = read(source.generator, source.dictionary)
    state = public_names(found.state)
    config = wan_config(state, found.config, source.generator)
    if source.lora is not None:
        state = merge_lora(state, read(source.lora).state, source.lora_alpha, source.lora)
    with torch.device("meta"):
        model = Wan(config)
    fit(model, state, source.generator, dtype, lambda state: fold(state, config))
    return model


def load_vae(path: Path, dtype) -> tuple[dict[str, torch.nn.Module], torch.nn.Module, int]:
    """Decode graphs, encode graph, latent channels: of the Wan VAE or of TAEHV, whichever the tensors are."""
    found = read(path)
    state = vae_names(found.state)
    if "decoder.1.weight" in state:
        config = taehv_config(state, path)
        with torch.device("meta"):
            tiny = Taehv(config)
        fit(tiny, public_weights(state, config), path, dtype)
        return decoders_of(tiny), EncodeGraph(tiny), config.latent_channels
    if "decoder.conv1.weight" not in state:
        some = ", ".join(sorted(state)[:4])
        raise UserError(f"{path}: neither a Wan VAE nor a TAEHV (found {some} …)")
    vae = WanVae(vae_config(found, state, path))
    fit(vae, state, path, dtype)
    decoders: dict[str, torch.nn.Module] = {
        "decode": WanDecodeGraph(vae, False),
        "decode_first": WanDecodeGraph(vae, True),
    }
    return decoders, WanEncodeGraph(vae), vae.config.latent_channels


def vae_config(found: Source, state: State, path: Path) -> WanVaeConfig:
    dim, channels = len(state["encoder.conv1.weight"]), state["decoder.conv1.weight"].shape[1]
    mean, std = (tuple(found.config.get(k, v)) for k, v in (("latents_mean", MEAN), ("latents_std", STD)))
    if len(mean) != channels or len(std) != channels:
        raise UserError(
            f"{path}: {channels} latent channels, but {len(mean)} means and {len(std)} deviations are known"
        )
    return WanVaeConfig(dim=dim, latent_channels=channels, mean=mean, std=std)


def taehv_config(state: State, path: Path) -> TaehvConfig:
    """Widths from the shapes of the flat list, three MemBlocks to a stage as published."""
    try:
        first = state["decoder.1.weight"]
        down = [len(state[f"encoder.{i}.weight"]) for i in (3, 8, 13)]
        up = [len(state[f"decoder.{i}.weight"]) for i in (8, 14, 20)]
    except KeyError as error:
        raise UserError(f"{path}: not the TAEHV of Wan 2.1: missing {error.args[0]}") from None
    return TaehvConfig(first.shape[1], (down[0], down[1], down[2]), (len(first), up[0], up[1], up[2]))
