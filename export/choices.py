"""Options that both ways to export take, and what they mean together."""

from __future__ import annotations

from typing import Annotated

import typer

from ..engines.errors import UserError

Compared = Annotated[
    int,
    typer.Option(
        min=0,
        max=1_000_000,
        help="Chunks over which each graph is compared with PyTorch; 0: only checked, and no reference.",
    ),
]
Probe = Annotated[
    bool, typer.Option("--probe", help="Add a graph that tells the attention on the sinks, for study sinks.")
]
Encoder = Annotated[bool, typer.Option("--encoder", help="Add the encoder, so that a picture can be the anchor.")]
Form = Annotated[
    str, typer.Option(help="in-place, or portable: for TensorRT before 11.1 and rings that are not float.")
]
SinkEma = Annotated[
    float | None,
    typer.Option(
        help="Let chunks that leave the window flow into the sinks: sink = a*sink + (1 - a)*chunk "
        "(Reward Forcing: 0.999); 0: the sinks stay."
    ),
]
Recache = Annotated[
    str,
    typer.Option(
        help="What a smooth prompt change does: window, as LongLive, or chunks, without a second large graph."
    ),
]
SinkDistance = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=4096,
        help="With --rope relative: latent frames from the first sink frame to the chunk; default: right behind the window.",
    ),
]
JitterBy = Annotated[
    str | None,
    typer.Option(
        help="head: a base for every head, as the paper; layer: for every head of every layer; a design is by layer."
    ),
]
JitterDesign = Annotated[
    int | None,
    typer.Option(
        min=60,
        max=20_000,
        help="Search the bases, of every head of every layer, that keep the mean cosine low up to so many latent frames.",
    ),
]
JitterSeed = Annotated[int | None, typer.Option(help="Seed of the jitter's draw.")]


def check_acts(explicit: set[str]) -> None:
    """Raises UserError for options that the user names and that would do nothing beside the others."""
    if "lora_alpha" in explicit and "lora" not in explicit:
        raise UserError(
            "--lora-alpha: expected --lora FILE with it; a recipe's own LoRA has the alpha that it is right with"
        )
    if {"decoder", "vae"} <= explicit:
        raise UserError("--decoder: expected no --vae with it, which is the decoder")


def bases(jitter_by: str | None, design: int | None) -> str | None:
    """--jitter-by, which a design decides. Raises UserError."""
    if design is None:
        return jitter_by
    if jitter_by not in (None, "layer"):
        raise UserError(
            f"--jitter-by {jitter_by}: expected layer with --jitter-design, which is of every layer's heads"
        )
    return "layer"
