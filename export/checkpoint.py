"""Checkpoints on disk: a folder with config.json, transformer.safetensors, autoencoder.safetensors, prompts.safetensors.

Weights are in the public naming and convention (see wan.py); `prompts.safetensors` maps each prompt of the bank to its
text embedding [tokens, text_dim].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from ..engines.bundle import Geometry, Model, first_problem
from ..engines.errors import UserError
from ..engines.files import reason
from .schedule import Schedule
from .sources import fit, read
from .taehv import SPACE, TIME, Taehv, TaehvConfig
from .wan import Wan, WanConfig, fold

CONFIG = "config.json"


class RopeConfig(Model):
    mode: Literal["absolute", "relative"] = "absolute"
    sink_distance: int | None = Field(default=None, ge=1)  # see engines.bundle.RopeSpec
    jitter_sigma: float = Field(ge=0, lt=1)
    jitter_seed: int = Field(ge=0)
    jitter_by: Literal["head", "layer"] = "head"  # a base for every head, or for every head of every layer
    jitter_design: int | None = Field(
        default=None, ge=60, le=20_000
    )  # searched up to this distance, latent frames; None: drawn

    @model_validator(mode="after")
    def _by_layer(self) -> RopeConfig:
        if self.jitter_design is not None and self.jitter_by != "layer":
            raise ValueError(f"jitter_design {self.jitter_design}: expected jitter_by layer with it")
        if self.jitter_design is not None and not self.jitter_sigma:
            raise ValueError(f"jitter_design {self.jitter_design}: expected a jitter_sigma above 0 with it")
        return self


class CheckpointConfig(Model):
    """What config.json says."""

    name: str
    transformer: WanConfig
    autoencoder: TaehvConfig
    geometry: Geometry
    schedule: Schedule
    rope: RopeConfig
    prompts: list[str] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_latent(self) -> CheckpointConfig:
        """What the transformer makes is what the autoencoder decodes, and what the runtime is told of."""
        told = self.geometry.latent_channels
        for part, ours in (("transformer", self.transformer), ("autoencoder", self.autoencoder)):
            if ours.latent_channels != told:
                raise ValueError(f"geometry.latent_channels {told}: expected the {part}'s, {ours.latent_channels}")
        space = SPACE * self.autoencoder.patch
        if (self.geometry.space_scale, self.geometry.time_scale) != (space, TIME):
            raise ValueError(
                f"geometry.space_scale {self.geometry.space_scale}, time_scale {self.geometry.time_scale}: "
                f"expected the autoencoder's, {space} and {TIME}"
            )
        return self


@dataclass(frozen=True)
class Checkpoint:
    config: CheckpointConfig
    transformer: Wan  # folded, float32, eval
    autoencoder: Taehv
    prompts: dict[str, Tensor]  # prompt -> [tokens, text_dim]


def read_config(file: Path) -> CheckpointConfig:
    """Raises UserError naming the file and the first wrong field."""
    try:
        return CheckpointConfig.model_validate_json(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot read: {reason(error)}") from None
    except ValidationError as error:
        raise UserError(f"{file}: {first_problem(error)}") from None


def load(folder: Path) -> Checkpoint:
    """Read and check a whole checkpoint folder. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such checkpoint (expected a folder with {CONFIG})")
    config = read_config(folder / CONFIG)
    with torch.device("meta"):
        transformer, autoencoder = Wan(config.transformer), Taehv(config.autoencoder)
    file = folder / "transformer.safetensors"
    fit(transformer, read(file).state, file, convert=lambda state: fold(state, config.transformer))
    file = folder / "autoencoder.safetensors"
    fit(autoencoder, read(file).state, file)
    file = folder / "prompts.safetensors"
    prompts = read(file).state
    c = config.transformer
    for prompt in config.prompts:
        found = list(prompts[prompt].shape) if prompt in prompts else "nothing"
        if prompt not in prompts or len(prompts[prompt]) > c.text_len or prompts[prompt].shape[1:] != (c.text_dim,):
            expected = f"[up to {c.text_len}, {c.text_dim}]"
            raise UserError(f"{file}: prompt {prompt!r}: found {found}, expected {expected}")
        if not torch.isfinite(prompts[prompt].half()).all():
            raise UserError(f"{file}: prompt {prompt!r}: NaN, infinite or too large for float16, which a bank is in")
    return Checkpoint(config, transformer, autoencoder, {p: prompts[p] for p in config.prompts})
