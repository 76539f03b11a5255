"""Autoencoders from their published files: the Wan VAE, TAEHV, and the two of LightX2V that look like them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ..engines.errors import UserError
from ..engines.progress import QUIET, Report
from .bundle import decoders_of
from .families import MEAN, STD, family_of
from .names import State, listed, vae_names
from .sources import Source, files_of, fit, place_of, read
from .taehv import Taehv, TaehvConfig, public_weights, take_raw
from .taehvgraphs import EncodeGraph
from .wanvae import WanDecodeGraph, WanEncodeGraph, WanVae, WanVaeConfig
from .wanvae22 import Wan22Vae

VaeKind = Literal["auto", "wan", "taehv", "lighttae"]
KINDS: tuple[VaeKind, ...] = ("auto", "wan", "taehv", "lighttae")
Loaded = tuple[dict[str, nn.Module], nn.Module, int]  # decode graphs by name, encode graph, latent channels


def load_vae(path: Path, dtype, kind: VaeKind = "auto", report: Report = QUIET) -> Loaded:
    """The graphs of whichever autoencoder the tensors are; kind: what --vae-kind says, where they do not tell.

    Raises UserError for a file that is none, or that may be TAEHV or LightTAE.
    """
    found = read(path, part="vae", report=report)
    state = vae_names(found.state)
    tiny = "decoder.1.weight" in state or _deep(state)
    if not tiny and "decoder.conv1.weight" not in state:
        raise UserError(f"{path}: neither a Wan VAE nor a TAEHV (found {listed(sorted(state))})")
    if kind != "auto" and tiny != (kind in ("taehv", "lighttae")):
        is_one = "a TAEHV or LightTAE" if tiny else "a Wan VAE"
        raise UserError(f"--vae-kind {kind}: {path} is {is_one}")
    return _load_tiny(state, path, dtype, kind, report) if tiny else _load_wan(found, state, path, dtype)


def _load_wan(found: Source, state: State, path: Path, dtype) -> Loaded:
    kind = Wan22Vae if _staged(state) else WanVae
    vae = kind(vae_config(found, state, path))
    fit(vae, state, path, dtype)
    decoders: dict[str, nn.Module] = {"decode": WanDecodeGraph(vae, False), "decode_first": WanDecodeGraph(vae, True)}
    return decoders, WanEncodeGraph(vae), vae.config.latent_channels


def _load_tiny(state: State, path: Path, dtype, kind: VaeKind, report: Report) -> Loaded:
    light = _is_light(path, kind, report)
    config = taehv_config(state, path)
    if light and config.latent_channels != len(MEAN):
        raise UserError(f"{path}: LightTAE with {config.latent_channels} latent channels; expected {len(MEAN)}")
    if light and config.deep:  # no clamp at its beginning, in whose place a LightTAE makes its latents raw
        raise UserError(f"{path}: LightTAE with the decoder of TAEHV's super variant; expected --vae-kind taehv")
    with torch.device("meta"):
        tiny = Taehv(config)
    fit(tiny, public_weights(state, config), path, dtype)
    if light:
        take_raw(tiny, MEAN, STD)
    return decoders_of(tiny), EncodeGraph(tiny), config.latent_channels


def _is_light(path: Path, kind: VaeKind, report: Report) -> bool:
    """LightTAE has TAEHV's tensors, but takes the latents as the Wan VAE makes them, not normalised. Only the file's name
    or the user can tell."""
    if kind != "auto":
        return kind == "lighttae"
    held = files_of(place_of(path, "vae"))[0].name
    _check_name(path, held)
    for told in (held, path.name):  # of a folder, first what it holds
        name = _plain(told)
        if "lighttae" in name:
            report.line(
                f"{path}: LightTAE, by its name: latents are taken as the Wan VAE makes them; --vae-kind taehv if not"
            )
            return True
        if "taew2" in name:
            return False
    raise UserError(
        f"{path}: TAEHV or LightTAE: their tensors are alike and its name does not tell; expected --vae-kind taehv or "
        "--vae-kind lighttae"
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _check_name(path: Path, held: str) -> None:
    """Raises UserError for a file that is named as another model's: HunyuanVideo's `taehv` has the tensors of Wan 2.1's."""
    name = _plain(held)
    if name.startswith(("tae", "lighttaeh")) and "taew2" not in name:
        raise UserError(
            f"{path}: by the name {held} HunyuanVideo's or another model's tiny autoencoder; expected taew2_1, taew2_2 or "
            "lighttaew2_1, or --vae-kind taehv or --vae-kind lighttae to take it all the same"
        )


