"""Every exported graph in ONNX Runtime against the eager PyTorch module, over whole chunks and past the wrap of the ring."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..engines.base import HIDDEN, Buffer, EngineOptions
from ..engines.bundle import Bundle
from ..engines.ort import OrtBackend
from ..runtime.ring import RingLayout
from ..runtime.rope import head_frequencies, temporal_tables
from .graphs import PortableStepGraph, StepGraph
from .graphset import GraphSet
from .recachegraph import RecacheGraph
from .sinkgraph import SinkGraph


def compare(bundle: Bundle, modules: GraphSet, chunks: int) -> dict[str, float]:
    """Largest differences by output: 'prompt', 'x0', 'next', 'ring' (and 'sink_mass' of the probe) relative to the
    reference's largest value, 'recache' and 'sinks' likewise, 'frames' in grey levels, the decoder's 'states' and the
    encoder's 'anchor', relative."""
    backend = OrtBackend(EngineOptions())
    generator = torch.Generator().manual_seed(0)
    worst: dict[str, float] = {}
    text = torch.randn(_shape(bundle, "prompt", "text"), generator=generator)
    context = modules.prompt(text)

    def check(name: str, got: Buffer, expected: Tensor) -> None:
        worst[name] = max(worst.get(name, 0.0), difference(name, torch.from_numpy(got.read()), expected))

    engine = backend.load(bundle, "prompt")
    buffers = _buffers(engine)
    buffers["text"].write(text.numpy())
    _run(engine, buffers)
    for spec, expected in zip(engine.graph.outputs, context, strict=True):
        check("prompt", buffers[spec.name], expected)

    for name, module in modules.steps.items():
        compare_step(bundle, name, module, context, chunks, check)

    if modules.recache is not None:
        compare_recache(bundle, modules.recache, context, check)
    if modules.sinks is not None:
        compare_sinks(bundle, modules.sinks, check)
    compare_decoders(bundle, modules.decoders, chunks, check)
    if modules.encoder is not None:
        engine = backend.load(bundle, "encode")
        buffers = _buffers(engine)
        clip = torch.randint(0, 256, engine.graph.inputs[0].shape, generator=generator, dtype=torch.uint8)
        buffers["frames"].write(clip.numpy())
        _run(engine, buffers)
        check("anchor", buffers["latent"], modules.encoder(clip))
    return worst


def difference(name: str, got: Tensor, expected: Tensor) -> float:
    """The largest one of an output, in the unit that `compare` tells; infinite where either side has a number that is not
    finite. Then a plain difference would be NaN, which `max` and every limit pass over or not by the order of the two."""
    values, reference = got.double(), expected.double()
    if not (values.isfinite().all() and reference.isfinite().all()):
        return math.inf
    scale = 1.0 if name == "frames" else float(reference.abs().max()) + 1e-12
    return float((values - reference).abs().max()) / scale


def compare_decoders(
    bundle: Bundle, decoders: dict[str, nn.Module], chunks: int, check: Callable[[str, Buffer, Tensor], None]
) -> None:
    """So many chunks, each from the states that the one before left."""
    backend, generator = OrtBackend(EngineOptions()), torch.Generator().manual_seed(3)
    engines = {name: backend.load(bundle, name) for name in decoders}
    all_buffers = {name: _buffers(engine) for name, engine in engines.items()}
    shape = bundle.manifest.geometry.latent_shape
    states = decoders["decode"].zero_states(torch.zeros(shape))  # type: ignore[operator]
    for c in range(chunks):
        name = "decode_first" if c == 0 and "decode_first" in decoders else "decode"
        engine, buffers = engines[name], all_buffers[name]
        latent = torch.randn(shape, generator=generator)
        frames, *states_after = decoders[name](latent, *states)
        given = dict(zip((s.name for s in engines["decode"].graph.inputs), (latent, *states), strict=True))
        for spec in engine.graph.inputs:
            buffers[spec.name].write(given[spec.name].numpy())
        _run(engine, buffers)
        check("frames", buffers["frames"], frames)
        for spec, state in zip(engine.graph.outputs[1:], states_after, strict=True):
            check("states", buffers[spec.name], state)
        states = states_after


