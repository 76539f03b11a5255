"""The ONNX Runtime backend: in place for real, and strict about what it is bound to."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from everframe.engines import store
from everframe.engines.base import EngineOptions
from everframe.engines.bundle import Bundle
from everframe.engines.cuda import Cuda
from everframe.engines.errors import RunError, UserError
from everframe.engines.ort import GpuDevice, OrtBackend, OrtEngine
from everframe.runtime import Stream

from simulated_cuda import SimulatedRuntime


@pytest.fixture
def step(bundle: Bundle) -> OrtEngine:
    return OrtBackend(EngineOptions()).load(bundle, "step")


def buffers_of(engine: OrtEngine) -> tuple[dict, dict]:
    inputs = {s.name: engine.device.zeros(s.shape, s.dtype) for s in engine.graph.inputs}
    outputs = {
        s.name: inputs[n] if (n := s.name.removesuffix("_next")) in inputs else engine.device.zeros(s.shape, s.dtype)
        for s in engine.graph.outputs
    }
    return inputs, outputs


def test_the_ring_is_updated_in_place_and_only_in_its_slot(step: OrtEngine) -> None:
    inputs, outputs = buffers_of(step)
    shape = inputs["k_0"].shape
    before = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for name in ("k_0", "v_0", "k_1", "v_1"):
        inputs[name].write(before)
    inputs["slot"].write(np.array([48], np.int64))
    inputs["kv_len"].write(np.array([96], np.int64))
    inputs["latent"].write(np.ones(inputs["latent"].shape, np.float32))
    address = inputs["k_0"].value.data_ptr()
    step.bind(inputs, outputs)()
    assert inputs["k_0"].value.data_ptr() == address
    for name in ("k_0", "v_0", "k_1", "v_1"):
        after = inputs[name].read()
        assert (after[:, :, :48] == before[:, :, :48]).all()
        assert (after[:, :, 72:] == before[:, :, 72:]).all()
        assert (after[:, :, 48:72] != before[:, :, 48:72]).all()


def test_tokens_beyond_the_valid_length_are_not_seen(step: OrtEngine) -> None:
    results = []
    for rubbish in (0.0, 1e6):
        inputs, outputs = buffers_of(step)
        for name in ("k_0", "v_0", "k_1", "v_1"):
            inputs[name].write(np.full(inputs[name].shape, rubbish, np.float32))
        inputs["kv_len"].write(np.array([24], np.int64))
        inputs["latent"].write(np.random.default_rng(1).standard_normal(inputs["latent"].shape).astype(np.float32))
        step.bind(inputs, outputs)()
        results.append(outputs["x0"].read())
    assert (results[0] == results[1]).all()


def test_what_cannot_be_run_is_one_line(step: OrtEngine) -> None:
    """ONNX Runtime's own exceptions, as it raises them for a card that is full; here for a slot outside of the ring."""
    inputs, outputs = buffers_of(step)
    run = step.bind(inputs, outputs)
    inputs["slot"].write(np.full_like(inputs["slot"].read(), 10**6))
    with pytest.raises(RunError, match=r"step\.onnx: ONNX Runtime cannot run it: .+") as told:
        run()
    assert "\n" not in str(told.value)


def test_buffers_refuse_what_does_not_fit(step: OrtEngine) -> None:
    buffer = step.device.zeros((2, 3), "float32")
    for wrong in (np.zeros((3, 2), np.float32), np.zeros((2, 3), np.float64)):
        with pytest.raises(ValueError, match="cannot write"):
            buffer.write(wrong)
    kept = buffer.read()
    buffer.write(np.ones((2, 3), np.float32))
    assert (kept == 0).all()  # read() is a copy


def test_bind_refuses_other_names_shapes_and_dtypes(step: OrtEngine) -> None:
    inputs, outputs = buffers_of(step)
    with pytest.raises(ValueError, match=r"step\.onnx.*k_0"):
        step.bind({k: v for k, v in inputs.items() if k != "k_0"}, outputs)
    with pytest.raises(ValueError, match="surplus"):
        step.bind(inputs | {"surplus": inputs["step"]}, outputs)
    with pytest.raises(ValueError, match="input slot"):
        step.bind(inputs | {"slot": step.device.zeros((2,), "int64")}, outputs)
    with pytest.raises(ValueError, match="output x0"):
        step.bind(inputs, outputs | {"x0": step.device.zeros(outputs["x0"].shape, "float16")})


def test_a_file_that_is_no_graph(bundle_path: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle_path, tmp_path / "x.everframe"))
    bundle = Bundle.open(folder)
    (folder / "decode.onnx").write_bytes(b"no graph at all")
    with pytest.raises(UserError, match=r"decode\.onnx: ONNX Runtime .* cannot load it"):
        OrtBackend(EngineOptions()).load(bundle, "decode")


