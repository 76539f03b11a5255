"""Engines run on a real GPU. Nothing here has run yet: no GPU was available when it was written (docs/tensorrt.md).

make test-gpu
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from everframe.engines import store
from everframe.engines.build import build_engines
from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.engines.inspection import installed_backends
from everframe.engines.tensorrt import CudaBuffer, TrtBackend
from everframe.engines.trtbuild import BuildOptions
from everframe.runtime import Stream
from everframe.runtime.plan.operations import Request, memory

from helpers import PROMPTS

BACKENDS = [b for b in ("tensorrt-rtx", "tensorrt") if b in installed_backends()]
try:
    GPU: str | None = None
    if BACKENDS:
        TrtBackend(BACKENDS[0])
    else:
        GPU = "neither tensorrt-rtx nor tensorrt is installed"
except UserError as error:
    GPU = str(error)
# A machine that has a card and cannot use it fails: skipped tests would pass for tests that were run.
CARD = any(Path(node).exists() for node in ("/dev/nvidia0", "/dev/nvhost-gpu", "/proc/driver/nvidia"))
pytestmark = pytest.mark.skipif(GPU is not None and not CARD, reason=GPU or "")


def test_the_card_can_be_used() -> None:
    assert GPU is None, GPU


@pytest.fixture(scope="module", params=BACKENDS or ["none"])
def backend_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=["in-place", "portable"])
def built(
    request: pytest.FixtureRequest,
    backend_name: str,
    bundle_path: Path,
    portable_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:

    source = portable_path if request.param == "portable" else bundle_path
    copy = Path(shutil.copytree(source, tmp_path_factory.mktemp("gpu") / "b.everframe"))
    build_engines(copy, BuildOptions(backend=backend_name))
    return Bundle.open(copy)


def test_twelve_chunks_against_the_cpu(built: Bundle, backend_name: str) -> None:
    """Every fill level of the ring and past its wrap, in lock-step: half precision against float32."""
    with Stream(built, seed=1) as cpu, Stream(built, seed=1, backend=TrtBackend(backend_name)) as gpu:
        for c in range(12):
            a, b = cpu.next_chunk(), gpu.next_chunk()
            error = np.sqrt(np.mean((a.latent - b.latent) ** 2)) / a.latent.std()
            assert error < 0.1, f"chunk {c}"


def test_the_recorded_graph_gives_what_plain_passes_give(built: Bundle, backend_name: str) -> None:
    frames = []
    for record in (True, False):
        with Stream(built, seed=2, backend=TrtBackend(backend_name)) as stream:
            chains = list(stream._loop._chains.values())
            if not record:
                for chain in chains:
                    chain.why_not = "switched off"  # type: ignore[attr-defined]
            frames.append(np.concatenate([stream.next_chunk().frames for _ in range(8)]))
            if record:
                assert any(chain.graph is not None for chain in chains)  # type: ignore[attr-defined]
    assert (frames[0] == frames[1]).all()


def test_overlap_changes_nothing_but_the_time(built: Bundle, backend_name: str) -> None:
    frames = []
    for overlap in (True, False):
        with Stream(built, seed=2, overlap=overlap, backend=TrtBackend(backend_name)) as stream:
            frames.append(np.concatenate([stream.next_chunk().frames for _ in range(12)]))
    assert (frames[0] == frames[1]).all()


def test_memory_stays_under_what_plan_says(built: Bundle, backend_name: str) -> None:
    backend = TrtBackend(backend_name)
    cuda = backend.device.cuda
    cuda.call("cudaFree", 0)  # the driver's own context is not the plan's
    before, _ = cuda.call("cudaMemGetInfo")
    with Stream(built, backend=backend) as stream:
        for _ in range(4):
            stream.next_chunk()
        used = before - cuda.call("cudaMemGetInfo")[0]
    (found,) = store.stored(built, installed_backends())
    assert found.record is not None
    engines = sum(e.file.bytes + sum(e.memory.values()) for e in found.record.graphs.values())
    planned = memory(Request(built.manifest.network, built.manifest.geometry, 5))
    buffers = planned.ring + planned.prompt + planned.decoder
    assert used <= engines + buffers + (64 << 20)  # and the kernels that TensorRT-RTX compiles on first use


def test_the_ring_is_updated_in_place(built: Bundle, backend_name: str) -> None:
    if built.manifest.form != "in-place":
        pytest.skip("the portable form stores its keys and values by copying")
    with Stream(built, backend=TrtBackend(backend_name)) as stream:
        stream.next_chunk()
        keys = stream._loop.keys[0]
        assert isinstance(keys, CudaBuffer)
        tokens = built.manifest.geometry.chunk_tokens
        held = keys.read_tokens(0, tokens)
        assert np.abs(held.astype(np.float32)).sum() > 0
        stream.next_chunk()
        assert (keys.read_tokens(0, tokens) == held).all()  # the sinks stay


@pytest.mark.parametrize("transition", ["swap", "smooth", "flush", "cut"])
def test_prompt_changes_run(built: Bundle, backend_name: str, transition: str) -> None:
    with Stream(built, backend=TrtBackend(backend_name)) as stream:
        for c in range(8):
            if c == 5:
                stream.set_prompt(PROMPTS[1], transition)  # type: ignore[arg-type]
            assert np.isfinite(stream.next_chunk().latent).all()


def test_no_growth_over_500_chunks(built: Bundle, backend_name: str) -> None:
    with Stream(built, backend=TrtBackend(backend_name)) as stream:
        cuda = stream._loop.keys[0].cuda  # type: ignore[attr-defined]
        for _ in range(20):
            stream.next_chunk()
        free, _ = cuda.call("cudaMemGetInfo")
        for _ in range(480):
            stream.next_chunk()
        assert cuda.call("cudaMemGetInfo")[0] >= free - (1 << 20)
