"""ONNX Runtime's own providers on a card, which need no TensorRT of ours, against its CPU's in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CARD, SOURCES, error_of  # type: ignore[attr-defined]

from everframe.engines.base import EngineOptions
from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.engines.ort import OrtBackend
from everframe.runtime import Stream
from everframe.runtime.state import load_state, save_state

CLOSE = 0.01  # of x0's deviation, as for TensorRT (test_thresholds.py)

pytestmark = pytest.mark.skipif(not CARD, reason="tests/engines/test_ort.py runs its buffers on a simulated card")


@pytest.fixture(params=["cuda", "tensorrt", "nvtensorrtrtx"])
def provider(request: pytest.FixtureRequest) -> str:
    try:
        OrtBackend(EngineOptions(provider=request.param))
    except UserError as error:
        pytest.skip(str(error))
    return request.param


@pytest.fixture(params=SOURCES if CARD else [], ids=[Path(source).stem for source in SOURCES if CARD])
def bundle(request: pytest.FixtureRequest, provider: str) -> Bundle:
    bundle = Bundle.open(Path(request.param))
    if provider != "cuda" and bundle.manifest.form == "in-place":
        pytest.skip("TensorRT's parser loses the lengths of this form")
    return bundle


def opened(provider: str) -> OrtBackend:
    return OrtBackend(EngineOptions(provider=provider))


def test_twelve_chunks_against_the_cpu(bundle: Bundle, provider: str, report: dict[str, Any]) -> None:
    """Every fill level of the ring and past its wrap."""
    errors, frames, stages = [], [], []
    with Stream(bundle, seed=1) as cpu, Stream(bundle, seed=1, backend=opened(provider)) as gpu:
        for _ in range(12):
            a, b = cpu.next_chunk(), gpu.next_chunk()
            errors.append(error_of(a.latent, b.latent))
            frames.append(float(np.abs(a.frames.astype(float) - b.frames).mean()))
            stages.append(b.timings)
    report[f"onnxruntime {provider}, {bundle.path.stem}"] = {
        "error_of_x0": errors,
        "error_of_frames": frames,
        "ms": {name: [1000 * np.sum(getattr(t, name)) for t in stages] for name in ("diffuse", "decode", "total")},
    }
    assert max(errors) < CLOSE
    assert max(frames) < 0.5


@pytest.mark.parametrize("transition", ["swap", "smooth", "flush", "cut"])
def test_prompt_changes(bundle: Bundle, provider: str, transition: Any) -> None:
    other = bundle.manifest.prompts[1]
    with (
        Stream(bundle, seed=4, overlap=False) as cpu,  # as on the card: a change is seen at once
        Stream(bundle, seed=4, backend=opened(provider)) as gpu,
    ):
        for c in range(9):
            if c == 5:
                cpu.set_prompt(other, transition)
                gpu.set_prompt(other, transition)
            assert error_of(cpu.next_chunk().latent, gpu.next_chunk().latent) < CLOSE, c


def test_a_saved_stream_goes_on_on_the_cpu(bundle: Bundle, provider: str, tmp_path: Path) -> None:
    with Stream(bundle, seed=5, backend=opened(provider)) as stream:
        for _ in range(5):
            stream.next_chunk()
        save_state(stream, tmp_path / "s")
        expected = [stream.next_chunk().latent for _ in range(4)]
    with Stream(bundle, seed=5, overlap=False) as stream:
        load_state(stream, tmp_path / "s")
        assert all(error_of(latent, stream.next_chunk().latent) < CLOSE for latent in expected)
