"""`everframe export`: a checkpoint folder in, a verified engine bundle out."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from safetensors.torch import save
from torch import Tensor, nn

from ..engines.bundle import (
    FORMAT,
    Bundle,
    FileRef,
    Geometry,
    Graph,
    Manifest,
    Network,
    RopeSpec,
    ScheduleSpec,
    describe,
    first_problem,
    write_manifest,
)
from ..engines.errors import UserError
from ..engines.files import check_writable, new_folder
from ..runtime.console import say
from ..runtime.rope import draw_jitter, split_head_dim
from .checkpoint import CheckpointConfig, RopeConfig, load
from .graphs import OPSET, PORTABLE_OPSET, PortableStepGraph, PromptGraph, Ring, StepGraph
from .onnxfile import save_graph
from .schedule import Schedule
from .taehv import Taehv
from .taehvgraphs import DecodeGraph, EncodeGraph
from .textgraph import write_text_graph
from .texts import Umt5
from .verify import compare
from .wan import Wan

MIN_CHUNKS = 8
# Largest allowed difference between ONNX Runtime and eager PyTorch; frames may differ by one rounding in float32. In
# float16 the two round at other places: ONNX Runtime's CPU kernels mostly compute in float32.
LIMITS = {
    "fp32": {
        "prompt": 1e-4,
        "x0": 1e-3,
        "next": 1e-3,
        "ring": 1e-3,
        "sink_mass": 1e-3,
        "frames": 1.0,
        "states": 1e-4,
        "anchor": 1e-3,
    },
    "fp16": {
        "prompt": 1e-2,
        "x0": 5e-2,
        "next": 5e-2,
        "ring": 5e-2,
        "sink_mass": 5e-2,
        "frames": 8.0,
        "states": 5e-2,
        "anchor": 5e-2,
    },
}


@dataclass(frozen=True)
class Overrides:
    """What the command line may change in a checkpoint's config; None keeps it."""

    size: str | None = None
    window: int | None = None
    sink: int | None = None
    steps: int | None = None  # how many, evenly spaced from 1000
    rope: str | None = None
    jitter: float | None = None
    jitter_seed: int | None = None
    encoder: bool = False
    form: Literal["in-place", "portable"] = "in-place"


@dataclass(frozen=True)
class Parts:
    """Everything that goes into a bundle, whatever it was read from."""

    name: str
    transformer: Wan
    geometry: Geometry
    schedule: Schedule
    rope: RopeConfig
    decoders: dict[str, nn.Module]  # "decode" and, where a stream's first chunk decodes differently, "decode_first"
    encoder: nn.Module | None
    prompts: dict[str, Tensor]  # prompt -> [tokens, text_dim]
    provenance: dict[str, Any]
    precision: Literal["fp32", "fp16"] = "fp32"
    form: Literal["in-place", "portable"] = "in-place"
    text_encoder: Umt5 | None = None  # to go into the bundle as a graph


def export_checkpoint(
    folder: Path,
    output: Path,
    overrides: Overrides,
    *,
    chunks: int,
    force: bool,
    console: Console,
    probe: bool = False,
) -> None:
    """Export a checkpoint folder of our own. Arguments and errors as `write_bundle`."""
    check_target(output, force)
    checkpoint = load(folder)
    config = override(checkpoint.config, overrides)
    parts = Parts(
        name=config.name,
        transformer=checkpoint.transformer,
        geometry=config.geometry,
        schedule=config.schedule,
        rope=config.rope,
        decoders=decoders_of(checkpoint.autoencoder),
        encoder=EncodeGraph(checkpoint.autoencoder) if overrides.encoder else None,
        prompts=checkpoint.prompts,
        form=overrides.form,
        provenance={
            "checkpoint": {
                f.name: describe(f).sha256 for f in sorted(folder.iterdir()) if f.suffix in (".safetensors", ".json")
            }
        },
    )
    write_bundle(parts, output, chunks=chunks, force=force, console=console, probe=probe)


def decoders_of(model: Taehv) -> dict[str, nn.Module]:
    first = {"decode_first": DecodeGraph(model, first=True)} if model.config.lead else {}
    return {"decode": DecodeGraph(model), **first}


def check_target(output: Path, force: bool) -> None:
    """Fail before any work is done."""
    if output.exists() and not force:
        raise UserError(f"{output}: already exists; remove it or pass --force")
    check_writable(output)


