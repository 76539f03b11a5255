"""Writing a bundle: every graph exported, checked, compared with PyTorch, and the folder named only when all agree."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from ..engines.bundle import (
    FORMAT,
    MANIFEST,
    Bundle,
    FileRef,
    Geometry,
    Graph,
    Manifest,
    Network,
    RopeSpec,
    ScheduleSpec,
    Shots,
    check_sink_distance,
    describe,
    write_manifest,
)
from ..engines.datafile import SHARED
from ..engines.errors import UserError
from ..engines.files import check_replaceable, check_writable, new_folder
from ..engines.progress import QUIET, Report
from ..runtime.jitter import designed_jitter, stratified_jitter
from ..runtime.rope import draw_jitter, split_head_dim
from .checkpoint import RopeConfig
from .eager import write_reference
from .graphs import OPSET, PORTABLE_OPSET, PortableStepGraph, PromptGraph, Ring, StepGraph
from .graphset import GraphSet
from .onnxfile import is_large, save_graph, with_weights
from .recachegraph import RecacheGraph, example
from .schedule import Schedule
from .sinkgraph import SinkGraph
from .taehv import Taehv
from .taehvgraphs import DecodeGraph
from .textgraph import text_difference, write_text_graph
from .texts import Umt5
from .verify import compare
from .wan import Wan, WanConfig
from .weightfile import WeightFile

Recache = Literal["window", "chunks", "none"]
KINDS = {"fp32": torch.float32, "fp16": torch.float16}
MIN_CHUNKS = 8
# Largest allowed difference between ONNX Runtime and eager PyTorch; frames may differ by one rounding in float32. In
# float16 the two round at other places: ONNX Runtime's CPU kernels mostly compute in float32. Five to ten times what was
# measured of right graphs, all on random weights: x0 0.0011, the ring 0.0033 and frames 1 of the 1.3B (docs/wan.md); of the
# tests' models the decoder's states 0.007, anchors 0.001, the pass over the window 0.0007. The text encoder's graph has INT8
# weights and activations: its distance from the encoder was 0.014 in the tests' two layers and 0.034 in 24 (width 256), of
# the embedding's size; another encoder is off by that size.
LIMITS = {
    "fp32": {
        "prompt": 1e-4,
        "x0": 1e-3,
        "next": 1e-3,
        "flow": 1e-3,
        "ring": 1e-3,
        "sink_mass": 1e-3,
        "frames": 1.0,
        "states": 1e-4,
        "anchor": 1e-3,
        "recache": 1e-3,
        "sinks": 1e-4,
        "text": 0.25,
    },
    "fp16": {
        "prompt": 1e-2,
        "x0": 2e-2,
        "next": 2e-2,
        "flow": 2e-2,
        "ring": 5e-2,
        "sink_mass": 1e-2,
        "frames": 8.0,
        "states": 5e-2,
        "anchor": 1e-2,
        "recache": 5e-2,
        "sinks": 1e-2,
        "text": 0.25,
    },
}


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
    recache: Recache = "window"  # what `smooth` does
    shots: Shots | None = None
    shot_prompts: dict[str, Tensor] = field(default_factory=dict)  # the prompts behind the prefix of shots
    text_encoder: Umt5 | None = None  # to go into the bundle as a graph
    weights: WeightFile | None = None  # where the transformer's large weights lie already


def decoders_of(model: Taehv) -> dict[str, nn.Module]:
    first = {"decode_first": DecodeGraph(model, first=True)} if model.config.lead else {}
    return {"decode": DecodeGraph(model), **first}


def check_target(output: Path, force: bool) -> None:
    """Fail before any work is done."""
    if output.exists() and not force:
        raise UserError(f"{output}: already exists; remove it or pass --force")
    check_replaceable(output, MANIFEST if force else None)
    check_writable(output)


def write_bundle(
    parts: Parts, output: Path, *, chunks: int, force: bool, report: Report = QUIET, probe: bool = False
) -> None:
    """Write the bundle atomically and tell how far each graph is from PyTorch. With probe, a second step graph that also
    tells the attention on the sinks goes in, for `everframe study sinks`.

    chunks: how many to compare over, raised so that the ring wraps; 0: do not compare, only check the graphs.
    Raises UserError for impossible sizes, an unwritable output, or a graph that does not agree.
    """
    check_target(output, force)
    g = parts.geometry
    if chunks:
        chunks = max(chunks, MIN_CHUNKS, g.window // g.chunk + 2)  # past the wrap of the ring
    modules = modules_of(parts, probe)
    limits = LIMITS[parts.precision]
    with new_folder(output, MANIFEST, replace=force) as part, torch.no_grad():
        epsilon = jitter_of(parts.rope, parts.transformer.config, report)
        report.step("exporting graphs", 0, None)
        graphs = write_graphs(part, parts, modules)
        bank = save({p: t.half().contiguous() for p, t in (parts.prompts | parts.shot_prompts).items()})
        (part / "prompts.safetensors").write_bytes(bank)
        tokenizer = None
        if parts.text_encoder is not None:
            report.step("exporting the text encoder", 0, None)
            graphs["text"], tokenizer = write_text_graph(part, parts.text_encoder, parts.transformer.config.text_len)
        write_manifest(part, manifest_of(parts, graphs, epsilon, tokenizer, part, chunks))
        if chunks:
            report.step(f"comparing with PyTorch over {chunks} chunks", 0, None)
            text = {}  # first, for the others may take hours
            if parts.text_encoder is not None:
                text["text"] = text_difference(Bundle.open(part), *next(iter(parts.prompts.items())))
                refuse_wrong(output, text, limits)
            errors = compare(Bundle.open(part), modules, chunks) | text
            for line in differences(errors, chunks):
                report.line(line)
            refuse_wrong(output, errors, limits)
            report.step("the reference's two chunks in PyTorch", 0, None)
            reference = write_reference(Bundle.open(part), modules.steps["step"], modules.prompt, parts.decoders)
            manifest = Bundle.open(part).manifest
            write_manifest(part, manifest.model_copy(update={"reference": describe(reference)}))
        size = sum(f.stat().st_size for f in part.iterdir())
    report.line(f"{output}: {size / 2**20:.1f} MiB")


def refuse_wrong(output: Path, errors: dict[str, float], limits: dict[str, float]) -> None:
    """Raises UserError."""
    wrong = [f"{k} differs by {v:.2g} (limit {limits[k]:.2g})" for k, v in errors.items() if not v <= limits[k]]
    if wrong:
        raise UserError(f"{output}: not written, the graphs do not agree with PyTorch: {'; '.join(wrong)}")


def modules_of(parts: Parts, probe: bool) -> GraphSet:
    """Everything that is exported. Raises UserError for what the portable form does not have."""
    g, model = parts.geometry, parts.transformer
    check_distance(g, parts.rope)
    check_form(parts.form, g, probe)
    ring = Ring(g.chunk, g.sink, g.window, *(side // (2 * g.space_scale) for side in (g.height, g.width)))
    portable = parts.form == "portable"
    step = PortableStepGraph if portable else StepGraph
    names = ("step", "probe") if probe else ("step",)
    turning = parts.rope.mode == "relative" and g.sink > 0  # else nothing is turned, and nothing paid for it
    held = parts.encoder is not None and parts.schedule.sampler == "unipc"
    return GraphSet(
        steps={name: step(model, parts.schedule, ring, name == "probe", turning, held) for name in names},
        prompt=PromptGraph(model),
        decoders=parts.decoders,
        encoder=parts.encoder,
        recache=RecacheGraph(model, parts.schedule, ring, portable, turning) if parts.recache == "window" else None,
        sinks=None if g.sink_ema is None else SinkGraph(model.config, ring, portable, KINDS[parts.precision]),
    )


def check_form(form: str, geometry: Geometry, probe: bool) -> None:
    """Raises UserError for what the portable form does not have."""
    if form == "portable" and (probe or geometry.window == geometry.chunk):
        raise UserError("--form portable: has no probe, and needs a window larger than a chunk")


def check_distance(geometry: Geometry, rope: RopeConfig) -> None:
    """Raises UserError for a distance without sinks that follow the window, or too small a one."""
    distance = rope.sink_distance
    if distance is not None and (rope.mode != "relative" or not geometry.sink):
        raise UserError(f"--sink-distance {distance}: expected --rope relative and sinks with it")
    try:
        check_sink_distance(geometry, distance)
    except ValueError as error:
        raise UserError(f"--sink-distance: {error}") from None


def step_example(step: StepGraph, parts: Parts) -> tuple[tuple[Any, ...], list[str], list[str]]:
    """Arguments to export it with, the inputs' names and the outputs'."""
    c, g, kind = parts.transformer.config, parts.geometry, KINDS[parts.precision]
    portable = parts.form == "portable"
    latent, index = torch.zeros(g.latent_shape), torch.zeros(1, dtype=torch.int64)
    table, turn = table_of(parts, g.chunk), table_of(parts, 1)
    held = g.cache_tokens - (g.chunk_tokens if portable else 0)
    ring = torch.zeros(1, c.heads, held, c.head_dim, dtype=kind)
    text_kv = torch.zeros(1, c.heads, c.text_len, c.head_dim, dtype=kind)
    if portable:
        place: dict[str, torch.Tensor] = {"mask": torch.zeros(1, 1, 1, g.cache_tokens)}
    else:
        place = {"slot": index.clone(), "kv_len": torch.full((1,), g.chunk_tokens)}
    if step.turning:
        place |= {"sink_cos": turn, "sink_sin": turn.clone()}
    # Every argument is a tensor of its own, or the exporter would make one input of two; expanded, it costs nothing.
    read = {name: index.repeat(g.chunk) if name == "still" else latent.clone() for name in step.sampler.reads}
    rings = tuple(
        [blank[:, :, :1].expand_as(blank) for _ in range(c.layers)] for blank in (ring, ring, text_kv, text_kv)
    )
    args = (latent, index, list(read.values()), table, table.clone(), list(place.values()), *rings)
    names = {s: [f"{s}_{i}" for i in range(c.layers)] for s in ("k", "v", "prompt_k", "prompt_v")}
    inputs = ["latent", "step", *read, "rope_cos", "rope_sin", *place, *(n for group in names.values() for n in group)]
    suffix = "new" if portable else "next"
    outputs = ["x0", "next", *step.sampler.leaves, *(f"{n}_{suffix}" for n in (*names["k"], *names["v"]))]
    return args, inputs, [*outputs, *(["sink_mass"] if step.probe else [])]


def table_of(parts: Parts, frames: int) -> Tensor:
    """A temporal table [H, frames, pairs], or every layer's own."""
    c = parts.transformer.config
    own = (c.layers,) if parts.rope.jitter_by == "layer" else ()
    return torch.zeros(*own, c.heads, frames, split_head_dim(c.head_dim)[0] // 2)


def write_graphs(folder: Path, parts: Parts, modules: GraphSet) -> dict[str, Graph]:
    weights = parts.weights or WeightFile(folder / SHARED)  # the transformer's graphs share theirs, if they are large
    c, g = parts.transformer.config, parts.geometry
    kind = KINDS[parts.precision]
    opset = PORTABLE_OPSET if parts.form == "portable" else OPSET
    latent = torch.zeros(g.latent_shape)
    graphs, large = {}, is_large(parts.transformer)
    for name, step in modules.steps.items():
        graphs[name] = save_graph(step, *step_example(step, parts), folder / f"{name}.onnx", opset, weights, large)
    if (recache := modules.recache) is not None:
        made = example(recache, g.latent_shape, kind, (table_of(parts, g.window), table_of(parts, 1)))
        graphs["recache"] = save_graph(recache, *made, folder / "recache.onnx", opset, weights, large)
    if (sinks := modules.sinks) is not None:
        graphs["sinks"] = save_graph(
            sinks, *sinks.example(split_head_dim(c.head_dim)[0] // 2), folder / "sinks.onnx", opset
        )
    text = torch.zeros(1, c.text_len, c.text_dim)
    told = [f"prompt_{s}_{i}" for s in "kv" for i in range(c.layers)]
    graphs["prompt"] = save_graph(modules.prompt, (text,), ["text"], told, folder / "prompt.onnx", opset, weights)
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
    return with_weights(graphs, weights)


def anchor_shape(parts: Parts, graphs: dict[str, Graph]) -> tuple[int, int, int, int]:
    """Frames of the clip that becomes the sinks [T, H, W, 3]: as many as the sinks decode to; or of the picture that is a
    stream's first latent frame."""
    g = parts.geometry
    if parts.schedule.sampler == "unipc":
        return 1, g.height, g.width, 3
    first = graphs.get("decode_first", graphs["decode"]).outputs[0].shape[0]
    return first + (max(g.sink, g.chunk) - g.chunk) * g.time_scale, g.height, g.width, 3


def manifest_of(
    parts: Parts,
    graphs: dict[str, Graph],
    epsilon: NDArray[np.float64],
    tokenizer: FileRef | None,
    part: Path,
    chunks: int,
) -> Manifest:
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
            steps=list(s.steps),
            shift=s.shift,
            context_noise=s.context_noise,
            sigmas=s.sigmas().tolist(),
            eta=s.eta,
            first_steps=None if s.first_steps is None else list(s.first_steps),
            first_sigmas=(s.first_timesteps() / 1000.0).tolist(),
            sampler=s.sampler,
        ),
        rope=RopeSpec(
            theta=c.theta,
            channels=split_head_dim(c.head_dim)[0],
            mode=r.mode,
            sink_distance=r.sink_distance,
            jitter_sigma=r.jitter_sigma,
            jitter_seed=r.jitter_seed,
            epsilon=epsilon.tolist(),
            jitter_design=r.jitter_design,
        ),
        form=parts.form,
        recache=parts.recache,
        shots=parts.shots,
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


def jitter_of(rope: RopeConfig, network: WanConfig, report: Report = QUIET) -> NDArray[np.float64]:
    """ε [heads], or [layers, heads]."""
    if rope.jitter_by == "head":
        return draw_jitter(network.heads, rope.jitter_seed)
    shape = network.layers, network.heads
    if rope.jitter_design is None:
        return stratified_jitter(*shape, rope.jitter_seed)
    channels = split_head_dim(network.head_dim)[0]
    given = channels, rope.jitter_sigma, *shape, rope.jitter_design, rope.jitter_seed
    return designed_jitter(network.theta, *given, report)


def differences(errors: dict[str, float], chunks: int) -> list[str]:
    """How far each graph is from PyTorch, a line an output."""
    units = {"frames": "grey levels", "text": "of the embedding's size, of one prompt"}
    told = (f"  {name:12} {error:.2g} {units.get(name, 'of the largest value')}" for name, error in errors.items())
    return [f"ONNX Runtime against PyTorch, largest differences over {chunks} chunks:", *told]
