"""`everframe export`: a checkpoint folder of our own, or a checkpoint of the Wan family."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..engines.errors import UserError
from ..runtime.cli import options
from ..runtime.cli.console import needs_extra, reporting


class FolderByDefault(TyperGroup):
    """`export FOLDER …` means `export checkpoint FOLDER …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["checkpoint", *args]
        return super().parse_args(ctx, args)


app = typer.Typer()
export = typer.Typer(
    cls=FolderByDefault, no_args_is_help=True, help="Export a checkpoint into an engine bundle: FOLDER, or wan."
)
app.add_typer(export, name="export")

Compared = Annotated[
    int, typer.Option(min=0, help="Chunks over which each graph is compared with PyTorch; 0: only checked.")
]
Probe = Annotated[
    bool, typer.Option("--probe", help="Add a graph that tells the attention on the sinks, for study sinks.")
]
Encoder = Annotated[bool, typer.Option("--encoder", help="Add the encoder, so that a picture can be the anchor.")]
Form = Annotated[
    str, typer.Option(help="in-place, or portable: for TensorRT before 11.1 and rings that are not float.")
]
JitterSeed = Annotated[int | None, typer.Option(help="Seed of the jitter's draw.")]


@export.command("checkpoint")
def checkpoint(
    folder: Annotated[
        Path, typer.Argument(help="Checkpoint folder with config.json and safetensors files.", metavar="CHECKPOINT")
    ],
    output: options.NewBundle,
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT in pixels, multiples of 16; default: the checkpoint's.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Latent frames in the KV cache, sinks and current chunk included.")
    ] = None,
    sink: Annotated[int | None, typer.Option(help="Latent frames kept for good.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=50, help="Denoising steps, evenly spaced from 1000.")] = None,
    rope: Annotated[str | None, typer.Option(help="absolute or relative.")] = None,
    jitter: Annotated[float | None, typer.Option(help="Sigma of the multi-head RoPE jitter.")] = None,
    jitter_seed: JitterSeed = None,
    chunks: Compared = 10,
    probe: Probe = False,
    encoder: Encoder = False,
    form: Form = "in-place",
    force: options.Force = False,
) -> None:
    """Export a checkpoint folder into an engine bundle (needs the extra `export`). The default when no command is named."""
    check_form(form)
    with needs_extra("export"):
        from .checkpointexport import Overrides, export_checkpoint
    overrides = Overrides(
        size=size,
        window=window,
        sink=sink,
        steps=steps,
        rope=rope,
        jitter=jitter,
        jitter_seed=jitter_seed,
        encoder=encoder,
        form=form,  # type: ignore[arg-type] - checked above
    )
    with reporting() as report:
        export_checkpoint(folder, output, overrides, chunks=chunks, force=force, report=report, probe=probe)


@export.command("wan")
def wan(  # as long as its options: it does nothing but parse them
    generator: Annotated[
        Path, typer.Option(help="Self-Forcing, LongLive or Causal Forcing .pt, Wan safetensors, or a diffusers folder.")
    ],
    vae: Annotated[Path, typer.Option(help="Wan2.1_VAE.pth, taew2_1.pth, or a diffusers VAE folder.")],
    text_encoder: Annotated[str, typer.Option(help="UMT5: a folder, or models_t5_umt5-xxl-enc-bf16.pth.")],
    prompts: Annotated[Path, typer.Option(help="File with a prompt a line.")],
    output: options.NewBundle,
    dictionary: Annotated[
        str | None, typer.Option(help="Which dictionary of the .pt; default: generator_ema, else generator.")
    ] = None,
    lora: Annotated[Path | None, typer.Option(help="PEFT LoRA to merge in (LongLive's lora.pt).")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="Alpha of the LoRA; default: its rank.")] = None,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT in pixels, multiples of 16.")] = "832x480",
    chunk: Annotated[int, typer.Option(help="Latent frames of a chunk.")] = 3,
    window: Annotated[int, typer.Option(help="Latent frames in the KV cache, sinks and current chunk included.")] = 12,
    sink: Annotated[int, typer.Option(help="Latent frames kept for good.")] = 3,
    fps: Annotated[int, typer.Option(help="Frames per second.")] = 16,
    steps: Annotated[str, typer.Option(help="Denoising steps, before the shift.")] = "1000,750,500,250",
    shift: Annotated[float, typer.Option(help="Shift of the schedule.")] = 5.0,
    rope: Annotated[str, typer.Option(help="absolute or relative.")] = "absolute",
    jitter: Annotated[float, typer.Option(help="Sigma of the multi-head RoPE jitter.")] = 0.8,
    jitter_seed: JitterSeed = 0,
    precision: Annotated[str, typer.Option(help="fp16 or fp32.")] = "fp16",
    text_graph: Annotated[
        bool, typer.Option("--text-graph", help="Add the text encoder with INT8 weights, for new prompts offline.")
    ] = False,
    chunks: Compared = 10,
    probe: Probe = False,
    encoder: Encoder = False,
    form: Form = "in-place",
    force: options.Force = False,
) -> None:
    """Export a checkpoint of the Wan2.1-1.3B family (needs the extras `export` and `text`)."""
    check_form(form)
    if precision not in ("fp16", "fp32"):
        raise UserError(f"--precision {precision}: expected fp16 or fp32")
    numbers = parse_steps(steps)
    with needs_extra("export,text"):
        from .wanexport import WanSource, export_wan
    source = WanSource(
        generator=generator,
        vae=vae,
        text_encoder=text_encoder,
        prompts=prompts,
        dictionary=dictionary,
        lora=lora,
        lora_alpha=lora_alpha,
        size=size,
        chunk=chunk,
        window=window,
        sink=sink,
        fps=fps,
        steps=numbers,
        shift=shift,
        rope=rope,  # type: ignore[arg-type] - RopeConfig checks it
        jitter=jitter,
        jitter_seed=0 if jitter_seed is None else jitter_seed,
        precision=precision,
        encoder=encoder,
        form=form,  # type: ignore[arg-type] - checked above
        text_graph=text_graph,
    )
    with reporting() as report:
        export_wan(source, output, chunks=chunks, force=force, report=report, probe=probe)


def parse_steps(text: str) -> tuple[int, ...]:
    """'1000,500' -> (1000, 500). Raises UserError."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--steps {text!r}: expected numbers with commas, for example 1000,750,500,250") from None


def check_form(form: str) -> None:
    if form not in ("in-place", "portable"):
        raise UserError(f"--form {form!r}: expected in-place or portable")
