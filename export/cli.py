"""`everframe export` and `everframe prompts`: a checkpoint into a bundle, and more prompts for one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..engines.errors import UserError
from ..engines.progress import Report
from ..runtime.cli import options
from ..runtime.cli.console import needs_extra, reporting, say, show_table, tell, tell_json
from ..runtime.cli.plan import of_model, record
from ..runtime.demo import open_bundle
from .choices import (
    Compared,
    Encoder,
    Form,
    JitterBy,
    JitterDesign,
    JitterSeed,
    Probe,
    Recache,
    SinkDistance,
    SinkEma,
    bases,
    check_acts,
)


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
post = typer.Typer(no_args_is_help=True, help="Smoother and larger frames behind a bundle's decoder.")
app.add_typer(post, name="post")


@export.command("checkpoint")
def checkpoint(
    folder: Annotated[
        Path, typer.Argument(help="Checkpoint folder with config.json and safetensors files.", metavar="CHECKPOINT")
    ],
    output: options.NewBundle,
    size: options.Size = None,
    window: options.Window = None,
    sink: options.Sink = None,
    sink_ema: SinkEma = None,
    steps: Annotated[int | None, typer.Option(min=1, max=50, help="Denoising steps, evenly spaced from 1000.")] = None,
    rope: Annotated[str | None, typer.Option(help="absolute or relative.")] = None,
    sink_distance: SinkDistance = None,
    jitter: Annotated[float | None, typer.Option(help="Sigma of the multi-head RoPE jitter.")] = None,
    jitter_seed: JitterSeed = None,
    jitter_by: JitterBy = None,
    jitter_design: JitterDesign = None,
    chunks: Compared = 10,
    probe: Probe = False,
    encoder: Encoder = False,
    form: Form = "in-place",
    recache: Recache = "window",
    force: options.Force = False,
) -> None:
    """Export a checkpoint folder into an engine bundle (needs the extra `export`). The default when no command is named."""
    check_form(form)
    check_recache(recache)
    with needs_extra("export"):
        from .checkpointexport import Overrides, export_checkpoint
    overrides = Overrides(
        size=size,
        window=window,
        sink=sink,
        sink_ema=sink_ema,
        steps=steps,
        rope=rope,
        sink_distance=sink_distance,
        jitter=jitter,
        jitter_seed=jitter_seed,
        jitter_by=bases(jitter_by, jitter_design),
        jitter_design=jitter_design,
        encoder=encoder,
        form=form,  # type: ignore[arg-type] - checked above
        recache=recache,  # type: ignore[arg-type] - checked above
    )
    with reporting() as report:
        export_checkpoint(folder, output, overrides, chunks=chunks, force=force, report=report, probe=probe)


@export.command("wan")
def wan(  # as long as its options: it does nothing but parse them
    ctx: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Option(help="Fetch and export by a recipe (everframe recipes); every other option overrules it."),
    ] = None,
    generator: Annotated[
        Path | None,
        typer.Option(help="Self-Forcing, LongLive or Causal Forcing .pt, Wan safetensors, or a diffusers folder."),
    ] = None,
    vae: Annotated[
        Path | None, typer.Option(help="Wan2.1_VAE.pth, taew2_1.pth, lighttaew2_1.pth, or a diffusers VAE folder.")
    ] = None,
    text_encoder: Annotated[
        str | None, typer.Option(help="UMT5: a folder, or models_t5_umt5-xxl-enc-bf16.pth.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="File with a prompt a line; with --recipe a few come with everframe.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The bundle to write, NAME.everframe.")] = None,
    decoder: Annotated[str, typer.Option(help="With --recipe: taehv or wan.")] = "taehv",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --recipe: tell what would be fetched, and stop.")
    ] = False,
    dictionary: Annotated[
        str | None, typer.Option(help="Which dictionary of the .pt; default: the EMA, else generator.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(help="LoRA to merge in, with a strength if not 1; any number.", metavar="FILE[:STRENGTH]"),
    ] = None,
    lora_alpha: Annotated[
        float | None, typer.Option(help="Alpha of each --lora; default: what its file says, else the rank.")
    ] = None,
    vae_kind: Annotated[
        str, typer.Option(help="auto, wan, taehv or lighttae: where tensors and file name do not tell.")
    ] = "auto",
    family: Annotated[
        str | None, typer.Option(help="wan2.1 or wan2.2-5b, whose numbers are the defaults; default: by the generator.")
    ] = None,
    size: options.Size = None,
    chunk: Annotated[int | None, typer.Option(help="Latent frames of a chunk.")] = None,
    window: options.Window = None,
    sink: options.Sink = None,
    sink_ema: SinkEma = None,
    fps: Annotated[int | None, typer.Option(help="Frames per second.")] = None,
    sampler: Annotated[str | None, typer.Option(help="renoise or unipc; default: the family's.")] = None,
    shots: Annotated[
        bool | None, typer.Option(help="Whether a cut begins a shot of the same stream; default: the family's.")
    ] = None,
    steps: Annotated[str, typer.Option(help="Denoising steps, before the shift.")] = "1000,750,500,250",
    first_steps: Annotated[
        str | None,
        typer.Option(help="Steps of the first chunk, where it has its own (Causal Forcing++); default: --steps."),
    ] = None,
    shift: Annotated[float, typer.Option(help="Shift of the schedule; 1 for steps that are shifted already.")] = 5.0,
    rope: Annotated[str, typer.Option(help="absolute or relative.")] = "absolute",
    sink_distance: SinkDistance = None,
    jitter: Annotated[float, typer.Option(help="Sigma of the multi-head RoPE jitter.")] = 0.8,
    jitter_seed: JitterSeed = 0,
    jitter_by: JitterBy = None,
    jitter_design: JitterDesign = None,
    precision: Annotated[str, typer.Option(help="fp16 or fp32.")] = "fp16",
    text_graph: Annotated[
        bool, typer.Option("--text-graph", help="Add the text encoder with INT8 weights, for new prompts offline.")
    ] = False,
    chunks: Compared = 10,
    probe: Probe = False,
    encoder: Encoder = False,
    form: Form = "in-place",
    recache: Annotated[
        str | None,
        typer.Option(help="What a smooth prompt change does: window, chunks or none; default: the family's."),
    ] = None,
    force: options.Force = False,
) -> None:
    """Export a checkpoint of the Wan family, 1.3B or 5B (needs the extras `export` and `text`, with --recipe `hub`)."""
    check_form(form)
    if recache is not None:
        check_recache(recache, "none")
    if precision not in ("fp16", "fp32"):
        raise UserError(f"--precision {precision}: expected fp16 or fp32")
    numbers = parse_steps("--steps", steps)
    first = None if first_steps is None else parse_steps("--first-steps", first_steps)
    given: dict[str, Any] = {
        **{"generator": generator, "vae": vae, "text_encoder": text_encoder, "prompts": prompts},
        **{"dictionary": dictionary, "vae_kind": vae_kind, "size": size, "chunk": chunk},
        **{"window": window, "sink": sink, "fps": fps, "family": family, "sampler": sampler, "shots": shots},
        **{
            "steps": numbers,
            "first_steps": first,
            "shift": shift,
            "rope": rope,
            "jitter": jitter,
            "precision": precision,
            "form": form,
        },
        **{"jitter_seed": 0 if jitter_seed is None else jitter_seed, "encoder": encoder, "text_graph": text_graph},
        **{"recache": recache, "sink_ema": sink_ema, "sink_distance": sink_distance},
        **{"jitter_by": bases(jitter_by, jitter_design) or "head", "jitter_design": jitter_design},
    }
    explicit = options.explicit(ctx)
    check_acts(explicit)
    if recipe is None:
        check_no_recipe(given | {"output": output}, explicit)
    elif output is None and not dry_run:
        raise UserError("--output is missing: the bundle to write, NAME.everframe")
    else:
        from .recipes import find, overruling

        explicit = overruling(find(recipe), given, explicit)
    with reporting() as report:
        if dry_run or output is None:
            plan_recipe(str(recipe), decoder, explicit, report)
            return
        with needs_extra("export,text"):
            from .bundle import check_target
            from .lora import Lora, parse_lora
            from .wanexport import WanSource, check_choices, export_wan, named_family, settled
        check_target(output, force)
        given["loras"] = tuple(parse_lora(text, lora_alpha) for text in lora or ())
        if recipe is not None:
            from .recipes import recipe_options

            given |= recipe_options(recipe, explicit, {f.name for f in dataclasses.fields(WanSource)}, report)
        if {"jitter_by", "jitter_seed"} & explicit and not given["jitter"]:
            raise UserError("--jitter-by and --jitter-seed: expected a --jitter above 0 with them")
        if recipe is not None:
            planned = WanSource(**given)
            check_choices(settled(planned, named_family(planned.family or "wan2.1")), probe)  # before fetching
            fetched, alpha = recipe_files(recipe, decoder, explicit, report)
            if "lora" in fetched:
                own = Lora(fetched.pop("lora"), alpha=alpha, whence="the recipe")
                given["loras"] = (own, *given["loras"])
            given |= fetched
        export_wan(WanSource(**given), output, chunks=chunks, force=force, report=report, probe=probe)


def check_no_recipe(given: dict[str, Any], explicit: set[str]) -> None:
    """Raises UserError for a file that nobody names, and for options that only a recipe has."""
    for name in ("generator", "vae", "text_encoder", "prompts", "output"):
        if given[name] is None:
            raise UserError(f"--{name.replace('_', '-')} is missing; expected it, or a --recipe (everframe recipes)")
    for name in {"decoder", "dry_run"} & explicit:
        raise UserError(f"--{name.replace('_', '-')}: expected --recipe with it")


def plan_recipe(name: str, decoder: str, explicit: set[str], report: Report) -> None:
    """What --dry-run tells: the options and the files that the recipe would use, those left out that the user gives."""
    from .recipes import find, tell_recipe

    recipe = find(name)
    with needs_extra("hub"):
        from .hub import survey, tell
    tell_recipe(recipe, explicit, report)
    tell([found for file in recipe.files(decoder, explicit).values() for found in survey([file])], report)


def recipe_files(name: str, decoder: str, explicit: set[str], report: Report) -> tuple[dict[str, Any], float | None]:
    """The recipe's files that the user does not give, fetched, as fields of WanSource (and `lora`), with where they came
    from; the LoRA's alpha. Raises UserError."""
    from .recipes import find

    recipe = find(name)
    with needs_extra("hub"):
        from .hub import commit_of, fetch
    files = recipe.files(decoder, explicit)
    paths = fetch(files, report)
    own: dict[str, Any] = {use: str(path) if use == "text_encoder" else path for use, path in paths.items()}
    own["origin"] = {use: f"{files[use].repo}/{files[use].path}@{commit_of(path)}" for use, path in paths.items()}
    return own, recipe.lora_alpha


