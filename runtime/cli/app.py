"""The `everframe` command. Every command ends in one of two ways: 0, or one clear line on standard error and 2."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from ..engines.base import EngineOptions
from ..engines.choose import open_backend
from ..engines.errors import UserError
from ..engines.files import check_writable, write_whole
from ..engines.ort import OrtBackend
from .console import say
from .demo import open_bundle
from .prompts import PromptBank
from .stream import Chunk, Stream
from .video import choose_encoder, open_output, read_picture

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
study = typer.Typer(no_args_is_help=True, help="Studies of the model's behaviour.")
app.add_typer(study, name="study")
prompt_bank = typer.Typer(help="The prompts of a bundle.")
app.add_typer(prompt_bank, name="prompts")


class FolderByDefault(TyperGroup):
    """`export FOLDER …` means `export checkpoint FOLDER …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["checkpoint", *args]
        return super().parse_args(ctx, args)


exporting = typer.Typer(
    cls=FolderByDefault, no_args_is_help=True, help="Export a checkpoint into an engine bundle: FOLDER, or wan."
)
app.add_typer(exporting, name="export")
console = Console(stderr=True)

OutputBundle = Annotated[Path, typer.Option("--output", "-o", help="The bundle to write, NAME.everframe.")]
CompareOption = Annotated[
    int, typer.Option(min=0, help="Chunks over which each graph is compared with PyTorch; 0: only checked.")
]
ProbeOption = Annotated[
    bool, typer.Option("--probe", help="Add a graph that tells the attention on the sinks, for study sinks.")
]
EncoderOption = Annotated[bool, typer.Option("--encoder", help="Add the encoder, so that a picture can be the anchor.")]
FormOption = Annotated[
    str, typer.Option(help="in-place, or portable: for TensorRT before 11.1 and rings that are not float.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace the bundle if it exists.")]
ThreadsOption = Annotated[int, typer.Option(help="CPU threads; 0 = one per core.")]
BundleOption = Annotated[Path | None, typer.Option("--bundle", "-b", help="Engine bundle; default: the shipped demo.")]


@app.callback()
def everframe() -> None:
    """Endless real-time video from few-step causal diffusion transformers, without PyTorch at run time."""


@app.command()
def generate(
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", help="out.mp4, out.mkv, out.gif, folder/, frame-%06d.png, or - for raw RGB frames."
        ),
    ],
    bundle: BundleOption = None,
    prompt: Annotated[str | None, typer.Option(help="A prompt of the bundle's bank; default: its first.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.01, help="Length of the video; default 30.")] = None,
    endless: Annotated[bool, typer.Option("--endless", help="Go on until Ctrl-C.")] = False,
    seed: Annotated[int, typer.Option(help="Same seed, same frames.")] = 0,
    start: Annotated[int, typer.Option(help="Latent frame index of the first chunk.")] = 0,
    then: Annotated[
        list[str] | None, typer.Option(help="SECONDS:PROMPT, change the prompt there; may be repeated.")
    ] = None,
    transition: Annotated[str, typer.Option(help="How prompts change: swap, smooth, flush or cut.")] = "smooth",
    anchor: Annotated[
        Path | None, typer.Option(help="A picture to start from and stay anchored to; needs a bundle with its encoder.")
    ] = None,
    rope: Annotated[str | None, typer.Option(help="absolute or relative; default: the bundle's.")] = None,
    jitter: Annotated[
        float | None, typer.Option(help="Sigma of the multi-head RoPE jitter; default: the bundle's.")
    ] = None,
    threads: ThreadsOption = 0,
    provider: Annotated[str, typer.Option(help="ONNX Runtime provider: cpu, cuda, tensorrt, nvtensorrtrtx.")] = "cpu",
    backend: Annotated[
        str, typer.Option(help="onnxruntime, or tensorrt-rtx or tensorrt with engines of everframe build.")
    ] = "onnxruntime",
    overlap: Annotated[
        bool | None,
        typer.Option(help="Decode a chunk beside the denoising of the next; default: where the device gains by it."),
    ] = None,
    encoder: Annotated[str, typer.Option(help="auto, libx264, h264_nvenc or hevc_nvenc.")] = "auto",
) -> None:
    """Generate video into a file, a PNG or GIF sequence, or a pipe."""
    if endless and seconds is not None:
        raise UserError("--seconds and --endless exclude each other")
    changes = sorted((parse_change(text) for text in then or []), key=lambda change: change[0])
    opened = open_bundle(bundle)
    geometry = opened.manifest.geometry
    total = None if endless else max(1, round((30 if seconds is None else seconds) * geometry.fps))
    with Stream(
        opened,
        prompt=prompt,
        seed=seed,
        start=start,
        rope_mode=rope,  # type: ignore[arg-type] - Stream checks it
        jitter_sigma=jitter,
        anchor=None if anchor is None else read_picture(anchor, geometry.width, geometry.height),
        overlap=overlap,
        backend=open_backend(backend, EngineOptions(provider, threads)),
    ) as stream:
        for _, text in changes:
            stream.bank.find(text)  # fail now, not in an hour
        chosen, notice = choose_encoder(encoder, geometry.width, geometry.height)
        if notice:
            say(console, notice)
        out = open_output(output, geometry.width, geometry.height, geometry.fps, endless, chosen)
        with StopSignals() as stop, out, Progress(geometry.fps, total) as progress:
            made = 0
            ahead = (
                geometry.chunk * geometry.time_scale if stream.overlap else 0
            )  # the chunk that is being made already
            for chunk in stream:
                frames = chunk.frames if total is None else chunk.frames[: total - made]
                out.write(frames)
                made += len(frames)
                progress.update(made, chunk)
                if stop.requested or made == total:
                    break
                while changes and changes[0][0] * geometry.fps <= made + ahead:
                    stream.set_prompt(changes.pop(0)[1], transition)  # type: ignore[arg-type]
    if output != "-":
        say(console, f"{output}: {made} frames, {made / geometry.fps:.2f} s at {geometry.fps} fps")


def parse_change(text: str) -> tuple[float, str]:
    """'12.5:a prompt' -> (12.5, 'a prompt')"""
    time_text, colon, prompt = text.partition(":")
    try:
        at = float(time_text)
    except ValueError:
        at = -1.0
    if not colon or not at >= 0 or not prompt.strip():
        raise UserError(f"--then {text!r}: expected SECONDS:PROMPT, for example 12.5:a calm sea")
    return at, prompt


@app.command()
def play(
    bundle: BundleOption = None,
    prompt: Annotated[str | None, typer.Option(help="A prompt of the bundle's bank; default: its first.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same frames.")] = 0,
    anchor: Annotated[Path | None, typer.Option(help="A picture to start from and stay anchored to.")] = None,
    fullscreen: Annotated[bool, typer.Option("--fullscreen", help="Fill the screen.")] = False,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Close the window after so long.")] = None,
    threads: ThreadsOption = 0,
    provider: Annotated[str, typer.Option(help="ONNX Runtime provider: cpu, cuda, tensorrt, nvtensorrtrtx.")] = "cpu",
    backend: Annotated[str, typer.Option(help="onnxruntime, tensorrt-rtx or tensorrt.")] = "onnxruntime",
) -> None:
    """Show the stream in a window (needs the extra `play`). Keys: arrows change the prompt, t the transition."""
    with needs_extra("play"):
        import pygame  # noqa: F401 - fail before the engines are loaded

        from . import play as playing
    opened = open_bundle(bundle)
    g = opened.manifest.geometry
    picture = None if anchor is None else read_picture(anchor, g.width, g.height)
    options = EngineOptions(provider, threads)
    with Stream(opened, prompt=prompt, seed=seed, anchor=picture, backend=open_backend(backend, options)) as stream:
        say(console, playing.KEYS)
        shown = playing.play(stream, stream.bank.prompts, fullscreen, seconds)
    say(console, f"{shown} frames shown")


@app.command()
def serve(
    bundle: Annotated[Path | None, typer.Argument(help="Engine bundle; default: the configured one.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; default 127.0.0.1: this machine alone.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on; default 8080.")] = None,
    config: Annotated[Path | None, typer.Option(help="Configuration in TOML; see docs/deploy/everframe.toml.")] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Folder for the saved state and the token; default everframe-state.")
    ] = None,
) -> None:
    """Show one endless stream to many screens, with a control API, until it is told to stop (needs the extra `serve`)."""
    with needs_extra("serve"):
        from .server.command import configure
        from .server.command import serve as run

        run(configure(config, bundle, host, port, state_dir))


@app.command()
def fleet(
    config: Annotated[
        Path, typer.Argument(help="The fleet's TOML file: streams, cluster, state_dir. See docs/fleet.md.")
    ],
) -> None:
    """Many streams on a Ray cluster behind one gateway, each restarted where its node dies (needs the extra `fleet`)."""
    with needs_extra("fleet"):
        from .server.command import serve_fleet

        serve_fleet(config)


@app.command()
def soak(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for soak.json, soak.png and sheet.png.")],
    minutes: Annotated[float, typer.Option(min=0.05, help="Minutes of video.")] = 60,
    bundle: BundleOption = None,
    prompt: Annotated[str | None, typer.Option(help="A prompt of the bundle's bank; default: its first.")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    start: Annotated[int, typer.Option(help="Latent frame index of the first chunk.")] = 0,
    rope: Annotated[str | None, typer.Option(help="absolute or relative; default: the bundle's.")] = None,
    jitter: Annotated[
        float | None, typer.Option(help="Sigma of the multi-head RoPE jitter; default: the bundle's.")
    ] = None,
    threads: ThreadsOption = 0,
) -> None:
    """Stream for long and hold the video and the machine against bounds; exit code 1 when one is broken."""
    from . import soak as soaking

    check_writable(output)
    options = EngineOptions(threads=threads)
    with Stream(
        open_bundle(bundle),
        prompt=prompt,
        seed=seed,
        start=start,
        rope_mode=rope,  # type: ignore[arg-type] - Stream checks it
        jitter_sigma=jitter,
        options=options,
    ) as stream:

        def watch(m: soaking.Minute) -> None:
            say(
                console,
                f"minute {m.minute:4d} · motion {m.motion:5.2f} · sharpness {m.sharpness:7.1f} · "
                f"to the sinks {m.sink_distance:4.2f} · {m.memory_bytes / 2**20:.0f} MiB · {m.chunk_median_ms:.0f} ms",
            )

        result = soaking.soak(stream, minutes, watch=watch)
    for file in soaking.write_report(output, result):
        say(console, str(file))
    problems = soaking.verdict(result.minutes)
    for problem in problems:
        say(console, f"[bold red]out of bounds:[/] {_plain(problem)}")
    if problems:
        raise typer.Exit(1)


@app.command()
def bench(
    what: Annotated[
        list[str] | None,
        typer.Argument(help="The bundle (default: the demo); with --compare two results; with --sweep window=6,12 …"),
    ] = None,
    chunks: Annotated[int, typer.Option(min=2, help="Measured chunks, after the ring is full.")] = 60,
    prompt: Annotated[str | None, typer.Option(help="A prompt of the bundle's bank; default: its first.")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON, or .html for a report; with --sweep a folder.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="An HTML report beside the JSON.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Ratios of two results: A.json B.json.")] = False,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="A grid: threads=1,2 window=6,12 steps=2,4 size=… precision=fp32,int8")
    ] = False,
    checkpoint: Annotated[
        Path | None, typer.Option(help="With --sweep: what bundles of another window, size, … are exported from.")
    ] = None,
    threads: ThreadsOption = 0,
    provider: Annotated[str, typer.Option(help="ONNX Runtime provider: cpu, cuda, tensorrt, nvtensorrtrtx.")] = "cpu",
    backend: Annotated[str, typer.Option(help="onnxruntime, tensorrt-rtx or tensorrt.")] = "onnxruntime",
) -> None:
    """Latency per chunk by stage, cold start, prompt changes, memory, energy; compare results; sweep settings."""
    from . import bench as benches
    from . import bench_report as reports
    from . import sweep as sweeps

    words = what or []
    out = Console()
    if compare:
        if len(words) != 2:
            raise UserError(f"--compare: expected two results, found {len(words)}")
        a, b = (benches.read_result(Path(word)) for word in words)
        reports.show_ratios(benches.ratios(a, b), (words[0], words[1]), out)
        return
    bundles = [word for word in words if not (sweep and "=" in word)]
    if len(bundles) > 1:
        raise UserError(f"expected one bundle, found {', '.join(bundles)}")
    bundle = Path(bundles[0]) if bundles else None
    if sweep:
        points = sweeps.grid([word for word in words if "=" in word])

        def tell(point: sweeps.Point, result: benches.Result) -> None:
            chunk, s = result.steady.stages["chunk"], result.steady
            words = " ".join(f"{k}={v}" for k, v in point.items())
            told = f"p50 {chunk.p50:7.1f} ms · p99 {chunk.p99:7.1f} ms · {s.real_time_factor:5.2f}× real time"
            say(out, f"{words:40} {told} · {result.memory['process_peak'] / 2**20:.0f} MiB")

        sweeps.sweep(points, bundle, checkpoint, output or Path("sweep"), chunks, tell)
        return
    for file in (output, report):
        if file is not None:
            check_writable(file)
    with console.status("measuring …") as status:
        result = benches.bench(
            open_bundle(bundle),
            lambda: open_backend(backend, EngineOptions(provider, threads)),
            chunks,
            seed,
            prompt,
            {"threads": threads, "provider": provider, "backend": backend},
            lambda done, total: status.update(f"measuring, chunk {done} of {total}"),
        )
    reports.show(result, out)
    for file in (output, report):
        if file is not None:
            text = reports.page(result) if file.suffix == ".html" else result.model_dump_json(indent=1) + "\n"
            write_whole(file, text.encode())


@study.command()
def sinks(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for sinks.json and the plots.")],
    bundle: BundleOption = None,
    frames: Annotated[int, typer.Option(min=60, help="Latent frames of every measured stream.")] = 600,
    trained: Annotated[int, typer.Option(min=1, help="Latent frames the model was trained to reach.")] = 21,
    sigma: Annotated[list[float] | None, typer.Option(help="Jitter strengths; default 0, 0.2, 0.5, 0.8.")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Others: pi, ntk, yarn, riflex, relative; default: all.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Prompts; default: the bank's first.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds; default 0 and 1.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Streams at a time, each in a process with one thread.")] = 1,
) -> None:
    """The sink-collapse study: predicted collapse frames of the spectrum, and what the engines do, by RoPE variant."""
    from . import study as studies

    check_writable(output)
    opened = open_bundle(bundle)
    prompts = prompt or opened.manifest.prompts[:1]
    variants = studies.variants(sigma or [0.0, 0.2, 0.5, 0.8], studies.OTHERS if method is None else method)
    bank = PromptBank(opened, OrtBackend(EngineOptions()))
    prompts = [bank.find(text) for text in prompts]  # fail now, not in another process

    def tell(done: studies.Run) -> None:
        figures = studies.collapse(done.distance, opened.manifest.geometry.chunk)
        say(
            console,
            f"{done.variant.label:12} seed {done.seed} · collapse max {figures.highest:5.1f} % at frame {figures.frame} · "
            f"mean {figures.mean:4.1f} % · motion {done.motion:4.2f} · {done.prompt}",
        )

    wanted = [(variant, text, number) for variant in variants for text in prompts for number in (seed or [0, 1])]
    runs = studies.run_all(opened, wanted, frames, trained, jobs, tell)
    for file in studies.write_report(output, opened, runs, frames, trained):
        say(console, str(file))


@app.command()
def plan(
    bundle: Annotated[Path | None, typer.Option("--bundle", "-b", help="Plan for this bundle's own graphs.")] = None,
    model: Annotated[str, typer.Option(help="Without a bundle: wan2.1-1.3b.")] = "wan2.1-1.3b",
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT in pixels, multiples of 16.")] = "832x480",
    chunk: Annotated[int, typer.Option(help="Latent frames of a chunk.")] = 3,
    window: Annotated[int, typer.Option(help="Latent frames in the KV cache.")] = 12,
    sink: Annotated[int, typer.Option(help="Latent frames kept for good.")] = 3,
    fps: Annotated[int, typer.Option(help="Frames per second.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Denoising passes per chunk; one commit pass comes on top.")] = 4,
    precision: Annotated[str, typer.Option(help="fp32, fp16, fp8 or int8 (linear layers).")] = "fp16",
    int8_ring: Annotated[bool, typer.Option("--int8-ring", help="Keys and values in INT8.")] = False,
    decoder: Annotated[str, typer.Option(help="taehv or wan.")] = "taehv",
    device: Annotated[list[str] | None, typer.Option(help="Part of a device's name; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Operations, memory, and which cards run it in real time: before anything is built."""
    from . import plan_report

    request = plan_report.request_of(
        bundle, model, size, chunk, window, sink, fps, steps, precision, int8_ring, decoder
    )
    plan_report.show(request, device or [], as_json)


@app.command()
def build(
    bundle: Annotated[Path, typer.Argument(help="The bundle to compile engines for; they are stored in it.")],
    backend: Annotated[str, typer.Option(help="tensorrt-rtx or tensorrt.")] = "tensorrt-rtx",
    precision: Annotated[str, typer.Option(help="fp16 or bf16.")] = "fp16",
    target: Annotated[
        str, typer.Option(help="Compute capabilities with commas, for example sm_86,sm_89,sm_120; TensorRT-RTX only.")
    ] = "",
    workspace: Annotated[int | None, typer.Option(min=1, help="MiB of scratch memory a layer may use.")] = None,
    optimization_level: Annotated[int | None, typer.Option(help="0 (fast build) to 5.")] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Run on other versions of the backend too.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Run on every card from Ampere on; classic TensorRT only.")
    ] = False,
    strip_weights: Annotated[
        bool, typer.Option("--strip-weights", help="Leave the weights out; the device refits them from the bundle.")
    ] = False,
    weight_streaming: Annotated[
        bool, typer.Option("--weight-streaming", help="Allow weights to stay in host memory.")
    ] = False,
) -> None:
    """Compile a bundle's graphs into engines (needs the extra `rtx`; TensorRT-RTX needs no GPU for this)."""
    from ..engines.trtbuild import BuildOptions
    from .build import build_engines

    options = BuildOptions(
        backend=backend,
        precision=precision,
        targets=tuple(part.strip() for part in target.split(",") if part.strip()),
        workspace_mib=workspace,
        optimization_level=optimization_level,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        strip_weights=strip_weights,
        weight_streaming=weight_streaming,
    )
    build_engines(bundle, options, console)


@app.command()
def calibrate(
    bundle: Annotated[Path, typer.Argument(help="The bundle to quantise; it stays as it is.")],
    output: OutputBundle,
    precision: Annotated[str, typer.Option(help="int8, fp8, int8-weights or int4-weights.")] = "int8",
    method: Annotated[str, typer.Option(help="minmax, entropy, percentile or smoothquant.")] = "smoothquant",
    alpha: Annotated[
        float, typer.Option(help="How much of the activations' range SmoothQuant moves to weights.")
    ] = 0.5,
    prompts: Annotated[
        list[str] | None, typer.Option(help="Prompts to calibrate with; default: every second of the bank.")
    ] = None,
    held_out: Annotated[list[str] | None, typer.Option(help="Prompts to judge with; default: two others.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds to calibrate with; default 0.")] = None,
    chunks: Annotated[int, typer.Option(min=1, help="Chunks of every prompt and seed.")] = 32,
    ring: Annotated[str, typer.Option(help="float, or int8 (portable form): keys and values in INT8.")] = "float",
    decoder: Annotated[bool, typer.Option("--decoder", help="Quantise the decoder's convolutions too.")] = False,
    sensitivity: Annotated[
        bool, typer.Option(help="Quantise each layer alone first, and leave out those that cost too much.")
    ] = True,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Part of a layer's name to leave in float, for example ffn.2.")
    ] = None,
    gate_chunks: Annotated[int, typer.Option(min=1, help="Lock-step chunks of the quality gate.")] = 12,
    gate_minutes: Annotated[float, typer.Option(min=0, help="Minutes of free-running video of the gate.")] = 2,
    threads: ThreadsOption = 0,
    force: ForceOption = False,
) -> None:
    """Quantise a bundle by real streams and measure what it lost; exit code 1 when the gate is not passed.

    Needs the extra `calibrate`. Ctrl-C keeps what was gathered; the same command goes on from there.
    """
    with needs_extra("calibrate"):
        from ..calibration.command import Settings
        from ..calibration.command import calibrate as run

        settings = Settings(
            precision=precision,
            method=method,
            alpha=alpha,
            prompts=tuple(prompts or ()),
            held_out=tuple(held_out or ()),
            seeds=tuple(seed or (0,)),
            chunks=chunks,
            ring=ring,
            decoder=decoder,
            sensitivity=sensitivity,
            exclude=tuple(exclude or ()),
            gate_chunks=gate_chunks,
            gate_minutes=gate_minutes,
            threads=threads,
        )
        show_quality(run(bundle, output, settings, force, console))


@app.command("compare")
def compare_bundles(
    first: Annotated[Path, typer.Argument(help="The bundle that is right.")],
    second: Annotated[Path, typer.Argument(help="The bundle to judge.")],
    prompt: Annotated[list[str] | None, typer.Option(help="Prompts; default: the bank's first two.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds; default 1000.")] = None,
    chunks: Annotated[int, typer.Option(min=1, help="Lock-step chunks of every prompt and seed.")] = 24,
    minutes: Annotated[float, typer.Option(min=0, help="Minutes of free-running video of every prompt.")] = 10,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON with every figure.")] = None,
    threads: ThreadsOption = 0,
) -> None:
    """How far a changed bundle is from its source: chunk by chunk and running freely; exit code 1 below the gate."""
    from . import compare as comparing

    if output is not None:
        check_writable(output)
    a, b = open_bundle(first), open_bundle(second)
    backend = OrtBackend(EngineOptions(threads=threads))
    found = comparing.compare(
        a,
        b,
        prompt or a.manifest.prompts[:2],
        seed or [1000],
        chunks,
        minutes,
        (backend, backend),
        lambda line: say(console, line),
    )
    if output is not None:
        comparing.write_record(output, found)
    show_quality(found.summary())


def show_quality(quality: dict[str, Any]) -> None:
    """Print the figures of a comparison; exit code 1 when the gate is not passed."""
    for name, value in quality.items():
        say(console, f"{name:16} {value}")
    if not quality["passed"]:
        raise typer.Exit(1)


@app.command()
def inspect(
    bundle: Annotated[Path | None, typer.Argument(help="The bundle; default: the shipped demo.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what a bundle holds, which of its engines can be used here, and why others can't."""
    from .build import inspect_bundle

    inspect_bundle(open_bundle(bundle), as_json)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """What this machine can run, and what is missing for each backend."""
    from . import doctor as doctors

    found = doctors.diagnose()
    if as_json:
        print(json.dumps(doctors.as_record(found), indent=1))
        return
    out = Console()
    for name, value in (*found.system.items(), *found.packages.items()):
        say(out, f"{name:16} {value}")
    gpu = found.gpu
    told = (
        f"{gpu.name}, {gpu.compute_capability}, {gpu.free_mib} of {gpu.memory_mib} MiB free, driver for CUDA {gpu.driver}"
        if gpu
        else found.gpu_note
    )
    say(out, f"{'GPU':16} {told}")
    say(out, f"{'video encoders':16} {', '.join(found.encoders)}")
    for road in found.roads:
        say(out, f"{'ready  ' if road.ready else 'missing'} {road.backend}: {_plain(road.note)}")
    say(out, f"advice: {found.advice}")


@prompt_bank.callback(invoke_without_command=True)
def prompts(context: typer.Context, bundle: BundleOption = None) -> None:
    """List the prompts of a bundle, or add to them."""
    if context.invoked_subcommand is None:
        for prompt in open_bundle(bundle).manifest.prompts:
            print(prompt)


@prompt_bank.command("add")
def add_prompts(
    bundle: Annotated[Path, typer.Argument(help="The bundle to add to.")],
    prompt: Annotated[list[str] | None, typer.Argument(help="Prompts.")] = None,
    text_encoder: Annotated[
        str, typer.Option(help="Folder or .pth of the UMT5 encoder, or 'minilm' for the demo's.")
    ] = "minilm",
    file: Annotated[Path | None, typer.Option("--prompts", help="File with a prompt a line.")] = None,
) -> None:
    """Add prompts to a bundle's bank (needs the extra `text`)."""
    with needs_extra("text"):
        from ..export.addprompts import add

        added = add(bundle, prompt or [], file, text_encoder)
    say(console, f"{bundle}: {added} prompts added")


@exporting.command("checkpoint")
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder with config.json and safetensors files.")],
    output: OutputBundle,
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
    jitter_seed: Annotated[int | None, typer.Option(help="Seed of the jitter's draw.")] = None,
    chunks: CompareOption = 10,
    probe: ProbeOption = False,
    encoder: EncoderOption = False,
    form: FormOption = "in-place",
    force: ForceOption = False,
) -> None:
    """Export a checkpoint folder into an engine bundle (needs the extra `export`). The default when no command is named."""
    check_form(form)
    with needs_extra("export"):
        from ..export.command import Overrides, export_checkpoint

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
        export_checkpoint(checkpoint, output, overrides, chunks=chunks, force=force, console=console, probe=probe)


@exporting.command("wan")
def export_wan_family(
    generator: Annotated[
        Path, typer.Option(help="Self-Forcing, LongLive or Causal Forcing .pt, Wan safetensors, or a diffusers folder.")
    ],
    vae: Annotated[Path, typer.Option(help="Wan2.1_VAE.pth, taew2_1.pth, or a diffusers VAE folder.")],
    text_encoder: Annotated[str, typer.Option(help="UMT5: a folder, or models_t5_umt5-xxl-enc-bf16.pth.")],
    prompts: Annotated[Path, typer.Option(help="File with a prompt a line.")],
    output: OutputBundle,
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
    jitter_seed: Annotated[int, typer.Option(help="Seed of the jitter's draw.")] = 0,
    precision: Annotated[str, typer.Option(help="fp16 or fp32.")] = "fp16",
    text_graph: Annotated[
        bool, typer.Option("--text-graph", help="Add the text encoder with INT8 weights, for new prompts offline.")
    ] = False,
    chunks: CompareOption = 10,
    probe: ProbeOption = False,
    encoder: EncoderOption = False,
    form: FormOption = "in-place",
    force: ForceOption = False,
) -> None:
    """Export a checkpoint of the Wan2.1-1.3B family (needs the extras `export` and `text`)."""
    check_form(form)
    if precision not in ("fp16", "fp32"):
        raise UserError(f"--precision {precision}: expected fp16 or fp32")
    try:
        numbers = tuple(int(part) for part in steps.split(","))
    except ValueError:
        raise UserError(f"--steps {steps!r}: expected numbers with commas, for example 1000,750,500,250") from None
    with needs_extra("export,text"):
        from ..export.wancommand import WanSource, export_wan

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
            jitter_seed=jitter_seed,
            precision=precision,
            encoder=encoder,
            form=form,  # type: ignore[arg-type] - checked above
            text_graph=text_graph,
        )
        export_wan(source, output, chunks=chunks, force=force, console=console, probe=probe)


def check_form(form: str) -> None:
    if form not in ("in-place", "portable"):
        raise UserError(f"--form {form!r}: expected in-place or portable")


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turn a missing optional package into one line that says how to get it."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"this command needs {error.name}: pip install 'everframe[{extra}]'") from None


class StopSignals:
    """Turns SIGINT and SIGTERM into a wish to stop after the present chunk, so that outputs are closed properly.

    A second signal interrupts at once.
    """

    requested = False

    def __enter__(self) -> StopSignals:
        self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Progress:
    """One Rich line: time made, frames per second, real-time factor, chunk latency over the last chunks."""

    def __init__(self, fps: int, total: int | None):
        self._fps, self._total = fps, total
        self._marks: deque[tuple[float, int]] = deque([(time.perf_counter(), 0)], maxlen=21)
        self._status = console.status("loading engines …")

    def __enter__(self) -> Progress:
        self._status.start()
        return self

    def update(self, made: int, chunk: Chunk) -> None:
        now = time.perf_counter()
        self._marks.append((now, made))
        (t0, n0), (t1, n1) = self._marks[0], self._marks[-1]
        rate = (n1 - n0) / max(t1 - t0, 1e-9)
        goal = "" if self._total is None else f" of {self._total / self._fps:.1f}"
        self._status.update(
            f"{made / self._fps:7.1f}{goal} s · {rate:5.1f} fps · {rate / self._fps:4.2f}× real time · "
            f"chunk {chunk.timings.total * 1000:4.0f} ms"
        )

    def __exit__(self, *exc: object) -> None:
        self._status.stop()


def main() -> None:
    """Entry point of the command line."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        say(console, f"[bold red]error:[/] {_plain(str(error))}")
        sys.exit(2)
    except BrokenPipeError:
        # The reader of our standard output went away; keep Python from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)


def _plain(text: str) -> str:
    return text.replace("[", r"\[").replace("\n", " ")