def write_bundle(
    parts: Parts, output: Path, *, chunks: int, force: bool, console: Console, probe: bool = False
) -> None:
    """Write the bundle atomically and print how far each graph is from PyTorch. With probe, a second step graph that also
    tells the attention on the sinks goes in, for `everframe study sinks`.

    chunks: how many to compare over, raised so that the ring wraps; 0: do not compare, only check the graphs.
    Raises UserError for impossible sizes, an unwritable output, or a graph that does not agree.
    """
    check_target(output, force)
    g = parts.geometry
    if chunks:
        chunks = max(chunks, MIN_CHUNKS, g.window // g.chunk + 2)  # past the wrap of the ring
    ring = Ring(g.chunk, g.sink, g.window, g.height // 16, g.width // 16)
    portable = parts.form == "portable"
    if portable and (probe or g.window == g.chunk):
        raise UserError("--form portable: has no probe, and needs a window larger than a chunk")
    kind = PortableStepGraph if portable else StepGraph
    steps = {
        name: kind(parts.transformer, parts.schedule, ring, name == "probe")
        for name in ("step", *(["probe"] if probe else []))
    }
    prompt = PromptGraph(parts.transformer)
    limits = LIMITS[parts.precision]
    with new_folder(output, replace=force) as part, torch.no_grad():
        with console.status("exporting graphs …"):
            graphs = write_graphs(part, parts, steps, prompt)
        bank = save({p: t.half().contiguous() for p, t in parts.prompts.items()})
        (part / "prompts.safetensors").write_bytes(bank)
        tokenizer = None
        if parts.text_encoder is not None:
            with console.status("exporting the text encoder …"):
                graphs["text"], tokenizer = write_text_graph(
                    part, parts.text_encoder, parts.transformer.config.text_len
                )
        write_manifest(part, manifest_of(parts, graphs, tokenizer, part, chunks))
        if chunks:
            with console.status(f"comparing with PyTorch over {chunks} chunks …"):
                errors = compare(Bundle.open(part), steps, prompt, parts.decoders, parts.encoder, chunks)
            report(console, errors, chunks)
            wrong = [f"{k} differs by {v:.2g} (limit {limits[k]:.2g})" for k, v in errors.items() if not v <= limits[k]]
            if wrong:
                raise UserError(f"{output}: not written, the graphs do not agree with PyTorch: {'; '.join(wrong)}")
        size = sum(f.stat().st_size for f in part.iterdir())
    say(console, f"{output}: {size / 2**20:.1f} MiB")


def override(config: CheckpointConfig, given: Overrides) -> CheckpointConfig:
    """The config with the command line's changes, validated again."""
    geometry, rope = config.geometry.model_dump(), config.rope.model_dump()
    if given.size is not None:
        width, height = parse_size(given.size)
        geometry |= {"width": width, "height": height}
    geometry |= {k: v for k, v in (("window", given.window), ("sink", given.sink)) if v is not None}
    choices = (("mode", given.rope), ("jitter_sigma", given.jitter), ("jitter_seed", given.jitter_seed))
    rope |= {k: v for k, v in choices if v is not None}
    schedule = config.schedule
    if given.steps is not None:
        schedule = replace(schedule, steps=tuple(1000 - 1000 * i // given.steps for i in range(given.steps)))
    try:
        changes = {"geometry": Geometry(**geometry), "rope": RopeConfig(**rope), "schedule": schedule}
        return config.model_copy(update=changes)
    except ValidationError as error:
        raise UserError(first_problem(error)) from None


def parse_size(text: str) -> tuple[int, int]:
    """'256x144' -> (256, 144). Raises UserError."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise UserError(f"--size {text!r}: expected WIDTHxHEIGHT, for example 256x144")
    return int(match[1]), int(match[2])


def write_graphs(folder: Path, parts: Parts, steps: dict[str, StepGraph], prompt: PromptGraph) -> dict[str, Graph]:
    c, g = parts.transformer.config, parts.geometry
    kind = torch.float16 if parts.precision == "fp16" else torch.float32
    portable = parts.form == "portable"
    opset = PORTABLE_OPSET if portable else OPSET
    latent = torch.zeros(g.latent_shape)
    table = torch.zeros(c.heads, g.chunk, split_head_dim(c.head_dim)[0] // 2)
    held = g.cache_tokens - (g.chunk_tokens if portable else 0)
    ring = torch.zeros(1, c.heads, held, c.head_dim, dtype=kind)
    text_kv = torch.zeros(1, c.heads, c.text_len, c.head_dim, dtype=kind)
    names = {s: [f"{s}_{i}" for i in range(c.layers)] for s in ("k", "v", "prompt_k", "prompt_v")}
    index = torch.zeros(1, dtype=torch.int64)
    if portable:
        place: dict[str, torch.Tensor] = {"mask": torch.zeros(1, 1, 1, g.cache_tokens)}
    else:
        place = {"slot": index.clone(), "kv_len": torch.full((1,), g.chunk_tokens)}
    args = (latent, index, latent.clone(), table, table.clone(), *place.values())
    # Every argument is a tensor of its own, or the exporter would make one input of two; expanded, it costs nothing.
    rings = tuple(
        [blank[:, :, :1].expand_as(blank) for _ in range(c.layers)] for blank in (ring, ring, text_kv, text_kv)
    )
    inputs = ["latent", "step", "noise", "rope_cos", "rope_sin", *place]
    inputs += [n for group in names.values() for n in group]
    suffix = "new" if portable else "next"
    outputs = ["x0", "next", *(f"{n}_{suffix}" for n in (*names["k"], *names["v"]))]
    graphs = {}
    for name, step in steps.items():
        told = [*outputs, *(["sink_mass"] if step.probe else [])]
        graphs[name] = save_graph(step, (*args, *rings), inputs, told, folder / f"{name}.onnx", opset)
    text = torch.zeros(1, c.text_len, c.text_dim)
    told = [*names["prompt_k"], *names["prompt_v"]]
    graphs["prompt"] = save_graph(prompt, (text,), ["text"], told, folder / "prompt.onnx", opset)
    for name, decoder in parts.decoders.items():
        states = decoder.zero_states(latent)  # type: ignore[operator]
        states_in = [f"state_{i}" for i in range(len(states))]
        told = ["frames", *(f"{n}_next" for n in states_in)]
        graphs[name] = save_graph(
            decoder, (latent, *states), ["latent", *states_in], told, folder / f"{name}.onnx", opset
        )
    if parts.encoder is not None:
        clip = torch.zeros(anchor_shape(parts, graphs), dtype=torch.uint8)
        graphs["encode"] = save_graph(parts.encoder, (clip,), ["frames"], ["latent"], folder / "encode.onnx", opset)
    return graphs


def anchor_shape(parts: Parts, graphs: dict[str, Graph]) -> tuple[int, int, int, int]:
    """Frames of the clip that becomes the sinks [T, H, W, 3]: as many as the sinks decode to."""
    g = parts.geometry
    first = graphs.get("decode_first", graphs["decode"]).outputs[0].shape[0]
    return first + (max(g.sink, g.chunk) - g.chunk) * g.time_scale, g.height, g.width, 3


def manifest_of(parts: Parts, graphs: dict[str, Graph], tokenizer: FileRef | None, part: Path, chunks: int) -> Manifest:
    c, s, r = parts.transformer.config, parts.schedule, parts.rope
    return Manifest(
        format=FORMAT,
        name=parts.name,
        network=Network(
            dim=c.dim,
            ffn_dim=c.ffn_dim,
            heads=c.heads,
            head_dim=c.head_dim,
            layers=c.layers,
            text_len=c.text_len,
            text_dim=c.text_dim,
        ),
        geometry=parts.geometry,
        schedule=ScheduleSpec(
            steps=list(s.steps), shift=s.shift, context_noise=s.context_noise, sigmas=s.sigmas().tolist(), eta=s.eta
        ),
        rope=RopeSpec(
            theta=c.theta,
            channels=split_head_dim(c.head_dim)[0],
            mode=r.mode,
            jitter_sigma=r.jitter_sigma,
            jitter_seed=r.jitter_seed,
            epsilon=draw_jitter(c.heads, r.jitter_seed).tolist(),
        ),
        form=parts.form,
        graphs=graphs,
        prompt_bank=describe(part / "prompts.safetensors"),
        prompts=list(parts.prompts),
        tokenizer=tokenizer,
        provenance={
            **parts.provenance,
            "parameters": sum(p.numel() for p in parts.transformer.parameters()),
            "precision": parts.precision,
            "compared_chunks": chunks,
            "everframe": version("everframe"),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "python": platform.python_version(),
        },
    )


def report(console: Console, errors: dict[str, float], chunks: int) -> None:
    table = Table(title=f"ONNX Runtime against PyTorch, {chunks} chunks")
    table.add_column("output")
    table.add_column("largest difference", justify="right")
    table.add_column("unit")
    for name, error in errors.items():
        unit = "grey levels" if name == "frames" else "of the largest value"
        table.add_row(name, f"{error:.2g}", unit)
    console.print(table)
