"""The GPU loop's order of calls, on simulated_cuda.py: real engines, real frames, CUDA's rules, no GPU."""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest

from everframe.engines.bundle import Bundle
from everframe.engines.cuda import Cuda, CudaBuffer, memory_of, too_old
from everframe.engines.cudalaunch import CudaDevice, CudaLaunch, Workspace
from everframe.engines.errors import RunError, UserError, load_error
from everframe.engines.tensorrt import TrtEngine, TrtPass
from everframe.runtime import Stream
from everframe.runtime.state import load_state, save_state

from helpers import PROMPTS
from simulated_cuda import SimulatedBackend, SimulatedRuntime


@pytest.fixture(params=["in-place", "portable"])
def bundle(request: pytest.FixtureRequest, bundle_path: Path, portable_path: Path) -> Bundle:
    return Bundle.open(portable_path if request.param == "portable" else bundle_path)


@pytest.mark.parametrize("transition", ["smooth", "flush", "cut"])
@pytest.mark.parametrize("eager", [False, True], ids=["late as allowed", "at once"])
@pytest.mark.parametrize("overlap", [False, True])
def test_same_frames_as_the_cpu(
    bundle: Bundle, overlap: bool, eager: bool, transition: Literal["smooth", "flush", "cut"]
) -> None:
    runtime = SimulatedRuntime(eager)
    with (
        Stream(bundle, seed=3, overlap=overlap) as cpu,
        Stream(bundle, seed=3, overlap=overlap, backend=SimulatedBackend(runtime)) as gpu,  # type: ignore[arg-type]
    ):
        for c in range(11):
            if c == 6:
                cpu.set_prompt(PROMPTS[1], transition)
                gpu.set_prompt(PROMPTS[1], transition)
            a, b = cpu.next_chunk(), gpu.next_chunk()
            assert (a.latent == b.latent).all(), f"chunk {c}"
            assert (a.frames == b.frames).all(), f"chunk {c}"
        assert all(launch.why_not is None for launch in gpu._loop._chains.values())  # type: ignore[attr-defined]


def test_a_chunk_is_one_launch_and_one_wait(bundle: Bundle) -> None:
    """In the steady state: inputs go down, one graph is launched, its frames and its latent are waited for. The portable
    form's store is in the graph too, of which it has one a slot."""
    runtime = SimulatedRuntime()
    with Stream(bundle, backend=SimulatedBackend(runtime), verify=False) as stream:  # type: ignore[arg-type]
        for _ in range(16):
            stream.next_chunk()
        recorded = {slot for chain in stream._loop._chains.values() for slot in chain.graphs}  # type: ignore[attr-defined]
        slots = {stream.layout.place(n, True).start for n in range(1, 16)}  # the first chunk goes plainly
        assert recorded == (slots if stream._loop.portable else {0})
        runtime.log.clear()
        stream.next_chunk()
        calls = [name for name in runtime.log if name != "cudaEventElapsedTime"]
    assert calls.count("cudaGraphLaunch") == 1
    launch = calls.index("cudaGraphLaunch")
    assert calls[launch + 1 :] == ["cudaEventSynchronize"]  # only the frames; the next chunk goes on meanwhile
    assert [name for name in calls[:launch] if "Synchronize" in name] == [
        "cudaStreamSynchronize"
    ] * 2  # made; x0 is here
    assert not [name for name in calls if "Malloc" in name or "Alloc" in name or "EventRecord" in name]
    assert calls.count("cudaMemcpy2DAsync") == calls.count("cudaMemcpyAsync")  # here a copy is one of one row


def test_where_capture_fails_the_chunk_is_enqueued_plainly(bundle: Bundle) -> None:
    with (
        Stream(bundle, seed=1, overlap=True) as cpu,
        Stream(bundle, seed=1, backend=SimulatedBackend(SimulatedRuntime(captures=False))) as gpu,  # type: ignore[arg-type]
    ):
        for _ in range(6):
            assert (cpu.next_chunk().frames == gpu.next_chunk().frames).all()
        reasons = {launch.why_not for launch in gpu._loop._chains.values()}  # type: ignore[attr-defined]
        assert "CUDA: cudaStreamBeginCapture: cudaErrorStreamCaptureUnsupported" in reasons


