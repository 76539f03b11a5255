"""`everframe export` and `everframe prompts`: a checkpoint into a bundle, and more prompts for one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..engines.errors import UserError
from ..runtime.cli import options
from ..runtime.cli.console import needs_extra, reporting, say, tell
from ..runtime.demo import open_bundle


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
prompts = typer.Typer()
app.add_typer(prompts, name="prompts")

Compared = Annotated[
    int,
    typer.Option(min=0, max=1_000_000, help="Chunks over which each graph is compared with PyTorch; 0: only checked."),
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
    size: options.Size = None,
    window: options.Window = None,
    sink: options.Sink = None,
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
    lora: Annotated[
        list[str] | None,
        typer.Option(help="LoRA to merge in, with a strength if not 1; any number.", metavar="FILE[:STRENGTH]"),
    ] = None,
    lora_alpha: Annotated[
        float | None, typer.Option(help="Alpha of the LoRAs; default: what their files say, else the rank.")
    ] = None,
    vae_kind: Annotated[
        str, typer.Option(help="auto, wan, taehv or lighttae: where tensors and file name do not tell.")
    ] = "auto",
    size: options.Size = "832x480",
    chunk: options.ChunkFrames = 3,
    window: options.Window = 12,
    sink: options.Sink = 3,
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
    if lora_alpha is not None and not math.isfinite(lora_alpha):
        raise UserError(f"--lora-alpha {lora_alpha}: expected a number")
    with needs_extra("export,text"):
        from .lora import parse_lora
        from .wanexport import WanSource, export_wan
    source = WanSource(
        generator=generator,
        vae=vae,
        text_encoder=text_encoder,
        prompts=prompts,
        dictionary=dictionary,
        loras=tuple(parse_lora(text, lora_alpha) for text in lora or ()),
        vae_kind=vae_kind,  # type: ignore[arg-type] - export_wan checks it
        size=size or "832x480",
        chunk=chunk,
        window=12 if window is None else window,
        sink=3 if sink is None else sink,
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


@prompts.callback(invoke_without_command=True)
def show(context: typer.Context, bundle: options.Bundle = None) -> None:
    """List the prompts of a bundle, or add to them."""
    if context.invoked_subcommand is None:
        for prompt in open_bundle(bundle).manifest.prompts:
            tell(prompt)


@prompts.command("add")
def add(
    bundle: Annotated[Path, typer.Argument(help="The bundle to add to.")],
    prompt: Annotated[list[str] | None, typer.Argument(help="Prompts.")] = None,
    text_encoder: Annotated[
        str, typer.Option(help="Folder or .pth of the UMT5 encoder, or 'minilm' for the demo's.")
    ] = "minilm",
    file: Annotated[Path | None, typer.Option("--prompts", help="File with a prompt a line.")] = None,
) -> None:
    """Add prompts to a bundle's bank (needs the extra `text`, for the demo's encoder `minilm`)."""
    with needs_extra("export,minilm" if text_encoder == "minilm" else "export,text"):
        from .addprompts import add as put

        added = put(bundle, prompt or [], file, text_encoder)
    say(f"{bundle}: {added} prompts added")