def _staged(state: State) -> bool:
    """Whether it is Wan 2.2's, which has its blocks in stages."""
    return any(name.startswith("decoder.upsamples.0.upsamples.") for name in state)


def vae_config(found: Source, state: State, path: Path) -> WanVaeConfig:
    """Widths from shapes, pruned ones too; means and deviations of a config.json, else those of the public VAE."""
    try:
        (dim, colours), channels = state["encoder.conv1.weight"].shape[:2], state["decoder.conv1.weight"].shape[1]
    except KeyError as error:
        raise UserError(f"{path}: not a whole Wan VAE: missing {error.args[0]}") from None
    except (ValueError, IndexError):
        raise UserError(f"{path}: not a Wan VAE: its first layers have other numbers of axes") from None
    family = family_of(channels)
    known = ((), ()) if family is None else (family.mean, family.std)
    mean, std = (_numbers(found, *one, path) for one in zip(("latents_mean", "latents_std"), known, strict=True))
    if len(mean) != channels or len(std) != channels:
        raise UserError(
            f"{path}: {channels} latent channels, but {len(mean)} means and {len(std)} deviations are known"
        )
    if not _staged(state):
        return WanVaeConfig(dim=dim, latent_channels=channels, mean=mean, std=std)
    patch = math.isqrt(max(colours // 3, 1))
    inner = len(state["decoder.head.0.gamma"]) if "decoder.head.0.gamma" in state else dim
    return WanVaeConfig(dim, inner, channels, mean=mean, std=std, patch=patch)


def _numbers(found: Source, name: str, known: Sequence[float], path: Path) -> tuple[float, ...]:
    """What a config.json says of every latent channel, else what is known. Raises UserError."""
    said = found.config.get(name, known)
    if not isinstance(said, list | tuple) or not all(type(v) in (int, float) and math.isfinite(v) for v in said):
        raise UserError(f"{path}: its config.json says {name} {listed([said])}; expected a list of numbers")
    return tuple(map(float, said))


def _deep(state: State) -> bool:
    """Whether its decoder is that of TAEHV's super variant."""
    return "decoder.1.conv.0.weight" in state


def taehv_config(state: State, path: Path) -> TaehvConfig:
    """Widths from the shapes of the flat list, three MemBlocks to a stage as published."""
    deep = _deep(state)
    first, stages, share = ("decoder.0.weight", (4, 11, 18), 4) if deep else ("decoder.1.weight", (8, 14, 20), 1)
    try:
        wide, channels = state[first].shape[:2]
        down = [len(state[f"encoder.{i}.weight"]) for i in (3, 8, 13)]
        up = [len(state[f"decoder.{i}.weight"]) // share for i in stages]
        colours = state["encoder.0.weight"].shape[1]
    except KeyError as error:
        raise UserError(f"{path}: not a TAEHV of Wan: missing {error.args[0]}") from None
    except (ValueError, IndexError, TypeError):  # TypeError: the length of a tensor without axes
        raise UserError(f"{path}: not a TAEHV of Wan: its layers have other numbers of axes") from None
    patch = math.isqrt(max(colours // 3, 1))
    return TaehvConfig(channels, (down[0], down[1], down[2]), (wide, up[0], up[1], up[2]), patch=patch, deep=deep)