def test_a_forgotten_event_is_noticed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation would show a race: without the fork, the decoder reads a latent that is not there yet."""

    def unordered(self: CudaLaunch, flags: int) -> None:
        if self._side is not None:
            self._side.enqueue(flags)
        self._main.enqueue(flags)

    monkeypatch.setattr(CudaLaunch, "_enqueue", unordered)
    with (
        Stream(bundle, overlap=True) as cpu,
        Stream(bundle, backend=SimulatedBackend(SimulatedRuntime())) as gpu,  # type: ignore[arg-type]
    ):
        assert any((cpu.next_chunk().frames != gpu.next_chunk().frames).any() for _ in range(4))


def test_state_of_an_overlapped_stream(bundle: Bundle, tmp_path: Path) -> None:
    def new() -> Stream:
        return Stream(bundle, seed=5, backend=SimulatedBackend(SimulatedRuntime()))  # type: ignore[arg-type]

    with new() as stream:
        for _ in range(5):
            stream.next_chunk()
        save_state(stream, tmp_path / "s")
        expected = [stream.next_chunk().frames for _ in range(4)]
    with new() as stream:
        load_state(stream, tmp_path / "s")
        assert all((stream.next_chunk().frames == frames).all() for frames in expected)


def test_memory_is_given_back(bundle: Bundle) -> None:
    runtime = SimulatedRuntime()
    free = runtime.free
    with Stream(bundle, backend=SimulatedBackend(runtime)) as stream:  # type: ignore[arg-type]
        stream.next_chunk()
        assert runtime.free < free
    del stream
    gc.collect()
    assert runtime.free == free


def test_events_and_graphs_are_destroyed(bundle: Bundle) -> None:
    runtime, counts = SimulatedRuntime(), []
    backend = SimulatedBackend(runtime)
    for _ in range(5):
        with Stream(bundle, backend=backend) as stream:  # type: ignore[arg-type]
            for _ in range(6):
                stream.next_chunk()
            assert {"cudaGraphInstantiate", "cudaGraphUpload"} <= set(runtime.log)
        del stream
        counts.append(len(runtime.alive))
    assert counts == [2] * 5  # the backend's own streams
    del backend
    gc.collect()
    assert not runtime.alive
    assert runtime.log.count("cudaGraphDestroy") == runtime.log.count("cudaGraphExecDestroy") > 0


@pytest.mark.parametrize("kind", [UserError, RunError])
def test_what_failed_first_is_why_nothing_is_recorded(kind: type[Exception]) -> None:
    runtime = SimulatedRuntime()
    cuda = Cuda(runtime)
    runs = []

    def fails(stream: object = None) -> None:
        runs.append(stream)
        if runtime.capturing is not None:
            raise kind("this layer allocates")

    launch = CudaLaunch(cuda, [fails])
    for _ in range(3):
        launch.start()
        launch.main()
    assert not launch.graphs
    assert launch.why_not == "this layer allocates"
    assert len(runs) == 4  # plainly three times, and the attempt
    assert runtime.capturing is None


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        ("580.65.06", ["the driver is 580.65.06", "older than the installed cuda-python", "cuda-python~=13.0"]),
        ("550.54.14", ["the driver is 550.54.14", "CUDA 13 needs 580", "cuda-python~=12.9"]),
        ("470.256.02", ["the driver is 470.256.02", "CUDA 13 needs 580", "; install one"]),
    ],
)
def test_an_old_driver_is_named(tmp_path: Path, driver: str, words: list[str]) -> None:
    """It answers with the code of a machine without any; the kernel's own file tells."""
    file = tmp_path / "version"
    file.write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Thu Feb 22 2024\nGCC version:\n")
    told = too_old("CUDA: cudaGetDeviceCount: cudaErrorInsufficientDriver", file)
    for word in words:
        assert word in told
    assert too_old("CUDA: cudaGetDeviceCount: cudaErrorNoDevice", file) == ""
    assert too_old("CUDA: cudaGetDeviceCount: cudaErrorInsufficientDriver", tmp_path / "none") == ""