def compare_step(
    bundle: Bundle,
    name: str,
    module: StepGraph,
    context: tuple[Tensor, ...],
    chunks: int,
    check: Callable[[str, Buffer, Tensor], None],
) -> None:
    """One step graph, all passes of so many chunks, the ring in place on one side and copied on the other; in the portable
    form, stored on both sides after the commit pass."""
    portable = isinstance(module, PortableStepGraph)
    engine = OrtBackend(EngineOptions()).load(bundle, name)
    buffers = _buffers(engine, in_place=not portable)
    for spec, values in zip([s for s in engine.graph.inputs if s.name.startswith("prompt_")], context, strict=True):
        buffers[spec.name].write(values.numpy())
    rope, geometry = bundle.manifest.rope, bundle.manifest.geometry
    frequencies = head_frequencies(rope, rope.jitter_sigma)
    layout = RingLayout.of(geometry)
    layers = len(context) // 2
    generator = torch.Generator().manual_seed(1)
    keys = [torch.zeros(_shape(bundle, name, "k_0"), dtype=context[0].dtype) for _ in range(layers)]
    values = [torch.zeros_like(k) for k in keys]
    schedule = bundle.manifest.schedule
    commit = len(schedule.steps)
    usual, first = range(commit), range(commit + 1, commit + 1 + len(schedule.first_steps or []))
    for c in range(chunks):
        slot = layout.place(c, portable)
        tables = temporal_tables(np.arange(geometry.chunk) + float(c * geometry.chunk), frequencies)
        place: tuple[Tensor, ...] = (torch.tensor([slot.start]), torch.tensor([slot.valid]))
        if portable:
            mask = torch.where(torch.arange(geometry.cache_tokens) < slot.valid, 0.0, HIDDEN)
            mask[-geometry.chunk_tokens :] = 0
            place = (mask.view(1, 1, 1, -1),)
        if module.turning:
            place = (*place, *angles(_shape(bundle, name, "sink_cos"), generator))
        latent = torch.randn(geometry.latent_shape, generator=generator)
        denoising = first if c == 0 and first else usual
        told: dict[str, Tensor] = {}  # the sampler's own outputs in this chunk
        for i in [*denoising, commit]:
            read = [sampler_input(n, told, geometry.latent_shape, generator) for n in module.sampler.reads]
            args = (latent, torch.tensor([i]), read, *(torch.from_numpy(t) for t in tables))
            x0, after, *rest = module(*args, list(place), keys, values, list(context[:layers]), list(context[layers:]))
            flows, rest = rest[: len(module.sampler.leaves)], rest[len(module.sampler.leaves) :]
            own, probed = (rest[:layers], rest[layers : 2 * layers]), rest[2 * layers :]
            if not portable:
                keys, values = own
            given = (latent, args[1], *read, *args[3:], *place)
            for spec, value in zip(engine.graph.inputs, given, strict=False):
                buffers[spec.name].write(value.numpy())
            _run(engine, buffers)
            check("x0", buffers["x0"], x0)
            check("next", buffers["next"], after)
            for flow in flows:
                check("flow", buffers["flow"], flow)
                told[f"flow_{i}"] = flow
            for mass in probed:
                check("sink_mass", buffers["sink_mass"], mass)
            for side, tensors in zip("kv", own, strict=True):
                for j, tensor in enumerate(tensors):
                    check("ring", buffers[f"{side}_{j}{'_new' if portable else ''}"], tensor)
            latent = x0 if i in (denoising[-1], commit) else after
            if portable and i == commit and slot.start >= 0:
                stop = slot.start + geometry.chunk_tokens
                for side, ring, tensors in zip("kv", (keys, values), own, strict=True):
                    for j, tensor in enumerate(tensors):
                        ring[j][:, :, slot.start : stop] = tensor
                        buffers[f"{side}_{j}"].write_tokens(slot.start, buffers[f"{side}_{j}_new"].read())


