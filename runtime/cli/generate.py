"""`everframe generate`."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ...engines.base import EngineOptions
from ...engines.errors import UserError
from ..choice import open_engines
from ..demo import open_bundle
from ..generation import Progress, frames_in, parse_change
from ..generation import generate as make
from ..outputs import check_output
from ..overlay.layer import Layer
from ..prompts import check_transition
from ..video import check_encoder
from . import options
from .console import StopSignals, let_go, say, status

app = typer.Typer()


@app.command()
def generate(
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", help="out.mp4, out.mkv, out.gif, folder/, frame-%06d.png, or - for raw RGB frames."
        ),
    ],
    bundle: options.Bundle = None,
    prompt: options.Prompt = None,
    seconds: Annotated[float | None, typer.Option(min=0.01, help="Length of the video; default 30.")] = None,
    endless: Annotated[bool, typer.Option("--endless", help="Go on until Ctrl-C.")] = False,
    seed: options.Seed = 0,
    start: options.Start = 0,
    then: Annotated[
        list[str] | None, typer.Option(help="SECONDS:PROMPT, change the prompt there; may be repeated.")
    ] = None,
    transition: Annotated[str, typer.Option(help="How prompts change: swap, smooth, flush or cut.")] = "smooth",
    anchor: options.Anchor = None,
    ground: options.Ground = None,
    rope: options.Rope = None,
    sink_distance: options.SinkDistance = None,
    jitter: options.Jitter = None,
    threads: options.Threads = 0,
    provider: options.Provider = "cpu",
    backend: options.Backend = "onnxruntime",
    device: options.Device = "cpu",
    precision: options.Precision = "auto",
    gpu: options.Gpu = None,
    post: options.Post = None,
    unverified: options.Unverified = False,
    overlap: Annotated[
        bool | None,
        typer.Option(help="Decode a chunk beside the denoising of the next; default: where the device gains by it."),
    ] = None,
    overlay: Annotated[
        Path | None, typer.Option(help="TOML file with an [overlay] as the server's: what is burned into the picture.")
    ] = None,
    encoder: Annotated[str, typer.Option(help="auto, libx264, h264_nvenc or hevc_nvenc.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
) -> None:
    """Generate video into a file, a PNG or GIF sequence, or a pipe."""
    if endless and seconds is not None:
        raise UserError("--seconds and --endless exclude each other")
    check_transition(transition)
    changes = [parse_change(text, transition) for text in then or []]  # type: ignore[arg-type] - checked
    layer = None if overlay is None else layer_of(overlay)
    opened = open_bundle(bundle).with_post(post)
    length, g = None if endless else 30.0 if seconds is None else seconds, opened.output
    # Before engines are timed and loaded.
    check_encoder(encoder)
    check_output(output, g.width, g.height, g.fps, force, frames_in(length, g.fps))
    picture = options.picture_of(anchor, ground, opened)
    try:
        with StopSignals() as signals, status("loading engines …") as update:
            video = make(
                opened,
                output,
                seconds=length,
                prompt=prompt,
                seed=seed,
                start=start,
                changes=changes,
                anchor=picture,
                rope_mode=rope,  # type: ignore[arg-type] - Stream checks it
                sink_distance=sink_distance,
                jitter_sigma=jitter,
                overlap=overlap,
                overlay=layer,
                encoder=encoder,
                replace=force,
                verify=not unverified,
                backend=open_engines(
                    opened, backend, EngineOptions(provider, threads, device, precision), say, not unverified
                ),
                progress=line_of_progress(update),
                notice=say,
                stop=lambda: signals.requested,
            )
    except BrokenPipeError:
        if output != "-":
            raise
        let_go(sys.stdout)  # its reader has had enough
        return
    if not video.frames:
        raise KeyboardInterrupt
    if output != "-":
        say(f"{output}: {video.frames} frames, {video.seconds:.2f} s at {video.fps} fps")


def layer_of(file: Path) -> Layer:
    """The overlay of a configuration file, in its timetable's zone. Raises UserError."""
    from ..server.config import read_config
    from ..server.orders.timetable import zone_of

    config = read_config(file)
    if config.overlay.empty:
        raise UserError(
            f"{file}: overlay: nothing in it, expected a logo, texts, a ticker, a clock, a code or a message"
        )
    zone = zone_of(config.schedule.timezone)
    return Layer(config.overlay, lambda: zone)


def line_of_progress(update: Callable[[str], None]) -> Callable[[Progress], None]:
    """Time made, frames per second, real-time factor, chunk latency over the last chunks, as one line."""
    marks: deque[tuple[float, int]] = deque(
        maxlen=21
    )  # from the first chunk on: before it engines are loaded and proved

    def show(done: Progress) -> None:
        marks.append((time.perf_counter(), done.frames))
        (t0, n0), (t1, n1) = marks[0], marks[-1]
        rate = (n1 - n0) / max(t1 - t0, 1e-9) if len(marks) > 1 else 0.0
        goal = "" if done.total is None else f" of {done.total / done.fps:.1f}"
        update(
            f"{done.frames / done.fps:7.1f}{goal} s · {rate:5.1f} fps · {rate / done.fps:4.2f}× real time · "
            f"chunk {done.chunk.timings.total * 1000:4.0f} ms"
        )

    return show