def test_memory_that_a_card_shares_with_the_system(tmp_path: Path) -> None:
    """CUDA tells what nothing uses (MemFree); what holds copies of files is given to whoever asks."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 64000000 kB\nMemFree:  2000000 kB\nMemAvailable:   50000000 kB\nBuffers: 1 kB\n")
    runtime = SimulatedRuntime(memory=2 << 30)
    assert memory_of(runtime, meminfo) == (2 << 30, 2 << 30)  # a card with memory of its own
    runtime.integrated = True
    assert memory_of(runtime, meminfo) == (50_000_000 << 10, 2 << 30)
    assert memory_of(runtime, tmp_path / "none") == (2 << 30, 2 << 30)


def test_full_memory_is_asked_for_again_after_a_collection() -> None:
    """Closed streams may be held by cycles until the collector comes."""
    runtime = SimulatedRuntime(memory=3 << 20)
    cuda = Cuda(runtime)
    cycle: list[object] = [CudaBuffer(cuda, (1 << 20,), "float16")]
    cycle.append(cycle)
    del cycle
    assert CudaBuffer(cuda, (1 << 20,), "float16").bytes == 2 << 20


def test_out_of_memory_says_how_much_and_what_to_do() -> None:
    cuda = Cuda(SimulatedRuntime(memory=3 << 20))
    held = CudaBuffer(cuda, (1 << 10, 1 << 10), "float16")
    with pytest.raises(UserError, match=r"4 MiB asked for a tensor float32 \[1024, 1024\], 1 of .* MiB free: choose"):
        CudaBuffer(cuda, (1024, 1024), "float32")
    assert held.bytes == 2 << 20


def test_bfloat16_rings_are_numbers_on_the_host() -> None:
    cuda = Cuda(SimulatedRuntime())
    ring = CudaBuffer(cuda, (1, 2, 6, 4), "bfloat16")
    assert str(ring.dtype) == "bfloat16"
    values = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    ring.write_tokens(3, values)
    assert (ring.read_tokens(3, 6).astype(np.float32) == values).all()
    assert (ring.read_tokens(0, 3).astype(np.float32) == 0).all()
    other = CudaBuffer(cuda, (1, 2, 3, 4), "bfloat16")
    other.write(values.astype(ring.dtype))
    ring.copy_tokens(0, other)
    assert (ring.read().astype(np.float32)[:, :, :3] == values).all()


def test_passes_of_an_engine_share_its_context() -> None:
    """A pass points the context at its own buffers, once as long as no other pass comes between."""

    class Context:
        def __init__(self) -> None:
            self.calls: list[tuple] = []

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.calls.append((name, address))
            return True

        def execute_async_v3(self, stream: int) -> bool:
            self.calls.append(("run", stream))
            return len(self.calls) < 12

    class Engine:
        file, bound, context = Path("step.engine"), None, Context()
        errors = SimpleNamespace(clear=lambda: None, take=lambda: "")

        def prepare(self) -> None:
            pass

        fail = TrtEngine.fail

    cuda = Cuda(SimulatedRuntime())
    buffers = [CudaBuffer(cuda, (1,), "float32") for _ in range(2)]
    engine = Engine()
    first, second = (TrtPass(engine, {"x": b}) for b in buffers)  # type: ignore[arg-type]
    for one in (first, first, second, first):
        one(1)
    a, b = (("x", buffer.address) for buffer in buffers)
    assert engine.context.calls == [a, ("run", 1), ("run", 1), b, ("run", 1), a, ("run", 1)]
    engine.context.calls += [()] * 9  # from its twelfth call on, the context fails
    with pytest.raises(RunError, match=r"step.engine: could not run: TensorRT gave no reason"):
        first(1)


def test_engines_that_take_turns_share_the_largest_ones_scratch_memory() -> None:
    runtime = SimulatedRuntime()
    scratch = Workspace(device := CudaDevice(Cuda(runtime)))
    free = device.free()
    assert free is not None
    for size in (1000, 5000, 3000):
        scratch.reserve(size)
    assert device.free() == free - 5000  # promised: who asks now must not take it
    piece = scratch.take()
    assert device.free() == free - 5000  # and now it is
    assert piece.bytes == 5000
    assert "cudaMemsetAsync" not in runtime.log  # the main stream's, which a decoder on the other one does not wait for
    assert scratch.take() is piece
    scratch.reserve(8000)  # an engine that is loaded late
    later = scratch.take()
    assert later.bytes == 8000
    assert later.address != piece.address


def test_the_simulation_has_no_name_that_cuda_has_not() -> None:
    """Names and constants of cuda-python, whose functions this code calls by the same names."""
    real = pytest.importorskip("cuda.bindings.runtime")
    simulated = SimulatedRuntime()
    for name in (name for name in dir(simulated) if name.startswith("cuda")):
        assert hasattr(real, name), name
        ours, theirs = getattr(simulated, name), getattr(real, name)
        if isinstance(ours, int):
            assert ours == theirs, name
        elif not callable(ours) or name == "cudaError_t":
            for inner in (n for n in vars(ours) if n.startswith("cuda")):
                assert hasattr(theirs, inner), inner
                if name in ("cudaError_t", "cudaGraphInstantiateFlags"):
                    found = getattr(ours, inner)
                    assert int(getattr(found, "value", found)) == int(getattr(theirs, inner)), inner


def test_others_read_a_buffer_without_a_copy() -> None:
    """As CuPy does: by address, shape, type and the stream on which it is written."""
    cuda = Cuda(runtime := SimulatedRuntime())
    buffer = CudaBuffer(cuda, (2, 3), "float32")
    buffer.write(values := np.arange(6, dtype=np.float32).reshape(2, 3))
    cuda.wait()
    told = buffer.__cuda_array_interface__
    seen = runtime.view(told["data"][0], 24).view(np.dtype(told["typestr"])).reshape(told["shape"])
    assert (seen == values).all()
    assert told["stream"] == int(cuda.stream)
    assert CudaBuffer(cuda, (4,), "bfloat16").__cuda_array_interface__["typestr"] == "<u2"


def test_decoding_comes_first_and_waiting_sleeps() -> None:
    cuda = Cuda(runtime := SimulatedRuntime())
    assert (cuda.stream.priority, cuda.beside.priority) == (0, -5)  # the lower number goes first
    assert runtime.flags == runtime.cudaDeviceScheduleBlockingSync


def test_a_recorded_chunk_keeps_the_priorities(bundle: Bundle) -> None:
    runtime = SimulatedRuntime()
    with Stream(bundle, backend=SimulatedBackend(runtime)) as stream:  # type: ignore[arg-type]
        for _ in range(6):
            stream.next_chunk()
        graphs = [g for chain in stream._loop._chains.values() for g in chain.graphs.values()]  # type: ignore[attr-defined]
        assert graphs
        assert {graph.flags for graph in graphs} == {8}


@pytest.mark.parametrize(
    ("reason", "full"),
    [  # lines of NVIDIA/TensorRT and microsoft/onnxruntime issues
        ("[defaultAllocator.cpp::allocate::19] Error Code 1: Cuda Runtime (out of memory)", True),
        ("[safeDeserialize.cpp::load::269] Error Code 2: OutOfMemory (no further information)", True),
        (
            "BFCArena::AllocateRawInternal(size_t, bool) Failed to allocate memory for requested buffer of size 839",
            True,
        ),
        ("CUDA: cudaMalloc: cudaErrorMemoryAllocation", True),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", True),
        ("[engine.cpp::readEngineFromArchive::1093] Error Code 2: Internal Error (magic tag mismatch)", False),
        ("INVALID_ARGUMENT: Cannot deserialize with an empty memory buffer.", False),
        ("no reason given", False),
    ],
)
def test_a_file_that_a_full_card_cannot_load_needs_no_mending(reason: str, full: bool) -> None:
    kind = load_error(reason, 4 << 30, 8 << 30)
    assert issubclass(kind, UserError)  # said in one line wherever it is loaded
    assert issubclass(kind, RunError) == full
    assert load_error(reason, 9 << 30, 8 << 30) is UserError  # no such card ever holds it
