"""Options that several commands share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Context, Option

from ...engines.errors import UserError
from ...engines.machine import choose_gpu
from .console import say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ...engines.bundle import Bundle as Opened

Bundle = Annotated[Path | None, Option("--bundle", "-b", help="Engine bundle; default: the shipped demo.")]
Prompt = Annotated[str | None, Option(help="A prompt of the bundle's bank; default: its first.")]
Seed = Annotated[int, Option(help="Same seed, same frames.")]
Start = Annotated[int, Option(help="Latent frame index of the first chunk.")]
Anchor = Annotated[
    Path | None, Option(help="A picture to start from and stay anchored to; needs a bundle with its encoder.")
]
Ground = Annotated[
    str | None, Option(help="Colour under what is transparent in the anchor; default: its border's, or black.")
]
Rope = Annotated[str | None, Option(help="absolute or relative; default: the bundle's.")]
SinkDistance = Annotated[
    int | None,
    Option(help="Latent frames from the first sink frame to the chunk, with --rope relative; default: the bundle's."),
]
Jitter = Annotated[float | None, Option(help="Sigma of the multi-head RoPE jitter; default: the bundle's.")]
Threads = Annotated[int, Option(help="CPU threads; 0 = one per core.")]
Provider = Annotated[str, Option(help="ONNX Runtime provider: cpu, cuda, tensorrt, nvtensorrtrtx.")]
Backend = Annotated[
    str,
    Option(
        help="onnxruntime, openvino, or tensorrt-rtx or tensorrt with engines of everframe build; auto: the fastest here."
    ),
]
Device = Annotated[str, Option(help="Of openvino: cpu, gpu or npu.")]
Precision = Annotated[str, Option(help="Of openvino: f32, bf16 or f16, where the device has it; auto: f32.")]
Gpu = Annotated[
    int | None,
    Option(
        min=0, max=1023, callback=choose_gpu, expose_value=False, help="Which NVIDIA card, as nvidia-smi counts them."
    ),
]
Post = Annotated[
    str | None, Option(help="Of the graphs of everframe post add: all, smooth, upscale or none; default: the bundle's.")
]
Unverified = Annotated[bool, Option("--unverified", help="Stream even if the engines fail their proof.")]
Json = Annotated[bool, Option("--json", help="Print JSON.")]
Force = Annotated[bool, Option("--force", help="Replace the bundle if it exists.")]
NewBundle = Annotated[Path, Option("--output", "-o", help="The bundle to write, NAME.everframe.")]
Record = Annotated[Path | None, Option("--output", "-o", help="JSON with every figure.")]
Size = Annotated[str | None, Option(help="WIDTHxHEIGHT in pixels, multiples of 16.")]
ChunkFrames = Annotated[int, Option(help="Latent frames of a chunk.")]
Window = Annotated[int | None, Option(help="Latent frames in the KV cache, sinks and current chunk included.")]
Sink = Annotated[int | None, Option(help="Latent frames kept for good.")]


def explicit(ctx: Context) -> set[str]:
    """The parameters that the user named."""
    return {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") != "DEFAULT"}


def picture_of(anchor: Path | None, ground: str | None, bundle: Opened) -> NDArray[np.uint8] | None:
    """The picture that --anchor names, at a bundle's size. Raises UserError."""
    from ..picture import read_picture

    if anchor is None:
        if ground is not None:
            raise UserError(f"--ground {ground}: expected --anchor with it")
        return None
    g = bundle.manifest.geometry
    return read_picture(anchor, g.width, g.height, ground, say)
