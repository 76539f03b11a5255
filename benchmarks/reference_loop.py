"""Everframe beside a plain PyTorch loop that works as the published research code does: same weights, one run.

    python benchmarks/reference_loop.py [--chunks 20] [--threads 2] [--loop NAME …] [--int8 BUNDLE] [--json out.json]

The reference is written for itself, from the public parameter names: RoPE as complex float64 multiplication, a KV cache that
is cloned and rolled to the left at every eviction, keys and values of the window concatenated for every call, the timestep
embedding computed at every pass, cross-attention keys and values cached, the decoder run once a chunk in eager PyTorch.

The other PyTorch loops: our own eager step and decoder under torch.compile, the reference under autocast to bfloat16, both.
Ours: by ONNX Runtime, and by OpenVINO in every precision that it has here; with --int8, so the demo that everframe calibrate
quantised. Without --loop, all; those of PyTorch in bfloat16 only where the CPU has it: elsewhere they take most of a minute
a chunk.

Each loop is a process of its own, so that its peak memory is its own. Measures after the window is full: chunks as frames in
memory first, then as many written into an H.264 file as they come ("chunk, to file").
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from stream import Stages, add, eager_loop, scratch_video
from torch import Tensor

from everframe.engines.machine import processor_name

CHECKPOINT = Path(__file__).parent.parent / "training" / "demo"


class Reference:
    """The causal transformer and its sampler, the research way. Batch 1, float32."""

    def __init__(self, folder: Path):
        config = json.loads((folder / "config.json").read_text())
        self.s = {k: v.float() for k, v in load_file(folder / "transformer.safetensors").items()}
        t, g, schedule = config["transformer"], config["geometry"], config["schedule"]
        self.heads, self.layers, self.eps, self.theta = t["heads"], t["layers"], t["eps"], t["theta"]
        self.dim, self.freq, self.text_len = t["dim"], t["freq_dim"], t["text_len"]
        self.chunk, self.sink, self.window = g["chunk"], g["sink"], g["window"]
        self.rows, self.columns, self.channels = g["height"] // 16, g["width"] // 16, g["latent_channels"]
        self.frame = self.rows * self.columns
        shift = schedule["shift"]
        self.sigmas = [shift * s / 1000 / (1 + (shift - 1) * s / 1000) for s in schedule["steps"]]
        texts = load_file(folder / "prompts.safetensors")
        self.text = F.pad(texts[config["prompts"][0]].float(), (0, 0, 0, self.text_len))[: self.text_len][None]
        self.cache: list[tuple[Tensor, Tensor]] = []
        self.cross: list[tuple[Tensor, Tensor]] | None = None

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.s[f"{name}.weight"], self.s[f"{name}.bias"])

    def rms(self, name: str, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.s[f"{name}.weight"]

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))  # (1, N, H, D)

    def rope(self, x: Tensor, start: int) -> Tensor:
        """Complex multiplication in float64; tables made for every call, as positions have no end here."""
        depth = x.shape[-1]
        side = 2 * (depth // 6)
        parts = []
        for size, place in (
            (depth - 2 * side, torch.arange(start, start + self.chunk).repeat_interleave(self.frame)),
            (side, torch.arange(self.rows).repeat_interleave(self.columns).repeat(self.chunk)),
            (side, torch.arange(self.columns).repeat(self.chunk * self.rows)),
        ):
            frequency = self.theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
            parts.append(torch.outer(place.double(), frequency))
        angle = torch.cat(parts, 1)
        turn = torch.polar(torch.ones_like(angle), angle)[:, None]
        pairs = torch.view_as_complex(x[0].double().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turn).flatten(2)[None].type_as(x)

    def forward(self, latent: Tensor, timestep: float, start: int) -> Tensor:
        """latent (1, C, F, 2h, 2w) -> flow. Writes the chunk's keys and values at the end of the rolled cache."""
        x = F.conv3d(latent, self.s["patch_embedding.weight"], self.s["patch_embedding.bias"], stride=(1, 2, 2))
        x = x.flatten(2).transpose(1, 2)
        half = self.freq // 2
        wave = timestep * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        wave = torch.cat([wave.cos(), wave.sin()]).float()[None]
        e = self.linear("time_embedding.2", F.silu(self.linear("time_embedding.0", wave)))
        e0 = self.linear("time_projection.1", F.silu(e)).unflatten(1, (6, -1))
        if self.cross is None:
            inner = F.gelu(self.linear("text_embedding.0", self.text), approximate="tanh")
            context = self.linear("text_embedding.2", inner)
            self.cross = []
            for i in range(self.layers):
                b = f"blocks.{i}.cross_attn"
                k = self.split(self.rms(f"{b}.norm_k", self.linear(f"{b}.k", context)))
                self.cross.append((k, self.split(self.linear(f"{b}.v", context))))
        for i in range(self.layers):
            b = f"blocks.{i}"
            m = (self.s[f"{b}.modulation"] + e0).unbind(1)
            y = F.layer_norm(x, (self.dim,), eps=self.eps) * (1 + m[1][:, None]) + m[0][:, None]
            q = self.rope(self.split(self.rms(f"{b}.self_attn.norm_q", self.linear(f"{b}.self_attn.q", y))), start)
            k = self.rope(self.split(self.rms(f"{b}.self_attn.norm_k", self.linear(f"{b}.self_attn.k", y))), start)
            v = self.split(self.linear(f"{b}.self_attn.v", y))
            keys, values = self.remember(i, k, v, start)
            y = self.attend(q, keys, values)
            x = x + m[2][:, None] * self.linear(f"{b}.self_attn.o", y)
            y = F.layer_norm(x, (self.dim,), self.s[f"{b}.norm3.weight"], self.s[f"{b}.norm3.bias"], self.eps)
            q = self.split(self.rms(f"{b}.cross_attn.norm_q", self.linear(f"{b}.cross_attn.q", y)))
            x = x + self.linear(f"{b}.cross_attn.o", self.attend(q, *self.cross[i]))
            y = F.layer_norm(x, (self.dim,), eps=self.eps) * (1 + m[4][:, None]) + m[3][:, None]
            y = F.gelu(self.linear(f"{b}.ffn.0", y), approximate="tanh")
            x = x + m[5][:, None] * self.linear(f"{b}.ffn.2", y)
        shift, scale = (self.s["head.modulation"] + e[:, None]).unbind(1)
        x = self.linear("head.head", F.layer_norm(x, (self.dim,), eps=self.eps) * (1 + scale) + shift)
        x = x.view(1, self.chunk, self.rows, self.columns, 2, 2, self.channels)
        return x.permute(0, 6, 1, 2, 4, 3, 5).reshape(latent.shape)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def remember(self, layer: int, k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """The window's keys and values with this chunk's at their end; the cache is cloned and rolled when it is full."""
        if len(self.cache) <= layer:
            self.cache.append((k, v))
            return k, v
        out = []
        for old, new in zip(self.cache[layer], (k, v), strict=True):
            if start == self.position:  # the same chunk again: its place is the last one
                kept = old[:, : -new.shape[1]]
            elif old.shape[1] == self.window * self.frame:
                sinks, first = self.sink * self.frame, (self.sink + self.chunk) * self.frame
                kept = torch.cat([old[:, :sinks].clone(), old[:, first:].clone()], 1)
            else:
                kept = old
            out.append(torch.cat([kept, new], 1))
        self.cache[layer] = (out[0], out[1])
        return self.cache[layer]

    position = -1  # latent frame of the chunk whose keys and values stand at the end

    def next_chunk(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(index)
        shape = (1, self.channels, self.chunk, 2 * self.rows, 2 * self.columns)
        start = index * self.chunk
        x = torch.randn(shape, generator=generator)
        for i, sigma in enumerate(self.sigmas):
            flow = self.forward(x, 1000 * sigma, start)
            self.position = start
            x0 = x.double() - sigma * flow.double()
            x = x0.float()
            if i + 1 < len(self.sigmas):
                after = self.sigmas[i + 1]
                x = (1 - after) * x + after * torch.randn(shape, generator=generator)
        self.forward(x, 0.0, start)
        return x


STAGES = ("denoise and commit", "decode", "chunk")
TO_FILE = "chunk, to file"


def reference(folder: Path, chunks: int) -> Stages:
    from everframe.export.checkpoint import load
    from everframe.runtime import open_bundle

    model = Reference(folder)
    decoder = load(folder).autoencoder
    rows: Stages = {}
    states = None
    warm = model.window // model.chunk + 1
    with torch.no_grad(), scratch_video(open_bundle()) as out:
        for i in range(warm + 2 * chunks):
            marks = [time.perf_counter()]
            latent = model.next_chunk(i)
            marks.append(time.perf_counter())
            frames, states = decoder.decode(latent.transpose(1, 2), states)
            pixels = (frames.clamp(0, 1) * 255).round().byte().permute(0, 1, 3, 4, 2).contiguous().numpy()[0]
            marks.append(time.perf_counter())
            if warm <= i < warm + chunks:
                add(rows, dict(zip(STAGES, (*np.diff(marks).tolist(), marks[-1] - marks[0]), strict=True)))
            elif i >= warm:
                out.write(pixels)
                add(rows, {TO_FILE: time.perf_counter() - marks[0]})
    return rows


def ours(path: Path | None, chunks: int, threads: int, backend: str, precision: str) -> Stages:
    from everframe.engines.choose import open_backend
    from everframe.runtime import EngineOptions, Stream, open_bundle

    rows: Stages = {}
    bundle = open_bundle(path)
    engines = open_backend(backend, EngineOptions(threads=threads, precision=precision))
    with scratch_video(bundle) as out, Stream(bundle, backend=engines) as stream:
        warm = stream.layout.chunks + 1
        for i in range(warm + 2 * chunks):
            began = time.perf_counter()
            chunk = stream.next_chunk()
            t = chunk.timings
            if warm <= i < warm + chunks:
                add(rows, dict(zip(STAGES, (sum(t.diffuse) + t.finalize, t.decode, t.total), strict=True)))
            elif i >= warm:
                out.write(chunk.frames)
                add(rows, {TO_FILE: time.perf_counter() - began})
    return rows


def compiled(folder: Path, chunks: int) -> Stages:
    """Our own eager step and decoder, under torch.compile."""
    from everframe.export.graphs import StepGraph
    from everframe.export.taehvgraphs import DecodeGraph
    from everframe.runtime import open_bundle

    for kind in (StepGraph, DecodeGraph):
        kind.forward = torch.compile(kind.forward)  # type: ignore[method-assign]
    bundle = open_bundle()
    warm = bundle.manifest.geometry.window // bundle.manifest.geometry.chunk + 1
    found = eager_loop(bundle, folder, chunks, warm, torch.get_num_threads())
    both = [a + b for a, b in zip(found["diffuse"], found["finalize"], strict=True)]
    return dict(zip((*STAGES, TO_FILE), (both, found["decode"], found["chunk"], found["chunk + encode"]), strict=True))


def bfloat16(loop: Callable[[Path, int], Stages]) -> Callable[[Path, int], Stages]:
    """The loop as a user would try to make it faster."""

    def run(folder: Path, chunks: int) -> Stages:
        with torch.autocast("cpu", torch.bfloat16):
            return loop(folder, chunks)

    return run


PYTORCH = {
    "reference": reference,
    "compiled": compiled,
    "reference, bfloat16": bfloat16(reference),
    "compiled, bfloat16": bfloat16(compiled),
}


def our_loops(int8: Path | None) -> dict[str, tuple[Path | None, str, str]]:
    """Name of the loop -> bundle, backend and precision."""
    from everframe.engines.openvino import precisions
    from everframe.runtime import EngineOptions

    found = {"onnxruntime": ("onnxruntime", "auto")}
    found |= {f"openvino {one}": ("openvino", one) for one in precisions(EngineOptions())}
    plain: dict[str, tuple[Path | None, str, str]] = {name: (None, *engines) for name, engines in found.items()}
    quantised = {f"INT8, {name}": (int8, *engines) for name, engines in found.items() if int8}
    return plain | quantised


def measured(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One loop in a process of its own."""
    words = [sys.executable, __file__, "--only", name, "--chunks", str(args.chunks), "--threads", str(args.threads)]
    words += ["--int8", str(args.int8)] if args.int8 else []
    said = subprocess.run([*words, "--checkpoint", str(args.checkpoint)], check=True, capture_output=True, text=True)
    return json.loads(said.stdout.splitlines()[-1])


def only(name: str, args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    if name in PYTORCH:
        rows = PYTORCH[name](args.checkpoint, args.chunks)
    else:
        path, *engines = our_loops(args.int8)[name]
        rows = ours(path, args.chunks, args.threads, *engines)
    print(json.dumps({"seconds": rows, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--loop", action="append", help="may be repeated; default: all")
    parser.add_argument("--int8", type=Path, help="the demo, quantised")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", help="one loop, in this process")
    args = parser.parse_args()
    names = [*our_loops(args.int8), *PYTORCH]
    unknown = {*(args.loop or ()), *([args.only] if args.only else ())} - set(names)
    if unknown:
        parser.error(f"no loop {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if args.only:
        only(args.only, args)
        return
    console = Console(width=160)
    console.print(f"{processor_name()}, {args.threads} threads, {args.chunks} chunks past the wrap; median (p99) ms")
    table = Table()
    for column in ("", *STAGES, TO_FILE, "peak MiB", "reference / this"):
        table.add_column(column, justify="left" if column == "" else "right")
    slow = () if "BF16" in processor_name() else [name for name in names if name.endswith("bfloat16")]
    found: dict[str, Any] = {n: measured(n, args) for n in args.loop or [n for n in names if n not in slow]}
    against = found.get("reference")
    for name, one in found.items():
        spread = [(np.median(one["seconds"][s]), np.percentile(one["seconds"][s], 99)) for s in (*STAGES, TO_FILE)]
        cells = [f"{1000 * m:.0f} ({1000 * p:.0f})" for m, p in spread]
        chunk = float(np.median(one["seconds"]["chunk"]))
        ratio = f"{float(np.median(against['seconds']['chunk'])) / chunk:.2f}×" if against else ""
        table.add_row(name, *cells, f"{one['peak_mib']:.0f}", ratio)
    console.print(table)
    if args.json:
        args.json.write_text(
            json.dumps({"machine": processor_name(), "threads": args.threads, **found}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