def sampler_input(
    name: str, told: dict[str, Tensor], latent_shape: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    """What a sampler reads: an earlier flow, zeros where there is none yet; which frames are given; fresh noise."""
    if name == "still":
        return torch.randint(0, 2, (latent_shape[2],), generator=generator)
    if name.startswith("flow_"):
        return told.get(name, torch.zeros(latent_shape))
    return torch.randn(latent_shape, generator=generator)


def compare_recache(
    bundle: Bundle, module: RecacheGraph, context: tuple[Tensor, ...], check: Callable[[str, Buffer, Tensor], None]
) -> None:
    """The pass over the whole window: a full one whose sinks stay, and one that is filling, whose sinks are made anew."""
    engine = OrtBackend(EngineOptions()).load(bundle, "recache")
    buffers = _buffers(engine)
    ring, layers = module.ring, module.model.config.layers
    generator = torch.Generator().manual_seed(2)
    for keep, there in ((1, ring.cache_tokens), (0, ring.chunk_tokens)):
        given: dict[str, Tensor] = {
            s.name: torch.randn(s.shape, generator=generator).to(getattr(torch, s.dtype)) for s in engine.graph.inputs
        }
        for name in ("rope", "sink"):
            if f"{name}_cos" in given:
                tables = angles(given[f"{name}_cos"].shape, generator)
                given |= zip((f"{name}_cos", f"{name}_sin"), tables, strict=True)
        if module.portable:
            seen = torch.arange(ring.cache_tokens) < there
            given["mask"] = torch.where(seen, 0.0, HIDDEN).view(1, 1, 1, -1)
        else:
            given["kv_len"] = torch.tensor([there])
        place = [given[n] for n in ("mask", "kv_len", "sink_cos", "sink_sin") if n in given]
        given["keep"] = torch.tensor([keep])
        given |= {
            n: t for n, t in zip(_names("prompt_k", "prompt_v", layers=layers), context, strict=True) if n in given
        }
        sinks = [[given[n] for n in _names(s, layers=layers) if n in given] for s in ("sink_k", "sink_v")]
        made = module(
            *(given[n] for n in ("latents", "rope_cos", "rope_sin")),
            *(place, given["keep"], *sinks, list(context[:layers]), list(context[layers:])),
        )
        for spec in engine.graph.inputs:
            buffers[spec.name].write(given[spec.name].numpy())
        _run(engine, buffers)
        for name, expected in zip(_names("k", "v", layers=layers), made, strict=True):
            check("recache", buffers[f"{name}_next"], expected)


def compare_sinks(bundle: Bundle, module: SinkGraph, check: Callable[[str, Buffer, Tensor], None]) -> None:
    """One layer's mean: a chunk that becomes it, one that flows in, none."""
    engine = OrtBackend(EngineOptions()).load(bundle, "sinks")
    buffers = _buffers(engine)
    generator = torch.Generator().manual_seed(4)
    for keep, leaving in ((0.0, 0), (0.9, module.ring.chunk_tokens), (1.0, 0)):
        given = {s.name: torch.randn(s.shape, generator=generator) for s in engine.graph.inputs}
        given = {s.name: given[s.name].to(getattr(torch, s.dtype)) for s in engine.graph.inputs}
        given |= {"keep": torch.tensor([keep]), "leaving": torch.tensor([leaving])}
        given |= zip(("back_cos", "back_sin"), angles(given["back_cos"].shape, generator), strict=True)
        for name, value in given.items():
            buffers[name].write(value.numpy())
        _run(engine, buffers)
        for spec, expected in zip(engine.graph.outputs, module(*given.values()), strict=True):
            check("sinks", buffers[spec.name], expected)


def angles(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cosines and sines of any angles."""
    angle = 6.3 * torch.rand(shape, generator=generator)
    return angle.cos(), angle.sin()


def _names(*sides: str, layers: int) -> list[str]:
    return [f"{side}_{i}" for side in sides for i in range(layers)]


def _shape(bundle: Bundle, graph: str, name: str) -> tuple[int, ...]:
    return next(tuple(s.shape) for s in bundle.manifest.graphs[graph].inputs if s.name == name)


def _buffers(engine, in_place: bool = False) -> dict[str, Buffer]:
    """A buffer for every tensor; in place, the ring's outputs share those of its inputs."""
    buffers = {s.name: engine.device.zeros(s.shape, s.dtype) for s in engine.graph.inputs}
    for spec in engine.graph.outputs:
        source = spec.name.removesuffix("_next")
        shared = in_place and source != spec.name
        buffers[spec.name] = buffers[source] if shared else engine.device.zeros(spec.shape, spec.dtype)
    return buffers


def _run(engine, buffers: dict[str, Buffer]) -> None:
    inputs, outputs = ({s.name: buffers[s.name] for s in side} for side in (engine.graph.inputs, engine.graph.outputs))
    engine.bind(inputs, outputs)()
