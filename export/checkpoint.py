"""Checkpoints on disk: a folder with config.json, transformer.safetensors, autoencoder.safetensors, prompts.safetensors.

Weights are in the public naming and convention (see wan.py); `prompts.safetensors` maps each prompt of the bank to its
text embedding [tokens, text_dim].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..engines.bundle import Geometry, Model, first_problem
from ..engines.errors import UserError
from ..engines.files import reason
from .schedule import Schedule
from .taehv import Taehv, TaehvConfig
from .wan import Wan, WanConfig, fold

CONFIG = "config.json"


class RopeConfig(Model):
    mode: Literal["absolute", "relative"] = "absolute"
    jitter_sigma: float = Field(ge=0, lt=1)
    jitter_seed: int = Field(ge=0)


class CheckpointConfig(Model):
    """What config.json says."""

    name: str
    transformer: WanConfig
    autoencoder: TaehvConfig
    geometry: Geometry
    schedule: Schedule
    rope: RopeConfig
    prompts: list[str] = Field(min_length=1)


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
    transformer, autoencoder = Wan(config.transformer), Taehv(config.autoencoder)
    weights = read_tensors(folder / "transformer.safetensors")
    assign(transformer, weights, folder / "transformer.safetensors", lambda state: fold(state, config.transformer))
    weights = read_tensors(folder / "autoencoder.safetensors")
    assign(autoencoder, weights, folder / "autoencoder.safetensors")
    file = folder / "prompts.safetensors"
    prompts = read_tensors(file)
    for prompt in config.prompts:
        found = list(prompts[prompt].shape) if prompt in prompts else "nothing"
        if found == "nothing" or found[0] > config.transformer.text_len or found[1:] != [config.transformer.text_dim]:
            expected = f"[up to {config.transformer.text_len}, {config.transformer.text_dim}]"
            raise UserError(f"{file}: prompt {prompt!r}: found {found}, expected {expected}")
    return Checkpoint(config, transformer, autoencoder, {p: prompts[p] for p in config.prompts})


def read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except OSError as error:
        raise UserError(f"{file}: cannot read: {reason(error)}") from None
    except SafetensorError as error:
        raise UserError(f"{file}: not a whole safetensors file: {error}") from None


def assign(model: nn.Module, weights: dict[str, Tensor], file: Path, convert=lambda state: state) -> None:
    """Load weights into model as float32, reporting every missing, unexpected and misshapen key in one message."""
    wanted = {k: v.shape for k, v in model.state_dict().items()}
    problems = [f"missing {k}" for k in wanted if k not in weights]
    problems += [f"unexpected {k}" for k in weights if k not in wanted]
    problems += [
        f"{k}: found {list(v.shape)}, expected {list(wanted[k])}"
        for k, v in weights.items()
        if k in wanted and v.shape != wanted[k]
    ]
    if problems:
        raise UserError(f"{file}: does not fit its config: {'; '.join(problems)}")
    bad = [k for k, v in weights.items() if not torch.isfinite(v).all()]
    if bad:
        raise UserError(f"{file}: NaN or infinite values in {', '.join(bad)}")
    model.load_state_dict(convert({k: v.float() for k, v in weights.items()}))
    model.eval().requires_grad_(False)
