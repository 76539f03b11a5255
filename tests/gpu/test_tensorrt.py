"""Engines run: on a card (`make test-gpu`), and in every other run of the tests on the stand-ins of stand_in.py, once with
the names of each real binding. Both compare with ONNX Runtime on the CPU in float32."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import CARD, Card, error_of  # type: ignore[attr-defined]

from everframe.engines.bundle import Bundle
from everframe.engines.cuda import CudaBuffer
from everframe.runtime import Stream, open_bundle
from everframe.runtime.state import load_state, save_state

# Of x0's deviation: what half precision is far below and wrong engines far above (test_thresholds.py). The small bundles
# of the stand-ins, with random weights, tell less of an error than the demo.
CLOSE = 0.01 if CARD else 0.003


def test_twelve_chunks_against_the_cpu(built: Bundle, card: Card, report: dict[str, Any]) -> None:
    """Every fill level of the ring and past its wrap: half precision against float32."""
    errors, frames, stages = [], [], []
    with Stream(built, seed=1) as cpu, Stream(built, seed=1, backend=card.open()) as gpu:
        for _ in range(12):
            a, b = cpu.next_chunk(), gpu.next_chunk()
            errors.append(error_of(a.latent, b.latent))
            frames.append(float(np.abs(a.frames.astype(float) - b.frames).mean()))
            stages.append(b.timings)
        assert gpu.not_one_launch is None
        used = [gpu._loop._chains["make", turn] for turn in (0, 1)]
        assert all(chain.graphs for chain in used)  # type: ignore[attr-defined]
        sizes = gpu.sizes()
    report[f"{card.name}, {built.path.stem}"] = {
        "bytes": sizes,
        "error_of_x0": errors,
        "error_of_frames": frames,
        "ms": {
            name: [1000 * np.sum(getattr(t, name)) for t in stages]
            for name in ("host", "diffuse", "finalize", "decode", "copy", "total")
        },
    }
    assert max(errors) < CLOSE
    assert max(frames) < 0.5


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_both_half_precisions(source: Path, card: Card, tmp_path: Path, precision: str) -> None:
    built = card.built(source, tmp_path, precision=precision)
    with Stream(built, seed=1) as cpu, Stream(built, seed=1, backend=card.open()) as gpu:
        for _ in range(6):
            assert error_of(cpu.next_chunk().latent, gpu.next_chunk().latent) < 3 * CLOSE


def test_the_recorded_graph_gives_what_plain_passes_give(built: Bundle, card: Card, report: dict[str, Any]) -> None:
    frames = []
    for record in (True, False):
        with Stream(built, seed=2, backend=card.open()) as stream:
            if not record:
                for chain in stream._loop._chains.values():
                    chain.why_not = "switched off"  # type: ignore[attr-defined]
            chunks = [stream.next_chunk() for _ in range(8)]
            key = f"{card.name}, {built.path.stem}, ms of a chunk, {'one launch' if record else 'passes one by one'}"
            report[key] = [1000 * chunk.timings.total for chunk in chunks]
            frames.append(np.concatenate([chunk.frames for chunk in chunks]))
    assert (frames[0] == frames[1]).all()


def test_overlap_changes_nothing_but_the_time(built: Bundle, card: Card) -> None:
    frames = []
    for overlap in (True, False):
        with Stream(built, seed=2, overlap=overlap, backend=card.open()) as stream:
            frames.append(np.concatenate([stream.next_chunk().frames for _ in range(12)]))
    assert (frames[0] == frames[1]).all()


def test_two_streams_of_one_backend_in_turns(built: Bundle, card: Card) -> None:
    """Contexts are pointed at the other stream's buffers between the chunks, after both were recorded."""
    backend = card.open()
    with Stream(built, seed=1, backend=backend) as a, Stream(built, seed=2, backend=backend) as b:
        mixed = [(a.next_chunk().frames, b.next_chunk().frames) for _ in range(8)]
    for which, seed in enumerate((1, 2)):
        with Stream(built, seed=seed, backend=card.open()) as alone:
            for pair in mixed:
                assert (alone.next_chunk().frames == pair[which]).all()


