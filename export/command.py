"""`everframe export`: a checkpoint folder in, a verified engine bundle out."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx
import torch
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from safetensors.torch import save

from ..engines.bundle import (
    FORMAT,
    Bundle,
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
from ..runtime.rope import draw_jitter, split_head_dim
from .checkpoint import Checkpoint, CheckpointConfig, RopeConfig, load
from .graphs import PromptGraph, Ring, StepGraph
from .onnxfile import save_graph
from .taehv import DecodeGraph, zero_states
from .verify import compare

MIN_CHUNKS = 8
# Largest allowed difference between ONNX Runtime and eager PyTorch in float32; frames may differ by one rounding.
LIMITS = {
    "prompt": 1e-4,
    "x0": 1e-3,
    "next": 1e-3,
    "ring": 1e-3,
    "sink_mass": 1e-3,
    "frames": 1.0,
    "states": 1e-4,
}


@dataclass(frozen=True)
class Overrides:
    """What the command line may change in a checkpoint's config; None keeps it."""

    size: str | None = None
    window: int | None = None
    sink: int | None = None
    rope: str | None = None
    jitter: float | None = None
    jitter_seed: int | None = None


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
    """Write the bundle atomically and print how far each graph is from PyTorch. With probe, a second step graph that also
    tells the attention on the sinks goes in, for `everframe study sinks`.

    Raises UserError for a bad checkpoint, impossible sizes, an unwritable output, or a graph that does not agree.
    """
    if output.exists() and not force:
        raise UserError(f"{output}: already exists; remove it or pass --force")
    check_writable(output)
    checkpoint = load(folder)
    config = override(checkpoint.config, overrides)
    g = config.geometry
    layers_seen = g.window // g.chunk
    chunks = max(chunks, MIN_CHUNKS, layers_seen + 2)  # past the wrap of the ring
    ring = Ring(g.chunk, g.sink, g.window, g.height // 16, g.width // 16)
    steps = {
        name: StepGraph(checkpoint.transformer, config.schedule, ring, name == "probe")
        for name in ("step", *(["probe"] if probe else []))
    }
    prompt, decode = PromptGraph(checkpoint.transformer), DecodeGraph(checkpoint.autoencoder)
    with new_folder(output, replace=force) as part, torch.no_grad():
        with console.status("exporting graphs …"):
            graphs = write_graphs(part, config, steps, prompt, decode)
        bank = save({p: t.half().contiguous() for p, t in checkpoint.prompts.items()})
        (part / "prompts.safetensors").write_bytes(bank)
        write_manifest(part, manifest_of(config, graphs, part, folder, checkpoint))
        with console.status(f"comparing with PyTorch over {chunks} chunks …"):
            errors = compare(Bundle.open(part), steps, prompt, decode, chunks)
        report(console, errors, chunks)
        wrong = [f"{k} differs by {v:.2g} (limit {LIMITS[k]:.2g})" for k, v in errors.items() if not v <= LIMITS[k]]
        if wrong:
            raise UserError(f"{output}: not written, the graphs do not agree with PyTorch: {'; '.join(wrong)}")
        size = sum(f.stat().st_size for f in part.iterdir())
    console.print(f"{output}: {size / 2**20:.1f} MiB", highlight=False)


def override(config: CheckpointConfig, given: Overrides) -> CheckpointConfig:
    """The config with the command line's changes, validated again."""
    geometry, rope = config.geometry.model_dump(), config.rope.model_dump()
    if given.size is not None:
        match = re.fullmatch(r"(\d+)x(\d+)", given.size)
        if not match:
            raise UserError(f"--size {given.size!r}: expected WIDTHxHEIGHT, for example 256x144")
        geometry |= {"width": int(match[1]), "height": int(match[2])}
    geometry |= {k: v for k, v in (("window", given.window), ("sink", given.sink)) if v is not None}
    choices = (("mode", given.rope), ("jitter_sigma", given.jitter), ("jitter_seed", given.jitter_seed))
    rope |= {k: v for k, v in choices if v is not None}
    try:
        return config.model_copy(update={"geometry": Geometry(**geometry), "rope": RopeConfig(**rope)})
    except ValidationError as error:
        raise UserError(first_problem(error)) from None


def write_graphs(
    folder: Path, config: CheckpointConfig, steps: dict[str, StepGraph], prompt: PromptGraph, decode: DecodeGraph
) -> dict[str, Graph]:
    c, g = config.transformer, config.geometry
    latent = torch.zeros(g.latent_shape)
    table = torch.zeros(c.heads, g.chunk, split_head_dim(c.head_dim)[0] // 2)
    ring = torch.zeros(1, c.heads, g.cache_tokens, c.head_dim)
    text_kv = torch.zeros(1, c.heads, c.text_len, c.head_dim)
    names = {s: [f"{s}_{i}" for i in range(c.layers)] for s in ("k", "v", "prompt_k", "prompt_v")}
    index = torch.zeros(1, dtype=torch.int64)
    filled = torch.full((1,), g.chunk_tokens)
    args = (latent, index, latent.clone(), table, table.clone(), index.clone(), filled)
    rings = tuple([blank.clone() for _ in range(c.layers)] for blank in (ring, ring, text_kv, text_kv))
    inputs = [
        "latent",
        "step",
        "noise",
        "rope_cos",
        "rope_sin",
        "slot",
        "kv_len",
        *(n for group in names.values() for n in group),
    ]
    outputs = ["x0", "next", *(f"{n}_next" for n in (*names["k"], *names["v"]))]
    states = zero_states(decode.model.decoder, 1, latent.shape[3], latent.shape[4], latent)
    states_in = [f"state_{i}" for i in range(len(states))]
    states_out = [f"{n}_next" for n in states_in]
    passes = {
        name: save_graph(
            step, (*args, *rings), inputs, [*outputs, *(["sink_mass"] if step.probe else [])], folder / f"{name}.onnx"
        )
        for name, step in steps.items()
    }
    return {
        **passes,
        "prompt": save_graph(
            prompt,
            (torch.zeros(1, c.text_len, c.text_dim),),
            ["text"],
            [*names["prompt_k"], *names["prompt_v"]],
            folder / "prompt.onnx",
        ),
        "decode": save_graph(
            decode, (latent, *states), ["latent", *states_in], ["frames", *states_out], folder / "decode.onnx"
        ),
    }


def manifest_of(
    config: CheckpointConfig, graphs: dict[str, Graph], part: Path, folder: Path, checkpoint: Checkpoint
) -> Manifest:
    c, s, r = config.transformer, config.schedule, config.rope
    return Manifest(
        format=FORMAT,
        name=config.name,
        network=Network(
            dim=c.dim,
            ffn_dim=c.ffn_dim,
            heads=c.heads,
            head_dim=c.head_dim,
            layers=c.layers,
            text_len=c.text_len,
            text_dim=c.text_dim,
        ),
        geometry=config.geometry,
        schedule=ScheduleSpec(
            steps=list(s.steps), shift=s.shift, context_noise=s.context_noise, sigmas=s.sigmas().tolist()
        ),
        rope=RopeSpec(
            theta=c.theta,
            channels=split_head_dim(c.head_dim)[0],
            mode=r.mode,
            jitter_sigma=r.jitter_sigma,
            jitter_seed=r.jitter_seed,
            epsilon=draw_jitter(c.heads, r.jitter_seed).tolist(),
        ),
        graphs=graphs,
        prompt_bank=describe(part / "prompts.safetensors"),
        prompts=config.prompts,
        provenance={
            "checkpoint": {
                f.name: describe(f).sha256 for f in sorted(folder.iterdir()) if f.suffix in (".safetensors", ".json")
            },
            "parameters": sum(p.numel() for p in checkpoint.transformer.parameters()),
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