@app.command("recipes")
def list_recipes(as_json: options.Json = False) -> None:
    """List the recipes of export wan: files, options, memory on a card."""
    from .recipes import load

    rows = []
    for recipe in load().values():
        numbers = {k: recipe.options[k] for k in ("chunk", "window", "sink", "sink_ema") if k in recipe.options}
        model = "wan2.2-5b" if recipe.family == "wan2.2-5b" else "wan2.1-1.3b"
        planned = of_model(model, numbers, len(recipe.options["steps"]), "fp16", False, "taehv")
        g, card = planned.geometry, record(planned, [])["memory"]["total"] / 1e9
        known = recipe.generator.bytes
        size = f"{known / 1e9:.1f} GB" if known else "ask --dry-run"
        where = f"{recipe.generator.repo}/{recipe.generator.path}"
        rows.append(
            [recipe.name, recipe.line, size, f"{card:.1f} GB at {g.width}x{g.height}", where, recipe.generator.licence]
        )
    columns = ["recipe", "what", "generator", "card, fp16", "from", "licence"]
    if as_json:
        tell_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        show_table(columns, rows, left=columns)


def parse_steps(flag: str, text: str) -> tuple[int, ...]:
    """'1000,500' -> (1000, 500). Raises UserError."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{flag} {text!r}: expected numbers with commas, for example 1000,750,500,250") from None


def check_form(form: str) -> None:
    if form not in ("in-place", "portable"):
        raise UserError(f"--form {form!r}: expected in-place or portable")


def check_recache(recache: str, *more: str) -> None:
    known = ("window", "chunks", *more)
    if recache not in known:
        raise UserError(f"--recache {recache!r}: expected {', '.join(known[:-1])} or {known[-1]}")


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


@post.command("add")
def add_post(
    bundle: Annotated[Path, typer.Argument(help="The bundle to add to.")],
    upscale: Annotated[
        Path | None,
        typer.Option(help="2x or 4x network: .onnx, or a super-resolution checkpoint (needs the extra `post`)."),
    ] = None,
    smooth: Annotated[
        Path | None, typer.Option(help="Network that makes a frame between two: .onnx, or the weights of RIFE's IFNet.")
    ] = None,
    times: Annotated[
        int | None, typer.Option(help="With --smooth: 2 or 4 times the frame rate; default: 2.", show_default=False)
    ] = None,
    off: Annotated[bool | None, typer.Option("--off/--on", help="Only where --post asks; default: as it is.")] = None,
) -> None:
    """Add smooth, upscale or both to a bundle (needs the extra `export`)."""
    with needs_extra("export"):
        from .post import add as put
    with reporting() as report:
        made = put(bundle, upscale, smooth, times, report, off)
    say(f"{bundle}: shows {made.with_post('all').output}{'' if made.post else ' with --post all'}")


@post.command("remove")
def remove_post(bundle: Annotated[Path, typer.Argument(help="The bundle to take them from.")]) -> None:
    """Take smooth and upscale out of a bundle (needs the extra `export`)."""
    with needs_extra("export"):
        from .post import remove
    say(f"{bundle}: {' and '.join(remove(bundle))} taken out")