def test_a_provider_that_is_not_installed_says_what_to_install() -> None:
    with pytest.raises(UserError, match=r"CUDAExecutionProvider.*--force-reinstall onnxruntime-gpu"):
        OrtBackend(EngineOptions(provider="cuda"))
    with pytest.raises(UserError, match="nvtensorrtrtx"):
        OrtBackend(EngineOptions(provider="nvtensorrtrtx"))


def test_a_provider_that_falls_back_to_the_cpu_is_refused(bundle: Bundle) -> None:
    """As ONNX Runtime does where CUDA's libraries are missing: a warning on the terminal, and a session on the CPU."""
    backend = OrtBackend(EngineOptions())
    backend.option = "cuda"  # what was asked for; the sessions are the CPU's
    with pytest.raises(UserError, match="fell back to the CPU"):
        backend.load(bundle, "decode")


def test_what_tensorrt_s_provider_keeps_is_of_one_graph(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names an engine by the graph's name and shapes: with other weights, as of another upscaler, it would be taken."""
    bundle = Bundle.open(shutil.copytree(bundle_path, tmp_path / "b", ignore=shutil.ignore_patterns("engines")))
    backend = OrtBackend(EngineOptions())
    backend.option, backend.provider = "tensorrt", "TensorrtExecutionProvider"
    (first, kept), then = backend._providers(bundle, "decode")
    assert (first, then) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    place = Path(kept["trt_engine_cache_path"])
    assert place.is_dir()
    assert bundle.manifest.graphs["decode"].digest.startswith(place.name.removeprefix(".ort-"))
    assert backend._providers(bundle, "step")[0][1]["trt_engine_cache_path"] != str(place)
    assert store.stored(bundle, {}) == []  # no engines of ours

    def full(self: Path, *args: object, **options: object) -> None:
        raise OSError("Read-only file system")

    monkeypatch.setattr(Path, "mkdir", full)
    assert backend._providers(bundle, "decode") == [(first, {}), then]


def test_tensorrt_providers_are_kept_from_the_in_place_form(bundle: Bundle) -> None:
    """Their parser drops the attention's lengths silently (docs/tensorrt.md): wrong frames until the ring is full."""
    backend = OrtBackend(EngineOptions())
    for provider in ("tensorrt", "nvtensorrtrtx"):
        backend.option = provider
        with pytest.raises(UserError, match="export it with --form portable"):
            backend.load(bundle, "step")


@pytest.mark.parametrize(("threads", "step", "decode"), [(1, 1, 1), (2, 1, 1), (3, 2, 1), (8, 4, 4)])
def test_threads_of_passes_side_by_side(bundle: Bundle, threads: int, step: int, decode: int) -> None:
    backend = OrtBackend(EngineOptions(threads=threads))
    engines = {name: backend.load(bundle, name, beside=True) for name in ("step", "decode")}
    found = {name: e.session.get_session_options().intra_op_num_threads for name, e in engines.items()}
    assert found == {"step": step, "decode": decode}
    assert backend.load(bundle, "decode").session.get_session_options().intra_op_num_threads == threads


class Counting(SimulatedRuntime):
    """Counts the bytes that cross the bus."""

    crossed = 0

    def cudaMemcpy2DAsync(self, target, tp, source, sp, width, rows, kind, stream):  # noqa: N802
        self.crossed += width * rows * (kind != "d2d")
        return super().cudaMemcpy2DAsync(target, tp, source, sp, width, rows, kind, stream)


@pytest.mark.parametrize("path", ["bundle_path", "portable_path"])
def test_on_a_card_the_ring_stays_there(path: str, request: pytest.FixtureRequest) -> None:
    """The buffers of a GPU provider and the order of its passes, by CUDA's rules and the CPU's sessions: the same frames,
    through a flush too, and what goes up and down in a chunk is what the host writes and shows."""
    bundle = Bundle.open(request.getfixturevalue(path))
    runtime, backend = Counting(), OrtBackend(EngineOptions())
    backend.device = GpuDevice(Cuda(runtime), place="cpu")
    with Stream(bundle, seed=1, overlap=False) as cpu, Stream(bundle, seed=1, backend=backend) as gpu:
        assert not gpu.overlap
        loop = gpu._loop
        small = [*loop.noise, *loop.tables.values(), loop.mask, loop.slot, loop.valid, loop.text]
        written = sum(buffer.read().nbytes for buffer in small)
        for c in range(12):
            for stream in (cpu, gpu) if c == 8 else ():
                stream.set_prompt(bundle.manifest.prompts[1], "flush")
            runtime.crossed = 0
            a, b = cpu.next_chunk(), gpu.next_chunk()
            assert (a.frames == b.frames).all()
            assert runtime.crossed <= written + a.frames.nbytes + a.latent.nbytes
