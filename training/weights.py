"""The trained networks as later stages want them, from the compact checkpoints of the earlier ones."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from everframe.export.checkpoint import load
from everframe.export.taehv import Taehv
from everframe.export.wan import Wan

from run import HERE, RUNS, compact_path, load_part, progress_of
from settings import AUTOENCODER, FIRST_AUTOENCODER, TRANSFORMER

EPSILON = 1e-5  # of the latents' normalisation


def shipped_autoencoder(folder: Path = HERE / "demo") -> Taehv:
    """That of an assembled checkpoint."""
    return load(folder).autoencoder.float().eval()


def first_autoencoder() -> Taehv:
    """That of the first demo, which the study's variants need (transformer.py --short, --many)."""
    ae = Taehv(FIRST_AUTOENCODER)
    ae.load_state_dict({k: v.float() for k, v in load_file(RUNS / "first" / "autoencoder.safetensors").items()})
    return ae.eval()


def shipped_transformer(folder: Path = HERE / "demo") -> Wan:
    return load(folder).transformer.float()


def trained_transformer(run: str) -> Wan:
    """That of a run of training/runs: transformer (the teacher), young, distill (the student)."""
    model = Wan(TRANSFORMER)
    model.load_state_dict(load_part(run, "model"))
    return model


def fold_norm(ae: Taehv, mean: Tensor, var: Tensor) -> None:
    """Put the normalisation of the latents into the encoder's last convolution."""
    scale = (var + EPSILON).rsqrt()
    last = ae.encoder[-1]
    with torch.no_grad():
        last.weight *= scale.view(-1, 1, 1, 1)  # type: ignore[operator]
        last.bias.copy_((last.bias - mean) * scale)  # type: ignore[operator, union-attr]


def trained_autoencoder(plain: bool = False) -> Taehv:
    """The autoencoder of training/runs, with the decoder that decoder.py tuned where there is one; plain: as it was trained
    whole."""
    if not compact_path("autoencoder").exists():
        return shipped_autoencoder()
    state = load_part("autoencoder", "model")
    ae = Taehv(AUTOENCODER)
    ae.load_state_dict({k.removeprefix("ae."): v for k, v in state.items() if k.startswith("ae.")})
    fold_norm(ae, state["norm.running_mean"], state["norm.running_var"])
    if not plain and progress_of("decoder", of=progress_of("autoencoder")):
        ae.decoder.load_state_dict(load_part("decoder", "decoder"))
    return ae.eval()