@pytest.mark.parametrize("transition", ["swap", "smooth", "flush", "cut"])
def test_prompt_changes(built: Bundle, card: Card, transition: Any) -> None:
    """With a chunk in flight when the change comes, against the same on the CPU."""
    other = built.manifest.prompts[1]
    with Stream(built, seed=4) as cpu, Stream(built, seed=4, backend=card.open()) as gpu:
        for c in range(9):
            if c == 5:
                cpu.set_prompt(other, transition)
                gpu.set_prompt(other, transition)
            assert error_of(cpu.next_chunk().latent, gpu.next_chunk().latent) < CLOSE, c


def test_a_saved_stream_goes_on_in_another_backend(built: Bundle, card: Card, tmp_path: Path) -> None:
    with Stream(built, seed=5, backend=card.open()) as stream:
        for _ in range(5):
            stream.next_chunk()
        save_state(stream, tmp_path / "s")
        expected = [stream.next_chunk().frames for _ in range(4)]
    with Stream(built, seed=5, backend=card.open()) as stream:
        load_state(stream, tmp_path / "s")
        assert all((stream.next_chunk().frames == frames).all() for frames in expected)


@pytest.mark.skipif(not CARD, reason="the stand-in lives in one process")
def test_another_process_goes_on_and_starts_faster(
    built: Bundle, card: Card, tmp_path: Path, report: dict[str, Any]
) -> None:
    """As after a power cut. The second process finds the kernels that the first one compiled."""
    script = """
import json, sys, time
from pathlib import Path
from everframe.engines.bundle import Bundle
from everframe.engines.tensorrt import TrtBackend
from everframe.runtime import Stream
from everframe.runtime.state import load_state, save_state
backend, folder, state, number = sys.argv[1:]
began = time.perf_counter()
stream = Stream(Bundle.open(Path(folder)), seed=5, backend=TrtBackend(backend))
loaded = time.perf_counter()
if number == "0":
    for _ in range(5):
        stream.next_chunk()
    first = loaded
    save_state(stream, Path(state))
else:
    load_state(stream, Path(state))
began_chunk = time.perf_counter()
made = [stream.next_chunk() for _ in range(3)]
seconds = {"load": loaded - began, "three chunks": time.perf_counter() - began_chunk}
print(json.dumps([seconds, [int(chunk.frames.astype("int64").sum()) for chunk in made]]))
"""
    found = []
    for number in range(2):
        words = [sys.executable, "-c", script, card.backend, str(built.path), str(tmp_path / "s"), str(number)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    report[f"{card.name}, {built.path.stem}, seconds of two processes"] = [seconds for seconds, _ in found]
    assert found[0][1] == found[1][1]


@pytest.mark.skipif(not CARD, reason="a simulated card has no other users")
def test_another_user_of_the_card_changes_nothing(built: Bundle, card: Card) -> None:
    """Who allocates, frees and collects in another thread while chunks are recorded and run."""
    with Stream(built, seed=2, backend=card.open()) as stream:
        expected = [stream.next_chunk().frames for _ in range(8)]
    over = threading.Event()

    def disturb() -> None:
        cuda = card.open().device.cuda
        while not over.is_set():
            CudaBuffer(cuda, (1 << 20,), "uint8").clear()
            gc.collect()

    other = threading.Thread(target=disturb)
    other.start()
    try:
        with Stream(built, seed=2, backend=card.open()) as stream:
            assert all((stream.next_chunk().frames == frames).all() for frames in expected)
            assert stream.not_one_launch is None
    finally:
        over.set()
        other.join()


@pytest.mark.skipif(not CARD, reason="needs a card's encoder")
def test_the_card_s_encoder_beside_the_engines(built: Bundle, card: Card, tmp_path: Path) -> None:
    from everframe.runtime.outputs import open_output
    from everframe.runtime.video import working_encoders

    if "h264_nvenc" not in working_encoders():
        pytest.skip("this card, or this PyAV, has no h264_nvenc")
    g = built.manifest.geometry
    with (
        Stream(built, seed=2, backend=card.open()) as stream,
        open_output(str(tmp_path / "x.mp4"), g.width, g.height, g.fps, encoder="h264_nvenc") as output,
    ):
        shown = [stream.next_chunk().frames for _ in range(4)]
        for frames in shown:
            output.write(frames)
    with av.open(str(tmp_path / "x.mp4")) as video:
        decoded = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(decoded) == sum(map(len, shown))
    assert np.abs(np.concatenate(shown).astype(float) - np.stack(decoded)).mean() < 8


def test_frames_are_never_those_of_before(built: Bundle, card: Card) -> None:
    """The host waits for an event that is recorded inside the graph: what it reads then is what this launch brought, for a
    pattern stands there before."""
    with (
        Stream(built, seed=2, overlap=False, backend=card.open()) as plain,
        Stream(built, seed=2, backend=card.open()) as stream,
    ):
        loop = stream._loop
        start = loop.start

        def spoil(kind: str, cut: bool = False) -> None:
            frames: list[Any] = loop._turns[loop.decoded % 2 if loop.decoded else 2].frames
            for part in frames if loop._shows else ():
                if part._pinned is not None:
                    part._pinned[:] = 0x55
            start(kind, cut)

        loop.start = spoil
        for c in range(200 if CARD else 8):
            assert (stream.next_chunk().frames == plain.next_chunk().frames).all(), c


def test_an_anchor_of_the_demo(card: Card, tmp_path: Path) -> None:
    if card.portable_only or not (CARD or card.backend == "tensorrt-rtx"):
        pytest.skip("the demo is in the in-place form; one stand-in is enough")
    built = card.built(open_bundle().path, tmp_path)
    g = built.manifest.geometry
    picture = np.linspace(0, 255, g.height * g.width * 3).astype(np.uint8).reshape(g.height, g.width, 3)
    with (
        Stream(built, seed=1, anchor=picture) as cpu,
        Stream(built, seed=1, anchor=picture, backend=card.open()) as gpu,
    ):
        for _ in range(2):
            assert error_of(cpu.next_chunk().latent, gpu.next_chunk().latent) < 0.01


def test_the_graphs_behind_the_decoder(card: Card, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Frames between frames and larger ones, over a cut: the demo's own networks on a card, simple ones on the stand-ins."""
    path = open_bundle().path
    if CARD and card.portable_only:
        pytest.skip("the demo is in the in-place form")
    if not CARD:
        from everframe.export.post import add

        from postfiles import smooth_file, upscale_file

        plain: Path = request.getfixturevalue("portable_path" if card.portable_only else "bundle_path")
        path = Path(shutil.copytree(plain, tmp_path / "post.everframe"))
        add(path, upscale_file(tmp_path / "u.onnx"), smooth_file(tmp_path / "s.onnx"))
    built = card.built(path, tmp_path / "built", post="all").with_post("all")
    assert built.post == ("smooth", "upscale")
    apart = []
    with Stream(built, seed=4) as cpu, Stream(built, seed=4, backend=card.open()) as gpu:
        for c in range(6):
            for stream in (cpu, gpu) if c == 3 else ():
                stream.set_prompt(built.manifest.prompts[1], "cut")
            expected, found = cpu.next_chunk().frames, gpu.next_chunk().frames
            assert found.shape == expected.shape
            assert found.shape[1:3] == (built.output.height, built.output.width)
            apart.append(float(np.abs(expected.astype(float) - found).mean()))
    assert max(apart) < 0.5


@pytest.mark.skipif(CARD, reason="a card's bundles are named in EVERFRAME_GPU_BUNDLES")
@pytest.mark.parametrize("kind", ["following", "int8 ring", "following, int8 ring"])
@pytest.mark.slow
def test_other_rings(kind: str, card: Card, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Sinks that follow the window, and INT8 keys and values, through all that moves them and a restart."""
    from helpers import with_int8_ring

    follows: dict[str, Path] = request.getfixturevalue("following_paths")
    path = follows["portable"] if "following" in kind else request.getfixturevalue("portable_path")
    if kind == "following" and not card.portable_only:
        path = follows["in-place"]
    if "int8" in kind:
        g = Bundle.open(path).manifest.geometry
        path = with_int8_ring(path, tmp_path / "small.everframe", g.sink * g.frame_tokens)
    built = card.built(path, tmp_path / "built")
    with Stream(built, seed=4) as cpu, Stream(built, seed=4, backend=card.open()) as gpu:
        for c in range(9):
            for stream in (cpu, gpu) if c in (4, 6) else ():
                stream.set_prompt(built.manifest.prompts[c // 4], "flush" if c == 4 else "smooth")
            found, expected = gpu.next_chunk().latent, cpu.next_chunk().latent
            assert error_of(expected, found) < (0.05 if "int8" in kind else CLOSE), c
        save_state(gpu, tmp_path / "state")
        rest = [gpu.next_chunk().frames for _ in range(2)]
    with Stream(built, seed=4, backend=card.open()) as gpu:
        load_state(gpu, tmp_path / "state")
        assert all((gpu.next_chunk().frames == frames).all() for frames in rest)


def test_the_ring_is_updated_in_place(built: Bundle, card: Card) -> None:
    if built.manifest.form != "in-place":
        pytest.skip("the portable form stores its keys and values by copying")
    with Stream(built, backend=card.open()) as stream:
        stream.next_chunk()
        keys = stream._loop.keys[0]
        assert isinstance(keys, CudaBuffer)
        tokens = built.manifest.geometry.chunk_tokens
        held = keys.read_tokens(0, tokens)
        assert np.abs(held.astype(np.float32)).sum() > 0
        stream.next_chunk()
        assert (keys.read_tokens(0, tokens) == held).all()  # the sinks stay


def test_what_a_stream_takes_comes_back(built: Bundle, card: Card, report: dict[str, Any]) -> None:
    """Without the collector: streams that ran for days stand in its oldest generation. Engines stay with their backend."""
    backend = card.open()
    free = backend.device.cuda

    def stream() -> int:
        before = free.call("cudaMemGetInfo")[0]
        with Stream(built, backend=backend) as one:
            for _ in range(4):
                one.next_chunk()
            return before - free.call("cudaMemGetInfo")[0]

    stream()
    gc.collect()
    left = free.call("cudaMemGetInfo")[0]
    gc.disable()
    try:
        sizes = [stream() for _ in range(4)]
    finally:
        gc.enable()
    report[f"{card.name}, {built.path.stem}, MiB of a second stream"] = [size / 2**20 for size in sizes]
    assert free.call("cudaMemGetInfo")[0] >= left - (1 << 20 if CARD else 0)


def test_kernels_are_kept_of_every_engine(built: Bundle, card: Card) -> None:
    """TensorRT-RTX compiles for the card at the first run; whatever ran is kept for the next start."""
    if card.backend != "tensorrt-rtx":
        pytest.skip("classic TensorRT has no such cache")
    with Stream(built, backend=card.open()) as stream:
        for _ in range(3):
            stream.next_chunk()
    kept = {file.name.split(".")[0] for file in (built.path / "engines").rglob("*.cache")}
    assert {"step", "decode", "prompt"} <= kept
    file = next((built.path / "engines").rglob("step.*.cache"))
    content = file.read_bytes()
    file.write_bytes(bytes(len(content)))  # as after a power cut
    with Stream(built, backend=card.open()) as stream:
        for _ in range(3):
            stream.next_chunk()
    assert any(file.read_bytes())


@pytest.mark.slow
def test_no_growth_over_500_chunks(built: Bundle, card: Card) -> None:
    with Stream(built, backend=card.open()) as stream:
        cuda = stream._loop.keys[0].cuda  # type: ignore[attr-defined]
        for _ in range(20):
            stream.next_chunk()
        free, _ = cuda.call("cudaMemGetInfo")
        for _ in range(480 if CARD else 60):
            stream.next_chunk()
        assert cuda.call("cudaMemGetInfo")[0] >= free - (1 << 20)
