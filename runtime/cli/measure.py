"""`everframe bench`, `soak`, `study` and `compare`."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from ...engines.base import EngineOptions
from ...engines.errors import UserError
from ...engines.files import check_file, check_writable, write_whole
from ...engines.ort import OrtBackend
from ..choice import open_engines
from ..demo import open_bundle
from ..state import read_facts
from ..stream import Stream
from . import options
from .console import say, show_quality, show_table, status, tell, warn

CUTS = 12  # of bench --browser, by each way

app = typer.Typer()
study = typer.Typer(no_args_is_help=True, help="Studies of the model's behaviour.")
app.add_typer(study, name="study")


# What each way of bench takes, beside its own words; what else is given with it is refused, and not silently left out.
ENGINES = {"threads", "provider", "backend", "device", "precision", "gpu", "post", "unverified"}
TAKEN = {
    "compare": set[str](),
    "sweep": {"output", "checkpoint", "prompt", "seed", "chunks", *ENGINES},
    "browser": {"output", "seed", *ENGINES},
}


def refuse_others(ctx: typer.Context) -> None:
    """Raises UserError for an option that the chosen way of bench does not take."""
    named = options.explicit(ctx) - {"what"}
    given = [name for name in ctx.params if name in named]
    way = next((name for name in TAKEN if name in given), None)
    if way is None and "checkpoint" in given:
        raise UserError("--checkpoint: expected --sweep with it")
    for name in given:
        if way is not None and name not in {way, *TAKEN[way]}:
            raise UserError(f"--{way}: takes no --{name}")


@app.command()
def bench(
    ctx: typer.Context,
    what: Annotated[
        list[str] | None,
        typer.Argument(help="The bundle (default: the demo); with --compare two results; with --sweep window=6,12 …"),
    ] = None,
    chunks: Annotated[int, typer.Option(min=2, max=10_000_000, help="Measured chunks, after the ring is full.")] = 60,
    prompt: options.Prompt = None,
    seed: options.Seed = 0,
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
    browser: Annotated[
        bool, typer.Option("--browser", help="From a cut's order to a Chromium's screen, by MSE and by WebRTC.")
    ] = False,
    threads: options.Threads = 0,
    provider: options.Provider = "cpu",
    backend: options.Backend = "onnxruntime",
    device: options.Device = "cpu",
    precision: options.Precision = "auto",
    gpu: options.Gpu = None,
    post: options.Post = None,
    unverified: options.Unverified = False,
) -> None:
    """Latency per chunk by stage, cold start, prompt changes, memory, energy.

    Also compares two results, and sweeps settings.
    """
    refuse_others(ctx)
    words = what or []
    if compare:
        show_ratios(words)
        return
    bundles = [word for word in words if not (sweep and "=" in word)]
    if len(bundles) > 1:
        raise UserError(f"expected one bundle, found {', '.join(bundles)}")
    bundle = Path(bundles[0]) if bundles else None
    engines = {"threads": threads, "provider": provider, "backend": backend, "device": device, "precision": precision}
    stream = engines | {"post": post}
    if sweep:
        options = stream | {"seed": seed, "prompt": prompt, "unverified": unverified or None}
        run_sweep([word for word in words if "=" in word], bundle, checkpoint, output, chunks, options)
        return
    if browser:
        run_browser(bundle, stream | {"seed": seed, "gpu": gpu, "verify": not unverified}, output)
        return
    from ..measure import bench as benches
    from ..measure import bench_report as reports

    files = [file for file in (output, report) if file is not None]
    for file in files:
        check_file(file)
    opened = open_bundle(bundle).with_post(post)
    with status("measuring …") as update:
        result = benches.bench(
            opened,
            lambda: open_engines(
                opened, backend, EngineOptions(provider, threads, device, precision), say, not unverified
            ),
            chunks,
            seed,
            prompt,
            stream,
            not unverified,
            lambda done, total: update(f"measuring, chunk {done} of {total}"),
        )
    for file in files:  # before anything is told: a reader of that may go away
        if file.exists():
            say(f"{file}: an earlier result is replaced")
        reports.write(result, file, as_page=file == report)
    show_table(reports.STAGE_COLUMNS, reports.stage_rows(result), reports.title(result))
    for name, value in reports.summary(result):
        tell(f"{name:36} {value}")


def show_ratios(words: list[str]) -> None:
    from ..measure import bench as benches

    if len(words) != 2:
        raise UserError(f"--compare: expected two results, found {len(words)}")
    a, b = (benches.read_result(Path(word)) for word in words)
    rows = [[name, f"{x:.1f}", f"{y:.1f}", f"{ratio:.2f}×"] for name, x, y, ratio in benches.ratios(a, b)]
    show_table(["figure", *words, "ratio"], rows)


def run_browser(bundle: Path | None, stream: dict[str, Any], output: Path | None) -> None:
    from ..measure import screen as screens
    from ..measure.bench import facts_of, machine

    if output is not None:
        check_file(output)
    opened, here = open_bundle(bundle), machine()
    ways = ["mse", "webrtc"] if find_spec("aiortc") else ["mse"]
    found = screens.order_to_screen(opened.path, ways, CUTS, stream, say)
    if output is not None:
        of = {
            "bundle": facts_of(opened.with_post(stream.get("post"))),
            "stream": stream,
            "machine": here,
            "date": time.strftime("%Y-%m-%d"),
        }
        write_whole(output, screens.record(found, of).encode())
    show_table(screens.COLUMNS, screens.summary(found), "from order to screen")


def run_sweep(
    axes: list[str],
    bundle: Path | None,
    checkpoint: Path | None,
    output: Path | None,
    chunks: int,
    options: dict[str, Any],
) -> None:
    from ..measure import bench as benches
    from ..measure import sweep as sweeps

    def show(point: sweeps.Point, result: benches.Result, kept: bool) -> None:
        s = result.steady
        chunk = s.stages.get("interval", s.stages["chunk"])  # results of before have none
        words = " ".join(f"{k}={v}" for k, v in point.items())
        told = f"p50 {chunk.p50:7.1f} ms · p99 {chunk.p99:7.1f} ms · {s.real_time_factor:5.2f}× real time"
        tell(f"{words:40} {told} · {result.memory['process_peak'] / 2**20:.0f} MiB{', kept' if kept else ''}")

    told = [(f"--{name}", value) for name, value in options.items() if value is not None]
    passed = [word for name, value in told for word in ([name] if value is True else [name, str(value)])]
    sweeps.sweep(sweeps.grid(axes), bundle, checkpoint, output or Path("sweep"), chunks, show, passed)


@app.command()
def soak(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for soak.json, soak.png and sheet.png.")],
    minutes: Annotated[float, typer.Option(min=0.05, help="Minutes of video, over all.")] = 60,
    sheet_minutes: Annotated[float, typer.Option(min=0.05, help="Minutes between two frames of the sheet.")] = 5,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in that folder; give it the same options.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier run in that folder.")] = False,
    bundle: options.Bundle = None,
    prompt: options.Prompt = None,
    seed: options.Seed = 0,
    start: options.Start = 0,
    rope: options.Rope = None,
    sink_distance: options.SinkDistance = None,
    jitter: options.Jitter = None,
    threads: options.Threads = 0,
    provider: options.Provider = "cpu",
    backend: options.Backend = "onnxruntime",
    device: options.Device = "cpu",
    precision: options.Precision = "auto",
    gpu: options.Gpu = None,
) -> None:
    """Stream for long and hold the video and the machine against bounds.

    The exit code is 1 when one is broken.
    """
    from ..measure import soak as soaking
    from ..measure import soak_report as reports

    check_writable(output)
    state = output / "soak.state"
    refuse_to_replace(state, resume or force)
    if not state.exists():  # a run of less than a minute leaves its record alone
        refuse_to_replace(output / "soak.json", resume or force, "it has no state to go on from")
    opened = open_bundle(bundle).with_post("none")  # its figures are of the model
    engines = open_engines(opened, backend, EngineOptions(provider, threads, device, precision), say)
    with Stream(
        opened,
        prompt=prompt,
        seed=seed,
        start=start,
        rope_mode=rope,  # type: ignore[arg-type] - Stream checks it
        sink_distance=sink_distance,
        jitter_sigma=jitter,
        backend=engines,
    ) as stream:
        for note in stream.notices:
            warn(note)

        def watch(so_far: soaking.Soak) -> None:
            say(soaking.line(so_far.minutes[-1]))
            reports.write_record(output, so_far)

        if resume and prompt is not None and (found := read_facts(state).prompt) != stream.prompt:
            raise UserError(f"{state}: belongs to another prompt ({found}, here {stream.prompt})")
        if force and not resume:
            # Else --resume would go on with the run that is replaced, until the first minute is over.
            state.unlink(missing_ok=True)
        result = soaking.soak(stream, minutes, sheet_minutes, watch, str(engines.computes(opened)), state, resume)
    for file in reports.write_report(output, result):
        say(str(file))
    problems = soaking.verdict(result.minutes)
    for problem in problems:
        warn(problem, "out of bounds")
    if problems:
        raise typer.Exit(1)


def refuse_to_replace(file: Path, told: bool, going_on: str = "--resume goes on with it") -> None:
    """What took hours is not replaced by a command that is typed again. going_on: how it would go on."""
    if file.exists() and not told:
        raise UserError(f"{file}: an earlier run stands here; {going_on}, --force replaces it")


@study.command()
def sinks(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for sinks.json and the plots.")],
    bundle: options.Bundle = None,
    frames: Annotated[int, typer.Option(min=60, max=10_000_000, help="Latent frames of every measured stream.")] = 600,
    trained: Annotated[
        int, typer.Option(min=1, max=10_000_000, help="Latent frames the model was trained to reach.")
    ] = 21,
    sigma: Annotated[list[float] | None, typer.Option(help="Jitter strengths; default 0, 0.2, 0.5, 0.8.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Others: pi, ntk, yarn, riflex, relative, relative-jitter, horizon, heads, layers, designed; default: all "
            "that the bundle has tables for. And bases-N: N different bases over all heads."
        ),
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Prompts; default: the bank's first.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds; default 0 and 1.")] = None,
    jobs: Annotated[
        int, typer.Option(min=1, max=256, help="Streams at a time, each in a process with one thread.")
    ] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the streams of that folder; make those that are missing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier study in that folder.")] = False,
) -> None:
    """The sink-collapse study: predicted collapse frames of the spectrum, and what the engines do, by RoPE variant."""
    from ..measure import study as studies
    from ..measure.variants import OTHERS, SIGMAS

    check_writable(output)
    refuse_to_replace(output / "sinks.json", resume or force)
    files = studies.study_sinks(
        open_bundle(bundle).with_post("none"),
        output,
        prompts=prompt,
        seeds=seed or (0, 1),
        sigmas=sigma or SIGMAS,
        methods=OTHERS if method is None else method,
        frames=frames,
        trained=trained,
        jobs=jobs,
        resume=resume,
        tell=say,
    )
    for file in files:
        say(str(file))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="The bundle that is right; it runs by ONNX Runtime on the CPU.")],
    second: Annotated[Path, typer.Argument(help="The bundle to judge; the same one judges a backend or a precision.")],
    prompt: Annotated[list[str] | None, typer.Option(help="Prompts; default: the bank's first two.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds; default 1000.")] = None,
    chunks: Annotated[int, typer.Option(min=1, max=1_000_000, help="Lock-step chunks of every prompt and seed.")] = 24,
    minutes: Annotated[float, typer.Option(min=0, help="Minutes of free-running video of every prompt.")] = 10,
    output: options.Record = None,
    threads: options.Threads = 0,
    provider: options.Provider = "cpu",
    backend: options.Backend = "onnxruntime",
    device: options.Device = "cpu",
    precision: options.Precision = "auto",
    gpu: options.Gpu = None,
) -> None:
    """How far a changed bundle is from its source, or a backend from another.

    Compared chunk by chunk and running freely; the exit code is 1 below the gate. The options of backends are the second's.
    """
    from ..measure import compare as comparing
    from ..measure.bench import facts_of, machine

    if output is not None:
        check_file(output)
    a, b = (open_bundle(one).with_post("none") for one in (first, second))
    known = OrtBackend(EngineOptions(threads=threads))
    judged = open_engines(b, backend, EngineOptions(provider, threads, device, precision), say)
    prompts = prompt or a.manifest.prompts[:2]
    found = comparing.compare(a, b, prompts, seed or [1000], chunks, minutes, (known, judged), say)
    if output is not None:
        of = [facts_of(one) | {"computed_by": str(by.computes(one))} for one, by in ((a, known), (b, judged))]
        comparing.write_record(output, found, {"of": of, "machine": machine(), "date": time.strftime("%Y-%m-%d")})
    show_quality(found.summary())
